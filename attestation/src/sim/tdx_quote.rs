//! Writes quotes of versions 4 and 5 and signs them.

use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use sha2::{Digest, Sha256};

use crate::bytes::{Bytes48, Bytes64};

pub(super) const FMSPC: [u8; 6] = [0x50, 0x80, 0x6f, 0, 0, 0];
pub(super) const QE_MR_SIGNER: [u8; 32] = [0xdc; 32];
pub(super) const QE_PRODUCT: u16 = 2;
pub(super) const QE_ISV_SVN: u16 = 4;
const INTEL_QE: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];
/// Type and size of a body of TDX 1.5 in a quote of version 5.
const TD_15: u16 = 3;
const TD_15_BYTES: u32 = 648;
const QE_AUTHENTICATION: [u8; 32] = [0x1f; 32];

/// Format of a quote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum QuoteVersion {
    /// Version 4, with the body of TDX 1.0.
    #[default]
    V4,
    /// Version 5, with the body of TDX 1.5.
    V5,
}

/// What a domain's report says. The default is a domain that a strict policy accepts.
#[derive(Debug, Clone)]
pub struct QuoteFields {
    /// Format.
    pub version: QuoteVersion,
    /// ATTRIBUTES.
    pub attributes: u64,
    /// XFAM.
    pub xfam: u64,
    /// MRTD.
    pub mrtd: Bytes48,
    /// MRCONFIGID.
    pub mr_config_id: Bytes48,
    /// MROWNER.
    pub mr_owner: Bytes48,
    /// MROWNERCONFIG.
    pub mr_owner_config: Bytes48,
    /// Run-time registers.
    pub rtmrs: [Bytes48; 4],
    /// REPORTDATA.
    pub report_data: Bytes64,
}

impl Default for QuoteFields {
    fn default() -> Self {
        Self {
            version: QuoteVersion::default(),
            attributes: 1 << 28,
            xfam: 0x602e7,
            mrtd: Bytes48::ZERO,
            mr_config_id: Bytes48::ZERO,
            mr_owner: Bytes48::ZERO,
            mr_owner_config: Bytes48::ZERO,
            rtmrs: [Bytes48::ZERO; 4],
            report_data: Bytes64::ZERO,
        }
    }
}

impl QuoteFields {
    /// Header and TD report, which the attestation key signs.
    fn signed_part(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let version: u16 = match self.version {
            QuoteVersion::V4 => 4,
            QuoteVersion::V5 => 5,
        };
        bytes.extend(version.to_le_bytes());
        bytes.extend(2u16.to_le_bytes());
        bytes.extend(0x81u32.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(INTEL_QE);
        bytes.extend([0; 20]);
        if self.version == QuoteVersion::V5 {
            bytes.extend(TD_15.to_le_bytes());
            bytes.extend(TD_15_BYTES.to_le_bytes());
        }
        // SVN 1 of the module, whose measurement, signer and attributes are zero in this world.
        bytes.push(1);
        bytes.extend([0; 15 + 48 + 48 + 8]);
        bytes.extend(self.attributes.to_le_bytes());
        bytes.extend(self.xfam.to_le_bytes());
        for register in [self.mrtd, self.mr_config_id, self.mr_owner, self.mr_owner_config] {
            bytes.extend(register.0);
        }
        self.rtmrs.iter().for_each(|register| bytes.extend(register.0));
        bytes.extend(self.report_data.0);
        if self.version == QuoteVersion::V5 {
            // The module that runs now is the one that was launched; no service domain is bound.
            bytes.push(1);
            bytes.extend([0; 15 + 48]);
        }
        bytes
    }
}

/// The keys below the PCK certificate.
pub(super) struct QuoteKeys<'a> {
    pub(super) pck: &'a SigningKey,
    pub(super) attestation: &'a SigningKey,
    /// Signs in the attestation key's place if it is another one.
    pub(super) quote_signer: &'a SigningKey,
}

pub(super) fn quote(
    fields: &QuoteFields,
    keys: &QuoteKeys<'_>,
    qe_signer: [u8; 32],
    pck_chain: &str,
) -> Vec<u8> {
    let point = keys.attestation.verifying_key().to_sec1_point(false);
    let attestation_key = &point.as_bytes()[1..];
    let qe_report = qe_report(attestation_key, qe_signer);

    let mut certification = qe_report.clone();
    certification.extend(sign(keys.pck, &qe_report));
    certification.extend((QE_AUTHENTICATION.len() as u16).to_le_bytes());
    certification.extend(QE_AUTHENTICATION);
    certification.extend(5u16.to_le_bytes());
    certification.extend((pck_chain.len() as u32).to_le_bytes());
    certification.extend(pck_chain.as_bytes());

    let mut quote = fields.signed_part();
    let mut data = sign(keys.quote_signer, &quote);
    data.extend(attestation_key);
    data.extend(6u16.to_le_bytes());
    data.extend((certification.len() as u32).to_le_bytes());
    data.extend(certification);
    quote.extend((data.len() as u32).to_le_bytes());
    quote.extend(data);
    quote
}

fn qe_report(attestation_key: &[u8], qe_signer: [u8; 32]) -> Vec<u8> {
    let mut report = vec![0; 384];
    report[48] = 0x11;
    report[128..160].copy_from_slice(&qe_signer);
    report[256..258].copy_from_slice(&QE_PRODUCT.to_le_bytes());
    report[258..260].copy_from_slice(&QE_ISV_SVN.to_le_bytes());
    let digest = Sha256::new_with_prefix(attestation_key)
        .chain_update(QE_AUTHENTICATION)
        .finalize();
    report[320..352].copy_from_slice(&digest);
    report
}

fn sign(key: &SigningKey, message: &[u8]) -> Vec<u8> {
    let signature: Signature = key.sign(message);
    signature.to_bytes().to_vec()
}
