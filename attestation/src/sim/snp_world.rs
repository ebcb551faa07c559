//! A world with a root, two authorities under it, chips and their keys.

use p384::ecdsa::SigningKey;
use p384::elliptic_curve::Generate as _;
use sha2::{Digest, Sha256};
use x509_cert::der::asn1::{Ia5StringRef, ObjectIdentifier};
use x509_cert::der::{Decode, Encode};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::names;
use super::rsa_key::RsaKey;
use super::snp_report::{self, ReportFields};
use super::x509::{CertSpec, CrlSpec, Signer, SimError};
use crate::bytes::{Bytes32, Bytes64};
use crate::evidence::SnpEvidence;
use crate::snp::{Product, TcbComponents, VekKind};
use crate::time::{Timestamp, Window};

const AMD: &str = "1.3.6.1.4.1.3704.1";
const ROOT_SERIAL: u64 = 0x10000;
const ASK_SERIAL: u64 = 0x10001;
const ASVK_SERIAL: u64 = 0x10002;
/// AMD's endorsement certificates all have serial number zero; here they can be told apart.
const VEK_SERIAL: u64 = 0x77;
const YEAR: u64 = 365 * 86400;

/// Something that no genuine world does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnpFault {
    /// The endorsement key's issuer is the other authority.
    WrongAuthority,
    /// The endorsement certificate is signed with a key that is not its issuer's.
    ForeignSignature,
    /// The endorsement key is on P-256.
    WrongCurve,
    /// The authority's key has 2048 bits.
    WeakAuthority,
    /// The authority may not issue certificates.
    AuthorityIsNoCa,
    /// The endorsement certificate has a critical extension that nobody knows.
    CriticalExtension,
    /// The endorsement certificate says that it is an authority.
    VekIsCa,
}

/// What an endorsement certificate is for.
#[derive(Debug, Clone)]
pub struct VekSpec {
    /// VCEK or VLEK.
    pub kind: VekKind,
    /// TCB it was derived for.
    pub tcb: TcbComponents,
    /// The chip.
    pub chip_id: Bytes64,
    /// When it may be used.
    pub window: Window,
    /// What is wrong with it.
    pub fault: Option<SnpFault>,
}

/// Keys and certificates of one product.
#[derive(Debug, Clone)]
pub struct SnpWorld {
    product: Product,
    window: Window,
    ark_key: Signer,
    authority_key: Signer,
    weak_key: Signer,
    ark: Vec<u8>,
}

/// A key with its certificate and everything above it.
#[derive(Debug, Clone)]
pub struct Endorsement {
    key: SigningKey,
    product: Product,
    evidence: SnpEvidence,
}

impl SnpWorld {
    /// A world around `now`: authorities for ten years before and after.
    ///
    /// # Errors
    /// [`SimError`] if a key or a certificate cannot be made.
    pub fn new(product: Product, now: Timestamp) -> Result<Self, SimError> {
        let window = Window {
            from: now.minus_seconds(10 * YEAR),
            until: now.plus_seconds(10 * YEAR),
        };
        let ark_key = Signer::Rsa(Box::new(RsaKey::generate()?));
        let authority_key = Signer::Rsa(Box::new(RsaKey::generate()?));
        let weak_key = Signer::Rsa(Box::new(RsaKey::generate_weak()?));
        Self::assemble(product, window, [ark_key, authority_key, weak_key])
    }

    /// The same keys for another product, which saves making new ones.
    ///
    /// # Errors
    /// [`SimError`] if a certificate cannot be made.
    pub fn for_product(&self, product: Product) -> Result<Self, SimError> {
        let keys = [
            self.ark_key.clone(),
            self.authority_key.clone(),
            self.weak_key.clone(),
        ];
        Self::assemble(product, self.window, keys)
    }

    fn assemble(product: Product, window: Window, keys: [Signer; 3]) -> Result<Self, SimError> {
        let [ark_key, authority_key, weak_key] = keys;
        let name = names::amd(&format!("ARK-{product}"))?;
        let ark = CertSpec {
            subject: name.clone(),
            issuer: name,
            serial: ROOT_SERIAL,
            window,
            key: ark_key.public_key()?,
            authority: Some(1),
            extensions: Vec::new(),
        };
        let ark = ark.sign(&ark_key)?;
        Ok(Self {
            product,
            window,
            ark_key,
            authority_key,
            weak_key,
            ark,
        })
    }

