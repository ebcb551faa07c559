//! EAR as a CWT: the same claims under integer labels, in a `COSE_Sign1` with ES256.

use ciborium::Value;
use coset::{CborSerializable, CoseSign1, CoseSign1Builder, HeaderBuilder, RegisteredLabelWithPrivate, iana};
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};

use super::ear::{BUILD, DEVELOPER, PROFILE};
use super::{Ear, MAX_TOKEN_BYTES, Status, TokenError, Trustworthiness};
use crate::bytes::Bytes;
use crate::time::Timestamp;

// Labels of RFC 8392, RFC 9711 and draft-ietf-rats-ear §3.
const EXP: i64 = 4;
const IAT: i64 = 6;
const EAT_PROFILE: i64 = 265;
const SUBMODS: i64 = 266;
const VERIFIER_ID: i64 = 1004;
const STATUS: i64 = 1000;
const TRUSTWORTHINESS: i64 = 1001;
const POLICY: i64 = 1003;
const CONFIGURATION: i64 = 1;
const EXECUTABLES: i64 = 2;
const HARDWARE: i64 = 4;
const RUNTIME_OPAQUE: i64 = 5;
// Private use.
const KIND: i64 = -75000;
const MEASUREMENT: i64 = -75100;
const REPORT_DATA: i64 = -75102;
const REASONS: i64 = -75103;
const SUBMOD: &str = "cloak";

impl Ear {
    /// Signs the result as a CWT.
    pub fn to_cwt(&self, key: &SigningKey) -> Vec<u8> {
        let mut payload = Vec::new();
        // Writing to a vector cannot fail.
        let _ = ciborium::into_writer(&self.claims(), &mut payload);
        CoseSign1Builder::new()
            .protected(HeaderBuilder::new().algorithm(iana::Algorithm::ES256).build())
            .payload(payload)
            .create_signature(&[], |bytes| {
                let signature: Signature = key.sign(bytes);
                signature.to_bytes().to_vec()
            })
            .build()
            .to_vec()
            .unwrap_or_default()
    }

    /// Reads a CWT that `key` signed and that is current at `now`.
    ///
    /// # Errors
    /// [`TokenError`] for anything else.
    pub fn from_cwt(token: &[u8], key: &VerifyingKey, now: Timestamp) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed("too long"));
        }
        let sign1 = CoseSign1::from_slice(token).map_err(|_| TokenError::Malformed("not COSE_Sign1"))?;
        let es256 = RegisteredLabelWithPrivate::Assigned(iana::Algorithm::ES256);
        if sign1.protected.header.alg != Some(es256) || !sign1.protected.header.crit.is_empty() {
            return Err(TokenError::Algorithm);
        }
        sign1.verify_signature(&[], |signature, bytes| {
            let signature = Signature::from_slice(signature).map_err(|_| TokenError::Signature)?;
            key.verify(bytes, &signature).map_err(|_| TokenError::Signature)
        })?;
        let payload = sign1
            .payload
            .as_deref()
            .ok_or(TokenError::Malformed("no payload"))?;
        let value: Value = ciborium::de::from_reader_with_recursion_limit(payload, 8)
            .map_err(|_| TokenError::Malformed("claims"))?;
        let ear = Self::from_claims(&value).ok_or(TokenError::Malformed("claims"))?;
        ear.check_time(now)?;
        Ok(ear)
    }

    fn claims(&self) -> Value {
        let vector = &self.trustworthiness;
        let vector = map([
            (CONFIGURATION, vector.configuration.into()),
            (EXECUTABLES, vector.executables.into()),
            (HARDWARE, vector.hardware.into()),
            (RUNTIME_OPAQUE, vector.runtime_opaque.into()),
        ]);
        let mut submod = vec![
            (STATUS, Value::from(self.status.tier())),
            (TRUSTWORTHINESS, vector),
        ];
        submod.extend(
            self.policy_digest
                .map(|digest| (POLICY, digest.0.to_vec().into())),
        );
        submod.extend(self.kind.map(|kind| (KIND, kind.as_str().into())));
        submod.extend(
            self.measurement
                .map(|value| (MEASUREMENT, value.0.to_vec().into())),
        );
        submod.extend(
            self.report_data
                .map(|value| (REPORT_DATA, value.0.to_vec().into())),
        );
        if !self.reasons.is_empty() {
            let reasons = self
                .reasons
                .iter()
                .map(|reason| Value::from(reason.as_str()))
                .collect();
            submod.push((REASONS, Value::Array(reasons)));
        }
        map([
            (EAT_PROFILE, PROFILE.into()),
            (IAT, self.issued_at.0.into()),
            (EXP, self.expires_at.0.into()),
            (VERIFIER_ID, map([(0, DEVELOPER.into()), (1, BUILD.into())])),
            (SUBMODS, Value::Map(vec![(SUBMOD.into(), map(submod))])),
        ])
    }

    fn from_claims(claims: &Value) -> Option<Self> {
        if field(claims, EAT_PROFILE)?.as_text()? != PROFILE {
            return None;
        }
        let submods = field(claims, SUBMODS)?.as_map()?;
        let submod = &submods.iter().find(|(name, _)| name.as_text() == Some(SUBMOD))?.1;
        let vector = field(submod, TRUSTWORTHINESS)?;
        let tier = |label| -> Option<i8> { field(vector, label)?.as_integer()?.try_into().ok() };
        let time = |label| -> Option<Timestamp> {
            Some(Timestamp(field(claims, label)?.as_integer()?.try_into().ok()?))
        };
        let reasons = field(submod, REASONS).and_then(Value::as_array);
        let kind = match field(submod, KIND) {
            None => None,
            Some(value) => Some(value.as_text()?.parse().ok()?),
        };
        Some(Self {
            issued_at: time(IAT)?,
            expires_at: time(EXP)?,
            status: Status::from_tier(field(submod, STATUS)?.as_integer()?.try_into().ok()?)?,
            trustworthiness: Trustworthiness {
                configuration: tier(CONFIGURATION)?,
                executables: tier(EXECUTABLES)?,
                hardware: tier(HARDWARE)?,
                runtime_opaque: tier(RUNTIME_OPAQUE)?,
            },
            policy_digest: fixed(submod, POLICY)?,
            kind,
            measurement: fixed(submod, MEASUREMENT)?,
            report_data: fixed(submod, REPORT_DATA)?,
            reasons: reasons
                .into_iter()
                .flatten()
                .filter_map(|item| item.as_text().map(str::to_owned))
                .collect(),
        })
    }
}

fn map(entries: impl IntoIterator<Item = (i64, Value)>) -> Value {
    Value::Map(
        entries
            .into_iter()
            .map(|(label, value)| (label.into(), value))
            .collect(),
    )
}

fn field(value: &Value, label: i64) -> Option<&Value> {
    let entries = value.as_map()?;
    entries
        .iter()
        .find(|(key, _)| key.as_integer() == Some(label.into()))
        .map(|(_, value)| value)
}

/// `Some(None)` if it is absent, `None` if it is not of the right length.
fn fixed<const N: usize>(value: &Value, label: i64) -> Option<Option<Bytes<N>>> {
    match field(value, label) {
        None => Some(None),
        Some(value) => Some(Some(Bytes(value.as_bytes()?.as_slice().try_into().ok()?))),
    }
}
