//! Keys of a context: from a root key by HKDF, with the identity in the info. Another shim, another manifest:
//! other keys, and what was sealed stays sealed.
//!
//! On plain KVM the root is a file that only its owner can read; on SNP and TDX it comes from the platform or is
//! released after attestation.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;

use cloak_volumes::secret::Secret;
pub use cloak_volumes::secret::SecretError as KeyError;
use hkdf::Hkdf;
use sha2::Sha384;
use zeroize::Zeroizing;

use crate::identity::Identity;

/// What a key is for. Each purpose has its own key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// Pages of memory; salted again for each boot.
    Memory,
    /// A protected volume, by its guest path.
    Volume(&'a str),
    /// Checkpoints.
    Checkpoint,
}

impl Purpose<'_> {
    const fn parts(&self) -> (&'static [u8], &str) {
        match self {
            Self::Memory => (b"memory", ""),
            Self::Volume(guest) => (b"volume", guest),
            Self::Checkpoint => (b"checkpoint", ""),
        }
    }
}

/// A root key. Cleared when dropped, never printed.
pub struct RootKey(Box<Zeroizing<[u8; 32]>>);

impl RootKey {
    /// Makes a new key file, readable by its owner only. An existing file is never written to.
    ///
    /// # Errors
    /// [`KeyError::File`], also when there is one already.
    pub fn create(path: &Path) -> Result<Self, KeyError> {
        Secret::create(path).map(|secret| Self(secret.into_bytes()))
    }

    /// Draws one that is in no file: what is sealed under it ends with the run.
    ///
    /// # Errors
    /// What the system's generator says.
    pub fn ephemeral() -> std::io::Result<Self> {
        Secret::random().map(|secret| Self(secret.into_bytes()))
    }

    /// Reads a key file, which nobody else may read or change.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        Secret::open(path).map(|secret| Self(secret.into_bytes()))
    }

    /// Reads a key from a descriptor that the caller was given: a pipe, a memfd. `name` is for messages.
    ///
    /// # Errors
    /// [`KeyError::File`], [`KeyError::Length`].
    pub fn read(fd: OwnedFd, name: &Path) -> Result<Self, KeyError> {
        Secret::read(fd, name).map(|secret| Self(secret.into_bytes()))
    }

    /// The key of a context for a purpose: HKDF-SHA-384 (RFC 5869) without salt; info is `"cloak key v1"`, the
    /// identity, the purpose's kind and its detail, both preceded by their length in eight bytes.
    #[must_use]
    pub fn derive(&self, identity: &Identity, purpose: Purpose<'_>) -> Box<Zeroizing<[u8; 32]>> {
        let (kind, detail) = purpose.parts();
        let info: [&[u8]; 6] = [
            b"cloak key v1",
            identity.as_bytes(),
            &(kind.len() as u64).to_le_bytes(),
            kind,
            &(detail.len() as u64).to_le_bytes(),
            detail.as_bytes(),
        ];
        let mut key = Box::new(Zeroizing::new([0; 32]));
        Hkdf::<Sha384>::new(None, self.0.as_slice())
            .expand_multi_info(&info, key.as_mut_slice())
            .expect("32 bytes are less than 255 hashes, HKDF's only limit");
        key
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Digest, ManifestDigests};
    use std::collections::BTreeSet;

    fn identity(shim: u8, manifest: u8) -> Identity {
        let digests = ManifestDigests {
            sha256: Digest([manifest; 32]),
            sha384: Digest([manifest; 48]),
        };
        Identity::of(&Digest([shim; 48]), &digests)
    }

    /// The libos derives the same (`guest-shim/libos/src/keys.rs`). `CLOAK_WRITE_GOLDEN=1` writes the file anew.
    #[test]
    fn the_golden_keys_are_derived() {
        let root = RootKey(Box::new(Zeroizing::new([7; 32])));
        let identity = Identity::from_bytes([0xab; 48]);
        let keys = [Purpose::Volume("/data"), Purpose::Memory].map(|p| root.derive(&identity, p));
        let text: String = keys
            .iter()
            .map(|key| hex::encode(key.as_slice()) + "\n")
            .collect();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/keys.golden");
        if std::env::var_os("CLOAK_WRITE_GOLDEN").is_some() {
            std::fs::write(path, &text).expect("written");
        }
        assert_eq!(std::fs::read_to_string(path).expect("there"), text);
    }

    #[test]
    fn each_identity_and_purpose_has_its_own_key() {
        let root = RootKey(Box::new(Zeroizing::new([7; 32])));
        let other = RootKey(Box::new(Zeroizing::new([8; 32])));
        let identities = [identity(1, 1), identity(1, 2), identity(2, 1)];
        let purposes = [
            Purpose::Memory,
            Purpose::Checkpoint,
            Purpose::Volume("/"),
            Purpose::Volume("/data"),
            Purpose::Volume(""),
        ];
        let mut seen = BTreeSet::new();
        for root in [&root, &other] {
            for identity in &identities {
                seen.extend(purposes.map(|p| **root.derive(identity, p)));
            }
        }
        assert_eq!(seen.len(), 2 * 3 * 5);
        assert_eq!(
            root.derive(&identities[0], Purpose::Memory),
            root.derive(&identities[0], Purpose::Memory)
        );
    }
}
