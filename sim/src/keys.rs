//! The keys of simulated machines: the same for all, and in the sources for everybody to read. Whoever trusts the root trusts
//! everybody.
//!
//! They are made once, by `cargo run --example make-keys -p cloak-sim`, because making RSA keys takes seconds, and so that
//! a policy for tests can name the root.

use cloak_attestation::bytes::Bytes64;
use cloak_attestation::evidence::SnpEvidence;
use cloak_attestation::sim::{Endorsement, SimError, VekSpec};
use cloak_attestation::snp::{Product, TcbComponents, VekKind};
use cloak_attestation::time::{Timestamp, Window};
use sha2::{Digest, Sha256};

use crate::processor::Processor;

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
