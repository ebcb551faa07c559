//! A world with a root, its authorities, one platform and its quoting enclave.

use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate as _;
use sha2::{Digest, Sha256};
use x509_cert::der::Encode as _;
use x509_cert::der::asn1::ObjectIdentifier;

use super::names;
use super::tdx_collateral::{qe_identity, tcb_info};
use super::tdx_quote::{self, FMSPC, QE_MR_SIGNER, QuoteFields, QuoteKeys};
use super::x509::{CertSpec, CrlSpec, Signer, SimError};
use crate::bytes::Bytes32;
use crate::evidence::TdxEvidence;
use crate::tdx::{Collateral, to_pem};
use crate::time::{Timestamp, Window};

const SGX: &str = "1.2.840.113741.1.13.1";
const YEAR: u64 = 365 * 86400;
const PCK_SERIAL: u64 = 0x77;

/// Something that no genuine world does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TdxFault {
    /// The PCK certificate is on its issuer's list.
    RevokedPck,
    /// Another key signed the quote.
    ForeignQuoteSignature,
    /// The quoting enclave has another signer.
    ForeignQuotingEnclave,
    /// The collateral is for another processor family.
    OtherFmspc,
    /// The collateral is for SGX.
    SgxCollateral,
    /// Every TCB level asks for more than the platform has.
    BelowEveryLevel,
}

/// What Intel says about the platform.
#[derive(Debug, Clone)]
pub struct TdxSpec {
    /// `tcbStatus` of the platform's level.
    pub tcb_status: &'static str,
    /// Advisories of that level.
    pub advisories: Vec<String>,
    /// `tcbEvaluationDataNumber`.
    pub evaluation: u32,
    /// When the collateral may be used.
    pub window: Window,
    /// What is wrong.
    pub fault: Option<TdxFault>,
}

/// Keys and certificates.
#[derive(Debug, Clone)]
pub struct TdxWorld {
    now: Timestamp,
    root_key: SigningKey,
    ca_key: SigningKey,
    tcb_key: SigningKey,
    pck_key: SigningKey,
    attestation_key: SigningKey,
    root: Vec<u8>,
    ca: Vec<u8>,
    tcb_signer: Vec<u8>,
    pck: Vec<u8>,
}

impl TdxWorld {
    /// A world around `now`: certificates for ten years before and after.
    ///
    /// # Errors
    /// [`SimError`] if a certificate cannot be made.
    pub fn new(now: Timestamp) -> Result<Self, SimError> {
        Self::of([(); 5].map(|()| SigningKey::generate()), now)
    }

    /// The world of these keys, which is the same each time: certificates for ten years before and after `epoch`, collateral
    /// around `now`.
    ///
    /// # Errors
    /// [`SimError`] if a secret is no key, or a certificate cannot be made.
    pub fn stored(secrets: &[[u8; 32]; 5], epoch: Timestamp, now: Timestamp) -> Result<Self, SimError> {
        let mut keys = Vec::with_capacity(secrets.len());
        for secret in secrets {
            let key = SigningKey::from_slice(secret).map_err(|error| SimError::Key(error.to_string()))?;
            keys.push(key);
        }
        let keys = <[SigningKey; 5]>::try_from(keys).map_err(|_| SimError::Key("not five".to_owned()))?;
        Ok(Self {
            now,
            ..Self::of(keys, epoch)?
        })
    }

    fn of(
        [root_key, ca_key, tcb_key, pck_key, attestation_key]: [SigningKey; 5],
        now: Timestamp,
    ) -> Result<Self, SimError> {
        let window = Window {
            from: now.minus_seconds(10 * YEAR),
            until: now.plus_seconds(10 * YEAR),
        };
        let certify = |name: &str, key: &SigningKey, serial, authority, extensions| {
            let issuer_name = if name == "Simulated PCK" {
                "Simulated Platform CA"
            } else {
                "Simulated Root CA"
            };
            let issuer_key = if name == "Simulated PCK" {
                &ca_key
            } else {
                &root_key
            };
            let spec = CertSpec {
                subject: names::intel(name)?,
                issuer: names::intel(issuer_name)?,
                serial,
                window,
                key: signer(key).public_key()?,
                authority,
                extensions,
            };
            spec.sign(&signer(issuer_key))
        };
        let sgx = vec![(oid(SGX)?, false, sgx_extension()?)];
        Ok(Self {
            root: certify("Simulated Root CA", &root_key, 1, Some(1), Vec::new())?,
            ca: certify("Simulated Platform CA", &ca_key, 2, Some(0), Vec::new())?,
            tcb_signer: certify("Simulated TCB Signing", &tcb_key, 3, None, Vec::new())?,
            pck: certify("Simulated PCK", &pck_key, PCK_SERIAL, None, sgx)?,
            now,
            root_key,
            ca_key,
            tcb_key,
            pck_key,
            attestation_key,
        })
    }

    /// SHA-256 of the root certificate, for a policy's `simulated.root_digests`.
    pub fn root_digest(&self) -> Bytes32 {
        Bytes32::from(<[u8; 32]>::from(Sha256::digest(&self.root)))
    }

