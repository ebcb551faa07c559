//! Writes certificates and revocation lists, the wrong ones too.

use std::time::Duration;

use x509_cert::certificate::{Certificate, TbsCertificate, Version};
use x509_cert::crl::{CertificateList, RevokedCert, TbsCertList};
use x509_cert::der::asn1::{BitString, ObjectIdentifier, OctetString, UtcTime};
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

use super::rsa_key::{RsaKey, RsaKeyError};
use crate::time::Window;

const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const CRL_NUMBER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.20");
const AUTHORITY_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.35");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");

/// Something that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// Not expressible in DER.
    #[error("simulated signer: {0}")]
    Der(#[from] x509_cert::der::Error),
    /// No RSA key.
    #[error(transparent)]
    Rsa(#[from] RsaKeyError),
    /// A key that does not go into a certificate.
    #[error("simulated signer: {0}")]
    Key(String),
    /// Not expressible in JSON.
    #[error("simulated signer: {0}")]
    Json(#[from] serde_json::Error),
}

/// A key that signs certificates.
#[derive(Debug, Clone)]
pub enum Signer {
    /// As AMD's.
    Rsa(Box<RsaKey>),
    /// As Intel's.
    P256(Box<p256::ecdsa::SigningKey>),
}

impl Signer {
    /// The key for certificates.
    pub(super) fn public_key(&self) -> Result<SubjectPublicKeyInfoOwned, SimError> {
        match self {
            Signer::Rsa(key) => key.public_key().map_err(SimError::Key),
            Signer::P256(key) => {
                use p256::pkcs8::EncodePublicKey as _;
                let der = key.verifying_key().to_public_key_der();
                let der = der.map_err(|error| SimError::Key(error.to_string()))?;
                Ok(SubjectPublicKeyInfoOwned::from_der(der.as_bytes())?)
            }
        }
    }

    fn algorithm(&self) -> Result<AlgorithmIdentifierOwned, SimError> {
        match self {
            Signer::Rsa(_) => Ok(AlgorithmIdentifierOwned::from_der(crate::x509::PSS_SHA384)?),
            Signer::P256(_) => Ok(AlgorithmIdentifierOwned {
                oid: ECDSA_SHA256,
                parameters: None,
            }),
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Signer::Rsa(key) => key.sign(message),
            Signer::P256(key) => {
                use p256::ecdsa::signature::Signer as _;
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_der().as_bytes().to_vec()
            }
        }
    }
}

/// What goes into a certificate.
#[derive(Debug, Clone)]
pub struct CertSpec {
    /// Who is certified.
    pub subject: Name,
    /// Who certifies.
    pub issuer: Name,
    /// Serial number.
    pub serial: u64,
    /// When it may be used.
    pub window: Window,
    /// The certified key.
    pub key: SubjectPublicKeyInfoOwned,
    /// `Some` with a path length for an authority.
    pub authority: Option<u8>,
    /// Further extensions: identifier, criticality, content.
    pub extensions: Vec<(ObjectIdentifier, bool, Vec<u8>)>,
}

impl CertSpec {
    /// Signs it.
    ///
    /// # Errors
    /// [`SimError`] for what DER cannot say.
    pub fn sign(&self, signer: &Signer) -> Result<Vec<u8>, SimError> {
        let mut extensions = Vec::new();
        for (oid, critical, value) in &self.extensions {
            extensions.push(extension(*oid, *critical, value.clone())?);
        }
        let usage = match self.authority {
            Some(below) => {
                let constraints = BasicConstraints {
                    ca: true,
                    path_len_constraint: Some(below),
                };
                extensions.push(extension(BASIC_CONSTRAINTS, true, constraints.to_der()?)?);
                Some(KeyUsages::KeyCertSign | KeyUsages::CRLSign)
            }
            None => matches!(signer, Signer::P256(_)).then(|| KeyUsages::DigitalSignature.into()),
        };
        if let Some(usage) = usage {
            extensions.push(extension(KEY_USAGE, true, KeyUsage(usage).to_der()?)?);
        }
        let algorithm = signer.algorithm()?;
        let tbs_certificate = TbsCertificate {
            version: Version::V3,
            serial_number: SerialNumber::new(&self.serial.to_be_bytes())?,
            signature: algorithm.clone(),
            issuer: self.issuer.clone(),
            validity: Validity {
                not_before: time(self.window.from.0)?,
                not_after: time(self.window.until.0)?,
            },
            subject: self.subject.clone(),
            subject_public_key_info: self.key.clone(),
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(extensions),
        };
        let signature = signer.sign(&tbs_certificate.to_der()?);
        let signature = BitString::from_bytes(&signature)?;
        Ok(Certificate {
            tbs_certificate,
            signature_algorithm: algorithm,
            signature,
        }
        .to_der()?)
    }
}

/// What goes into a revocation list.
#[derive(Debug, Clone)]
pub struct CrlSpec {
    /// Whose list it is.
    pub issuer: Name,
    /// When it may be used.
    pub window: Window,
    /// Serial numbers of what is revoked.
    pub revoked: Vec<u64>,
}

impl CrlSpec {
    /// Signs it.
    ///
    /// # Errors
    /// [`SimError`] for what DER cannot say.
    pub fn sign(&self, signer: &Signer) -> Result<Vec<u8>, SimError> {
        let algorithm = signer.algorithm()?;
        let mut revoked = Vec::new();
        for serial in &self.revoked {
            revoked.push(RevokedCert {
                serial_number: SerialNumber::new(&serial.to_be_bytes())?,
                revocation_date: time(self.window.from.0)?,
                crl_entry_extensions: None,
            });
        }
        // RFC 5280 §5.2: both extensions in every list; an empty key identifier is enough for one issuer.
        let extensions = vec![
            extension(AUTHORITY_KEY, false, vec![0x30, 0x00])?,
            extension(CRL_NUMBER, false, vec![0x02, 0x01, 0x01])?,
        ];
        let tbs_cert_list = TbsCertList {
            version: Version::V2,
            signature: algorithm.clone(),
            issuer: self.issuer.clone(),
            this_update: time(self.window.from.0)?,
            next_update: Some(time(self.window.until.0)?),
            revoked_certificates: (!revoked.is_empty()).then_some(revoked),
            crl_extensions: Some(extensions),
        };
        let signature = signer.sign(&tbs_cert_list.to_der()?);
        let signature = BitString::from_bytes(&signature)?;
        Ok(CertificateList {
            tbs_cert_list,
            signature_algorithm: algorithm,
            signature,
        }
        .to_der()?)
    }
}

fn extension(oid: ObjectIdentifier, critical: bool, value: Vec<u8>) -> Result<Extension, SimError> {
    Ok(Extension {
        extn_id: oid,
        critical,
        extn_value: OctetString::new(value)?,
    })
}

fn time(unix: u64) -> Result<Time, SimError> {
    Ok(Time::UtcTime(UtcTime::from_unix_duration(Duration::from_secs(
        unix,
    ))?))
}
