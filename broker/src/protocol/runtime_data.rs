//! What REPORT_DATA has to be: the digest of the runtime data in its canonical form (RFC 8785), zeros after it.

use cloak_attestation::bytes::Bytes64;
use serde::Serialize;
use sha2::{Digest, Sha256, Sha384, Sha512};

use super::{RuntimeData, TeePublicKey};

/// Digests that REPORT_DATA may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// 32 bytes.
    Sha256,
    /// 48 bytes; what the protocol takes when nothing is said.
    Sha384,
    /// 64 bytes.
    Sha512,
}

impl HashAlgorithm {
    /// The name in `extra-params`.
    pub fn as_str(self) -> &'static str {
        match self {
            HashAlgorithm::Sha256 => "sha256",
            HashAlgorithm::Sha384 => "sha384",
            HashAlgorithm::Sha512 => "sha512",
        }
    }

    /// The algorithm with this name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Sha256, Self::Sha384, Self::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.as_str().eq_ignore_ascii_case(name))
    }

    fn digest(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            HashAlgorithm::Sha256 => Sha256::digest(bytes).to_vec(),
            HashAlgorithm::Sha384 => Sha384::digest(bytes).to_vec(),
            HashAlgorithm::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }
}

/// Fields in the order that RFC 8785 §3.2.3 wants, and only text in them, so that plain JSON is the canonical form.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Canonical<'a> {
    additional_evidence: &'a str,
    nonce: &'a str,
    tee_pubkey: &'a TeePublicKey,
}

/// REPORT_DATA for `runtime_data`.
pub fn report_data(
    runtime_data: &RuntimeData,
    additional_evidence: &str,
    algorithm: HashAlgorithm,
) -> Bytes64 {
    let canonical = Canonical {
        additional_evidence,
        nonce: &runtime_data.nonce,
        tee_pubkey: &runtime_data.tee_pubkey,
    };
    // Text always has a JSON form.
    let bytes = serde_json::to_vec(&canonical).unwrap_or_default();
    let digest = algorithm.digest(&bytes);
    let mut report_data = Bytes64::ZERO;
    report_data.0[..digest.len()].copy_from_slice(&digest);
    report_data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canonical_form_is_sorted_and_without_white_space() {
        let json = r#"{"tee-pubkey":{"y":"Yg","kty":"EC","x":"YQ","crv":"P-256","alg":"ECDH-ES+A256KW"},"nonce":"n"}"#;
        let data: RuntimeData = serde_json::from_str(json).unwrap();
        let canonical = r#"{"additional-evidence":"","nonce":"n","tee-pubkey":{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"YQ","y":"Yg"}}"#;
        let expected = Sha384::digest(canonical);
        let found = report_data(&data, "", HashAlgorithm::Sha384);
        assert_eq!(found.0[..48], expected[..]);
        assert_eq!(found.0[48..], [0; 16]);
    }
}
