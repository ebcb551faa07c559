//! One X.509 version 3 certificate, parsed strictly.

use x509_cert::der::asn1::{Null, ObjectIdentifier};
use x509_cert::der::pem::{self, PemLabel as _};
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::name::Name;
use x509_cert::spki::SubjectPublicKeyInfoOwned;
use x509_cert::{Certificate, Version};

use super::signature::{PssKey, SignatureError, is_pss_sha384};
use crate::time::Window;

/// No certificate of either vendor is near this long.
const MAX_CERT_BYTES: usize = 16 * 1024;
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");

/// Bytes that are not a certificate this crate accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// Longer than any genuine certificate.
    #[error("{0} bytes, more than {MAX_CERT_BYTES}")]
    TooLong(usize),
    /// Not DER of a certificate.
    #[error("not a DER certificate: {0}")]
    Der(#[from] x509_cert::der::Error),
    /// It decodes, but DER has only one way to write it and this is another.
    #[error("not canonical DER")]
    NotCanonical,
    /// Extensions exist in version 3 only.
    #[error("not an X.509 version 3 certificate")]
    Version,
    /// RFC 5280 §4.1.1.2: the two algorithm fields must be the same.
    #[error("the two signature algorithm fields differ")]
    AlgorithmFields,
    /// RFC 5280 §4.2: no extension twice.
    #[error("extension {0} appears twice")]
    DoubledExtension(ObjectIdentifier),
}

/// A certificate and the exact bytes it came as.
#[derive(Debug, Clone)]
pub struct Cert {
    der: Vec<u8>,
    tbs_der: Vec<u8>,
    inner: Certificate,
}

impl Cert {
    /// Parses DER.
    ///
    /// # Errors
    /// [`CertError`] for anything that is not one canonical version 3 certificate, trailing bytes included.
    pub fn from_der(der: &[u8]) -> Result<Self, CertError> {
        if der.len() > MAX_CERT_BYTES {
            return Err(CertError::TooLong(der.len()));
        }
        let inner = Certificate::from_der(der)?;
        if inner.to_der()? != der {
            return Err(CertError::NotCanonical);
        }
        let tbs = &inner.tbs_certificate;
        if tbs.version != Version::V3 {
            return Err(CertError::Version);
        }
        if tbs.signature != inner.signature_algorithm {
            return Err(CertError::AlgorithmFields);
        }
        if let Some(oid) = doubled(tbs.extensions.as_deref().unwrap_or_default()) {
            return Err(CertError::DoubledExtension(oid));
        }
        Ok(Self {
            der: der.to_vec(),
            tbs_der: tbs.to_der()?,
            inner,
        })
    }

