//! What a verified quote says, in the form that tokens and programs read.

use dcap_qvl::QuoteClaims;
use serde::Serialize;

use super::attributes::TdAttributes;
use super::quote::{Quote, TdReport};
use crate::bytes::{Bytes, Bytes48, Bytes64};
use crate::policy::TcbStatus;

/// Claims of a TDX quote. Field names follow the specification's.
#[derive(Debug, Clone, Serialize)]
pub struct TdxClaims {
    /// Version of the quote format.
    pub quote_version: u16,
    /// ATTRIBUTES.
    pub attributes: TdAttributes,
    /// XFAM.
    pub xfam: u64,
    /// Build-time measurement.
    pub mrtd: Bytes48,
    /// What the host said at launch that it configures.
    pub mr_config_id: Bytes48,
    /// Owner.
    pub mr_owner: Bytes48,
    /// Owner's configuration.
    pub mr_owner_config: Bytes48,
    /// Run-time registers.
    pub rtmrs: [Bytes48; 4],
    /// What the domain chose.
    pub report_data: Bytes64,
    /// Bound service domains.
    pub mr_service_td: Option<Bytes48>,
    /// Measurement of the TDX module.
    pub mr_seam: Bytes48,
    /// SVNs of the TDX module.
    pub tee_tcb_svn: Bytes<16>,
    /// Processor family.
    pub fmspc: Bytes<6>,
    /// Converged TCB status.
    pub tcb_status: TcbStatus,
    /// Advisories that affect the platform.
    pub advisories: Vec<String>,
    /// TCB recovery that the collateral is of.
    pub tcb_evaluation: u32,
}

impl TdxClaims {
    pub(super) fn new(quote: &Quote, verified: &QuoteClaims, tcb_status: TcbStatus) -> Self {
        let TdReport {
            attributes,
            xfam,
            mrtd,
            report_data,
            ..
        } = quote.report;
        Self {
            quote_version: quote.version,
            attributes: TdAttributes(attributes),
            xfam,
            mrtd,
            mr_config_id: quote.report.mr_config_id,
            mr_owner: quote.report.mr_owner,
            mr_owner_config: quote.report.mr_owner_config,
            rtmrs: quote.report.rtmrs,
            report_data,
            mr_service_td: quote.report.mr_service_td,
            mr_seam: quote.report.mr_seam,
            tee_tcb_svn: quote.report.tee_tcb_svn,
            fmspc: Bytes(verified.platform.pck.fmspc),
            tcb_status,
            advisories: verified.tcb.advisory_ids.clone(),
            tcb_evaluation: verified.tcb.eval_data_number,
        }
    }
}
