//! A generated world for what no real quote shows.

use std::sync::LazyLock;

use cloak_attestation::bytes::{Bytes48, Bytes64};
use cloak_attestation::evidence::{Attestation, Event, TdxEvidence};
use cloak_attestation::measure::rtmrs;
use cloak_attestation::sim::{QuoteFields, TdxFault, TdxSpec, TdxWorld};
use cloak_attestation::time::{Timestamp, Window};
use cloak_attestation::{Evidence, Policy, Request, Verifier};
use sha2::{Digest, Sha384};

use crate::vectors::codes;

const NOW: Timestamp = Timestamp(1_780_000_000);
const DAY: u64 = 86400;

static WORLD: LazyLock<TdxWorld> = LazyLock::new(|| TdxWorld::new(NOW).unwrap());

fn policy(text: &str) -> Policy {
    Policy::from_toml(&format!("platforms = [\"simulated-tdx\"]\n{text}")).unwrap()
}

fn quote(fields: impl FnOnce(&mut QuoteFields)) -> TdxEvidence {
    let mut quote = QuoteFields::default();
    fields(&mut quote);
    WORLD.attest(&quote, &WORLD.spec()).unwrap()
}

fn platform(edit: impl FnOnce(&mut TdxSpec)) -> TdxEvidence {
    let mut spec = WORLD.spec();
    edit(&mut spec);
    WORLD.attest(&QuoteFields::default(), &spec).unwrap()
}

fn evidence(tdx: TdxEvidence) -> Evidence {
    Attestation::SimulatedTdx(tdx).into()
}

fn refuse(tdx: TdxEvidence, text: &str) -> Vec<&'static str> {
    codes(Verifier::new(policy(text)).verify(&evidence(tdx), &Request::at(NOW)))
}

fn accept(tdx: TdxEvidence, text: &str) {
    let verdict = Verifier::new(policy(text)).verify(&evidence(tdx), &Request::at(NOW));
    verdict.unwrap_or_else(|refused| panic!("{refused}"));
}

#[test]
fn a_good_quote_verifies_under_a_policy_that_names_it_and_no_other() {
    let good = quote(|_| {});
    accept(good.clone(), "");
    let by_default = Verifier::new(Policy::default()).verify(&evidence(good.clone()), &Request::at(NOW));
    assert_eq!(codes(by_default), ["evidence.kind.not-allowed"]);
    let as_real = Evidence::from(Attestation::Tdx(good.clone()));
    let refused = codes(Verifier::new(Policy::default()).verify(&as_real, &Request::at(NOW)));
    assert_eq!(refused, ["chain.root.unknown"]);
    accept(
        good.clone(),
        &format!("[simulated]\nroot_digests = [\"{}\"]", WORLD.root_digest()),
    );
    let other = format!("[simulated]\nroot_digests = [\"{}\"]", "00".repeat(32));
    assert_eq!(refuse(good.clone(), &other), ["simulated.root.not-allowed"]);
    assert_eq!(refuse(TdxEvidence { root: None, ..good }, ""), ["chain.missing"]);
}

/// It came as one from hardware would, with collateral beside it. The root that it so gets counts where a policy has its digest.
#[test]
fn a_simulated_quote_has_the_root_that_its_collateral_names() {
    let bare = TdxEvidence {
        root: None,
        ..quote(|_| {})
    };
    let simulated = Evidence::from(Attestation::Tdx(bare)).as_simulated();
    let pinned = |digest: String| {
        let text = format!("[simulated]\nroot_digests = [\"{digest}\"]");
        Verifier::new(policy(&text)).verify(&simulated, &Request::at(NOW))
    };
    pinned(WORLD.root_digest().to_string()).expect("its own root");
    assert_eq!(codes(pinned("00".repeat(32))), ["simulated.root.not-allowed"]);
}

#[test]
fn an_envelope_carries_it_whole() {
    let sent = evidence(quote(|_| {}));
    assert_eq!(Evidence::from_cbor(&sent.to_cbor()).unwrap(), sent);
}

#[test]
fn what_intel_says_about_the_platform() {
    let status = |status| platform(move |spec| spec.tcb_status = status);
    assert_eq!(refuse(status("OutOfDate"), ""), ["tdx.tcb.status"]);
    assert_eq!(refuse(status("SWHardeningNeeded"), ""), ["tdx.tcb.status"]);
    assert_eq!(
        refuse(status("Revoked"), "[tdx]\ntcb_statuses = [\"OutOfDate\"]"),
        ["tdx.tcb.revoked"]
    );
    accept(status("OutOfDate"), "[tdx]\ntcb_statuses = [\"OutOfDate\"]");
    let advised = || platform(|spec| spec.advisories = vec!["INTEL-SA-01234".to_owned()]);
    assert_eq!(refuse(advised(), ""), ["tdx.tcb.advisory"]);
    accept(advised(), "[tdx.advisories]\nonly = [\"INTEL-SA-01234\"]");
    accept(advised(), "[tdx.advisories]\nany-except = []");
    assert_eq!(
        refuse(advised(), "[tdx.advisories]\nany-except = [\"INTEL-SA-01234\"]"),
        ["tdx.tcb.advisory"]
    );
    accept(quote(|_| {}), "[tdx]\nminimum_tcb_evaluation = 18");
    assert_eq!(
        refuse(quote(|_| {}), "[tdx]\nminimum_tcb_evaluation = 19"),
        ["tdx.tcb.evaluation"]
    );
    assert_eq!(
        refuse(quote(|_| {}), "[tdx]\nallow_smt = false"),
        ["tdx.platform"]
    );
    assert_eq!(
        refuse(quote(|_| {}), "[tdx]\nallow_dynamic_platform = false"),
        ["tdx.platform"]
    );
    accept(quote(|_| {}), "[tdx]\nallow_cached_keys = false");
}

