//! Evidence as other tools write it: the form is found by looking, the companions come beside it.

use super::azure::{self, HclReport};
use super::{Attestation, Evidence, EvidenceError, MAX_EVIDENCE_BYTES, SnpEvidence, TdxEvidence, coco};
use crate::snp::{CertTable, REPORT_BYTES, authority_kind};
use crate::tdx::{Collateral, parse_collateral};
use crate::x509::Cert;

/// Files that lie beside a bare report or quote. They fill what the evidence does not carry itself.
#[derive(Debug, Clone, Default)]
pub struct Companions {
    snp: SnpEvidence,
    collateral: Option<Box<Collateral>>,
    manifest: Option<Vec<u8>>,
}

impl Companions {
    /// Adds certificates, DER or a PEM chain, each put where its name says.
    ///
    /// # Errors
    /// [`EvidenceError::Field`] if there is no certificate, or one whose name is none of AMD's.
    pub fn add_certificates(&mut self, bytes: &[u8]) -> Result<(), EvidenceError> {
        let problem = |problem: String| EvidenceError::Field {
            field: "certificates",
            problem,
        };
        for der in split_pem(bytes) {
            let cert = Cert::from_der_or_pem(&der).map_err(|error| problem(error.to_string()))?;
            let name = cert.subject_common_name().unwrap_or_default();
            let place = match name.as_str() {
                "SEV-VCEK" | "SEV-VLEK" => &mut self.snp.vek,
                name if name.starts_with("ARK-") => &mut self.snp.ark,
                name if authority_kind(name).is_some() => &mut self.snp.authority,
                name => return Err(problem(format!("{name:?} is none of AMD's certificates"))),
            };
            *place = Some(cert.der().to_vec());
        }
        Ok(())
    }

    /// Adds a GHCB certificate table (configfs-tsm's `auxblob`).
    ///
    /// # Errors
    /// [`EvidenceError::Field`] if it is not one.
    pub fn add_certificate_table(&mut self, bytes: &[u8]) -> Result<(), EvidenceError> {
        let problem = |error: crate::snp::CertTableError| EvidenceError::Field {
            field: "certificate-table",
            problem: error.to_string(),
        };
        let table = CertTable::parse(bytes).map_err(problem)?;
        let found = table.into_evidence(Vec::new());
        let snp = &mut self.snp;
        snp.vek = found.vek.or(snp.vek.take());
        snp.authority = found.authority.or(snp.authority.take());
        snp.ark = found.ark.or(snp.ark.take());
        snp.crls.extend(found.crls);
        Ok(())
    }

    /// Adds a revocation list, DER.
    pub fn add_crl(&mut self, der: Vec<u8>) {
        self.snp.crls.push(der);
    }

    /// Adds `QuoteCollateralV3` JSON.
    ///
    /// # Errors
    /// [`EvidenceError::Field`] if it is not that.
    pub fn add_collateral(&mut self, json: &[u8]) -> Result<(), EvidenceError> {
        let collateral = parse_collateral(json).map_err(|error| EvidenceError::Field {
            field: "collateral",
            problem: error.to_string(),
        })?;
        self.collateral = Some(Box::new(collateral));
        Ok(())
    }

    /// Adds the manifest.
    pub fn add_manifest(&mut self, manifest: Vec<u8>) {
        self.manifest = Some(manifest);
    }

    fn complete(self, evidence: &mut Evidence) {
        match &mut evidence.attestation {
            Attestation::SevSnp(snp) | Attestation::SimulatedSnp(snp) => {
                snp.vek = snp.vek.take().or(self.snp.vek);
                snp.authority = snp.authority.take().or(self.snp.authority);
                snp.ark = snp.ark.take().or(self.snp.ark);
                snp.crls.extend(self.snp.crls);
            }
            Attestation::Tdx(tdx) | Attestation::SimulatedTdx(tdx) => {
                tdx.collateral = tdx.collateral.take().or(self.collateral);
            }
            Attestation::Software(_) => {}
        }
        evidence.manifest = evidence.manifest.take().or(self.manifest);
    }
}

impl Evidence {
    /// Reads evidence of any known form.
    ///
    /// # Errors
    /// [`EvidenceError`] if the form is not known or not kept.
    pub fn read(bytes: &[u8], companions: Companions) -> Result<Self, EvidenceError> {
        if bytes.len() > MAX_EVIDENCE_BYTES {
            return Err(EvidenceError::Size(bytes.len()));
        }
        let mut evidence = recognise(bytes)?;
        companions.complete(&mut evidence);
        Ok(evidence)
    }
}

fn recognise(bytes: &[u8]) -> Result<Evidence, EvidenceError> {
    if bytes.trim_ascii_start().starts_with(b"{") {
        return coco::parse(bytes);
    }
    if bytes.starts_with(azure::MAGIC) {
        return Ok(HclReport::parse(bytes)?.into_evidence(SnpEvidence::default()));
    }
    if let Some(raw) = from_hex(bytes) {
        return recognise(&raw);
    }
    match bytes {
        // A CBOR map, definite or not; a report and a quote start with a small number.
        [0xa0..=0xbf, ..] => Evidence::from_cbor(bytes),
        [2..=5, 0, 0, 0, ..] if bytes.len() == REPORT_BYTES => Ok(Attestation::SevSnp(SnpEvidence {
            report: bytes.to_vec(),
            ..Default::default()
        })
        .into()),
        [3..=5, 0, 2 | 3, 0, ..] => Ok(Attestation::Tdx(TdxEvidence {
            quote: bytes.to_vec(),
            ..Default::default()
        })
        .into()),
        _ if bytes.len() == REPORT_BYTES => Ok(Attestation::SevSnp(SnpEvidence {
            report: bytes.to_vec(),
            ..Default::default()
        })
        .into()),
        _ => Err(EvidenceError::Unknown),
    }
}

/// Reports and quotes are often kept as hexadecimal text.
fn from_hex(bytes: &[u8]) -> Option<Vec<u8>> {
    let text = bytes.trim_ascii();
    let text = text.strip_prefix(b"0x").unwrap_or(text);
    if text.len() < 2 * REPORT_BYTES {
        None
    } else {
        hex::decode(text).ok()
    }
}

fn split_pem(bytes: &[u8]) -> Vec<Vec<u8>> {
    const END: &str = "-----END CERTIFICATE-----";
    match std::str::from_utf8(bytes) {
        Ok(text) if text.contains(END) => text
            .split_inclusive(END)
            .filter(|part| part.contains(END))
            .map(|part| part.trim().as_bytes().to_vec())
            .collect(),
        _ => vec![bytes.to_vec()],
    }
}
