//! The keys of simulated machines: the same for all, and in the sources for everybody to read. Whoever trusts the root trusts
//! everybody.
//!
//! They are made once, by `cargo run --example make-keys -p cloak-sim`, because making RSA keys takes seconds, and so that
//! a policy for tests can name the root.

use cloak_attestation::bytes::Bytes64;
use cloak_attestation::evidence::SnpEvidence;
use cloak_attestation::sim::{Endorsement, QuoteVersion, SimError, TdxWorld, VekSpec};
use cloak_attestation::snp::{Product, TcbComponents, VekKind};
use cloak_attestation::time::{Timestamp, Window};
use sha2::{Digest, Sha256};

use crate::processor::Processor;
use crate::tdx::quoting::QuotingEnclave;

const ARK: &[u8] = include_bytes!("../keys/ark.der");
const ASK: &[u8] = include_bytes!("../keys/ask.der");
const VCEK: &[u8] = include_bytes!("../keys/vcek.der");
const SECRET: &[u8] = include_bytes!("../keys/vcek.secret");

/// What is built in is not what it was.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key.
    #[error("the simulated machine's key is damaged")]
    Secret,
    /// Its certificates.
    #[error(transparent)]
    Certificate(#[from] SimError),
    /// There is no randomness.
    #[error("drawing keys for messages: {0}")]
    Random(#[from] std::io::Error),
}

/// The product that machines of this kind are of.
pub const PRODUCT: Product = Product::Milan;

/// SHA-256 of the root, as a policy names it.
#[must_use]
pub fn root_digest() -> [u8; 32] {
    Sha256::digest(ARK).into()
}

/// What the endorsement certificate is for. The keys are made for this.
#[must_use]
pub fn spec() -> VekSpec {
    VekSpec {
        kind: VekKind::Vcek,
        tcb: TcbComponents {
            fmc: 0,
            boot_loader: 4,
            tee: 1,
            snp: 24,
            microcode: 219,
        },
        chip_id: Bytes64::from([0xc5; 64]),
        window: Window {
            from: Timestamp(0),
            until: Timestamp(0),
        },
        fault: None,
    }
}

/// A processor with these keys. Those of a guest's messages are drawn anew.
///
/// # Errors
/// [`KeyError`].
pub fn processor() -> Result<Processor, KeyError> {
    let secret = SECRET.try_into().map_err(|_| KeyError::Secret)?;
    let certificates = SnpEvidence {
        vek: Some(VCEK.to_vec()),
        authority: Some(ASK.to_vec()),
        ark: Some(ARK.to_vec()),
        ..SnpEvidence::default()
    };
    let endorsement = Endorsement::stored(secret, PRODUCT, certificates)?;
    let mut messages = [[0; 32]; 4];
    let mut random = std::fs::File::open("/dev/urandom")?;
    for key in &mut messages {
        std::io::Read::read_exact(&mut random, key)?;
    }
    Ok(Processor::new(
        *b"the secret of every simulatedCPU",
        messages,
        endorsement,
        spec(),
    ))
}

/// The secrets of root, authority, collateral's signer, processor and quoting enclave.
const TDX_SECRETS: [[u8; 32]; 5] = [
    *b"simulated TDX: the root's secret",
    *b"simulated TDX: authority, secret",
    *b"simulated TDX: signer of TCB inf",
    *b"simulated TDX: PCK of the proces",
    *b"simulated TDX: attestation's key",
];
/// Around when their certificates hold: 2026-01-01.
const TDX_EPOCH: Timestamp = Timestamp(1_767_225_600);
/// The key of the processor's reports.
pub const TDX_REPORT_KEY: [u8; 32] = *b"the secret of a simulated TDX's ";

/// The root, the processors and the collateral of simulated TDX, as of `now`.
///
/// # Errors
/// [`KeyError`].
pub fn tdx_world(now: Timestamp) -> Result<TdxWorld, KeyError> {
    Ok(TdxWorld::stored(&TDX_SECRETS, TDX_EPOCH, now)?)
}

/// The quoting enclave of a simulated machine.
///
/// # Errors
/// [`KeyError`].
pub fn quoting_enclave(now: Timestamp) -> Result<QuotingEnclave, KeyError> {
    Ok(QuotingEnclave::new(
        tdx_world(now)?,
        TDX_REPORT_KEY,
        QuoteVersion::V4,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A policy can name it.
    #[test]
    fn the_root_of_simulated_tdx_is_always_the_same() {
        let [first, second] =
            [1_780_000_000, 1_790_000_000].map(|now| tdx_world(Timestamp(now)).expect("keys"));
        assert_eq!(first.root_digest(), second.root_digest());
    }
}
