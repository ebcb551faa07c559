//! Software evidence: a host key's word for what runs on a machine without confidential hardware.
//!
//! Worth as much as the operator who holds the key. It is a kind of its own, and passes only a policy that names
//! both the kind and the key. The statement is a `COSE_Sign1` (RFC 9052 §4.2) with ES256 over a CBOR map; see
//! `docs/evidence.cddl`.

use ciborium::Value;
use coset::{CborSerializable, CoseSign1, CoseSign1Builder, HeaderBuilder, RegisteredLabelWithPrivate, iana};
use p256::ecdsa::signature::{Signer, Verifier};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::bytes::{Bytes, Bytes32, Bytes48, Bytes64};
use crate::evidence::SoftwareEvidence;
use crate::policy::Policy;
use crate::time::{Timestamp, Window};
use crate::verdict::{Appraisal, ReasonCode};

const PROFILE: &str = "tag:cloak.dev,2026:software-1";
const EAT_PROFILE: i64 = 265;
const IAT: i64 = 6;
const MEASUREMENT: i64 = -75100;
const MANIFEST_DIGEST: i64 = -75101;
const REPORT_DATA: i64 = -75102;
/// A statement has about 250 bytes.
const MAX_STATEMENT_BYTES: usize = 4096;

/// What a host says. Also the claims of verified software evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SoftwareClaims {
    /// SHA-384 of the shim's image.
    pub measurement: Bytes48,
    /// SHA-256 of the manifest.
    pub manifest_digest: Bytes32,
    /// What the context chose, as REPORT_DATA of a hardware report.
    pub report_data: Bytes64,
    /// When the host signed.
    pub issued_at: Timestamp,
}

/// Why a statement cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// Not `COSE_Sign1` with ES256, or too long.
    #[error("not a COSE_Sign1 with ES256")]
    Cose,
    /// Not the map that is expected.
    #[error("the payload is not a software statement")]
    Payload,
}

impl SoftwareClaims {
    /// Signs the statement.
    pub fn sign(&self, key: &SigningKey) -> SoftwareEvidence {
        let sign1 = CoseSign1Builder::new()
            .protected(HeaderBuilder::new().algorithm(iana::Algorithm::ES256).build())
            .payload(self.to_cbor())
            .create_signature(&[], |bytes| Signer::<Signature>::sign(key, bytes).to_vec())
            .build();
        SoftwareEvidence {
            // The structure was just built from parts that all have a CBOR form.
            statement: sign1.to_vec().unwrap_or_default(),
            key: key.verifying_key().to_sec1_point(false).as_bytes().to_vec(),
        }
    }

    fn to_cbor(&self) -> Vec<u8> {
        let map = vec![
            (Value::from(EAT_PROFILE), Value::from(PROFILE)),
            (Value::from(IAT), Value::from(self.issued_at.0)),
            (Value::from(MEASUREMENT), Value::from(self.measurement.0.to_vec())),
            (
                Value::from(MANIFEST_DIGEST),
                Value::from(self.manifest_digest.0.to_vec()),
            ),
            (Value::from(REPORT_DATA), Value::from(self.report_data.0.to_vec())),
        ];
        let mut bytes = Vec::new();
        let _ = ciborium::into_writer(&Value::Map(map), &mut bytes);
        bytes
    }

    /// Reads the one form in which [`SoftwareClaims::sign`] writes.
    fn from_cbor(bytes: &[u8]) -> Option<Self> {
        let value: Value = ciborium::de::from_reader_with_recursion_limit(bytes, 4).ok()?;
        let map = value.into_map().ok()?;
        let field = |key: i64| {
            map.iter()
                .find(|(known, _)| known.as_integer() == Some(key.into()))
                .map(|(_, v)| v)
        };
        fn fixed<const N: usize>(value: Option<&Value>) -> Option<Bytes<N>> {
            value?.as_bytes()?.as_slice().try_into().ok().map(Bytes)
        }
        let claims = Self {
            measurement: fixed(field(MEASUREMENT))?,
            manifest_digest: fixed(field(MANIFEST_DIGEST))?,
            report_data: fixed(field(REPORT_DATA))?,
            issued_at: Timestamp(field(IAT)?.as_integer()?.try_into().ok()?),
        };
        (claims.to_cbor() == bytes).then_some(claims)
    }
}

/// Reads a statement without checking its signature.
fn parse(statement: &[u8]) -> Result<(CoseSign1, SoftwareClaims), StatementError> {
    if statement.len() > MAX_STATEMENT_BYTES {
        return Err(StatementError::Cose);
    }
    let sign1 = CoseSign1::from_slice(statement).map_err(|_| StatementError::Cose)?;
    let es256 = RegisteredLabelWithPrivate::Assigned(iana::Algorithm::ES256);
    if sign1.protected.header.alg != Some(es256) || !sign1.unprotected.is_empty() {
        return Err(StatementError::Cose);
    }
    let payload = sign1.payload.as_deref().ok_or(StatementError::Payload)?;
    let claims = SoftwareClaims::from_cbor(payload).ok_or(StatementError::Payload)?;
    Ok((sign1, claims))
}

/// Runs every check. The claims mean nothing unless all of them passed.
pub(crate) fn verify(
    appraisal: &mut Appraisal,
    evidence: &SoftwareEvidence,
    policy: &Policy,
    now: Timestamp,
) -> Option<SoftwareClaims> {
    let digest = Bytes32::from(<[u8; 32]>::from(Sha256::digest(&evidence.key)));
    let listed = policy.software.key_digests.contains(&digest);
    let expected = "a key on the policy's list";
    appraisal.require(
        ReasonCode::SoftwareKey,
        "host key",
        listed,
        expected,
        digest.to_string(),
    );
    let (sign1, claims) = match parse(&evidence.statement) {
        Ok(parsed) => parsed,
        Err(error) => {
            appraisal.refuse(
                ReasonCode::SoftwareMalformed,
                "statement",
                "a signed statement",
                error.to_string(),
            );
            return None;
        }
    };
    let key = VerifyingKey::from_sec1_bytes(&evidence.key);
    let verified = sign1.verify_signature(&[], |signature, bytes| {
        let signature = Signature::from_slice(signature).map_err(|_| ())?;
        key.as_ref()
            .map_err(|_| ())?
            .verify(bytes, &signature)
            .map_err(|_| ())
    });
    let found = if verified.is_ok() {
        "verifies"
    } else {
        "does not verify"
    };
    appraisal.require(
        ReasonCode::SoftwareSignature,
        "statement",
        verified.is_ok(),
        "the host key's signature",
        found,
    );
    let age = policy.software.maximum_age_seconds.into();
    let window = Window {
        from: claims.issued_at,
        until: claims.issued_at.plus_seconds(age),
    };
    let codes = (ReasonCode::SoftwareNotYetValid, ReasonCode::SoftwareExpired);
    appraisal.require_current(codes, "statement iat", &window, now, policy.tolerance());
    Some(claims)
}
