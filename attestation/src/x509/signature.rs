//! RSASSA-PSS with SHA-384, the only algorithm in AMD's chains (publication 57230, §2 and §3).

use rsa::RsaPublicKey;
use rsa::pss::{Signature, VerifyingKey};
use rsa::signature::Verifier;
use rsa::traits::PublicKeyParts;
use sha2::Sha384;
use x509_cert::der::Encode;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use super::cert::parameters_are_null;

/// `RSASSA-PSS-params` of RFC 4055 §3.1 with SHA-384, MGF1 with SHA-384, salt length 48, trailer field by default.
pub(crate) const PSS_SHA384: &[u8] = &[
    0x30, 0x41, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a, // id-RSASSA-PSS
    0x30, 0x34, 0xa0, 0x0f, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02,
    0x05, 0x00, // [0] SHA-384
    0xa1, 0x1c, 0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, 0x30, 0x0d,
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05,
    0x00, // [1] MGF1 with SHA-384
    0xa2, 0x03, 0x02, 0x01, 0x30, // [2] 48
];
/// The same with the trailer field written out, as AMD's certificates have it.
const PSS_SHA384_TRAILER: &[u8] = &[0xa3, 0x03, 0x02, 0x01, 0x01];
/// AMD's certificate authorities have 4096-bit keys.
const KEY_BYTES: usize = 512;

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SignatureError {
    /// The signature or the key is not of the right form.
    #[error("malformed")]
    Malformed,
    /// The arithmetic says no.
    #[error("does not verify")]
    Wrong,
}

/// An RSA key that signs with PSS and SHA-384.
#[derive(Debug, Clone)]
pub(crate) struct PssKey {
    key: VerifyingKey<Sha384>,
    bytes: usize,
}

impl PssKey {
    pub(crate) fn new(spki: &SubjectPublicKeyInfoOwned) -> Result<Self, SignatureError> {
        if !parameters_are_null(spki) {
            return Err(SignatureError::Malformed);
        }
        let der = spki.to_der().map_err(|_| SignatureError::Malformed)?;
        let spki = rsa::pkcs8::SubjectPublicKeyInfoRef::try_from(der.as_slice())
            .map_err(|_| SignatureError::Malformed)?;
        let key = RsaPublicKey::try_from(spki).map_err(|_| SignatureError::Malformed)?;
        let bytes = key.size();
        Ok(Self {
            key: VerifyingKey::new(key),
            bytes,
        })
    }

    /// Whether the modulus has AMD's length.
    pub(crate) fn has_full_length(&self) -> bool {
        self.bytes == KEY_BYTES
    }

    pub(crate) fn bits(&self) -> usize {
        self.bytes * 8
    }

    pub(crate) fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
        if signature.len() != self.bytes {
            return Err(SignatureError::Malformed);
        }
        let signature = Signature::try_from(signature).map_err(|_| SignatureError::Malformed)?;
        self.key
            .verify(message, &signature)
            .map_err(|_| SignatureError::Wrong)
    }
}

/// Whether `algorithm` is exactly PSS with SHA-384 throughout. The parameters say how to verify, so a byte that
/// differs must not pass unread.
pub(crate) fn is_pss_sha384(algorithm: &AlgorithmIdentifierOwned) -> bool {
    let Ok(der) = algorithm.to_der() else { return false };
    der == PSS_SHA384 || der == with_trailer()
}

fn with_trailer() -> Vec<u8> {
    let mut der = PSS_SHA384.to_vec();
    der.extend_from_slice(PSS_SHA384_TRAILER);
    let added = PSS_SHA384_TRAILER.len() as u8;
    der[1] += added;
    der[14] += added;
    der
}
