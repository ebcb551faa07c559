//! The token that verification succeeded, and what it proves.

use serde::Serialize;

use super::Check;
use crate::bytes::{Bytes, Bytes64};
use crate::evidence::EvidenceKind;
use crate::policy::ReferenceName;
use crate::snp::SnpClaims;
use crate::software::SoftwareClaims;
use crate::tdx::TdxClaims;
use crate::time::Timestamp;

/// What a verifier established. Only [`Verifier::verify`](crate::Verifier::verify) makes one.
#[derive(Debug, Clone, Serialize)]
pub struct VerifiedEvidence {
    kind: EvidenceKind,
    claims: Claims,
    verified_at: Timestamp,
    reference: Option<ReferenceName>,
    pins: Pins,
    report_data: Bytes64,
    policy_digest: Bytes<32>,
    checks: Vec<Check>,
}

/// The claims of one kind of evidence.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Claims {
    /// From an SEV-SNP report, real or simulated.
    Snp(Box<SnpClaims>),
    /// From a TDX quote, real or simulated.
    Tdx(Box<TdxClaims>),
    /// From a statement that a host key signed.
    Software(Box<SoftwareClaims>),
}

/// Which of the things that make a verdict mean something were compared with an expected value.
///
/// A policy without reference values proves that *some* guest runs on a genuine machine, not which one. Whoever
/// releases a secret should ask for all three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pins {
    /// The launch measurement is one of the policy's reference values.
    pub measurement: bool,
    /// The manifest digest is one of the policy's reference values.
    pub manifest: bool,
    /// REPORT_DATA is what the caller asked for, so the evidence is fresh and for the caller's key.
    pub report_data: bool,
}

/// What [`crate::verifier`] hands over once every check has passed.
pub(crate) struct Proof {
    pub(crate) kind: EvidenceKind,
    pub(crate) claims: Claims,
    pub(crate) verified_at: Timestamp,
    pub(crate) reference: Option<ReferenceName>,
    pub(crate) pins: Pins,
    pub(crate) report_data: Bytes64,
    pub(crate) policy_digest: Bytes<32>,
    pub(crate) checks: Vec<Check>,
}

impl From<Proof> for VerifiedEvidence {
    fn from(proof: Proof) -> Self {
        Self {
            kind: proof.kind,
            claims: proof.claims,
            verified_at: proof.verified_at,
            reference: proof.reference,
            pins: proof.pins,
            report_data: proof.report_data,
            policy_digest: proof.policy_digest,
            checks: proof.checks,
        }
    }
}

impl VerifiedEvidence {
    /// What made the evidence; a simulated or software kind is never real hardware.
    pub fn kind(&self) -> EvidenceKind {
        self.kind
    }

    /// Everything the evidence says about the guest and its machine.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The instant that was taken as now.
    pub fn verified_at(&self) -> Timestamp {
        self.verified_at
    }

    /// The reference value that matched, if the policy has any.
    pub fn reference(&self) -> Option<&ReferenceName> {
        self.reference.as_ref()
    }

    /// What was compared with an expected value, and what was merely read.
    pub fn pins(&self) -> Pins {
        self.pins
    }

    /// The 64 bytes that the guest chose. Compare them with a nonce or a key digest unless
    /// [`Pins::report_data`] says that the verifier did.
    pub fn report_data(&self) -> &Bytes64 {
        &self.report_data
    }

    /// SHA-256 over the policy text's canonical form, for an audit log.
    pub fn policy_digest(&self) -> &Bytes<32> {
        &self.policy_digest
    }

    /// Every check that ran; all passed.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// The launch measurement: MEASUREMENT of a report, MRTD of a quote, the statement's of software.
    pub fn measurement(&self) -> Bytes<48> {
        match &self.claims {
            Claims::Snp(claims) => claims.measurement,
            Claims::Tdx(claims) => claims.mrtd,
            Claims::Software(claims) => claims.measurement,
        }
    }
}
