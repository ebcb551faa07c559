//! Reference values: the one that fits as a whole, or which part of the evidence none has.

use super::facts::Facts;
use crate::policy::{Policy, Reference};
use crate::verdict::{Appraisal, ReasonCode};

/// Finds the reference value that fits as a whole, or says which part of the evidence none has.
pub(super) fn check_references<'a>(
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
