//! What a report says, against what the policy accepts.

use super::report::{Report, SigningKey};
use super::tcb::TcbComponents;
use super::{Product, Vek, VekKind};
use crate::policy::{AbiVersion, SnpPolicy};
use crate::verdict::{Appraisal, ReasonCode};

/// Checks that need the report alone.
pub(super) fn check_report(appraisal: &mut Appraisal, report: &Report, policy: &SnpPolicy) {
    check_form(appraisal, report);
    check_guest_policy(appraisal, report, policy);
    check_platform(appraisal, report, policy);
    check_identity(appraisal, report, policy);
}

fn check_form(appraisal: &mut Appraisal, report: &Report) {
    let violations = report.reserved_violations();
    if violations.is_empty() {
        appraisal.require(
            ReasonCode::SnpReportReserved,
            "report reserved fields",
            true,
            "zero",
            "zero",
        );
    }
    for (at, found) in violations {
        appraisal.refuse(ReasonCode::SnpReportReserved, at, "zero", found);
    }
    appraisal.require(
        ReasonCode::SnpReportAlgorithm,
        "report[0x034..0x038] SIGNATURE_ALGO",
        report.is_ecdsa_p384_sha384(),
        "1",
        report.signature_algorithm().to_string(),
    );
    let info = report.key_info();
    let signed =
        !info.signature_masked() && matches!(info.signing_key(), SigningKey::Vcek | SigningKey::Vlek);
    let found = format!("{:?}, masked: {}", info.signing_key(), info.signature_masked());
    let at = "report[0x048..0x04c] SIGNING_KEY, MASK_CHIP_KEY";
    appraisal.require(
        ReasonCode::SnpReportUnsigned,
        at,
        signed,
        "VCEK or VLEK, not masked",
        found,
    );
}

fn check_guest_policy(appraisal: &mut Appraisal, report: &Report, policy: &SnpPolicy) {
    use ReasonCode::*;
    let guest = report.policy();
    let rules = [
        (
            SnpPolicyReserved,
            guest.reserved_bits_hold(),
            "bit 17 one, bits 63:26 zero",
        ),
        (
            SnpPolicyDebug,
            policy.dangerous_allow_debug || !guest.allows_debug(),
            "DEBUG (bit 19) zero",
        ),
        (
            SnpPolicyMigration,
            policy.allow_migration_agent || !guest.allows_migration_agent(),
            "MIGRATE_MA (bit 18) zero",
        ),
        (
            SnpPolicySmt,
            policy.allow_smt || !guest.allows_smt(),
            "SMT (bit 16) zero",
        ),
        (
            SnpPolicyCxl,
            policy.allow_cxl || !guest.allows_cxl(),
            "CXL_ALLOW (bit 21) zero",
        ),
        (
            SnpPolicySingleSocket,
            !policy.require_single_socket || guest.requires_single_socket(),
            "SINGLE_SOCKET (bit 20) one",
        ),
        (
            SnpPolicyAesXts,
            !policy.require_aes_256_xts || guest.requires_aes_256_xts(),
            "MEM_AES_256_XTS (bit 22) one",
        ),
        (
            SnpPolicyRapl,
            !policy.require_rapl_off || guest.requires_rapl_off(),
            "RAPL_DIS (bit 23) one",
        ),
        (
            SnpPolicyCiphertext,
            !policy.require_ciphertext_hiding || guest.requires_ciphertext_hiding(),
            "CIPHERTEXT_HIDING (bit 24) one",
        ),
        (
            SnpPolicyPageSwap,
            !policy.require_page_swap_disabled || guest.disables_page_swap(),
            "PAGE_SWAP_DISABLE (bit 25) one",
        ),
    ];
    for (code, holds, expected) in rules {
        let expected = if holds { "acceptable" } else { expected };
        appraisal.require(
            code,
            "report[0x008..0x010] POLICY",
            holds,
            expected,
            guest.to_string(),
        );
    }
    if let Some(minimum) = policy.minimum_abi {
        let (major, minor) = guest.minimum_abi();
        let abi = AbiVersion { major, minor };
        let at = "report[0x008..0x00a] ABI_MINOR, ABI_MAJOR";
        appraisal.require(
            SnpPolicyAbi,
            at,
            abi >= minimum,
            format!("at least {minimum}"),
            abi.to_string(),
        );
    }
}

