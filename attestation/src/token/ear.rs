//! The claims of an EAR and where they come from.

use serde::{Deserialize, Serialize};

use super::TokenError;
use crate::bytes::{Bytes32, Bytes48, Bytes64};
use crate::evidence::EvidenceKind;
use crate::policy::TcbStatus;
use crate::time::Timestamp;
use crate::verdict::{Claims, Refused, VerifiedEvidence};

pub(super) const PROFILE: &str = "tag:github.com,2023:veraison/ear";
pub(super) const DEVELOPER: &str = "Cloak";
pub(super) const BUILD: &str = concat!("cloak-attestation ", env!("CARGO_PKG_VERSION"));

/// AR4SI tiers that are used here.
const AFFIRMING: i8 = 2;
const WARNING: i8 = 32;
const CONTRAINDICATED: i8 = 96;
const UNRECOGNISED_HARDWARE: i8 = 97;

/// Overall verdict of a token (AR4SI §2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The verifier makes no claim.
    None,
    /// What runs is what should run.
    Affirming,
    /// It may be, with something to think about.
    Warning,
    /// It is not.
    Contraindicated,
}

impl Status {
    pub(super) fn tier(self) -> i8 {
        match self {
            Status::None => 0,
            Status::Affirming => AFFIRMING,
            Status::Warning => WARNING,
            Status::Contraindicated => CONTRAINDICATED,
        }
    }

    pub(super) fn from_tier(tier: i8) -> Option<Self> {
        match tier {
            0 => Some(Status::None),
            AFFIRMING => Some(Status::Affirming),
            WARNING => Some(Status::Warning),
            CONTRAINDICATED => Some(Status::Contraindicated),
            _ => None,
        }
    }
}

/// The parts of the trustworthiness vector on which evidence bears. Absent parts make no claim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Trustworthiness {
    /// Configuration: debugging, migration, manifest.
    pub configuration: i8,
    /// What was launched.
    pub executables: i8,
    /// The processor and its firmware.
    pub hardware: i8,
    /// Whether memory is hidden from the host.
    pub runtime_opaque: i8,
}

/// An attestation result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ear {
    /// When the verifier judged.
    pub issued_at: Timestamp,
    /// Until when a relying party may act on it.
    pub expires_at: Timestamp,
    /// Overall verdict.
    pub status: Status,
    /// Its parts.
    pub trustworthiness: Trustworthiness,
    /// Digest of the policy that it was judged by.
    pub policy_digest: Option<Bytes32>,
    /// Who made the evidence.
    pub kind: Option<EvidenceKind>,
    /// Launch measurement.
    pub measurement: Option<Bytes48>,
    /// REPORT_DATA, by which a relying party ties the token to a nonce or a key.
    pub report_data: Option<Bytes64>,
    /// Codes of the reasons, for a refusal.
    pub reasons: Vec<String>,
}

impl Ear {
    /// The result for verified evidence, good for `lifetime_seconds`.
    pub fn for_verified(verified: &VerifiedEvidence, lifetime_seconds: u64) -> Self {
        let trustworthiness = appraise(verified);
        let Trustworthiness {
            configuration,
            executables,
            hardware,
            runtime_opaque,
        } = trustworthiness;
        let worst = [configuration, executables, hardware, runtime_opaque]
            .into_iter()
            .max()
            .unwrap_or(0);
        let status = match worst {
            CONTRAINDICATED.. => Status::Contraindicated,
            WARNING.. => Status::Warning,
            // What was launched is the point; without it there is nothing to affirm.
            _ if executables != AFFIRMING => Status::None,
            _ => Status::Affirming,
        };
        Self {
            issued_at: verified.verified_at(),
            expires_at: verified.verified_at().plus_seconds(lifetime_seconds),
            status,
            trustworthiness,
            policy_digest: Some(*verified.policy_digest()),
            kind: Some(verified.kind()),
            measurement: Some(verified.measurement()),
            report_data: Some(*verified.report_data()),
            reasons: Vec::new(),
        }
    }

    /// The result for refused evidence, judged at `now`.
    pub fn for_refused(refused: &Refused, now: Timestamp, lifetime_seconds: u64) -> Self {
        let mut reasons: Vec<String> = refused.codes().iter().map(ToString::to_string).collect();
        reasons.dedup();
        Self {
            issued_at: now,
            expires_at: now.plus_seconds(lifetime_seconds),
            status: Status::Contraindicated,
            trustworthiness: Trustworthiness {
                hardware: CONTRAINDICATED,
                ..Default::default()
            },
            policy_digest: None,
            kind: None,
            measurement: None,
            report_data: None,
            reasons,
        }
    }

    pub(super) fn check_time(&self, now: Timestamp) -> Result<(), TokenError> {
        if now < self.issued_at {
            return Err(TokenError::NotYetValid(self.issued_at));
        }
        if now >= self.expires_at {
            return Err(TokenError::Expired(self.expires_at));
        }
        Ok(())
    }
}

fn appraise(verified: &VerifiedEvidence) -> Trustworthiness {
    let pins = verified.pins();
    let hidden = verified.kind().is_hardware();
    Trustworthiness {
        configuration: if pins.manifest { AFFIRMING } else { 0 },
        executables: if pins.measurement { AFFIRMING } else { 0 },
        hardware: hardware(verified),
        runtime_opaque: if hidden { AFFIRMING } else { WARNING },
    }
}

fn hardware(verified: &VerifiedEvidence) -> i8 {
    match (verified.kind(), verified.claims()) {
        (EvidenceKind::SevSnp, _) => AFFIRMING,
        (EvidenceKind::Tdx, Claims::Tdx(claims)) if claims.tcb_status == TcbStatus::UpToDate => AFFIRMING,
        (EvidenceKind::Tdx, _) => WARNING,
        (EvidenceKind::Software, _) => 0,
        (EvidenceKind::SimulatedSnp | EvidenceKind::SimulatedTdx, _) => UNRECOGNISED_HARDWARE,
    }
}
