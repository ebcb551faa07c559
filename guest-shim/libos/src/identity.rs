//! What the context is: its manifest, and the identity that follows from that and the shim.
//!
//! The manifest's canonical form travels with the configuration, the identity in the context's block. Where the launch is measured
//! both are the host's word until the machine's report says so of the manifest (`attest::check_manifest`). Both have to agree, so who
//! sees one of them (a program, by `/sys/kernel/cloak`; later a verifier, in evidence) has the other one's word for it.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use sha2::{Digest, Sha256, Sha384};
use spin::Once;

/// Bytes of a SHA-384.
const HASH: usize = 48;

/// Shim and manifest do not lead to the context's block's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotTheSame;

struct Own {
    identity: [u8; HASH],
    manifest: Vec<u8>,
}

static OWN: Once<Own> = Once::new();

/// Takes the record of the configuration: SHA-384 of the shim, canonical form of the manifest. `expected` is the context's block's.
///
/// # Errors
/// [`NotTheSame`].
pub fn take(record: &[u8], expected: &[u8; HASH]) -> Result<(), NotTheSame> {
    let (shim, manifest) = record.split_at_checked(HASH).ok_or(NotTheSame)?;
    if identity_of(shim, manifest) != *expected {
        return Err(NotTheSame);
    }
    OWN.call_once(|| Own {
        identity: *expected,
        manifest: manifest.to_vec(),
    });
    Ok(())
}

/// As `cloak_manifest::Identity` counts it.
fn identity_of(shim: &[u8], manifest: &[u8]) -> [u8; HASH] {
    let manifest = Sha384::digest(manifest);
    Sha384::new()
        .chain_update(b"cloak identity v1")
        .chain_update(shim)
        .chain_update(manifest)
        .finalize()
        .into()
}

/// The identity as a line of hexadecimal digits.
#[must_use]
pub fn text() -> String {
    let mut text = String::new();
    for byte in OWN.get().map_or(&[][..], |own| &own.identity) {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
    text
}

/// The canonical form of the manifest.
#[must_use]
pub fn manifest() -> Vec<u8> {
    OWN.get().map_or_else(Vec::new, |own| own.manifest.clone())
}

/// SHA-384 of the canonical form, as MRCONFIGID has it.
#[must_use]
pub fn manifest_digest_384() -> [u8; HASH] {
    Sha384::digest(manifest()).into()
}

/// SHA-256 of the canonical form, as HOST_DATA has it.
#[must_use]
pub fn manifest_digest() -> [u8; 32] {
    Sha256::digest(manifest()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same example as `manifest/tests/full.digests`: two crates count alike.
    #[test]
    fn it_is_what_the_manifest_crate_counts() {
        let manifest = include_bytes!("../../../manifest/tests/full.canonical.toml");
        let golden = include_str!("../../../manifest/tests/full.digests");
        let identity = identity_of(&[0xab; HASH], manifest);
        let found = identity
            .iter()
            .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        assert_eq!(golden.lines().last(), Some(found.as_str()));
        let mut record = [0xab; HASH].to_vec();
        record.extend_from_slice(manifest);
        let mut other = record.clone();
        *other.last_mut().expect("not empty") ^= 1;
        assert_eq!(take(&other, &identity), Err(NotTheSame));
        assert_eq!(take(&record[..HASH - 1], &identity), Err(NotTheSame));
    }
}
