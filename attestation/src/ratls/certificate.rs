//! The certificate: written for an attester's key, read from a peer.
//!
//! Evidence stands in the extension that TCG's DICE attestation architecture has for conceptual messages
//! (2.23.133.5.4.9), as a CMW record (draft-ietf-rats-msg-wrap §3.1): a media type and bytes.

use std::str::FromStr;
use std::time::Duration;

use ciborium::Value;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::EncodePublicKey as _;
use x509_cert::certificate::{Certificate, TbsCertificate, Version};
use x509_cert::der::asn1::{BitString, ObjectIdentifier, OctetString, UtcTime};
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::Extension;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

use super::binding;
use crate::bytes::{Bytes32, Bytes64};
use crate::evidence::{Evidence, EvidenceError, MAX_EVIDENCE_BYTES};
use crate::time::Window;

const CONCEPTUAL_MESSAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.9");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const MEDIA_TYPE: &str = "application/eat+cbor; eat_profile=\"tag:cloak.dev,2026:evidence-1\"";

/// Why a certificate cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not DER, or not expressible in it.
    #[error("certificate: {0}")]
    Der(#[from] x509_cert::der::Error),
    /// The key has no DER form.
    #[error("certificate key: {0}")]
    Key(String),
    /// No extension with evidence.
    #[error("the certificate carries no evidence")]
    NoEvidence,
    /// The extension is not a CMW record with this project's media type.
    #[error("the certificate's evidence is of another type")]
    MediaType,
    /// The evidence in it cannot be read.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
}

/// A key and the certificate that says what holds it.
#[derive(Debug, Clone)]
pub struct Identity {
    certificate: Vec<u8>,
}

impl Identity {
    /// Asks `attest` for evidence with the REPORT_DATA it is given, and puts it into a certificate for `key`.
    ///
    /// # Errors
    /// [`IdentityError`] if the key or the evidence do not go into a certificate.
    pub fn new(
        key: &SigningKey,
        nonce: &Bytes32,
        window: Window,
        attest: impl FnOnce(Bytes64) -> Evidence,
    ) -> Result<Self, IdentityError> {
        let public_key = key.verifying_key().to_public_key_der();
        let public_key = public_key.map_err(|error| IdentityError::Key(error.to_string()))?;
        let evidence = attest(binding(public_key.as_bytes(), nonce));
        let name = Name::from_str("CN=cloak")?;
        let algorithm = AlgorithmIdentifierOwned {
            oid: ECDSA_SHA256,
            parameters: None,
        };
        let tbs_certificate = TbsCertificate {
            version: Version::V3,
            serial_number: SerialNumber::new(&[1])?,
            signature: algorithm.clone(),
            issuer: name.clone(),
            validity: Validity {
                not_before: time(window.from.0)?,
                not_after: time(window.until.0)?,
            },
            subject: name,
            subject_public_key_info: SubjectPublicKeyInfoOwned::from_der(public_key.as_bytes())?,
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(vec![Extension {
                extn_id: CONCEPTUAL_MESSAGE,
                critical: false,
                extn_value: OctetString::new(record(&evidence))?,
            }]),
        };
        let signature: Signature = key.sign(&tbs_certificate.to_der()?);
        let signature = BitString::from_bytes(signature.to_der().as_bytes())?;
        let certificate = Certificate {
            tbs_certificate,
            signature_algorithm: algorithm,
            signature,
        };
        Ok(Self {
            certificate: certificate.to_der()?,
        })
    }

    /// The certificate, DER.
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }
}

/// The evidence in a peer's certificate, the DER of its key, and when it may be used.
///
/// # Errors
/// [`IdentityError`] if there is none.
pub fn evidence_in(certificate: &[u8]) -> Result<(Evidence, Vec<u8>, Window), IdentityError> {
    let certificate = Certificate::from_der(certificate)?;
    let tbs = certificate.tbs_certificate;
    let mut messages = tbs
        .extensions
        .iter()
        .flatten()
        .filter(|extension| extension.extn_id == CONCEPTUAL_MESSAGE);
    let (Some(message), None) = (messages.next(), messages.next()) else {
        return Err(IdentityError::NoEvidence);
    };
    let evidence = Evidence::from_cbor(&unwrap_record(message.extn_value.as_bytes())?)?;
    let window = Window {
        from: tbs.validity.not_before.into(),
        until: tbs.validity.not_after.into(),
    };
    Ok((evidence, tbs.subject_public_key_info.to_der()?, window))
}

fn record(evidence: &Evidence) -> Vec<u8> {
    let record = Value::Array(vec![MEDIA_TYPE.into(), evidence.to_cbor().into()]);
    let mut bytes = Vec::new();
    // Writing to a vector cannot fail.
    let _ = ciborium::into_writer(&record, &mut bytes);
    bytes
}

fn unwrap_record(bytes: &[u8]) -> Result<Vec<u8>, IdentityError> {
    if bytes.len() > MAX_EVIDENCE_BYTES {
        return Err(EvidenceError::Size(bytes.len()).into());
    }
    let value: Value =
        ciborium::de::from_reader_with_recursion_limit(bytes, 4).map_err(|_| IdentityError::MediaType)?;
    match value
        .into_array()
        .ok()
        .and_then(|items| <[Value; 2]>::try_from(items).ok())
    {
        Some([Value::Text(media_type), Value::Bytes(evidence)]) if media_type == MEDIA_TYPE => Ok(evidence),
        _ => Err(IdentityError::MediaType),
    }
}

fn time(unix: u64) -> Result<Time, IdentityError> {
    Ok(Time::UtcTime(UtcTime::from_unix_duration(Duration::from_secs(
        unix,
    ))?))
}
