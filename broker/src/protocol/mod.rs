//! Bodies of Trustee's protocol, version 0.4 (confidential-containers/trustee, `kbs/docs/kbs_attestation_protocol.md`).
//!
//! What this broker adds: the kinds `software`, `simulated-snp` and `simulated-tdx`, and primary evidence of the form
//! `{"cloak-evidence": "<base64url of the CBOR envelope>"}`, which is accepted for every kind.

mod error;
mod evidence;
mod runtime_data;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use error::{ErrorInformation, Problem};
pub use evidence::{EvidenceBodyError, primary_evidence, read_primary_evidence};
pub use runtime_data::{HashAlgorithm, report_data};

/// Version that this implementation speaks.
pub const VERSION: &str = "0.4.0";
/// Cookie that names a session.
pub const SESSION_COOKIE: &str = "kbs-session-id";
/// Every path of the protocol begins with it.
pub const PREFIX: &str = "/kbs/v0";
/// Key in a request's `extra-params`: algorithms that the client can compute REPORT_DATA with.
pub const SUPPORTED_HASHES: &str = "supported-hash-algorithms";
/// Key in a challenge's `extra-params`: the algorithm to use.
pub const SELECTED_HASH: &str = "selected-hash-algorithm";

/// Kind of machine, by the protocol's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tee {
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// A host key. Not in the published list.
    Software,
    /// A simulated signer. Not in the published list.
    SimulatedSnp,
    /// A simulated signer. Not in the published list.
    SimulatedTdx,
}

/// Body of `/auth`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Request {
    /// Version that the client speaks.
    pub version: String,
    /// Its kind of machine; text, so that an unknown one can be refused by name.
    pub tee: String,
    /// Empty text, or an object.
    #[serde(default)]
    pub extra_params: Value,
}

/// Answer of `/auth`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Challenge {
    /// Base64 of 32 random bytes.
    pub nonce: String,
    /// Empty text, or an object with [`SELECTED_HASH`].
    #[serde(default)]
    pub extra_params: Value,
}

/// A guest's public key (RFC 7517). Fields stand in the order that RFC 8785 sorts them into; what else a JWK may
/// have is not part of the protocol and is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TeePublicKey {
    /// Elliptic curve.
    Ec(EcKey),
    /// RSA.
    Rsa(RsaKey),
}

/// An elliptic-curve key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EcKey {
    /// `ECDH-ES+A256KW`.
    pub alg: String,
    /// `P-256`, `P-384` or `P-521`.
    pub crv: String,
    /// `EC`.
    pub kty: EcType,
    /// Base64url of the coordinate, as long as the field.
    pub x: String,
    /// Base64url of the coordinate, as long as the field.
    pub y: String,
}

/// An RSA key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RsaKey {
    /// `RSA-OAEP-256`.
    pub alg: String,
    /// Base64url of the exponent.
    pub e: String,
    /// `RSA`.
    pub kty: RsaType,
    /// Base64url of the modulus.
    pub n: String,
}

/// The word `EC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EcType {
    /// Elliptic curve.
    #[serde(rename = "EC")]
    Ec,
}

/// The word `RSA`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RsaType {
    /// RSA.
    #[serde(rename = "RSA")]
    Rsa,
}

/// What a guest binds to its evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RuntimeData {
    /// The challenge's.
    pub nonce: String,
    /// Key that secrets are to be encrypted to.
    pub tee_pubkey: TeePublicKey,
}

/// Configuration that the host gave the guest at launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitData {
    /// `toml` or `json`; not looked at, for the digest is over the body as it is.
    pub format: String,
    /// The text whose digest is HOST_DATA or MRCONFIGID.
    pub body: String,
}

/// Evidence of a guest and of devices in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompositeEvidence {
    /// The guest's.
    pub primary_evidence: Value,
    /// Empty; devices are not judged here.
    #[serde(default)]
    pub additional_evidence: String,
}

/// Body of `/attest`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Attestation {
    /// Launch configuration, if the guest has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_data: Option<InitData>,
    /// What REPORT_DATA binds.
    pub runtime_data: RuntimeData,
    /// The evidence.
    pub tee_evidence: CompositeEvidence,
}

/// Answer of `/attest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttestationToken {
    /// An EAR, as a JWT.
    pub token: String,
}

