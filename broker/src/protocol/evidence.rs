//! Evidence as it stands in a body.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cloak_attestation::Evidence;
use cloak_attestation::evidence::{Companions, EvidenceError};
use serde_json::{Value, json};

use super::{Attestation, Tee};

const ENVELOPE: &str = "cloak-evidence";

/// Why a body's evidence cannot be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceBodyError {
    /// Not evidence of any form.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// Made by another kind of machine than the session is for.
    #[error("the session is for {expected}, the evidence is {found}")]
    Kind {
        /// What `/auth` said.
        expected: &'static str,
        /// What came.
        found: &'static str,
    },
    /// Evidence of devices, which nothing here judges. Passing over it would call a device good that nobody looked at.
    #[error("additional evidence is not judged by this broker")]
    Additional,
}

/// Evidence in the form that this project's client sends.
pub fn primary_evidence(evidence: &Evidence) -> Value {
    json!({ ENVELOPE: URL_SAFE_NO_PAD.encode(evidence.to_cbor()) })
}

/// Reads the evidence in a body; the launch configuration becomes its manifest.
///
/// # Errors
/// [`EvidenceBodyError`].
pub fn read_primary_evidence(body: &Attestation, tee: Tee) -> Result<Evidence, EvidenceBodyError> {
    let additional = body.tee_evidence.additional_evidence.trim();
    if !additional.is_empty() && additional != "{}" {
        return Err(EvidenceBodyError::Additional);
    }
    let primary = &body.tee_evidence.primary_evidence;
    let mut evidence = match primary.get(ENVELOPE) {
        Some(envelope) => {
            let text = envelope.as_str().unwrap_or_default();
            let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| EvidenceError::Field {
                field: ENVELOPE,
                problem: "not base64url".to_owned(),
            })?;
            Evidence::from_cbor(&bytes)?
        }
        None => Evidence::read(primary.to_string().as_bytes(), Companions::default())?,
    };
    let (expected, found) = (tee.evidence_kind(), evidence.kind());
    if expected != found {
        return Err(EvidenceBodyError::Kind {
            expected: expected.as_str(),
            found: found.as_str(),
        });
    }
    if let Some(init_data) = &body.init_data {
        evidence.manifest = Some(init_data.body.clone().into_bytes());
    }
    Ok(evidence)
}
