//! The JSON in which Confidential Containers' attesters hand over evidence: SNP, TDX, and SNP on Azure.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::Value;
use sev::firmware::guest::AttestationReport;
use sev::firmware::host::{CertTableEntry, CertType};
use sev::parser::ByteParser as _;

use super::azure::HclReport;
use super::{Attestation, Evidence, EvidenceError, SnpEvidence, TdxEvidence};
use crate::snp::CertTable;

#[derive(Deserialize)]
struct Snp {
    attestation_report: Value,
    #[serde(default)]
    cert_chain: Option<Vec<CertTableEntry>>,
}

#[derive(Deserialize)]
struct Tdx {
    quote: String,
}

#[derive(Deserialize)]
struct AzureSnp {
    hcl_report: Value,
    #[serde(default)]
    vcek: Option<String>,
}

pub(super) fn parse(json: &[u8]) -> Result<Evidence, EvidenceError> {
    let value: Value =
        serde_json::from_slice(json).map_err(|error| EvidenceError::Json(error.to_string()))?;
    if value.get("attestation_report").is_some() {
        snp(from(value)?)
    } else if value.get("hcl_report").is_some() {
        azure(from(value)?)
    } else if value.get("quote").is_some() {
        let Tdx { quote } = from(value)?;
        let quote = base64(&quote).ok_or_else(|| problem("quote", "not base64"))?;
        Ok(Attestation::Tdx(TdxEvidence {
            quote,
            ..Default::default()
        })
        .into())
    } else {
        Err(EvidenceError::Json(
            "neither attestation_report, hcl_report nor quote".to_owned(),
        ))
    }
}

fn snp(evidence: Snp) -> Result<Evidence, EvidenceError> {
    let report = match evidence.attestation_report {
        Value::String(text) => base64(&text).ok_or_else(|| problem("attestation_report", "not base64"))?,
        // The attester parses the report before it sends it. Its reserved fields are lost on the way; if one was
        // not zero, the signature over what is put together here does not verify.
        fields => {
            let report: AttestationReport = from(fields)?;
            let bytes = report
                .to_bytes()
                .map_err(|error| problem("attestation_report", &error.to_string()))?;
            bytes.as_ref().to_vec()
        }
    };
    let mut table = CertTable::default();
    for entry in evidence.cert_chain.into_iter().flatten() {
        let place = match entry.cert_type {
            CertType::VCEK => &mut table.vcek,
            CertType::VLEK => &mut table.vlek,
            CertType::ASK => &mut table.ask,
            CertType::ARK => &mut table.ark,
            CertType::CRL => &mut table.crl,
            _ => continue,
        };
        *place = Some(entry.data);
    }
    Ok(Attestation::SevSnp(table.into_evidence(report)).into())
}

fn azure(evidence: AzureSnp) -> Result<Evidence, EvidenceError> {
    let bytes = match evidence.hcl_report {
        Value::String(text) => base64(&text).ok_or_else(|| problem("hcl_report", "not base64"))?,
        numbers => from(numbers)?,
    };
    let vek = evidence.vcek.map(String::into_bytes);
    Ok(HclReport::parse(&bytes)?.into_evidence(SnpEvidence {
        vek,
        ..Default::default()
    }))
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, EvidenceError> {
    serde_json::from_value(value).map_err(|error| EvidenceError::Json(error.to_string()))
}

/// Both alphabets are in use, depending on the attester's version.
fn base64(text: &str) -> Option<Vec<u8>> {
    STANDARD
        .decode(text)
        .or_else(|_| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')))
        .ok()
}

fn problem(field: &'static str, problem: &str) -> EvidenceError {
    EvidenceError::Field {
        field,
        problem: problem.to_owned(),
    }
}
