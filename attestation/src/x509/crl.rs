//! A certificate revocation list (RFC 5280 §5), parsed strictly.

use x509_cert::crl::CertificateList;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};
use x509_cert::name::Name;

use super::signature::{PssKey, SignatureError, is_pss_sha384};
use crate::time::Window;

/// AMD's lists have a few hundred bytes; a thousand revocations would fit.
const MAX_CRL_BYTES: usize = 64 * 1024;
const CRL_NUMBER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.20");
const AUTHORITY_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.35");

/// Bytes that are not a revocation list this crate accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CrlError {
    #[error("{0} bytes, more than {MAX_CRL_BYTES}")]
    TooLong(usize),
    #[error("not a DER revocation list: {0}")]
    Der(#[from] x509_cert::der::Error),
    #[error("not canonical DER")]
    NotCanonical,
    #[error("the two signature algorithm fields differ, or are not RSASSA-PSS with SHA-384")]
    Algorithm,
    #[error("no nextUpdate, so it would never go stale")]
    NoNextUpdate,
    /// A delta or partial list would look like a complete one that revokes nothing.
    #[error("extension {0} is not understood")]
    Extension(ObjectIdentifier),
}

/// A complete list of one issuer.
#[derive(Debug, Clone)]
pub(crate) struct Crl {
    tbs_der: Vec<u8>,
    window: Window,
    inner: CertificateList,
}

impl Crl {
    pub(crate) fn from_der(der: &[u8]) -> Result<Self, CrlError> {
        if der.len() > MAX_CRL_BYTES {
            return Err(CrlError::TooLong(der.len()));
        }
        let inner = CertificateList::from_der(der)?;
        if inner.to_der()? != der {
            return Err(CrlError::NotCanonical);
        }
        let tbs = &inner.tbs_cert_list;
        if tbs.signature != inner.signature_algorithm || !is_pss_sha384(&tbs.signature) {
            return Err(CrlError::Algorithm);
        }
        let until = tbs.next_update.ok_or(CrlError::NoNextUpdate)?.into();
        let understood = |oid| oid == CRL_NUMBER || oid == AUTHORITY_KEY;
        for ext in tbs.crl_extensions.iter().flatten() {
            if !understood(ext.extn_id) {
                return Err(CrlError::Extension(ext.extn_id));
            }
        }
        let critical = tbs.revoked_certificates.iter().flatten().flat_map(|entry| {
            entry
                .crl_entry_extensions
                .iter()
                .flatten()
                .filter(|ext| ext.critical)
                .map(|ext| ext.extn_id)
        });
        if let Some(oid) = critical.take(1).next() {
            return Err(CrlError::Extension(oid));
        }
        let window = Window {
            from: tbs.this_update.into(),
            until,
        };
        Ok(Self {
            tbs_der: tbs.to_der()?,
            window,
            inner,
        })
    }

    pub(crate) fn issuer(&self) -> &Name {
        &self.inner.tbs_cert_list.issuer
    }

    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    pub(crate) fn revokes(&self, serial: &[u8]) -> bool {
        let revoked = self.inner.tbs_cert_list.revoked_certificates.iter().flatten();
        revoked
            .into_iter()
            .any(|entry| entry.serial_number.as_bytes() == serial)
    }

    pub(crate) fn verify_signed_by(&self, key: &PssKey) -> Result<(), SignatureError> {
        let signature = self.inner.signature.as_bytes().ok_or(SignatureError::Malformed)?;
        key.verify(&self.tbs_der, signature)
    }
}