    /// Parses DER, or PEM with one certificate in it.
    ///
    /// # Errors
    /// As [`Cert::from_der`].
    pub fn from_der_or_pem(bytes: &[u8]) -> Result<Self, CertError> {
        if !bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
            return Self::from_der(bytes);
        }
        if bytes.len() > 2 * MAX_CERT_BYTES {
            return Err(CertError::TooLong(bytes.len()));
        }
        // In two steps: `Certificate::from_pem` decodes while it parses, and never ends where the text ends too early.
        let (label, der) = pem::decode_vec(bytes.trim_ascii()).map_err(x509_cert::der::Error::from)?;
        Certificate::validate_pem_label(label).map_err(x509_cert::der::Error::from)?;
        Self::from_der(&der)
    }

    /// The bytes as they came.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Who is certified.
    pub fn subject(&self) -> &Name {
        &self.inner.tbs_certificate.subject
    }

    /// Who certifies.
    pub fn issuer(&self) -> &Name {
        &self.inner.tbs_certificate.issuer
    }

    /// The subject's common name, if it has exactly one that is text.
    pub fn subject_common_name(&self) -> Option<String> {
        common_name(self.subject())
    }

    /// The issuer's common name, if it has exactly one that is text.
    pub fn issuer_common_name(&self) -> Option<String> {
        common_name(self.issuer())
    }

    /// The serial number's bytes, big-endian.
    pub fn serial(&self) -> &[u8] {
        self.inner.tbs_certificate.serial_number.as_bytes()
    }

    /// When it may be used.
    pub fn validity(&self) -> Window {
        let validity = self.inner.tbs_certificate.validity;
        Window {
            from: validity.not_before.into(),
            until: validity.not_after.into(),
        }
    }

    /// The certified key.
    pub fn public_key(&self) -> &SubjectPublicKeyInfoOwned {
        &self.inner.tbs_certificate.subject_public_key_info
    }

    /// The content of an extension's OCTET STRING.
    pub fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        self.extensions()
            .iter()
            .find(|ext| ext.extn_id == oid)
            .map(|ext| ext.extn_value.as_bytes())
    }

    /// Every extension, in order.
    pub fn extensions(&self) -> &[Extension] {
        self.inner
            .tbs_certificate
            .extensions
            .as_deref()
            .unwrap_or_default()
    }

    /// The first critical extension that is neither basic constraints nor key usage. RFC 5280 §4.2 asks to refuse
    /// such a certificate.
    pub fn unknown_critical_extension(&self) -> Option<ObjectIdentifier> {
        let known = |oid| oid == BASIC_CONSTRAINTS || oid == KEY_USAGE;
        self.extensions()
            .iter()
            .find(|ext| ext.critical && !known(ext.extn_id))
            .map(|ext| ext.extn_id)
    }

    /// Whether it may sign certificates, with at least `below` CA certificates under it.
    pub fn may_issue(&self, below: u8) -> bool {
        let Some(constraints) = self.parsed_extension::<BasicConstraints>(BASIC_CONSTRAINTS) else {
            return false;
        };
        let usage = self.parsed_extension::<KeyUsage>(KEY_USAGE);
        constraints.ca
            && constraints.path_len_constraint.is_none_or(|limit| limit >= below)
            && usage.is_some_and(|usage| usage.key_cert_sign())
    }

    /// Whether it says that it is a CA.
    pub fn is_ca(&self) -> bool {
        self.parsed_extension::<BasicConstraints>(BASIC_CONSTRAINTS)
            .is_some_and(|constraints| constraints.ca)
    }

    /// Whether the signature is RSASSA-PSS with SHA-384, MGF1 with SHA-384 and 48 bytes of salt.
    pub fn uses_pss_sha384(&self) -> bool {
        is_pss_sha384(&self.inner.signature_algorithm)
    }

    /// Checks that `key` signed this certificate.
    ///
    /// # Errors
    /// [`SignatureError`] if it did not.
    pub(crate) fn verify_signed_by(&self, key: &PssKey) -> Result<(), SignatureError> {
        let signature = self.inner.signature.as_bytes().ok_or(SignatureError::Malformed)?;
        key.verify(&self.tbs_der, signature)
    }

    fn parsed_extension<'a, T: Decode<'a>>(&'a self, oid: ObjectIdentifier) -> Option<T> {
        T::from_der(self.extension(oid)?).ok()
    }
}

fn doubled(extensions: &[Extension]) -> Option<ObjectIdentifier> {
    let mut oids: Vec<_> = extensions.iter().map(|ext| ext.extn_id).collect();
    oids.sort_unstable();
    oids.windows(2)
        .find(|pair| pair[0] == pair[1])
        .map(|pair| pair[0])
}

fn common_name(name: &Name) -> Option<String> {
    let mut names = name
        .0
        .iter()
        .flat_map(|rdn| rdn.0.iter())
        .filter(|attribute| attribute.oid == COMMON_NAME);
    let only = names.next()?;
    if names.next().is_some() {
        return None;
    }
    std::str::from_utf8(only.value.value()).ok().map(str::to_owned)
}

/// The parameters of `ecPublicKey` are a named curve; an RSA key's are NULL.
pub(crate) fn parameters_are_null(spki: &SubjectPublicKeyInfoOwned) -> bool {
    spki.algorithm
        .parameters
        .as_ref()
        .is_some_and(|any| any.decode_as::<Null>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &[u8] = include_bytes!("../snp/roots/asvk_milan.pem");

    #[test]
    fn pem_that_ends_early_is_an_error_not_a_loop() {
        let text = PEM.trim_ascii();
        assert!(Cert::from_der_or_pem(PEM).is_ok());
        let ends = text.len() - b"-----END CERTIFICATE-----".len();
        for cut in (28..ends).rev() {
            let short = [&text[..cut], b"\n-----END CERTIFICATE-----\n"].concat();
            assert!(Cert::from_der_or_pem(&short).is_err() || cut + 1 == ends, "{cut}");
        }
        let found = b"-----BEGIN CERTIFICATE-----\r\nMIIG\n\r-----END CERTIFICATE-----\r\n";
        assert!(Cert::from_der_or_pem(found).is_err());
    }

    #[test]
    fn pem_of_something_else_is_refused() {
        let text = String::from_utf8(PEM.to_vec()).unwrap();
        let other = text.replace("CERTIFICATE", "X509 CRL");
        assert!(Cert::from_der_or_pem(other.as_bytes()).is_err());
    }
}
