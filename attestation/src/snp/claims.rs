//! What a verified report says, in the form that tokens and programs read.

use serde::Serialize;

use super::guest_policy::GuestPolicy;
use super::product::Product;
use super::report::{FirmwareVersion, Report};
use super::tcb::TcbComponents;
use super::vek::{Vek, VekKind};
use crate::bytes::{Bytes, Bytes32, Bytes48, Bytes64};

/// Claims of an SEV-SNP report. Field names follow the specification's.
#[derive(Debug, Clone, Serialize)]
pub struct SnpClaims {
    /// Report version.
    pub report_version: u32,
    /// Processor generation.
    pub product: Product,
    /// Kind of key that signed.
    pub endorsement_key: VekKind,
    /// The cloud provider that a VLEK was given to.
    pub csp_id: Option<String>,
    /// Guest policy.
    pub policy: GuestPolicy,
    /// VMPL that asked for the report.
    pub vmpl: u32,
    /// Guest SVN from the ID block.
    pub guest_svn: u32,
    /// Family from the ID block.
    pub family_id: Bytes<16>,
    /// Image from the ID block.
    pub image_id: Bytes<16>,
    /// Launch digest.
    pub measurement: Bytes48,
    /// HOST_DATA.
    pub host_data: Bytes32,
    /// REPORT_DATA.
    pub report_data: Bytes64,
    /// ID_KEY_DIGEST.
    pub id_key_digest: Bytes48,
    /// AUTHOR_KEY_DIGEST.
    pub author_key_digest: Bytes48,
    /// REPORT_ID.
    pub report_id: Bytes32,
    /// CHIP_ID.
    pub chip_id: Bytes64,
    /// REPORTED_TCB.
    pub reported_tcb: TcbComponents,
    /// COMMITTED_TCB.
    pub committed_tcb: TcbComponents,
    /// LAUNCH_TCB.
    pub launch_tcb: TcbComponents,
    /// CURRENT_TCB.
    pub current_tcb: TcbComponents,
    /// Running firmware.
    pub current_version: FirmwareVersion,
    /// Committed firmware.
    pub committed_version: FirmwareVersion,
    /// PLATFORM_INFO.
    pub platform_info: u64,
    /// CURRENT_MIT_VECTOR.
    pub current_mitigations: Option<u64>,
}

impl SnpClaims {
    pub(super) fn new(report: &Report, vek: &Vek) -> Self {
        let product = vek.product;
        Self {
            report_version: report.version(),
            product,
            endorsement_key: vek.kind,
            csp_id: vek.csp_id.clone(),
            policy: report.policy(),
            vmpl: report.vmpl(),
            guest_svn: report.guest_svn(),
            family_id: report.family_id(),
            image_id: report.image_id(),
            measurement: report.measurement(),
            host_data: report.host_data(),
            report_data: report.report_data(),
            id_key_digest: report.id_key_digest(),
            author_key_digest: report.author_key_digest(),
            report_id: report.report_id(),
            chip_id: report.chip_id(),
            reported_tcb: report.reported_tcb().components(product),
            committed_tcb: report.committed_tcb().components(product),
            launch_tcb: report.launch_tcb().components(product),
            current_tcb: report.current_tcb().components(product),
            current_version: report.current_version(),
            committed_version: report.committed_version(),
            platform_info: report.platform_info(),
            current_mitigations: report.mitigations().map(|(_, current)| current),
        }
    }
}
