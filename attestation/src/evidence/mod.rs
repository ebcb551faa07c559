//! Evidence: what an attester says, with everything that a verifier needs to judge it without asking anybody.
//!
//! [`envelope`](Evidence::from_cbor) is this project's own form (`docs/evidence.cddl`). The forms that other tools
//! write are read by [`Evidence::read`]: a bare report or quote with its companions beside it, the GHCB certificate
//! table, Confidential Containers' JSON, Azure's HCL report.

mod azure;
mod bare;
mod coco;
mod envelope;
mod event_log;

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use azure::HclReport;
pub use bare::Companions;
pub use event_log::Event;
pub(crate) use event_log::replay;

pub use crate::tdx::Collateral;

/// Nothing genuine is larger; event logs are what takes room.
pub const MAX_EVIDENCE_BYTES: usize = 4 * 1024 * 1024;

/// Who made the evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EvidenceKind {
    /// AMD's secure processor.
    SevSnp,
    /// Intel's quoting enclave.
    Tdx,
    /// A host key, on a machine whose operator is trusted.
    Software,
    /// A program that plays AMD's secure processor. Proves nothing about hardware.
    SimulatedSnp,
    /// A program that plays Intel's quoting enclave. Proves nothing about hardware.
    SimulatedTdx,
}

impl EvidenceKind {
    /// Every kind.
    pub const ALL: [EvidenceKind; 5] = [
        Self::SevSnp,
        Self::Tdx,
        Self::Software,
        Self::SimulatedSnp,
        Self::SimulatedTdx,
    ];

    /// The name in policies, envelopes and tokens.
    pub fn as_str(self) -> &'static str {
        match self {
            EvidenceKind::SevSnp => "sev-snp",
            EvidenceKind::Tdx => "tdx",
            EvidenceKind::Software => "software",
            EvidenceKind::SimulatedSnp => "simulated-snp",
            EvidenceKind::SimulatedTdx => "simulated-tdx",
        }
    }

    /// Whether hardware that nobody can imitate made it.
    pub fn is_hardware(self) -> bool {
        matches!(self, EvidenceKind::SevSnp | EvidenceKind::Tdx)
    }
}

impl fmt::Display for EvidenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EvidenceKind {
    type Err = EvidenceError;

    fn from_str(text: &str) -> Result<Self, EvidenceError> {
        let kind = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        kind.ok_or_else(|| EvidenceError::Field {
            field: "kind",
            problem: format!("unknown kind {text:?}"),
        })
    }
}

/// A report with the certificates and lists it is judged by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnpEvidence {
    /// The report, 1184 bytes.
    pub report: Vec<u8>,
    /// VCEK or VLEK certificate, DER or PEM.
    pub vek: Option<Vec<u8>>,
    /// Issuer of the endorsement key; the built-in one is taken if it is not here.
    pub authority: Option<Vec<u8>>,
    /// Root; only simulated evidence needs it, for the real one is built in.
    pub ark: Option<Vec<u8>>,
    /// Revocation lists, DER.
    pub crls: Vec<Vec<u8>>,
}

/// A quote with its collateral.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TdxEvidence {
    /// The quote.
    pub quote: Vec<u8>,
    /// What Intel publishes about the platform.
    pub collateral: Option<Box<Collateral>>,
    /// Root, DER; only for simulated evidence.
    pub root: Option<Vec<u8>>,
}

impl TdxEvidence {
    /// Adds collateral that did not come along. Of a simulated machine the root is the one that the collateral names: nobody
    /// knows another, and it counts only where a policy has its digest.
    #[must_use]
    pub fn with_collateral(mut self, collateral: Collateral, simulated: bool) -> Self {
        if simulated && self.root.is_none() {
            self.root = crate::tdx::root_of(&collateral);
        }
        self.collateral = Some(Box::new(collateral));
        self
    }
}

/// A statement that a host key signed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SoftwareEvidence {
    /// `COSE_Sign1` over the statement, see [`crate::software`].
    pub statement: Vec<u8>,
    /// The key, as an uncompressed SEC 1 point on P-256.
    pub key: Vec<u8>,
}

/// What was attested, by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attestation {
    /// An SNP report.
    SevSnp(SnpEvidence),
    /// A TDX quote.
    Tdx(TdxEvidence),
    /// A signed statement.
    Software(SoftwareEvidence),
    /// A report by a simulated signer.
    SimulatedSnp(SnpEvidence),
    /// A quote by a simulated signer.
    SimulatedTdx(TdxEvidence),
}

/// Evidence, with what else travels along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// What was attested.
    pub attestation: Attestation,
    /// The manifest whose digest the machine was launched with.
    pub manifest: Option<Vec<u8>>,
    /// What was extended into the run-time registers, in order.
    pub event_log: Vec<Event>,
    /// Data that REPORT_DATA holds the SHA-256 of, in its first half.
    pub runtime_data: Option<Vec<u8>>,
}

/// Why bytes are not evidence of any form that is known: there is nothing to judge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Larger than any evidence.
    #[error("{0} bytes, more than {MAX_EVIDENCE_BYTES}")]
    Size(usize),
    /// None of the forms.
    #[error(
        "not evidence: neither a CBOR envelope, a 1184-byte report, a TDX quote, an HCL report nor JSON of \
         Confidential Containers"
    )]
    Unknown,
    /// Not CBOR.
    #[error("the envelope is not CBOR: {0}")]
    Cbor(String),
    /// Not JSON of a known form.
    #[error("the JSON is not evidence of Confidential Containers: {0}")]
    Json(String),
    /// A field that is missing, doubled, unknown or of another type.
    #[error("{field}: {problem}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
}

impl Attestation {
    /// Who made it.
    pub fn kind(&self) -> EvidenceKind {
        match self {
            Attestation::SevSnp(_) => EvidenceKind::SevSnp,
            Attestation::Tdx(_) => EvidenceKind::Tdx,
            Attestation::Software(_) => EvidenceKind::Software,
            Attestation::SimulatedSnp(_) => EvidenceKind::SimulatedSnp,
            Attestation::SimulatedTdx(_) => EvidenceKind::SimulatedTdx,
        }
    }
}

impl Evidence {
    /// Who made it.
    pub fn kind(&self) -> EvidenceKind {
        self.attestation.kind()
    }

    /// The same, as what a simulated machine made: it is worth less.
    #[must_use]
    pub fn as_simulated(self) -> Self {
        let attestation = match self.attestation {
            Attestation::SevSnp(snp) => Attestation::SimulatedSnp(snp),
            Attestation::Tdx(mut tdx) => Attestation::SimulatedTdx(match tdx.collateral.take() {
                Some(collateral) => tdx.with_collateral(*collateral, true),
                None => tdx,
            }),
            other => other,
        };
        Self { attestation, ..self }
    }
}

impl From<Attestation> for Evidence {
    fn from(attestation: Attestation) -> Self {
        Self {
            attestation,
            manifest: None,
            event_log: Vec::new(),
            runtime_data: None,
        }
    }
}
