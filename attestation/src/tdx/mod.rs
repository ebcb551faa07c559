//! Intel TDX: quotes and the collateral they are judged by.
//!
//! Sources, by the short names used below: *Quote* is Intel's "TDX DCAP Quoting Library API", appendix A.3 and A.4
//! (quote format 4 and 5); *TDX ABI* is document 348551; *PCS* is the Provisioning Certification Service API,
//! version 4.
//!
//! `dcap-qvl` does the signatures, the certificate paths, revocation, the quoting enclave's identity and the TCB
//! level. This module adds strict parsing, dates that are named, the domain's own fields and the policy, and puts a
//! code on what `dcap-qvl` says.
//!
//! ```text
//!  Intel root ── TCB signing ── TCB info, QE identity            (collateral)
//!       └── PCK CA ── PCK ── QE report ── attestation key ── quote header and TD report
//! ```

mod attributes;
mod checks;
mod claims;
mod collateral;
mod dates;
mod failure;
mod fmspc;
mod quote;
mod verify;

pub use attributes::TdAttributes;
pub use claims::TdxClaims;
pub(crate) use collateral::root_of;
#[cfg(feature = "sim")]
pub(crate) use collateral::to_pem;
pub use collateral::{Collateral, CollateralError, parse_collateral};
pub use fmspc::{fmspc_of_collateral, fmspc_of_quote};
pub use quote::{Quote, QuoteError, TdReport};
pub(crate) use verify::verify;

/// Intel's root certificate, DER.
pub fn intel_root() -> &'static [u8] {
    include_bytes!("intel_root.der")
}
