//! TDREPORT (TDX module ABI 1.5, TDREPORT_STRUCT): what a domain is, under a key of this processor's.

use hkdf::Hkdf;
use sha2::{Digest, Sha256, Sha384};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// REPORTMACSTRUCT. The MAC is over all that is before it.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReportMac {
    /// Type (0x81: TDX), subtype, version, zero.
    pub report_type: [u8; 4],
    /// Zero.
    pub reserved: [u8; 12],
    /// The processor's security version.
    pub cpu_svn: [u8; 16],
    /// SHA-384 of [`TeeTcbInfo`].
    pub tee_tcb_info_hash: [u8; 48],
    /// SHA-384 of [`TdInfo`].
    pub tee_info_hash: [u8; 48],
    /// REPORTDATA.
    pub report_data: [u8; 64],
    /// Zero.
    pub reserved_2: [u8; 32],
    /// HMAC-SHA256 under the processor's key.
    pub mac: [u8; 32],
}

/// TEE_TCB_INFO: the module.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TeeTcbInfo {
    /// Which fields have a value.
    pub valid: [u8; 8],
    /// Security versions.
    pub tee_tcb_svn: [u8; 16],
    /// Measurement of the module.
    pub mr_seam: [u8; 48],
    /// Its signer; zero for Intel.
    pub mr_signer_seam: [u8; 48],
    /// Its attributes.
    pub attributes: [u8; 8],
    /// Security versions of the module that runs now.
    pub tee_tcb_svn_2: [u8; 16],
    /// Zero.
    pub reserved: [u8; 95],
}

/// TDINFO: the domain.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TdInfo {
    /// ATTRIBUTES.
    pub attributes: [u8; 8],
    /// XFAM.
    pub xfam: [u8; 8],
    /// MRTD.
    pub mrtd: [u8; 48],
    /// MRCONFIGID.
    pub mr_config_id: [u8; 48],
    /// MROWNER.
    pub mr_owner: [u8; 48],
    /// MROWNERCONFIG.
    pub mr_owner_config: [u8; 48],
    /// Run-time registers.
    pub rtmrs: [[u8; 48]; 4],
    /// Service domains that are bound; zero without any.
    pub servtd_hash: [u8; 48],
    /// Zero.
    pub reserved: [u8; 64],
}

/// A report.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TdReport {
    /// What binds the rest.
    pub mac: ReportMac,
    /// The module.
    pub tcb: TeeTcbInfo,
    /// Zero.
    pub reserved: [u8; 17],
    /// The domain.
    pub info: TdInfo,
}

const _: () = assert!(size_of::<ReportMac>() == 256);
const _: () = assert!(size_of::<TeeTcbInfo>() == 239);
const _: () = assert!(size_of::<TdInfo>() == 512);
const _: () = assert!(size_of::<TdReport>() == 1024);

/// TDX.
const TYPE: [u8; 4] = [0x81, 0, 0, 0];

impl TdReport {
    /// The report of a domain, under the processor's key.
    #[must_use]
    pub fn new(info: TdInfo, report_data: [u8; 64], key: &[u8; 32]) -> Self {
        let mut report = Self::new_zeroed();
        // All but what says how many fields there are to be.
        report.tcb.valid = 0x3_01ffu64.to_le_bytes();
        report.tcb.tee_tcb_svn[0] = 1;
        report.tcb.tee_tcb_svn_2[0] = 1;
        report.mac.report_type = TYPE;
        report.mac.cpu_svn = [1; 16];
        report.mac.report_data = report_data;
        report.mac.tee_tcb_info_hash = Sha384::digest(report.tcb.as_bytes()).into();
        report.mac.tee_info_hash = Sha384::digest(info.as_bytes()).into();
        report.info = info;
        report.mac.mac = mac(&report, key);
        report
    }

    /// Whether it was made under `key` and not changed since.
    #[must_use]
    pub fn holds(&self, key: &[u8; 32]) -> bool {
        let tcb: [u8; 48] = Sha384::digest(self.tcb.as_bytes()).into();
        let info: [u8; 48] = Sha384::digest(self.info.as_bytes()).into();
        self.mac.report_type == TYPE
            && self.reserved == [0; 17]
            && self.mac.tee_tcb_info_hash == tcb
            && self.mac.tee_info_hash == info
            && self.mac.mac == mac(self, key)
    }
}

/// HMAC-SHA256: the extraction of HKDF is that of its input under the salt as key.
fn mac(report: &TdReport, key: &[u8; 32]) -> [u8; 32] {
    let bytes = report.mac.as_bytes();
    Hkdf::<Sha256>::extract(Some(key), &bytes[..bytes.len() - 32])
        .0
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report() -> TdReport {
        let mut info = TdInfo::new_zeroed();
        info.mrtd = [5; 48];
        TdReport::new(info, [9; 64], &[1; 32])
    }

    /// RFC 4231, test case 2: the way by HKDF is HMAC.
    #[test]
    fn extraction_is_hmac() {
        let mac = Hkdf::<Sha256>::extract(Some(b"Jefe"), b"what do ya want for nothing?").0;
        assert_eq!(mac[..8], [0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e]);
    }

    #[test]
    fn a_report_holds_under_its_key_only() {
        assert!(report().holds(&[1; 32]));
        assert!(!report().holds(&[2; 32]));
    }

    proptest! {
        #[test]
        fn a_changed_bit_is_noticed(bit in 0usize..8192) {
            let mut report = report();
            report.as_mut_bytes()[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!report.holds(&[1; 32]), "bit {}", bit);
        }
    }
}
