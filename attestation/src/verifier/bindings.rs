//! What travels beside the attestation has to be what the attestation binds.

use sha2::{Digest, Sha256, Sha384};

use super::Request;
use super::facts::{Facts, ManifestDigest};
use crate::bytes::Bytes64;
use crate::evidence::{Event, replay};
use crate::verdict::{Appraisal, ReasonCode};

pub(super) fn check_report_data(appraisal: &mut Appraisal, facts: &Facts<'_>, request: &Request) -> bool {
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

pub(super) fn check_runtime_data(appraisal: &mut Appraisal, facts: &Facts<'_>, data: Option<&[u8]>) {
    let Some(data) = data else { return };
    let mut expected = Bytes64::ZERO;
    expected.0[..32].copy_from_slice(&Sha256::digest(data));
    let at = "REPORT_DATA, runtime data";
    appraisal.require_equal(ReasonCode::EvidenceRuntimeData, at, &expected, facts.report_data);
}

pub(super) fn check_manifest(appraisal: &mut Appraisal, facts: &Facts<'_>, manifest: Option<&[u8]>) {
    let Some(manifest) = manifest else { return };
    let (at, digest) = match facts.manifest {
        ManifestDigest::HostData(_) => ("HOST_DATA", hex::encode(Sha256::digest(manifest))),
        ManifestDigest::Statement(_) => ("statement manifest digest", hex::encode(Sha256::digest(manifest))),
        ManifestDigest::MrConfigId(_) => ("MRCONFIGID", hex::encode(Sha384::digest(manifest))),
    };
    appraisal.require_equal(ReasonCode::EvidenceManifest, at, &digest, &facts.manifest_text());
}

pub(super) fn check_event_log(appraisal: &mut Appraisal, facts: &Facts<'_>, log: &[Event]) {
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