fn check_platform(appraisal: &mut Appraisal, report: &Report, policy: &SnpPolicy) {
    if policy.require_alias_check {
        let at = "report[0x040..0x048] PLATFORM_INFO";
        let found = format!("{:#x}", report.platform_info());
        let holds = report.alias_check_complete();
        appraisal.require(
            ReasonCode::SnpAliasCheck,
            at,
            holds,
            "ALIAS_CHECK_COMPLETE (bit 5) one",
            found,
        );
    }
    if policy.required_mitigations != 0 {
        let at = "report[0x200..0x208] CURRENT_MIT_VECTOR";
        let current = report.mitigations().map(|(_, current)| current);
        let holds =
            current.is_some_and(|bits| bits & policy.required_mitigations == policy.required_mitigations);
        let found = current.map_or_else(|| "none before version 5".to_owned(), |bits| format!("{bits:#x}"));
        let expected = format!("at least the bits {:#x}", policy.required_mitigations);
        appraisal.require(ReasonCode::SnpMitigations, at, holds, expected, found);
    }
    if let Some(minimum) = policy.minimum_firmware {
        let committed = report.committed_version();
        let version = AbiVersion {
            major: committed.major,
            minor: committed.minor,
        };
        let at = "report[0x1ec..0x1ef] COMMITTED_VERSION";
        let expected = format!("at least {minimum}");
        appraisal.require(
            ReasonCode::SnpFirmwareMinimum,
            at,
            version >= minimum,
            expected,
            committed.to_string(),
        );
    }
    if !policy.allow_provisional_firmware {
        let (current, committed) = (report.current_version(), report.committed_version());
        let tcbs_equal = report.current_tcb() == report.committed_tcb();
        let found = format!("current {current}, committed {committed}, TCBs equal: {tcbs_equal}");
        let at = "report[0x038, 0x1e0..0x1ef] CURRENT_*, COMMITTED_*";
        let holds = current == committed && tcbs_equal;
        appraisal.require(
            ReasonCode::SnpFirmwareProvisional,
            at,
            holds,
            "the current firmware committed",
            found,
        );
    }
}

fn check_identity(appraisal: &mut Appraisal, report: &Report, policy: &SnpPolicy) {
    let vmpl = report.vmpl();
    let at = "report[0x030..0x034] VMPL";
    let expected = format!("at most {}", policy.maximum_vmpl);
    appraisal.require(
        ReasonCode::SnpVmpl,
        at,
        vmpl <= policy.maximum_vmpl,
        expected,
        vmpl.to_string(),
    );

    let svn = report.guest_svn();
    let at = "report[0x004..0x008] GUEST_SVN";
    let expected = format!("at least {}", policy.minimum_guest_svn);
    appraisal.require(
        ReasonCode::SnpGuestSvn,
        at,
        svn >= policy.minimum_guest_svn,
        expected,
        svn.to_string(),
    );

    let masked = report.chip_id().is_zero();
    let at = "report[0x1a0..0x1e0] CHIP_ID";
    let found = if masked { "all zero" } else { "given" };
    appraisal.require(
        ReasonCode::SnpChipMasked,
        at,
        policy.allow_masked_chip || !masked,
        "given",
        found,
    );
    if !policy.chip_ids.is_empty() {
        let holds = policy.chip_ids.contains(&report.chip_id());
        let expected = "one on the policy's list";
        appraisal.require(
            ReasonCode::SnpChipNotAllowed,
            at,
            holds,
            expected,
            report.chip_id().to_string(),
        );
    }
    if !policy.id_key_digests.is_empty() {
        let digest = report.id_key_digest();
        let holds = policy.id_key_digests.contains(&digest);
        let at = "report[0x0e0..0x110] ID_KEY_DIGEST";
        appraisal.require(
            ReasonCode::SnpIdKey,
            at,
            holds,
            "one on the policy's list",
            digest.to_string(),
        );
    }
    if !policy.author_key_digests.is_empty() {
        let digest = report.author_key_digest();
        let holds = report.key_info().author_key_enabled() && policy.author_key_digests.contains(&digest);
        let at = "report[0x110..0x140] AUTHOR_KEY_DIGEST";
        appraisal.require(
            ReasonCode::SnpAuthorKey,
            at,
            holds,
            "enabled and on the policy's list",
            digest.to_string(),
        );
    }
}

