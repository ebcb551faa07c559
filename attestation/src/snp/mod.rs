//! AMD SEV-SNP: attestation reports and the keys that sign them.
//!
//! Sources, by the short names used below: *SNP ABI* is AMD publication 56860 revision 1.58 (report: §7.3, table 23;
//! policy: §4.3), *VCEK* is publication 57230 (certificates, extensions, revocation), *VLEK* is publication 58369.
//!
//! ```text
//!  ARK (pinned) ── ASK  ── VCEK ──┐
//!       └───────── ASVK ── VLEK ──┴── report ── policy, TCB, chip, measurement
//! ```

mod anchors;
mod cert_table;
mod chain;
mod checks;
mod claims;
pub(crate) mod ecdsa;
mod guest_policy;
mod id_block;
mod product;
mod report;
mod tcb;
mod vek;
mod verify;

pub use anchors::pinned_roots;
pub use cert_table::{CertTable, CertTableError};
pub(crate) use chain::authority_kind;
pub use claims::SnpClaims;
pub use guest_policy::GuestPolicy;
pub use id_block::{ID_AUTH_BYTES, ID_BLOCK_BYTES, IdAuth, IdBlock, IdBlockError};
pub use product::Product;
pub use report::{FirmwareVersion, KeyInfo, REPORT_BYTES, Report, ReportError, SigningKey};
pub use tcb::{Tcb, TcbComponents};
pub use vek::{Vek, VekError, VekKind};
pub(crate) use verify::{SignatureMemory, Trust, verify};