    /// SHA-256 of the root certificate, for a policy's `simulated.root_digests`.
    pub fn root_digest(&self) -> Bytes32 {
        Bytes32::from(<[u8; 32]>::from(Sha256::digest(&self.ark)))
    }

    /// A specification of a good endorsement key, for seven years around the middle of the world.
    pub fn vek_spec(&self, kind: VekKind) -> VekSpec {
        let mut chip_id = Bytes64::ZERO;
        chip_id.0[..self.product.hwid_bytes()].fill(0xc5);
        let middle = self.window.from.plus_seconds(10 * YEAR);
        let window = Window {
            from: middle.minus_seconds(3 * YEAR),
            until: middle.plus_seconds(4 * YEAR),
        };
        let fmc = if self.product == Product::Turin { 1 } else { 0 };
        let tcb = TcbComponents {
            fmc,
            boot_loader: 4,
            tee: 1,
            snp: 24,
            microcode: 219,
        };
        VekSpec {
            kind,
            tcb,
            chip_id,
            window,
            fault: None,
        }
    }

    /// Makes a key, its certificate and the chain above.
    ///
    /// # Errors
    /// [`SimError`] if a certificate cannot be made.
    pub fn endorse(&self, spec: &VekSpec) -> Result<Endorsement, SimError> {
        let key = SigningKey::generate();
        let weak = spec.fault == Some(SnpFault::WeakAuthority);
        let authority_key = if weak { &self.weak_key } else { &self.authority_key };
        let authority_kind = match (spec.fault, spec.kind) {
            (Some(SnpFault::WrongAuthority), VekKind::Vlek) => VekKind::Vcek,
            (Some(SnpFault::WrongAuthority), VekKind::Vcek) => VekKind::Vlek,
            (_, kind) => kind,
        };
        let authority_name = names::amd(&authority_kind.issuer_common_name(self.product))?;
        let authority = CertSpec {
            subject: authority_name.clone(),
            issuer: names::amd(&format!("ARK-{}", self.product))?,
            serial: if authority_kind == VekKind::Vcek {
                ASK_SERIAL
            } else {
                ASVK_SERIAL
            },
            window: self.window,
            key: authority_key.public_key()?,
            authority: (spec.fault != Some(SnpFault::AuthorityIsNoCa)).then_some(0),
            extensions: Vec::new(),
        };
        let mut extensions = self.extensions(spec)?;
        if spec.fault == Some(SnpFault::CriticalExtension) {
            extensions.push((oid("2.5.29.99")?, true, vec![5, 0]));
        }
        let vek = CertSpec {
            subject: names::amd(spec.kind.common_name())?,
            issuer: authority_name,
            serial: VEK_SERIAL,
            window: spec.window,
            key: endorsement_key(&key, spec.fault)?,
            authority: (spec.fault == Some(SnpFault::VekIsCa)).then_some(0),
            extensions,
        };
        let foreign = spec.fault == Some(SnpFault::ForeignSignature);
        let signer = if foreign { &self.ark_key } else { authority_key };
        let evidence = SnpEvidence {
            report: Vec::new(),
            vek: Some(vek.sign(signer)?),
            authority: Some(authority.sign(&self.ark_key)?),
            ark: Some(self.ark.clone()),
            crls: Vec::new(),
        };
        Ok(Endorsement {
            key,
            product: self.product,
            evidence,
        })
    }

    /// The root's list. `revoked` says whether the authorities are on it.
    ///
    /// # Errors
    /// [`SimError`] if the list cannot be made.
    pub fn root_crl(&self, window: Window, revoked: &[VekKind]) -> Result<Vec<u8>, SimError> {
        let serial = |kind: &VekKind| {
            if *kind == VekKind::Vcek {
                ASK_SERIAL
            } else {
                ASVK_SERIAL
            }
        };
        let issuer = names::amd(&format!("ARK-{}", self.product))?;
        CrlSpec {
            issuer,
            window,
            revoked: revoked.iter().map(serial).collect(),
        }
        .sign(&self.ark_key)
    }

