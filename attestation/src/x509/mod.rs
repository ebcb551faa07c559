//! The small part of X.509 (RFC 5280) that AMD's chains need: strict certificates, revocation lists, RSA-PSS.
//!
//! Everything is checked over the bytes that came, and those bytes must be the canonical DER of what they say:
//! a certificate that only re-encodes to something signed is refused. Intel's chains are `dcap-qvl`'s work.

mod cert;
mod crl;
mod signature;

pub use cert::{Cert, CertError};
pub(crate) use crl::Crl;
#[cfg(feature = "sim")]
pub(crate) use signature::PSS_SHA384;
pub(crate) use signature::{PssKey, SignatureError};
