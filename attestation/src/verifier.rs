//! The one entry: evidence, a policy and an instant go in, a verdict comes out.

use sha2::{Digest, Sha256, Sha384};

use crate::bytes::{Bytes32, Bytes48, Bytes64};
use crate::evidence::{Attestation, Event, Evidence, replay};
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

/// The claims that every kind has, under one set of names.
struct Facts<'a> {
    report_data: &'a Bytes64,
    measurement: &'a Bytes48,
    manifest: ManifestDigest<'a>,
    rtmrs: Option<&'a [Bytes48; 4]>,
}

enum ManifestDigest<'a> {
    HostData(&'a Bytes32),
    MrConfigId(&'a Bytes48),
    Statement(&'a Bytes32),
}

impl<'a> Facts<'a> {
    fn of(claims: &'a Claims) -> Self {
        match claims {
            Claims::Snp(claims) => Self {
                report_data: &claims.report_data,
                measurement: &claims.measurement,
                manifest: ManifestDigest::HostData(&claims.host_data),
                rtmrs: None,
            },
            Claims::Tdx(claims) => Self {
                report_data: &claims.report_data,
                measurement: &claims.mrtd,
                manifest: ManifestDigest::MrConfigId(&claims.mr_config_id),
                rtmrs: Some(&claims.rtmrs),
            },
            Claims::Software(claims) => Self {
                report_data: &claims.report_data,
                measurement: &claims.measurement,
                manifest: ManifestDigest::Statement(&claims.manifest_digest),
                rtmrs: None,
            },
        }
    }

    fn manifest_text(&self) -> String {
        match self.manifest {
            ManifestDigest::HostData(digest) | ManifestDigest::Statement(digest) => digest.to_string(),
            ManifestDigest::MrConfigId(digest) => digest.to_string(),
        }
    }

    fn measures(&self, reference: &Reference) -> bool {
        match self.manifest {
            ManifestDigest::HostData(_) => reference.snp_measurement.contains(self.measurement),
            ManifestDigest::MrConfigId(_) => reference.mrtd.contains(self.measurement),
            ManifestDigest::Statement(_) => reference.software_measurement.contains(self.measurement),
        }
    }

    fn is_for_this_platform(&self, reference: &Reference) -> bool {
        match self.manifest {
            ManifestDigest::HostData(_) => !reference.snp_measurement.is_empty(),
            ManifestDigest::MrConfigId(_) => !reference.mrtd.is_empty(),
            ManifestDigest::Statement(_) => !reference.software_measurement.is_empty(),
        }
    }

    fn pins_manifest(&self, reference: &Reference) -> bool {
        match self.manifest {
            ManifestDigest::HostData(_) => !reference.host_data.is_empty(),
            ManifestDigest::MrConfigId(_) => !reference.mr_config_id.is_empty(),
            ManifestDigest::Statement(_) => !reference.software_manifest.is_empty(),
        }
    }

    fn manifest_fits(&self, reference: &Reference) -> bool {
        !self.pins_manifest(reference)
            || match self.manifest {
                ManifestDigest::HostData(digest) => reference.host_data.contains(digest),
                ManifestDigest::MrConfigId(digest) => reference.mr_config_id.contains(digest),
                ManifestDigest::Statement(digest) => reference.software_manifest.contains(digest),
            }
    }

    fn rtmrs_fit(&self, reference: &Reference) -> bool {
        let Some(found) = self.rtmrs else { return true };
        let wanted = [
            &reference.rtmr0,
            &reference.rtmr1,
            &reference.rtmr2,
            &reference.rtmr3,
        ];
        wanted
            .iter()
            .zip(found)
            .all(|(wanted, found)| wanted.is_empty() || wanted.contains(found))
    }
}

fn check_report_data(appraisal: &mut Appraisal, facts: &Facts<'_>, request: &Request) -> bool {
    let Some(expected) = &request.report_data else {
        return false;
    };
    appraisal.require_equal(
        ReasonCode::EvidenceReportData,
        "REPORT_DATA",
        expected,
        facts.report_data,
    )
}

fn check_runtime_data(appraisal: &mut Appraisal, facts: &Facts<'_>, data: Option<&[u8]>) {
    let Some(data) = data else { return };
    let mut expected = Bytes64::ZERO;
    expected.0[..32].copy_from_slice(&Sha256::digest(data));
    let at = "REPORT_DATA, runtime data";
    appraisal.require_equal(ReasonCode::EvidenceRuntimeData, at, &expected, facts.report_data);
}

fn check_manifest(appraisal: &mut Appraisal, facts: &Facts<'_>, manifest: Option<&[u8]>) {
    let Some(manifest) = manifest else { return };
    let (at, digest) = match facts.manifest {
        ManifestDigest::HostData(_) => ("HOST_DATA", hex::encode(Sha256::digest(manifest))),
        ManifestDigest::Statement(_) => ("statement manifest digest", hex::encode(Sha256::digest(manifest))),
        ManifestDigest::MrConfigId(_) => ("MRCONFIGID", hex::encode(Sha384::digest(manifest))),
    };
    appraisal.require_equal(ReasonCode::EvidenceManifest, at, &digest, &facts.manifest_text());
}

fn check_event_log(appraisal: &mut Appraisal, facts: &Facts<'_>, log: &[Event]) {
    if log.is_empty() {
        return;
    }
    let code = ReasonCode::EvidenceEventLog;
    let Some(found) = facts.rtmrs else {
        appraisal.refuse(
            code,
            "event log",
            "none, as nothing on this platform binds one",
            "a log",
        );
        return;
    };
    if let Some(index) = log.iter().position(|event| !event.data_fits()) {
        appraisal.refuse(
            code,
            format!("event log[{index}]"),
            "data with the event's digest",
            "other data",
        );
    }
    let Some(replayed) = replay(log) else {
        appraisal.refuse(code, "event log", "registers 0 to 3", "another register");
        return;
    };
    for (index, (replayed, found)) in replayed.iter().zip(found).enumerate() {
        appraisal.require_equal(code, format!("RTMR{index}"), replayed, found);
    }
}

/// Finds the reference value that fits as a whole, or says which part of the evidence none has.
fn check_references<'a>(
    appraisal: &mut Appraisal,
    facts: &Facts<'_>,
    policy: &'a Policy,
) -> Option<&'a Reference> {
    if policy.references.is_empty() && !policy.require_reference {
        return None;
    }
    let candidates: Vec<_> = policy
        .references
        .iter()
        .filter(|reference| facts.is_for_this_platform(reference))
        .collect();
    if candidates.is_empty() {
        let expected = "a reference value for this platform";
        appraisal.refuse(ReasonCode::ReferenceNone, "policy", expected, "none");
        return None;
    }
    let measured: Vec<_> = candidates
        .into_iter()
        .filter(|reference| facts.measures(reference))
        .collect();
    let whole = measured
        .iter()
        .copied()
        .find(|reference| facts.manifest_fits(reference) && facts.rtmrs_fit(reference));
    if let Some(reference) = whole {
        let name = format!("{} {}", reference.name, reference.version);
        appraisal.require(
            ReasonCode::ReferenceUnknown,
            "measurements",
            true,
            "a reference value",
            name,
        );
        return Some(reference);
    }
    let found = facts.measurement.to_string();
    if measured.is_empty() {
        appraisal.refuse(
            ReasonCode::ReferenceMeasurement,
            "launch measurement",
            "one of the policy's",
            found,
        );
        return None;
    }
    let manifest_known = measured.iter().any(|reference| facts.manifest_fits(reference));
    let rtmrs_known = measured.iter().any(|reference| facts.rtmrs_fit(reference));
    if !manifest_known {
        let found = facts.manifest_text();
        appraisal.refuse(
            ReasonCode::ReferenceManifest,
            "manifest digest",
            "one of the policy's",
            found,
        );
    }
    if !rtmrs_known {
        let found = facts.rtmrs.map(|rtmrs| format!("{rtmrs:?}")).unwrap_or_default();
        appraisal.refuse(
            ReasonCode::ReferenceRtmr,
            "run-time registers",
            "those of the policy",
            found,
        );
    }
    if manifest_known && rtmrs_known {
        let expected = "one reference value that has all of them";
        appraisal.refuse(
            ReasonCode::ReferenceUnknown,
            "measurements",
            expected,
            "no single one",
        );
    }
    None
}
