//! Software stand-ins for AMD's secure processor and Intel's quoting enclave, for tests and for machines without
//! either.
//!
//! They make the same bytes under roots of their own, fresh with each world, and evidence made with them is of the
//! kinds `simulated-snp` and `simulated-tdx`, which pass no policy that does not name them. A world can also be told
//! to make what no genuine one makes; that is how the refusals are tested.

mod id_block;
mod names;
mod rsa_key;
mod snp_report;
mod snp_world;
mod tdx_collateral;
mod tdx_quote;
mod tdx_world;
mod x509;

pub use id_block::IdSigner;
pub use rsa_key::{RsaKey, RsaKeyError};
pub use snp_report::ReportFields;
pub use snp_world::{Endorsement, SnpFault, SnpWorld, VekSpec};
pub use tdx_quote::{QuoteFields, QuoteVersion};
pub use tdx_world::{TdxFault, TdxSpec, TdxWorld};
pub use x509::{CertSpec, CrlSpec, Signer, SimError};
