//! The endorsement certificates, VCEK and VLEK, and their extensions (VCEK §3, VLEK §3).

use p384::ecdsa::VerifyingKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use x509_cert::der::asn1::{Ia5StringRef, ObjectIdentifier};
use x509_cert::der::{Decode, Encode};

use super::product::Product;
use super::tcb::TcbComponents;
use crate::x509::Cert;

const PRODUCT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.2");
const BOOT_LOADER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
const TEE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
const SNP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
const MICROCODE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
const FMC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.9");
const HWID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");
const CSP_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.5");
/// `SPL_4` to `SPL_7` are reserved and zero.
const RESERVED_SPLS: [ObjectIdentifier; 4] = [
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.4"),
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.5"),
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.6"),
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.7"),
];
/// `AlgorithmIdentifier` of an elliptic-curve key on P-384 (RFC 5480 §2.1.1).
const EC_P384: &[u8] = &[
    0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00,
    0x22,
];

/// Which of the two kinds of key an endorsement certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VekKind {
    /// Versioned chip endorsement key: derived from the chip.
    Vcek,
    /// Versioned loaded endorsement key: given by AMD to a cloud provider, the same on all its chips.
    Vlek,
}

impl VekKind {
    /// Common name of the certificate.
    pub fn common_name(self) -> &'static str {
        match self {
            VekKind::Vcek => "SEV-VCEK",
            VekKind::Vlek => "SEV-VLEK",
        }
    }

    /// Common name of the certificate's issuer.
    pub fn issuer_common_name(self, product: Product) -> String {
        match self {
            VekKind::Vcek => format!("SEV-{product}"),
            VekKind::Vlek => format!("SEV-VLEK-{product}"),
        }
    }
}

/// Why a certificate is not an endorsement certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VekError {
    /// An extension that every such certificate has.
    #[error("no {0}")]
    Missing(&'static str),
    /// An extension whose content is not of its type.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// A product without a pinned root.
    #[error("unknown product {0:?}")]
    Product(String),
    /// The subject's common name is neither kind's.
    #[error("common name {0:?}")]
    Kind(Option<String>),
}

/// What an endorsement certificate certifies.
#[derive(Debug, Clone)]
pub struct Vek {
    /// VCEK or VLEK.
    pub kind: VekKind,
    /// The product in the extension.
    pub product: Product,
    /// The TCB that the key was derived for.
    pub tcb: TcbComponents,
    /// The chip, 64 bytes or on Turin 8; a VLEK has none.
    pub hwid: Option<Vec<u8>>,
    /// The cloud provider that a VLEK was given to.
    pub csp_id: Option<String>,
}

impl Vek {
    /// Reads the extensions of `cert`.
    ///
    /// # Errors
    /// [`VekError`] for the first one that is missing or malformed.
    pub fn from_cert(cert: &Cert) -> Result<Self, VekError> {
        let kind = kind(cert)?;
        let product = product(cert)?;
        for oid in RESERVED_SPLS {
            if cert
                .extension(oid)
                .is_some_and(|value| u8::from_der(value) != Ok(0))
            {
                return Err(VekError::Malformed("a reserved SPL"));
            }
        }
        let tcb = TcbComponents {
            fmc: match product {
                Product::Turin => component(cert, FMC, "fmcSPL")?,
                Product::Milan | Product::Genoa => 0,
            },
            boot_loader: component(cert, BOOT_LOADER, "blSPL")?,
            tee: component(cert, TEE, "teeSPL")?,
            snp: component(cert, SNP, "snpSPL")?,
            microcode: component(cert, MICROCODE, "ucodeSPL")?,
        };
        let (hwid, csp_id) = match kind {
            VekKind::Vcek => (Some(hwid(cert, product)?), None),
            VekKind::Vlek => (None, Some(text(cert, CSP_ID, "cspID")?)),
        };
        Ok(Self {
            kind,
            product,
            tcb,
            hwid,
            csp_id,
        })
    }

    /// The chip as a report gives it: padded with zeros to 64 bytes.
    pub fn chip_id(&self) -> Option<[u8; 64]> {
        let hwid = self.hwid.as_deref()?;
        let mut id = [0; 64];
        id.get_mut(..hwid.len())?.copy_from_slice(hwid);
        Some(id)
    }
}

/// The certificate's key, if it is a point on P-384 written uncompressed.
pub(crate) fn p384_key(cert: &Cert) -> Option<VerifyingKey> {
    let spki = cert.public_key();
    if spki.algorithm.to_der().ok()? != EC_P384 {
        return None;
    }
    let point = spki.subject_public_key.as_bytes()?;
    if point.first() != Some(&0x04) {
        return None;
    }
    VerifyingKey::from_sec1_bytes(point).ok()
}

fn kind(cert: &Cert) -> Result<VekKind, VekError> {
    let name = cert.subject_common_name();
    [VekKind::Vcek, VekKind::Vlek]
        .into_iter()
        .find(|kind| name.as_deref() == Some(kind.common_name()))
        .ok_or(VekError::Kind(name))
}

fn product(cert: &Cert) -> Result<Product, VekError> {
    let name = text(cert, PRODUCT_NAME, "productName")?;
    Product::from_certificate_name(&name).ok_or(VekError::Product(name))
}

fn component(cert: &Cert, oid: ObjectIdentifier, name: &'static str) -> Result<u8, VekError> {
    u8::from_der(cert.extension(oid).ok_or(VekError::Missing(name))?).map_err(|_| VekError::Malformed(name))
}

fn text(cert: &Cert, oid: ObjectIdentifier, name: &'static str) -> Result<String, VekError> {
    let value = cert.extension(oid).ok_or(VekError::Missing(name))?;
    let text = Ia5StringRef::from_der(value).map_err(|_| VekError::Malformed(name))?;
    Ok(text.as_str().to_owned())
}

/// The identifier stands in the extension without an ASN.1 type of its own.
fn hwid(cert: &Cert, product: Product) -> Result<Vec<u8>, VekError> {
    let value = cert.extension(HWID).ok_or(VekError::Missing("hwID"))?;
    if value.len() != product.hwid_bytes() {
        return Err(VekError::Malformed("hwID"));
    }
    Ok(value.to_vec())
}
