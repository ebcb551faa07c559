//! The attestation report, versions 2 to 5 (SNP ABI §7.3, table 23).
//!
//! ```text
//!  0x000 version, guest SVN, policy, family and image id, VMPL, signature algorithm
//!  0x038 CURRENT_TCB      0x040 PLATFORM_INFO    0x048 key info     0x050 REPORT_DATA
//!  0x090 MEASUREMENT      0x0C0 HOST_DATA        0x0E0 ID_KEY_DIGEST
//!  0x110 AUTHOR_KEY_DIGEST  0x140 REPORT_ID      0x160 REPORT_ID_MA
//!  0x180 REPORTED_TCB     0x188 CPUID (v3+)      0x1A0 CHIP_ID      0x1E0 COMMITTED_TCB
//!  0x1E8 current and committed version           0x1F0 LAUNCH_TCB   0x1F8 mitigation vectors (v5)
//!  0x2A0 signature (ECDSA P-384 over 0x000..0x2A0)
//! ```
//! A reserved byte that is not zero is reported, not skipped: it is signed, so it means a field that this code does
//! not know.

use std::fmt;

use p384::ecdsa::Signature;
use serde::Serialize;

use super::ecdsa;
use super::guest_policy::GuestPolicy;
use super::product::Product;
use super::tcb::Tcb;
use crate::bytes::{Bytes, Bytes32, Bytes48, Bytes64};

/// Length of every version of the report.
pub const REPORT_BYTES: usize = 0x4a0;
/// The signature covers everything before it.
const SIGNED_BYTES: usize = 0x2a0;
/// PLATFORM_INFO bits that a revision of the ABI defines, and bit 6: Turin firmware sets it, no revision names it.
const PLATFORM_INFO_KNOWN: u64 = 0xff;

/// Why bytes are not a report of a known version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// Not exactly [`REPORT_BYTES`] long.
    #[error("{0} bytes")]
    Size(usize),
    /// A version that this code does not know.
    #[error("version {0}")]
    Version(u32),
}

/// The key that the firmware says it signed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SigningKey {
    /// Derived from the chip's secrets and its TCB.
    Vcek,
    /// Loaded by the owner of the machine.
    Vlek,
    /// The report is not signed.
    None,
    /// A reserved encoding.
    Reserved(u8),
}

/// The word at 0x48.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyInfo(pub u32);

impl KeyInfo {
    /// Whether AUTHOR_KEY_DIGEST is in use.
    pub fn author_key_enabled(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether the firmware wrote zeros where the signature goes.
    pub fn signature_masked(self) -> bool {
        self.0 & 2 != 0
    }

    /// The key that signed.
    pub fn signing_key(self) -> SigningKey {
        match (self.0 >> 2) & 7 {
            0 => SigningKey::Vcek,
            1 => SigningKey::Vlek,
            7 => SigningKey::None,
            other => SigningKey::Reserved(other as u8),
        }
    }
}

/// A firmware version: major, minor and build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FirmwareVersion {
    /// API major version.
    pub major: u8,
    /// API minor version.
    pub minor: u8,
    /// Build within the minor version.
    pub build: u8,
}

impl fmt::Display for FirmwareVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.build)
    }
}

impl Serialize for FirmwareVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A report of a known version. Its fields are what the bytes say, not yet what anybody signed.
#[derive(Debug, Clone)]
pub struct Report {
    raw: Box<[u8; REPORT_BYTES]>,
}