    /// The list of the authority for `kind`, which revokes the endorsement key.
    ///
    /// # Errors
    /// [`SimError`] if the list cannot be made.
    pub fn vek_crl(&self, window: Window, kind: VekKind) -> Result<Vec<u8>, SimError> {
        let issuer = names::amd(&kind.issuer_common_name(self.product))?;
        CrlSpec {
            issuer,
            window,
            revoked: vec![VEK_SERIAL],
        }
        .sign(&self.authority_key)
    }

    fn extensions(&self, spec: &VekSpec) -> Result<Vec<(ObjectIdentifier, bool, Vec<u8>)>, SimError> {
        let name = match self.product {
            Product::Milan => "Milan-B0",
            Product::Genoa => "Genoa-B1",
            Product::Turin => "Turin",
        };
        let tcb = spec.tcb;
        let mut values = vec![
            ("1", 0u8.to_der()?),
            ("2", Ia5StringRef::new(name)?.to_der()?),
            ("3.1", tcb.boot_loader.to_der()?),
            ("3.2", tcb.tee.to_der()?),
            ("3.3", tcb.snp.to_der()?),
            ("3.8", tcb.microcode.to_der()?),
        ];
        if self.product == Product::Turin {
            values.push(("3.9", tcb.fmc.to_der()?));
        }
        values.push(match spec.kind {
            VekKind::Vcek => ("4", spec.chip_id.0[..self.product.hwid_bytes()].to_vec()),
            VekKind::Vlek => ("5", Ia5StringRef::new("simulated-cloud")?.to_der()?),
        });
        values
            .into_iter()
            .map(|(arc, value)| Ok((oid(&format!("{AMD}.{arc}"))?, false, value)))
            .collect()
    }
}

impl Endorsement {
    /// One that was made before: the key as [`Endorsement::secret`] gave it, and the certificates.
    ///
    /// # Errors
    /// [`SimError::Key`].
    pub fn stored(secret: &[u8; 48], product: Product, evidence: SnpEvidence) -> Result<Self, SimError> {
        let key = SigningKey::from_slice(secret).map_err(|error| SimError::Key(error.to_string()))?;
        Ok(Self {
            key,
            product,
            evidence,
        })
    }

    /// The key itself, to be stored: it protects nothing.
    pub fn secret(&self) -> [u8; 48] {
        self.key.to_bytes().into()
    }

    /// Certificates, with no report.
    pub fn certificates(&self) -> &SnpEvidence {
        &self.evidence
    }

    /// A report that fits the certificate.
    pub fn fields(&self, spec: &VekSpec) -> ReportFields {
        let mut fields = ReportFields::new(self.product, spec.tcb, spec.chip_id);
        fields.key_info = match spec.kind {
            VekKind::Vcek => 0,
            VekKind::Vlek => 1 << 2,
        };
        fields
    }

    /// Evidence with a signed report.
    pub fn attest(&self, fields: &ReportFields) -> SnpEvidence {
        self.attest_bytes(fields.unsigned(self.product))
    }

    /// Evidence with these bytes as the report, signed whatever they say.
    pub fn attest_bytes(&self, mut report: Vec<u8>) -> SnpEvidence {
        if report.len() >= crate::snp::REPORT_BYTES {
            snp_report::sign(&mut report, &self.key);
        }
        SnpEvidence {
            report,
            ..self.evidence.clone()
        }
    }
}

fn endorsement_key(key: &SigningKey, fault: Option<SnpFault>) -> Result<SubjectPublicKeyInfoOwned, SimError> {
    use p384::pkcs8::EncodePublicKey as _;
    if fault == Some(SnpFault::WrongCurve) {
        return Signer::P256(Box::new(p256::ecdsa::SigningKey::generate())).public_key();
    }
    let der = key
        .verifying_key()
        .to_public_key_der()
        .map_err(|error| SimError::Key(error.to_string()))?;
    Ok(SubjectPublicKeyInfoOwned::from_der(der.as_bytes())?)
}

fn oid(text: &str) -> Result<ObjectIdentifier, SimError> {
    ObjectIdentifier::new(text).map_err(|error| SimError::Key(error.to_string()))
}