/// Checks that need to know which product's layout a TCB has.
pub(super) fn check_tcb(appraisal: &mut Appraisal, report: &Report, product: Product, policy: &SnpPolicy) {
    let fields = [
        ("report[0x038..0x040] CURRENT_TCB", report.current_tcb()),
        ("report[0x180..0x188] REPORTED_TCB", report.reported_tcb()),
        ("report[0x1e0..0x1e8] COMMITTED_TCB", report.committed_tcb()),
        ("report[0x1f0..0x1f8] LAUNCH_TCB", report.launch_tcb()),
    ];
    for (at, tcb) in fields {
        let reserved = tcb.reserved(product);
        let zero = reserved.iter().all(|&byte| byte == 0);
        appraisal.require(
            ReasonCode::SnpReportReserved,
            at,
            zero,
            "reserved bytes zero",
            hex::encode(reserved),
        );
    }
    let [current, reported, committed, launch] = fields.map(|(_, tcb)| tcb.components(product));
    // The firmware refuses to report more than it has committed, and commits only what runs (SNP ABI §8.6, §8.9).
    for (at, lower, upper) in [
        ("REPORTED_TCB, COMMITTED_TCB", reported, committed),
        ("COMMITTED_TCB, CURRENT_TCB", committed, current),
    ] {
        let holds = upper.meets(&lower);
        appraisal.require(
            ReasonCode::SnpTcbInconsistent,
            at,
            holds,
            format!("at most {upper}"),
            lower.to_string(),
        );
    }
    let minimum = policy.minimum_tcb.of(product);
    require_minimum(
        appraisal,
        ReasonCode::SnpTcbMinimum,
        fields[1].0,
        &reported,
        minimum,
    );
    require_minimum(
        appraisal,
        ReasonCode::SnpTcbLaunchMinimum,
        fields[3].0,
        &launch,
        minimum,
    );
}

fn require_minimum(
    appraisal: &mut Appraisal,
    code: ReasonCode,
    at: &'static str,
    tcb: &TcbComponents,
    minimum: &TcbComponents,
) {
    appraisal.require(
        code,
        at,
        tcb.meets(minimum),
        format!("at least {minimum}"),
        tcb.to_string(),
    );
}

/// Checks that compare the report with the certificate of the key that signed it.
pub(super) fn check_endorsement(appraisal: &mut Appraisal, report: &Report, vek: &Vek, policy: &SnpPolicy) {
    let claimed = match report.key_info().signing_key() {
        SigningKey::Vcek => Some(VekKind::Vcek),
        SigningKey::Vlek => Some(VekKind::Vlek),
        SigningKey::None | SigningKey::Reserved(_) => None,
    };
    let at = "report[0x048..0x04c] SIGNING_KEY";
    let (expected, found) = (format!("{:?}", vek.kind), format!("{claimed:?}"));
    appraisal.require(
        ReasonCode::SnpVekKind,
        at,
        claimed == Some(vek.kind),
        expected,
        found,
    );

    if let Some(found) = report.product() {
        let at = "report[0x188..0x18b] CPUID";
        let text = match found {
            Ok(product) => product.to_string(),
            Err(cpuid) => format!("family, model, stepping {cpuid:x?}"),
        };
        let holds = found == Ok(vek.product);
        appraisal.require(
            ReasonCode::SnpProductMismatch,
            at,
            holds,
            vek.product.to_string(),
            text,
        );
    }
    let reported = report.reported_tcb().components(vek.product);
    let at = "report[0x180..0x188] REPORTED_TCB";
    appraisal.require_equal(ReasonCode::SnpTcbVek, at, &vek.tcb, &reported);

    let masked_allowed = policy.allow_masked_chip && report.chip_id().is_zero();
    if let (Some(hwid), false) = (vek.chip_id(), masked_allowed) {
        let at = "report[0x1a0..0x1e0] CHIP_ID";
        let found = report.chip_id();
        appraisal.require(
            ReasonCode::SnpHwid,
            at,
            found.0 == hwid,
            hex::encode(hwid),
            found.to_string(),
        );
    }
}

/// Checks that the certificate and the policy decide between them.
pub(super) fn check_vek_allowed(appraisal: &mut Appraisal, vek: &Vek, policy: &SnpPolicy) {
    let holds = policy.endorsement_keys.contains(&vek.kind);
    let expected = format!("{:?}", policy.endorsement_keys);
    appraisal.require(
        ReasonCode::SnpVekNotAllowed,
        "chain.vek",
        holds,
        expected,
        format!("{:?}", vek.kind),
    );
    let holds = policy.products.contains(&vek.product);
    let expected = format!("{:?}", policy.products);
    appraisal.require(
        ReasonCode::SnpProductNotAllowed,
        "chain.vek",
        holds,
        expected,
        vek.product.to_string(),
    );
}