impl Report {
    /// Takes the bytes of one report.
    ///
    /// # Errors
    /// [`ReportError`] for another length or version.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReportError> {
        let raw: Box<[u8; REPORT_BYTES]> = bytes
            .to_vec()
            .into_boxed_slice()
            .try_into()
            .map_err(|_| ReportError::Size(bytes.len()))?;
        let report = Self { raw };
        match report.version() {
            2..=5 => Ok(report),
            other => Err(ReportError::Version(other)),
        }
    }

    /// The bytes that the signature covers.
    pub fn signed_bytes(&self) -> &[u8] {
        &self.raw[..SIGNED_BYTES]
    }

    /// The whole report.
    pub fn as_bytes(&self) -> &[u8; REPORT_BYTES] {
        &self.raw
    }

    /// VERSION.
    pub fn version(&self) -> u32 {
        self.u32_at(0x00)
    }

    /// GUEST_SVN, from the ID block.
    pub fn guest_svn(&self) -> u32 {
        self.u32_at(0x04)
    }

    /// POLICY.
    pub fn policy(&self) -> GuestPolicy {
        GuestPolicy(self.u64_at(0x08))
    }

    /// FAMILY_ID, from the ID block.
    pub fn family_id(&self) -> Bytes<16> {
        self.bytes_at(0x10)
    }

    /// IMAGE_ID, from the ID block.
    pub fn image_id(&self) -> Bytes<16> {
        self.bytes_at(0x20)
    }

    /// VMPL of the request, 0 the most privileged. `0xFFFFFFFF` means that the host asked.
    pub fn vmpl(&self) -> u32 {
        self.u32_at(0x30)
    }

    /// SIGNATURE_ALGO.
    pub fn signature_algorithm(&self) -> u32 {
        self.u32_at(0x34)
    }

    /// Whether SIGNATURE_ALGO is ECDSA P-384 with SHA-384, the only one defined (SNP ABI table 139).
    pub fn is_ecdsa_p384_sha384(&self) -> bool {
        self.signature_algorithm() == ecdsa::ECDSA_P384_SHA384
    }

    /// CURRENT_TCB.
    pub fn current_tcb(&self) -> Tcb {
        self.tcb_at(0x38)
    }

    /// PLATFORM_INFO.
    pub fn platform_info(&self) -> u64 {
        self.u64_at(0x40)
    }

    /// Whether PLATFORM_INFO says that memory was checked for aliases since the last reset (bit 5).
    pub fn alias_check_complete(&self) -> bool {
        self.platform_info() & (1 << 5) != 0
    }

    /// AUTHOR_KEY_EN, MASK_CHIP_KEY and SIGNING_KEY.
    pub fn key_info(&self) -> KeyInfo {
        KeyInfo(self.u32_at(0x48))
    }

    /// REPORT_DATA, which the guest chose.
    pub fn report_data(&self) -> Bytes64 {
        self.bytes_at(0x50)
    }

    /// MEASUREMENT, the launch digest.
    pub fn measurement(&self) -> Bytes48 {
        self.bytes_at(0x90)
    }

    /// HOST_DATA, which the host gave at launch.
    pub fn host_data(&self) -> Bytes32 {
        self.bytes_at(0xc0)
    }

    /// ID_KEY_DIGEST: SHA-384 of the key that signed the ID block; zero without one.
    pub fn id_key_digest(&self) -> Bytes48 {
        self.bytes_at(0xe0)
    }

    /// AUTHOR_KEY_DIGEST: SHA-384 of the key that certified the ID key; zero without one.
    pub fn author_key_digest(&self) -> Bytes48 {
        self.bytes_at(0x110)
    }

    /// REPORT_ID of this guest.
    pub fn report_id(&self) -> Bytes32 {
        self.bytes_at(0x140)
    }

    /// REPORT_ID_MA: that of the migration agent, all ones without one.
    pub fn report_id_ma(&self) -> Bytes32 {
        self.bytes_at(0x160)
    }

    /// REPORTED_TCB, from which the VCEK was derived.
    pub fn reported_tcb(&self) -> Tcb {
        self.tcb_at(0x180)
    }

    /// CPUID family, model and stepping, from version 3 on.
    pub fn cpuid(&self) -> Option<[u8; 3]> {
        (self.version() >= 3).then(|| self.bytes_at(0x188).0)
    }

    /// The product that CPUID means: `None` for version 2, which does not say.
    pub fn product(&self) -> Option<Result<Product, [u8; 3]>> {
        let cpuid = self.cpuid()?;
        Some(Product::from_cpuid(cpuid[0], cpuid[1]).ok_or(cpuid))
    }

    /// CHIP_ID; zero if the machine masks it.
    pub fn chip_id(&self) -> Bytes64 {
        self.bytes_at(0x1a0)
    }

    /// COMMITTED_TCB, below which the firmware cannot be rolled back.
    pub fn committed_tcb(&self) -> Tcb {
        self.tcb_at(0x1e0)
    }

    /// Version of the running firmware.
    pub fn current_version(&self) -> FirmwareVersion {
        self.version_at(0x1e8)
    }

    /// Version of the committed firmware.
    pub fn committed_version(&self) -> FirmwareVersion {
        self.version_at(0x1ec)
    }

    /// LAUNCH_TCB: CURRENT_TCB when the guest was launched or imported.
    pub fn launch_tcb(&self) -> Tcb {
        self.tcb_at(0x1f0)
    }

    /// LAUNCH_MIT_VECTOR and CURRENT_MIT_VECTOR, from version 5 on.
    pub fn mitigations(&self) -> Option<(u64, u64)> {
        (self.version() >= 5).then(|| (self.u64_at(0x1f8), self.u64_at(0x200)))
    }

    /// The signature, as P-384 scalars.
    ///
    /// `None` if a component does not fit 48 bytes, is zero or is not below the group's order.
    pub fn signature(&self) -> Option<Signature> {
        ecdsa::signature(&self.bytes_at(SIGNED_BYTES).0)
    }

    /// The reserved fields that are not zero, each with its place and content. Those inside a TCB version depend on
    /// the product, see [`Tcb::reserved`].
    pub fn reserved_violations(&self) -> Vec<(&'static str, String)> {
        let mut violations = Vec::new();
        for &(at, range) in self.reserved_ranges() {
            let bytes = &self.raw[range.0..range.1];
            if bytes.iter().any(|&byte| byte != 0) {
                violations.push((at, hex::encode(bytes)));
            }
        }
        if self.key_info().0 >> 5 != 0 {
            violations.push((
                "report[0x048..0x04c] bits 31:5",
                format!("{:#x}", self.key_info().0),
            ));
        }
        if self.platform_info() & !PLATFORM_INFO_KNOWN != 0 {
            violations.push((
                "report[0x040..0x048] PLATFORM_INFO bits 63:8",
                format!("{:#x}", self.platform_info()),
            ));
        }
        violations
    }

    fn reserved_ranges(&self) -> &'static [(&'static str, (usize, usize))] {
        const TAIL: [(&str, (usize, usize)); 5] = [
            ("report[0x04c..0x050]", (0x4c, 0x50)),
            ("report[0x1eb]", (0x1eb, 0x1ec)),
            ("report[0x1ef]", (0x1ef, 0x1f0)),
            ("report[0x208..0x2a0]", (0x208, 0x2a0)),
            ("report[0x330..0x4a0]", (0x330, 0x4a0)),
        ];
        const CPUID: (&str, (usize, usize)) = ("report[0x188..0x18b] before version 3", (0x188, 0x18b));
        const AFTER_CPUID: (&str, (usize, usize)) = ("report[0x18b..0x1a0]", (0x18b, 0x1a0));
        const MITIGATIONS: (&str, (usize, usize)) = ("report[0x1f8..0x208] before version 5", (0x1f8, 0x208));
        const V2: [(&str, (usize, usize)); 8] = [
            TAIL[0],
            CPUID,
            AFTER_CPUID,
            TAIL[1],
            TAIL[2],
            MITIGATIONS,
            TAIL[3],
            TAIL[4],
        ];
        const V3: [(&str, (usize, usize)); 7] = [
            TAIL[0],
            AFTER_CPUID,
            TAIL[1],
            TAIL[2],
            MITIGATIONS,
            TAIL[3],
            TAIL[4],
        ];
        const V5: [(&str, (usize, usize)); 6] = [TAIL[0], AFTER_CPUID, TAIL[1], TAIL[2], TAIL[3], TAIL[4]];
        match self.version() {
            2 => &V2,
            3 | 4 => &V3,
            _ => &V5,
        }
    }

    fn bytes_at<const N: usize>(&self, offset: usize) -> Bytes<N> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.raw[offset..offset + N]);
        Bytes(bytes)
    }

    fn u32_at(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes_at(offset).0)
    }

    fn u64_at(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes_at(offset).0)
    }

    fn tcb_at(&self, offset: usize) -> Tcb {
        Tcb(self.bytes_at(offset).0)
    }

    fn version_at(&self, offset: usize) -> FirmwareVersion {
        let [build, minor, major] = self.bytes_at(offset).0;
        FirmwareVersion { major, minor, build }
    }
}
