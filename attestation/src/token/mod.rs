//! Attestation results as signed tokens: EAR (IETF draft-ietf-rats-ear), as a JWT (RFC 7519) or a CWT (RFC 8392),
//! signed with ES256.
//!
//! A relying party that trusts this verifier's key needs nothing else of this crate: any JWT library reads the
//! token. The trustworthiness vector follows AR4SI (draft-ietf-rats-ar4si): 2 affirms, 32 warns, 96 and above
//! contradict, 0 makes no claim.

mod cwt;
mod ear;
mod jwt;

pub use ear::{Ear, Status, Trustworthiness};

use crate::time::Timestamp;

/// Tokens have a few kilobytes.
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// Why a token does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token of the form that was asked for.
    #[error("malformed token: {0}")]
    Malformed(&'static str),
    /// An algorithm other than ES256. `none` is one of them.
    #[error("the token is not signed with ES256")]
    Algorithm,
    /// The key did not sign it.
    #[error("the token's signature does not verify")]
    Signature,
    /// Issued after now.
    #[error("the token is from the future: issued at {0}")]
    NotYetValid(Timestamp),
    /// Past its end.
    #[error("the token expired at {0}")]
    Expired(Timestamp),
}