/// Answer of `/resource`: a JWE in the flattened form (RFC 7516 §7.2.2), binary parts in base64url.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// Protected header: `alg`, `enc`, for an elliptic-curve key `epk`.
    pub protected: String,
    /// The content key, wrapped.
    pub encrypted_key: String,
    /// Initialisation vector.
    pub iv: String,
    /// The secret.
    pub ciphertext: String,
    /// Authentication tag.
    pub tag: String,
}

impl Tee {
    /// Every kind that is known.
    pub const ALL: [Tee; 5] = [
        Tee::Snp,
        Tee::Tdx,
        Tee::Software,
        Tee::SimulatedSnp,
        Tee::SimulatedTdx,
    ];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Tee::Snp => "snp",
            Tee::Tdx => "tdx",
            Tee::Software => "software",
            Tee::SimulatedSnp => "simulated-snp",
            Tee::SimulatedTdx => "simulated-tdx",
        }
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tee| tee.as_str() == name)
    }

    /// Evidence that a machine of this kind makes.
    pub fn evidence_kind(self) -> cloak_attestation::EvidenceKind {
        use cloak_attestation::EvidenceKind;
        match self {
            Tee::Snp => EvidenceKind::SevSnp,
            Tee::Tdx => EvidenceKind::Tdx,
            Tee::Software => EvidenceKind::Software,
            Tee::SimulatedSnp => EvidenceKind::SimulatedSnp,
            Tee::SimulatedTdx => EvidenceKind::SimulatedTdx,
        }
    }
}

impl Request {
    /// Whether this implementation understands the client: the protocol is unstable, so the minor version has to be
    /// the same (semantic versioning, clause 4).
    pub fn version_fits(&self) -> bool {
        let mut numbers = self.version.split('.').map(|part| part.parse::<u32>().ok());
        let fits = numbers.next() == Some(Some(0)) && numbers.next() == Some(Some(4));
        fits && matches!(numbers.next(), Some(Some(_))) && numbers.next().is_none()
    }

    /// The strongest algorithm that both sides know. A client that says nothing means SHA-384.
    pub fn hash_algorithm(&self) -> Option<HashAlgorithm> {
        let Some(list) = self.extra_params.get(SUPPORTED_HASHES) else {
            return Some(HashAlgorithm::Sha384);
        };
        let named = |name: &str| {
            let matches = |value: &Value| value.as_str().is_some_and(|text| text.eq_ignore_ascii_case(name));
            list.as_array().is_some_and(|list| list.iter().any(matches))
        };
        // SHA-384 first: it is what clients take when they are not told.
        [
            HashAlgorithm::Sha384,
            HashAlgorithm::Sha512,
            HashAlgorithm::Sha256,
        ]
        .into_iter()
        .find(|algorithm| named(algorithm.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(version: &str, extra_params: Value) -> Request {
        Request {
            version: version.to_owned(),
            tee: "snp".to_owned(),
            extra_params,
        }
    }

    #[test]
    fn the_minor_version_has_to_be_the_same() {
        for (version, fits) in [
            ("0.4.0", true),
            ("0.4.7", true),
            ("0.3.0", false),
            ("0.5.0", false),
            ("1.4.0", false),
            ("0.4", false),
            ("0.4.0.1", false),
            ("", false),
        ] {
            assert_eq!(request(version, Value::Null).version_fits(), fits, "{version}");
        }
    }

    #[test]
    fn the_hash_is_one_that_both_know() {
        let algorithm = |extra| request("0.4.0", extra).hash_algorithm();
        assert_eq!(algorithm(json!("")), Some(HashAlgorithm::Sha384));
        assert_eq!(
            algorithm(json!({SUPPORTED_HASHES: ["sha256", "SHA512"]})),
            Some(HashAlgorithm::Sha512)
        );
        assert_eq!(algorithm(json!({SUPPORTED_HASHES: ["sm3"]})), None);
    }

    /// Digests are made of bodies that were read and written: a number that changed would change them.
    #[test]
    fn numbers_stay_as_they_came() {
        for number in [
            "8.888888888888889e+74",
            "0.1",
            "1.7976931348623157e+308",
            "5e-324",
        ] {
            let text = format!(r#"{{"version":"0.4.0","tee":"snp","extra-params":[{number}]}}"#);
            let read: Request = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }
}
