//! Azure's HCL report: a hardware report with the runtime data that it binds, as the virtual TPM of a confidential
//! VM gives it (NV index 0x01400001).
//!
//! ```text
//!  "HCLA" │ version │ report size │ request type │ status │ 12 reserved    32 bytes
//!  hardware report                                                        1184 bytes
//!  data size │ version │ report type │ hash type │ length                 20 bytes
//!  runtime data (JSON)                                                    length bytes
//! ```
//! REPORT_DATA holds the SHA-256 of the runtime data in its first half and zeros in the second. The runtime data has
//! the TPM's attestation key; what that key signs, a nonce among it, is not judged here.

use super::{Attestation, Evidence, EvidenceError, SnpEvidence};
use crate::snp::REPORT_BYTES;

pub(super) const MAGIC: &[u8; 4] = b"HCLA";
const HEADER_BYTES: usize = 32;
const DATA_HEADER_BYTES: usize = 20;
const SNP: u32 = 2;
const SHA256: u32 = 1;

/// A parsed HCL report around an SNP report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HclReport {
    /// The SNP report.
    pub report: Vec<u8>,
    /// The runtime data, as it was hashed.
    pub runtime_data: Vec<u8>,
}

impl HclReport {
    /// Reads an HCL report.
    ///
    /// # Errors
    /// [`EvidenceError::Field`] if it is not one around an SNP report with SHA-256.
    pub fn parse(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let problem = |problem: &str| EvidenceError::Field {
            field: "hcl-report",
            problem: problem.to_owned(),
        };
        if bytes.get(..4) != Some(MAGIC) {
            return Err(problem("no HCLA at the start"));
        }
        let report = bytes.get(HEADER_BYTES..HEADER_BYTES + REPORT_BYTES);
        let report = report.ok_or_else(|| problem("it ends within the hardware report"))?;
        let rest = &bytes[HEADER_BYTES + REPORT_BYTES..];
        let word = |index: usize| {
            let bytes = rest.get(index * 4..index * 4 + 4)?;
            bytes.try_into().ok().map(u32::from_le_bytes)
        };
        let (Some(kind), Some(hash), Some(length)) = (word(2), word(3), word(4)) else {
            return Err(problem("it ends within the data header"));
        };
        if kind != SNP {
            return Err(problem("the hardware report is not an SNP report"));
        }
        if hash != SHA256 {
            return Err(problem("the runtime data is not hashed with SHA-256"));
        }
        let length = usize::try_from(length).map_err(|_| problem("the runtime data is too long"))?;
        let data = rest.get(DATA_HEADER_BYTES..).and_then(|rest| rest.get(..length));
        let data = data.ok_or_else(|| problem("it ends within the runtime data"))?;
        // The TPM gives a buffer of a fixed size.
        if rest[DATA_HEADER_BYTES + length..].iter().any(|&byte| byte != 0) {
            return Err(problem("bytes after the runtime data"));
        }
        Ok(Self {
            report: report.to_vec(),
            runtime_data: data.to_vec(),
        })
    }

    /// Evidence, with `snp` for the certificates.
    pub fn into_evidence(self, snp: SnpEvidence) -> Evidence {
        let attestation = Attestation::SevSnp(SnpEvidence {
            report: self.report,
            ..snp
        });
        Evidence {
            runtime_data: Some(self.runtime_data),
            ..attestation.into()
        }
    }
}