#[test]
fn faults_have_codes() {
    let fault = |fault| refuse(platform(move |spec| spec.fault = Some(fault)), "");
    assert_eq!(fault(TdxFault::RevokedPck), ["chain.revoked"]);
    assert_eq!(fault(TdxFault::ForeignQuoteSignature), ["tdx.quote.signature"]);
    assert_eq!(fault(TdxFault::ForeignQuotingEnclave), ["tdx.qe"]);
    assert_eq!(fault(TdxFault::OtherFmspc), ["tdx.fmspc.mismatch"]);
    assert_eq!(fault(TdxFault::SgxCollateral), ["tdx.collateral.type"]);
    assert_eq!(fault(TdxFault::BelowEveryLevel), ["tdx.tcb.unmatched"]);
}

#[test]
fn dates_are_named_and_hide_nothing() {
    let ended = Window {
        from: NOW.minus_seconds(9 * DAY),
        until: NOW.minus_seconds(DAY),
    };
    let future = Window {
        from: NOW.plus_seconds(DAY),
        until: NOW.plus_seconds(9 * DAY),
    };
    assert_eq!(
        refuse(platform(|spec| spec.window = ended), ""),
        ["tdx.collateral.expired"]
    );
    assert_eq!(
        refuse(platform(|spec| spec.window = future), ""),
        ["tdx.collateral.not-yet-valid"]
    );
    accept(
        platform(|spec| spec.window = ended),
        "clock_tolerance_seconds = 86400",
    );
    let both = platform(|spec| {
        spec.window = ended;
        spec.fault = Some(TdxFault::ForeignQuoteSignature);
    });
    assert_eq!(
        refuse(both, ""),
        ["tdx.collateral.expired", "tdx.quote.signature"]
    );
}

#[test]
fn attributes_and_owners() {
    let attributes = |bits: u64| quote(move |fields| fields.attributes = bits);
    let base = 1 << 28;
    assert_eq!(refuse(attributes(base | 1), ""), ["tdx.attributes.debug"]);
    accept(attributes(base | 1), "[tdx]\ndangerous_allow_debug = true");
    assert_eq!(refuse(attributes(base | 0x10), ""), ["tdx.attributes.profiling"]);
    assert_eq!(
        refuse(attributes(base | 1 << 29), ""),
        ["tdx.attributes.migratable"]
    );
    assert_eq!(refuse(attributes(base | 2), ""), ["tdx.attributes.reserved"]);
    assert_eq!(refuse(attributes(base | 1 << 17), ""), ["tdx.service-td"]);
    assert_eq!(refuse(attributes(0), ""), ["tdx.attributes.sept-ve"]);
    assert_eq!(refuse(quote(|fields| fields.xfam = 0), ""), ["tdx.xfam"]);
    assert_eq!(
        refuse(quote(|fields| fields.mr_owner.0[0] = 1), ""),
        ["tdx.mr-owner"]
    );
    assert_eq!(
        refuse(quote(|fields| fields.mr_owner_config.0[0] = 1), ""),
        ["tdx.mr-owner-config"]
    );
}

#[test]
fn manifest_event_log_and_nonce_are_bound() {
    let log = vec![
        Event::of_data(0, b"one".to_vec()),
        Event::of_data(2, b"two".to_vec()),
    ];
    let manifest = b"program = \"/bin/true\"".to_vec();
    let tdx = quote(|fields| {
        fields.rtmrs = rtmrs(&log).unwrap();
        fields.mr_config_id = Bytes48::from(<[u8; 48]>::from(Sha384::digest(&manifest)));
        fields.report_data.0 = [3; 64];
    });
    let good = Evidence {
        manifest: Some(manifest),
        event_log: log,
        ..evidence(tdx)
    };
    let verifier = Verifier::new(policy(""));
    let request = Request::at(NOW).with_report_data(Bytes64::from([3; 64]));
    verifier.verify(&good, &request).unwrap();
    let mut other = good.clone();
    other.event_log.swap(0, 1);
    verifier
        .verify(&other, &request)
        .expect("the order between registers is not measured");
    other.event_log.pop();
    assert_eq!(
        codes(verifier.verify(&other, &request)),
        ["evidence.event-log.mismatch"]
    );
    let mut other = good.clone();
    other.event_log[0].data = Some(b"changed".to_vec());
    assert_eq!(
        codes(verifier.verify(&other, &request)),
        ["evidence.event-log.mismatch"]
    );
    let other = Evidence {
        manifest: Some(Vec::new()),
        ..good.clone()
    };
    assert_eq!(
        codes(verifier.verify(&other, &request)),
        ["evidence.manifest.mismatch"]
    );
    let old = Request::at(NOW).with_report_data(Bytes64::from([4; 64]));
    assert_eq!(
        codes(verifier.verify(&good, &old)),
        ["evidence.report-data.mismatch"]
    );
}
