//! Real TDX quotes, judged at the times at which their collateral was current.

use cloak_attestation::policy::{AdvisoryPolicy, TcbStatus};
use cloak_attestation::verdict::Claims;
use cloak_attestation::{Evidence, Policy};

use crate::vectors::{codes, dcap_qvl, judge, tdx, tdx_evidence};

#[test]
fn version_4_verifies_within_its_dates_and_only_then() {
    let evidence = tdx_evidence(tdx("tdx_quote"));
    let policy = Policy::default();
    let verified = judge(&policy, &evidence, "1750400000").unwrap();
    let Claims::Tdx(claims) = verified.claims() else {
        panic!("a TDX quote")
    };
    assert_eq!(
        (claims.quote_version, claims.tcb_status),
        (4, TcbStatus::UpToDate)
    );
    assert_eq!(
        codes(judge(&policy, &evidence, "2025-06-01")),
        ["tdx.collateral.not-yet-valid"]
    );
    assert_eq!(
        codes(judge(&policy, &evidence, "2025-08-01")),
        ["tdx.collateral.expired"]
    );
    assert_eq!(
        codes(judge(&policy, &evidence, "2060-01-01")),
        ["tdx.collateral.expired"]
    );
}

#[test]
fn version_5_extended_verifies_if_its_manifest_is_known() {
    let evidence = tdx_evidence(tdx("tdx_quote_td15ex"));
    let verified = judge(&Policy::default(), &evidence, "1792454400").unwrap();
    let Claims::Tdx(claims) = verified.claims() else {
        panic!("a TDX quote")
    };
    assert_eq!(claims.quote_version, 5);
    assert!(!claims.mr_config_id.is_zero());
    assert_eq!(
        codes(judge(&Policy::default(), &evidence, "1750400000")),
        ["tdx.collateral.not-yet-valid"]
    );
}

#[test]
fn a_platform_below_every_level_is_refused_for_that() {
    let evidence = tdx_evidence(tdx("tdx_quote_outdated"));
    assert_eq!(
        codes(judge(&Policy::default(), &evidence, "1772323200")),
        ["tdx.tcb.unmatched"]
    );
    let later = codes(judge(&Policy::default(), &evidence, "2027-01-01"));
    assert_eq!(later, ["tdx.collateral.expired", "tdx.tcb.unmatched"]);
}

#[test]
fn an_sgx_quote_is_not_a_tdx_quote() {
    let evidence = tdx_evidence(tdx("sgx_quote"));
    assert_eq!(
        codes(judge(&Policy::default(), &evidence, "1750400000")),
        ["tdx.quote.version"]
    );
}

#[test]
fn collateral_is_needed_and_must_be_the_right_one() {
    let mut bare = tdx("tdx_quote");
    bare.collateral = None;
    assert_eq!(
        codes(judge(&Policy::default(), &tdx_evidence(bare), "1750400000")),
        ["tdx.collateral.missing"]
    );
    let mut sgx = tdx("tdx_quote");
    sgx.collateral = tdx("sgx_quote").collateral;
    let refused = codes(judge(&Policy::default(), &tdx_evidence(sgx), "1750400000"));
    assert_eq!(refused, ["tdx.collateral.type"]);
}

#[test]
fn changed_collateral_is_refused_with_the_part() {
    let change = |edit: fn(&mut dcap_qvl::QuoteCollateralV3)| {
        let mut evidence = tdx("tdx_quote");
        edit(evidence.collateral.as_mut().unwrap());
        codes(judge(&Policy::default(), &tdx_evidence(evidence), "1750400000"))
    };
    let signature = ["tdx.collateral.signature"];
    assert_eq!(
        change(|c| c.tcb_info = c.tcb_info.replace("OutOfDate", "UpToDate")),
        signature
    );
    assert_eq!(change(|c| c.tcb_info_signature[5] ^= 1), signature);
    assert_eq!(change(|c| c.qe_identity_signature[5] ^= 1), signature);
    assert_eq!(change(|c| c.tcb_info.clear()), ["tdx.collateral.malformed"]);
    assert_eq!(change(|c| c.pck_crl.clear()), ["tdx.collateral.malformed"]);
    assert_eq!(
        change(|c| c.tcb_info_issuer_chain.clear()),
        ["tdx.collateral.malformed"]
    );
    assert_eq!(change(|c| *c.root_ca_crl.last_mut().unwrap() ^= 1), signature);
    assert_eq!(change(|c| *c.pck_crl.last_mut().unwrap() ^= 1), signature);
}

