//! Writes reports and signs them.

use p384::ecdsa::signature::Signer as _;
use p384::ecdsa::{Signature, SigningKey};

use crate::bytes::{Bytes, Bytes32, Bytes48, Bytes64};
use crate::snp::{GuestPolicy, Product, REPORT_BYTES, TcbComponents, ecdsa};

const SIGNED_BYTES: usize = 0x2a0;

/// What a report says. The default is a guest that a strict policy accepts.
#[derive(Debug, Clone)]
pub struct ReportFields {
    /// 2 to 5.
    pub version: u32,
    /// Guest SVN.
    pub guest_svn: u32,
    /// FAMILY_ID.
    pub family_id: Bytes<16>,
    /// IMAGE_ID.
    pub image_id: Bytes<16>,
    /// Guest policy.
    pub policy: GuestPolicy,
    /// Who asks.
    pub vmpl: u32,
    /// The word at 0x48.
    pub key_info: u32,
    /// PLATFORM_INFO.
    pub platform_info: u64,
    /// REPORT_DATA.
    pub report_data: Bytes64,
    /// MEASUREMENT.
    pub measurement: Bytes48,
    /// HOST_DATA.
    pub host_data: Bytes32,
    /// ID_KEY_DIGEST.
    pub id_key_digest: Bytes48,
    /// AUTHOR_KEY_DIGEST.
    pub author_key_digest: Bytes48,
    /// CPUID family, model and stepping.
    pub cpuid: [u8; 3],
    /// CHIP_ID.
    pub chip_id: Bytes64,
    /// CURRENT_TCB.
    pub current_tcb: TcbComponents,
    /// REPORTED_TCB.
    pub reported_tcb: TcbComponents,
    /// COMMITTED_TCB.
    pub committed_tcb: TcbComponents,
    /// LAUNCH_TCB.
    pub launch_tcb: TcbComponents,
    /// Build, minor and major of the running and the committed firmware.
    pub firmware: [[u8; 3]; 2],
    /// CURRENT_MIT_VECTOR and LAUNCH_MIT_VECTOR.
    pub mitigations: u64,
}

impl ReportFields {
    /// A report of a chip of `product` with this TCB.
    pub fn new(product: Product, tcb: TcbComponents, chip_id: Bytes64) -> Self {
        let cpuid = match product {
            Product::Milan => [0x19, 0x01, 1],
            Product::Genoa => [0x19, 0x11, 1],
            Product::Turin => [0x1a, 0x02, 1],
        };
        Self {
            version: if product == Product::Turin { 5 } else { 3 },
            guest_svn: 0,
            family_id: Bytes::ZERO,
            image_id: Bytes::ZERO,
            policy: GuestPolicy(0x30000),
            vmpl: 0,
            key_info: 0,
            platform_info: 0x25,
            report_data: Bytes64::ZERO,
            measurement: Bytes::ZERO,
            host_data: Bytes::ZERO,
            id_key_digest: Bytes::ZERO,
            author_key_digest: Bytes::ZERO,
            cpuid,
            chip_id,
            current_tcb: tcb,
            reported_tcb: tcb,
            committed_tcb: tcb,
            launch_tcb: tcb,
            firmware: [[20, 55, 1]; 2],
            mitigations: 0x3f,
        }
    }

    /// The report without a signature.
    pub fn unsigned(&self, product: Product) -> Vec<u8> {
        let mut report = vec![0; REPORT_BYTES];
        let mut put =
            |offset: usize, bytes: &[u8]| report[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.version.to_le_bytes());
        put(0x04, &self.guest_svn.to_le_bytes());
        put(0x08, &self.policy.0.to_le_bytes());
        put(0x10, &self.family_id.0);
        put(0x20, &self.image_id.0);
        put(0x30, &self.vmpl.to_le_bytes());
        put(0x34, &1u32.to_le_bytes());
        put(0x38, &self.current_tcb.encode(product).0);
        put(0x40, &self.platform_info.to_le_bytes());
        put(0x48, &self.key_info.to_le_bytes());
        put(0x50, &self.report_data.0);
        put(0x90, &self.measurement.0);
        put(0xc0, &self.host_data.0);
        put(0xe0, &self.id_key_digest.0);
        put(0x110, &self.author_key_digest.0);
        put(0x160, &[0xff; 32]);
        put(0x180, &self.reported_tcb.encode(product).0);
        if self.version >= 3 {
            put(0x188, &self.cpuid);
        }
        put(0x1a0, &self.chip_id.0);
        put(0x1e0, &self.committed_tcb.encode(product).0);
        put(0x1e8, &self.firmware[0]);
        put(0x1ec, &self.firmware[1]);
        put(0x1f0, &self.launch_tcb.encode(product).0);
        if self.version >= 5 {
            put(0x1f8, &self.mitigations.to_le_bytes());
            put(0x200, &self.mitigations.to_le_bytes());
        }
        report
    }
}

/// Signs whatever `report` says, in place.
pub(super) fn sign(report: &mut [u8], key: &SigningKey) {
    let signature: Signature = key.sign(&report[..SIGNED_BYTES]);
    put_signature(report, SIGNED_BYTES, &signature);
}

pub(super) fn put_signature(bytes: &mut [u8], at: usize, signature: &Signature) {
    let (r, s) = signature.split_bytes();
    ecdsa::put(bytes, at, [&r, &s]);
}
