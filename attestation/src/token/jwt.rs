//! EAR as a JWT.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ear::{BUILD, DEVELOPER, PROFILE};
use super::{Ear, MAX_TOKEN_BYTES, Status, TokenError, Trustworthiness};
use crate::bytes::{Bytes32, Bytes48, Bytes64};
use crate::evidence::EvidenceKind;
use crate::time::Timestamp;

const HEADER: &str = r#"{"alg":"ES256","typ":"JWT"}"#;

#[derive(Serialize, Deserialize)]
struct Payload {
    eat_profile: String,
    iat: u64,
    exp: u64,
    #[serde(rename = "ear.verifier-id")]
    verifier: VerifierId,
    submods: Submods,
    /// What the issuer adds, and what a reader of another make would not know.
    #[serde(flatten)]
    more: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
struct VerifierId {
    developer: String,
    build: String,
}

#[derive(Serialize, Deserialize)]
struct Submods {
    cloak: Submod,
}

#[derive(Serialize, Deserialize)]
struct Submod {
    #[serde(rename = "ear.status")]
    status: Status,
    #[serde(rename = "ear.trustworthiness-vector")]
    trustworthiness: Trustworthiness,
    #[serde(
        rename = "ear.appraisal-policy-id",
        skip_serializing_if = "Option::is_none",
        default
    )]
    policy: Option<String>,
    #[serde(rename = "cloak.kind", skip_serializing_if = "Option::is_none", default)]
    kind: Option<EvidenceKind>,
    #[serde(
        rename = "cloak.measurement",
        skip_serializing_if = "Option::is_none",
        default
    )]
    measurement: Option<Bytes48>,
    #[serde(
        rename = "cloak.report-data",
        skip_serializing_if = "Option::is_none",
        default
    )]
    report_data: Option<Bytes64>,
    #[serde(rename = "cloak.reasons", skip_serializing_if = "Vec::is_empty", default)]
    reasons: Vec<String>,
}

/// Names that only the result itself gives.
const OWN_CLAIMS: [&str; 5] = ["eat_profile", "iat", "exp", "ear.verifier-id", "submods"];

const POLICY_PREFIX: &str = "urn:cloak:policy:sha256:";

impl Ear {
    /// Signs the result as a JWT in the compact form.
    pub fn to_jwt(&self, key: &SigningKey) -> String {
        self.to_jwt_with(key, Map::new())
    }

    /// The same with claims of the issuer's own: `iss`, `jti`, a key. A result's own claims are not replaced by them.
    pub fn to_jwt_with(&self, key: &SigningKey, mut more: Map<String, Value>) -> String {
        more.retain(|name, _| !OWN_CLAIMS.contains(&name.as_str()));
        let payload = Payload {
            more,
            ..self.payload()
        };
        // The payload is plain strings and numbers, which always have a JSON form.
        let payload = serde_json::to_string(&payload).unwrap_or_default();
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(HEADER),
            URL_SAFE_NO_PAD.encode(payload)
        );
        let signature: Signature = key.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }

    /// Reads a JWT that `key` signed and that is current at `now`.
    ///
    /// # Errors
    /// [`TokenError`] for anything else.
    pub fn from_jwt(token: &str, key: &VerifyingKey, now: Timestamp) -> Result<Self, TokenError> {
        Self::from_jwt_with(token, key, now).map(|(ear, _)| ear)
    }

    /// The same, with the claims that are not the result's own.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn from_jwt_with(
        token: &str,
        key: &VerifyingKey,
        now: Timestamp,
    ) -> Result<(Self, Map<String, Value>), TokenError> {
        let malformed = TokenError::Malformed;
        if token.len() > MAX_TOKEN_BYTES {
            return Err(malformed("too long"));
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(malformed("no signature"))?;
        let (header, payload) = signed.split_once('.').ok_or(malformed("no payload"))?;
        let decode = |part: &str| {
            URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|_| malformed("not base64url"))
        };
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| malformed("header"))?;
        if header["alg"] != "ES256" || header.get("crit").is_some() {
            return Err(TokenError::Algorithm);
        }
        let signature = Signature::from_slice(&decode(signature)?).map_err(|_| TokenError::Signature)?;
        key.verify(signed.as_bytes(), &signature)
            .map_err(|_| TokenError::Signature)?;
        let mut payload: Payload =
            serde_json::from_slice(&decode(payload)?).map_err(|_| malformed("claims"))?;
        let more = std::mem::take(&mut payload.more);
        let ear = Self::from_payload(payload)?;
        ear.check_time(now)?;
        Ok((ear, more))
    }

    fn payload(&self) -> Payload {
        Payload {
            eat_profile: PROFILE.to_owned(),
            iat: self.issued_at.0,
            exp: self.expires_at.0,
            more: Map::new(),
            verifier: VerifierId {
                developer: DEVELOPER.to_owned(),
                build: BUILD.to_owned(),
            },
            submods: Submods {
                cloak: Submod {
                    status: self.status,
                    trustworthiness: self.trustworthiness,
                    policy: self
                        .policy_digest
                        .map(|digest| format!("{POLICY_PREFIX}{digest}")),
                    kind: self.kind,
                    measurement: self.measurement,
                    report_data: self.report_data,
                    reasons: self.reasons.clone(),
                },
            },
        }
    }

    fn from_payload(payload: Payload) -> Result<Self, TokenError> {
        if payload.eat_profile != PROFILE {
            return Err(TokenError::Malformed("profile"));
        }
        let submod = payload.submods.cloak;
        let digest = |text: String| -> Option<Bytes32> { text.strip_prefix(POLICY_PREFIX)?.parse().ok() };
        let policy_digest = match submod.policy {
            None => None,
            Some(text) => Some(digest(text).ok_or(TokenError::Malformed("policy"))?),
        };
        Ok(Self {
            issued_at: Timestamp(payload.iat),
            expires_at: Timestamp(payload.exp),
            status: submod.status,
            trustworthiness: submod.trustworthiness,
            policy_digest,
            kind: submod.kind,
            measurement: submod.measurement,
            report_data: submod.report_data,
            reasons: submod.reasons,
        })
    }
}
