//! The one entry: evidence, a policy and an instant go in, a verdict comes out.

mod bindings;
mod facts;
mod references;

use sha2::{Digest, Sha256};

use self::bindings::{check_event_log, check_manifest, check_report_data, check_runtime_data};
use self::facts::Facts;
use self::references::check_references;
use crate::bytes::{Bytes32, Bytes64};
use crate::evidence::{Attestation, Evidence};
use crate::policy::{Policy, Reference};
use crate::time::Timestamp;
use crate::verdict::{Appraisal, Claims, Pins, Proof, ReasonCode, Refused, VerifiedEvidence};
use crate::{snp, software, tdx};

/// Judges evidence by one policy. Cheap to keep, and safe to share between threads.
#[derive(Debug)]
pub struct Verifier {
    policy: Policy,
    policy_digest: Bytes32,
    memory: snp::SignatureMemory,
}

/// What one verification is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The instant taken as now.
    pub now: Timestamp,
    /// What REPORT_DATA has to be: a nonce, or the digest of a key and a nonce. Without it, evidence may be old.
    pub report_data: Option<Bytes64>,
}

impl Request {
    /// A request that asks for no particular REPORT_DATA.
    pub fn at(now: Timestamp) -> Self {
        Self {
            now,
            report_data: None,
        }
    }

    /// The same request, for this REPORT_DATA.
    pub fn with_report_data(self, report_data: Bytes64) -> Self {
        Self {
            report_data: Some(report_data),
            ..self
        }
    }
}

impl Verifier {
    /// A verifier for `policy`.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy_digest: policy.digest(),
            policy,
            memory: snp::SignatureMemory::default(),
        }
    }

    /// What it judges by.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Runs every check.
    ///
    /// # Errors
    /// [`Refused`] with every check that failed.
    pub fn verify(&self, evidence: &Evidence, request: &Request) -> Result<VerifiedEvidence, Refused> {
        let mut appraisal = Appraisal::default();
        let kind = evidence.kind();
        let allowed = self.policy.platforms.contains(&kind);
        let expected = self
            .policy
            .platforms
            .iter()
            .map(|kind| kind.as_str())
            .collect::<Vec<_>>()
            .join(" or ");
        appraisal.require(
            ReasonCode::EvidenceKind,
            "evidence",
            allowed,
            expected,
            kind.as_str(),
        );

        let claims = self.judge(&mut appraisal, &evidence.attestation, request.now);
        let Some(claims) = claims else {
            return Err(refusal(appraisal));
        };
        let facts = Facts::of(&claims);
        let fresh = check_report_data(&mut appraisal, &facts, request);
        check_runtime_data(&mut appraisal, &facts, evidence.runtime_data.as_deref());
        check_manifest(&mut appraisal, &facts, evidence.manifest.as_deref());
        check_event_log(&mut appraisal, &facts, &evidence.event_log);
        let reference = check_references(&mut appraisal, &facts, &self.policy);
        let pins = Pins {
            measurement: reference.is_some(),
            manifest: reference.is_some_and(|reference| facts.pins_manifest(reference)),
            report_data: fresh,
        };
        let checks = appraisal.conclude()?;
        Ok(Proof {
            kind,
            verified_at: request.now,
            reference: reference.map(Reference::reference_name),
            pins,
            report_data: *facts.report_data,
            policy_digest: self.policy_digest,
            checks,
            claims,
        }
        .into())
    }

    fn judge(&self, appraisal: &mut Appraisal, attestation: &Attestation, now: Timestamp) -> Option<Claims> {
        let policy = &self.policy;
        match attestation {
            Attestation::SevSnp(evidence) => {
                snp::verify(appraisal, evidence, snp::Trust::Amd, policy, now, &self.memory).map(snp_claims)
            }
            Attestation::SimulatedSnp(evidence) => snp::verify(
                appraisal,
                evidence,
                snp::Trust::Simulated,
                policy,
                now,
                &self.memory,
            )
            .map(snp_claims),
            Attestation::Tdx(evidence) => {
                tdx::verify(appraisal, evidence, tdx::intel_root(), policy, now).map(tdx_claims)
            }
            Attestation::SimulatedTdx(evidence) => {
                let root = simulated_tdx_root(appraisal, evidence.root.as_deref(), policy)?;
                tdx::verify(appraisal, evidence, root, policy, now).map(tdx_claims)
            }
            Attestation::Software(evidence) => software::verify(appraisal, evidence, policy, now)
                .map(|claims| Claims::Software(Box::new(claims))),
        }
    }
}

fn snp_claims(claims: snp::SnpClaims) -> Claims {
    Claims::Snp(Box::new(claims))
}

fn tdx_claims(claims: tdx::TdxClaims) -> Claims {
    Claims::Tdx(Box::new(claims))
}

/// Without claims something was refused; should that ever not be so, it is refused here.
fn refusal(mut appraisal: Appraisal) -> Refused {
    if appraisal.all_passed() {
        appraisal.refuse(ReasonCode::EvidenceKind, "evidence", "claims", "none");
    }
    match appraisal.conclude() {
        Err(refused) => refused,
        Ok(checks) => Refused {
            reasons: Vec::new(),
            checks,
        },
    }
}

fn simulated_tdx_root<'a>(
    appraisal: &mut Appraisal,
    root: Option<&'a [u8]>,
    policy: &Policy,
) -> Option<&'a [u8]> {
    let Some(root) = root else {
        appraisal.refuse(
            ReasonCode::ChainMissing,
            "evidence root",
            "a simulated root",
            "nothing",
        );
        return None;
    };
    let digest = Bytes32::from(<[u8; 32]>::from(Sha256::digest(root)));
    let allowed = &policy.simulated.root_digests;
    let holds = root != tdx::intel_root() && (allowed.is_empty() || allowed.contains(&digest));
    let expected = if allowed.is_empty() {
        "a root that is not Intel's"
    } else {
        "a root on the policy's list"
    };
    appraisal.require(
        ReasonCode::SimulatedRoot,
        "evidence root",
        holds,
        expected,
        digest.to_string(),
    );
    Some(root)
}