    /// A platform in good order, with collateral for a month.
    pub fn spec(&self) -> TdxSpec {
        let window = Window {
            from: self.now.minus_seconds(86400),
            until: self.now.plus_seconds(30 * 86400),
        };
        TdxSpec {
            tcb_status: "UpToDate",
            advisories: Vec::new(),
            evaluation: 18,
            window,
            fault: None,
        }
    }

    /// Evidence with a signed quote and signed collateral.
    ///
    /// # Errors
    /// [`SimError`] if a list cannot be made.
    pub fn attest(&self, fields: &QuoteFields, spec: &TdxSpec) -> Result<TdxEvidence, SimError> {
        let foreign = SigningKey::generate();
        let forged = spec.fault == Some(TdxFault::ForeignQuoteSignature);
        let keys = QuoteKeys {
            pck: &self.pck_key,
            attestation: &self.attestation_key,
            quote_signer: if forged { &foreign } else { &self.attestation_key },
        };
        let foreign_qe = spec.fault == Some(TdxFault::ForeignQuotingEnclave);
        let qe_signer = if foreign_qe { [0xee; 32] } else { QE_MR_SIGNER };
        let chain = [&self.pck, &self.ca, &self.root].map(|der| to_pem(der)).concat();
        self.complete(tdx_quote::quote(fields, &keys, qe_signer, &chain), spec)
    }

    /// Evidence of a quote of this world's, which a guest has: with signed collateral and the root.
    ///
    /// # Errors
    /// [`SimError`] if a list cannot be made.
    pub fn complete(&self, quote: Vec<u8>, spec: &TdxSpec) -> Result<TdxEvidence, SimError> {
        Ok(TdxEvidence {
            quote,
            collateral: Some(Box::new(self.collateral(spec)?)),
            root: Some(self.root.clone()),
        })
    }

    fn collateral(&self, spec: &TdxSpec) -> Result<Collateral, SimError> {
        let revoked = if spec.fault == Some(TdxFault::RevokedPck) {
            vec![PCK_SERIAL]
        } else {
            Vec::new()
        };
        let list = |name: &str, key: &SigningKey, revoked| {
            let issuer = names::intel(name)?;
            CrlSpec {
                issuer,
                window: spec.window,
                revoked,
            }
            .sign(&signer(key))
        };
        let signing_chain = [&self.tcb_signer, &self.root].map(|der| to_pem(der)).concat();
        let tcb_info = tcb_info(spec, &self.tcb_key);
        let qe_identity = qe_identity(spec, &self.tcb_key);
        Ok(Collateral {
            pck_crl_issuer_chain: [&self.ca, &self.root].map(|der| to_pem(der)).concat(),
            root_ca_crl: list("Simulated Root CA", &self.root_key, Vec::new())?,
            pck_crl: list("Simulated Platform CA", &self.ca_key, revoked)?,
            tcb_info_issuer_chain: signing_chain.clone(),
            tcb_info: tcb_info.text,
            tcb_info_signature: tcb_info.signature,
            qe_identity_issuer_chain: signing_chain,
            qe_identity: qe_identity.text,
            qe_identity_signature: qe_identity.signature,
            pck_certificate_chain: None,
        })
    }
}

/// The extension that says which platform a PCK certificate is for (PCK certificate specification, §1.3).
fn sgx_extension() -> Result<Vec<u8>, SimError> {
    let mut tcb = Vec::new();
    for component in 1..=16 {
        tcb.push(entry(&format!("2.{component}"), integer(1))?);
    }
    tcb.push(entry("2.17", integer(11))?);
    tcb.push(entry("2.18", octets(&[1; 16]))?);
    let configuration = [
        entry("7.1", boolean(true))?,
        entry("7.2", boolean(false))?,
        entry("7.3", boolean(true))?,
    ];
    let entries = [
        entry("1", octets(&[7; 16]))?,
        entry("2", sequence(&tcb.concat()))?,
        entry("3", octets(&[0; 2]))?,
        entry("4", octets(&FMSPC))?,
        entry("5", vec![0x0a, 1, 1])?,
        entry("6", octets(&[8; 16]))?,
        entry("7", sequence(&configuration.concat()))?,
    ];
    Ok(sequence(&entries.concat()))
}

fn entry(arc: &str, value: Vec<u8>) -> Result<Vec<u8>, SimError> {
    let mut content = oid(&format!("{SGX}.{arc}"))?.to_der()?;
    content.extend(value);
    Ok(sequence(&content))
}

fn integer(value: u8) -> Vec<u8> {
    vec![0x02, 1, value]
}

fn boolean(value: bool) -> Vec<u8> {
    vec![0x01, 1, if value { 0xff } else { 0 }]
}

fn octets(bytes: &[u8]) -> Vec<u8> {
    [&[0x04, bytes.len() as u8][..], bytes].concat()
}

fn sequence(content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let header = match length {
        0..=0x7f => vec![0x30, length as u8],
        0x80..=0xff => vec![0x30, 0x81, length as u8],
        _ => vec![0x30, 0x82, (length >> 8) as u8, length as u8],
    };
    [header, content.to_vec()].concat()
}

fn signer(key: &SigningKey) -> Signer {
    Signer::P256(Box::new(key.clone()))
}

fn oid(text: &str) -> Result<ObjectIdentifier, SimError> {
    ObjectIdentifier::new(text).map_err(|error| SimError::Key(error.to_string()))
}
