//! RA-TLS: a certificate that carries evidence, so that a TLS 1.3 handshake ends at what was attested.
//!
//! The certificate is self-signed. REPORT_DATA of its evidence is [`binding`] of its key and a nonce, so the evidence
//! is for this key and no other; TLS proves that the peer holds the key. Whom the name in the certificate belongs to
//! says nothing and is not looked at: who the peer is, the policy says.
//!
//! ```text
//!  TLS key ─┬─ binding(key, nonce) ──▶ REPORT_DATA ──▶ evidence ─┐
//!           └──────────────▶ certificate ◀── extension ──────────┘
//! ```

mod certificate;
mod verifier;

pub use certificate::{Identity, IdentityError, evidence_in};
pub use verifier::RaTlsVerifier;

use sha2::{Digest, Sha512};

use crate::bytes::{Bytes32, Bytes64};

/// Keeps a digest made here from meaning anything elsewhere.
const CONTEXT: &[u8] = b"cloak RA-TLS binding 1\0";

/// REPORT_DATA for a key: SHA-512 over a context, the nonce and the DER of the key's `SubjectPublicKeyInfo`.
///
/// Without a nonce that the relying party chose, it is zero, and the evidence may be as old as the certificate.
pub fn binding(public_key_der: &[u8], nonce: &Bytes32) -> Bytes64 {
    let digest = Sha512::new_with_prefix(CONTEXT)
        .chain_update(nonce.0)
        .chain_update(public_key_der)
        .finalize();
    Bytes64::from(<[u8; 64]>::from(digest))
}
