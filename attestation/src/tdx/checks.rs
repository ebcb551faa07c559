//! What a quote and its platform say, against what the policy accepts.

use std::collections::BTreeSet;

use dcap_qvl::{PckCertFlag, QuoteClaims};

use super::attributes::TdAttributes;
use super::quote::TdReport;
use crate::bytes::Bytes48;
use crate::policy::{TcbStatus, TdxPolicy};
use crate::verdict::{Appraisal, ReasonCode};

/// Checks that need the domain's report alone.
pub(super) fn check_report(appraisal: &mut Appraisal, report: &TdReport, policy: &TdxPolicy) {
    check_attributes(appraisal, TdAttributes(report.attributes), policy);
    check_xfam(appraisal, report.xfam, policy);
    check_service_td(appraisal, report, policy);
    let fields = [
        (
            ReasonCode::TdxMrOwner,
            "quote MROWNER",
            &report.mr_owner,
            &policy.mr_owners,
        ),
        (
            ReasonCode::TdxMrOwnerConfig,
            "quote MROWNERCONFIG",
            &report.mr_owner_config,
            &policy.mr_owner_configs,
        ),
    ];
    for (code, at, found, allowed) in fields {
        let expected = if allowed.is_empty() {
            "zero"
        } else {
            "one on the policy's list"
        };
        appraisal.require(
            code,
            at,
            zero_or_listed(found, allowed),
            expected,
            found.to_string(),
        );
    }
}

fn zero_or_listed(found: &Bytes48, allowed: &BTreeSet<Bytes48>) -> bool {
    if allowed.is_empty() {
        found.is_zero()
    } else {
        allowed.contains(found)
    }
}

fn check_attributes(appraisal: &mut Appraisal, attributes: TdAttributes, policy: &TdxPolicy) {
    use ReasonCode::*;
    let debug_allowed = policy.dangerous_allow_debug;
    let rules = [
        (
            TdxDebug,
            debug_allowed || !attributes.debug(),
            "DEBUG (bit 0) zero",
        ),
        (
            TdxProfiling,
            debug_allowed || !attributes.profiling(),
            "profiling (bits 6:4) zero",
        ),
        (
            TdxAttributesReserved,
            attributes.reserved_bits_hold(),
            "reserved bits zero",
        ),
        (
            TdxMigratable,
            !attributes.migratable(),
            "MIGRATABLE (bit 29) zero",
        ),
        (
            TdxSeptVe,
            attributes.sept_ve_disable(),
            "SEPT_VE_DISABLE (bit 28) one",
        ),
    ];
    for (code, holds, expected) in rules {
        let expected = if holds { "acceptable" } else { expected };
        appraisal.require(code, "quote ATTRIBUTES", holds, expected, attributes.to_string());
    }
}

fn check_xfam(appraisal: &mut Appraisal, xfam: u64, policy: &TdxPolicy) {
    let holds = xfam & policy.xfam_required == policy.xfam_required && xfam & !policy.xfam_allowed == 0;
    let expected = format!(
        "the bits {:#x}, at most {:#x}",
        policy.xfam_required, policy.xfam_allowed
    );
    appraisal.require(
        ReasonCode::TdxXfam,
        "quote XFAM",
        holds,
        expected,
        format!("{xfam:#x}"),
    );
}

fn check_service_td(appraisal: &mut Appraisal, report: &TdReport, policy: &TdxPolicy) {
    let bound = [report.mr_service_td, report.current_service_td];
    for (at, found) in ["quote MRSERVICETD", "quote current service TD hash"]
        .into_iter()
        .zip(bound)
    {
        let Some(found) = found else { continue };
        let holds = found.is_zero() || policy.service_tds.contains(&found);
        appraisal.require(
            ReasonCode::TdxServiceTd,
            at,
            holds,
            "none, or one on the policy's list",
            found.to_string(),
        );
    }
    let extended = TdAttributes(report.attributes).service_td_extended();
    let holds = !extended || !policy.service_tds.is_empty();
    let found = if extended { "one" } else { "zero" };
    appraisal.require(
        ReasonCode::TdxServiceTd,
        "quote ATTRIBUTES",
        holds,
        "SERVTD_EXT (bit 17) zero",
        found,
    );
}

/// Checks of what the collateral says about the platform. Gives the status in this crate's words.
pub(super) fn check_platform(
    appraisal: &mut Appraisal,
    claims: &QuoteClaims,
    policy: &TdxPolicy,
) -> Option<TcbStatus> {
    let status = tcb_status(claims.tcb.status);
    let holds = status.is_some_and(|status| policy.tcb_statuses.contains(&status));
    let expected = format!("one of {:?}", policy.tcb_statuses);
    appraisal.require(
        ReasonCode::TdxTcbStatus,
        "TCB status",
        holds,
        expected,
        claims.tcb.status.to_string(),
    );

    let rejected: Vec<_> = claims
        .tcb
        .advisory_ids
        .iter()
        .filter(|id| !policy.advisories.accepts(id))
        .cloned()
        .collect();
    let found = if rejected.is_empty() {
        "no other".to_owned()
    } else {
        rejected.join(", ")
    };
    let expected = match &policy.advisories {
        crate::policy::AdvisoryPolicy::Only(accepted) => format!("none but {accepted:?}"),
        crate::policy::AdvisoryPolicy::AnyExcept(refused) => format!("none of {refused:?}"),
    };
    appraisal.require(
        ReasonCode::TdxAdvisory,
        "TCB advisories",
        rejected.is_empty(),
        expected,
        found,
    );

    let (minimum, number) = (policy.minimum_tcb_evaluation, claims.tcb.eval_data_number);
    let at = "collateral tcbEvaluationDataNumber";
    let expected = format!("at least {minimum}");
    appraisal.require(
        ReasonCode::TdxEvaluation,
        at,
        number >= minimum,
        expected,
        number.to_string(),
    );

    let pck = &claims.platform.pck;
    let flags = [
        ("PCK SMT flag", policy.allow_smt, pck.smt_enabled),
        (
            "PCK dynamic platform flag",
            policy.allow_dynamic_platform,
            pck.dynamic_platform,
        ),
        ("PCK cached keys flag", policy.allow_cached_keys, pck.cached_keys),
    ];
    for (at, allowed, flag) in flags {
        // A certificate without the flag does not say that the property is absent.
        let holds = allowed || flag == PckCertFlag::False;
        let expected = if allowed { "anything" } else { "False" };
        appraisal.require(ReasonCode::TdxPlatform, at, holds, expected, format!("{flag:?}"));
    }
    status
}

fn tcb_status(status: dcap_qvl::TcbStatus) -> Option<TcbStatus> {
    use dcap_qvl::TcbStatus as Theirs;
    Some(match status {
        Theirs::UpToDate => TcbStatus::UpToDate,
        Theirs::SWHardeningNeeded => TcbStatus::SWHardeningNeeded,
        Theirs::ConfigurationNeeded => TcbStatus::ConfigurationNeeded,
        Theirs::ConfigurationAndSWHardeningNeeded => TcbStatus::ConfigurationAndSWHardeningNeeded,
        Theirs::OutOfDate => TcbStatus::OutOfDate,
        Theirs::OutOfDateConfigurationNeeded => TcbStatus::OutOfDateConfigurationNeeded,
        Theirs::TDRelaunchAdvised => TcbStatus::TDRelaunchAdvised,
        Theirs::TDRelaunchAdvisedConfigurationNeeded => TcbStatus::TDRelaunchAdvisedConfigurationNeeded,
        Theirs::Revoked => return None,
    })
}