#[test]
fn the_policy_speaks_on_status_advisories_features_and_owner() {
    let evidence = tdx_evidence(tdx("tdx_quote"));
    let refuse = |text: &str| codes(judge(&Policy::from_toml(text).unwrap(), &evidence, "1750400000"));
    assert_eq!(
        refuse("[tdx]\ntcb_statuses = [\"OutOfDate\"]"),
        ["tdx.tcb.status"]
    );
    assert_eq!(
        refuse("[tdx]\nminimum_tcb_evaluation = 18"),
        ["tdx.tcb.evaluation"]
    );
    assert_eq!(refuse("[tdx]\nxfam_allowed = 3"), ["tdx.xfam"]);
    assert_eq!(refuse("[tdx]\nxfam_required = 0x80000"), ["tdx.xfam"]);
    let owner = "11".repeat(48);
    assert_eq!(
        refuse(&format!("[tdx]\nmr_owners = [\"{owner}\"]")),
        ["tdx.mr-owner"]
    );
    assert_eq!(
        refuse(&format!("[tdx]\nmr_owner_configs = [\"{owner}\"]")),
        ["tdx.mr-owner-config"]
    );
    let reference = format!("[[reference]]\nname = \"a\"\nversion = \"1\"\nmrtd = [\"{owner}\"]");
    assert_eq!(refuse(&reference), ["reference.measurement.unknown"]);
    assert!(!AdvisoryPolicy::default().accepts("INTEL-SA-00001"));
}

#[test]
fn reference_values_have_to_fit_as_a_whole() {
    let evidence = tdx_evidence(tdx("tdx_quote"));
    let verified = judge(&Policy::default(), &evidence, "1750400000").unwrap();
    let Claims::Tdx(claims) = verified.claims() else {
        panic!("a TDX quote")
    };
    let other = "11".repeat(48);
    let reference = |rtmr: &str, config: &str| {
        format!(
            "[[reference]]\nname = \"app\"\nversion = \"2\"\nmrtd = [\"{}\"]\nrtmr1 = [\"{rtmr}\"]\n\
             mr_config_id = [\"{config}\"]\n",
            claims.mrtd
        )
    };
    let (rtmr, config) = (claims.rtmrs[1].to_string(), claims.mr_config_id.to_string());
    let judge_with = |text: String| judge(&Policy::from_toml(&text).unwrap(), &evidence, "1750400000");
    let fit = judge_with(reference(&rtmr, &config)).unwrap();
    assert_eq!(fit.reference().unwrap().name, "app");
    assert!(fit.pins().measurement && fit.pins().manifest && !fit.pins().report_data);
    assert_eq!(
        codes(judge_with(reference(&other, &config))),
        ["reference.rtmr.unknown"]
    );
    assert_eq!(
        codes(judge_with(reference(&rtmr, &other))),
        ["reference.manifest.unknown"]
    );
    let halves = reference(&other, &config) + &reference(&rtmr, &other);
    assert_eq!(codes(judge_with(halves)), ["reference.unknown"]);
}

/// Quotes that came without collateral: nothing but that is wrong with them.
#[test]
fn quotes_in_hexadecimal_are_read_and_lack_only_their_collateral() {
    for name in ["tdx-quote.hex", "quote-from-tappd.hex"] {
        let evidence = Evidence::read(&dcap_qvl(&format!("sample/{name}")), Default::default()).unwrap();
        assert_eq!(evidence.kind(), cloak_attestation::EvidenceKind::Tdx);
        let refused = codes(judge(&Policy::default(), &evidence, "1750400000"));
        assert_eq!(refused, ["tdx.collateral.missing"], "{name}");
    }
}
