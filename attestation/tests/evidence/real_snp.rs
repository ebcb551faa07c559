//! Real SNP reports of three products and three versions, judged at the times at which their keys were valid.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloak_attestation::evidence::{Companions, SnpEvidence};
use cloak_attestation::snp::{Product, Vek, VekKind, pinned_roots};
use cloak_attestation::verdict::Claims;
use cloak_attestation::x509::Cert;
use cloak_attestation::{Evidence, Policy};

use crate::vectors::{codes, judge, sev, sev_milan, shared, snp_evidence};

fn shared_snp(report: &str, vek: &str) -> Option<SnpEvidence> {
    Some(SnpEvidence {
        report: shared(report)?,
        vek: Some(shared(vek)?),
        ..Default::default()
    })
}

fn milan_v3() -> Option<SnpEvidence> {
    shared_snp("ms-tav/milan_attestation_report.bin", "ms-tav/milan_vcek.pem")
}

fn turin_v5() -> Option<SnpEvidence> {
    shared_snp("ms-tav/turin_attestation_report.bin", "ms-tav/turin_vcek.pem")
}

#[test]
fn milan_v2_verifies_within_its_dates_and_only_then() {
    let evidence = snp_evidence(sev_milan());
    let policy = Policy::default();
    let verified = judge(&policy, &evidence, "2024-01-01").unwrap();
    let Claims::Snp(claims) = verified.claims() else {
        panic!("an SNP report")
    };
    assert_eq!((claims.report_version, claims.product), (2, Product::Milan));
    assert_eq!(claims.reported_tcb.microcode, 0x73);
    assert_eq!(
        codes(judge(&policy, &evidence, "2023-04-01")),
        ["chain.not-yet-valid"]
    );
    assert_eq!(codes(judge(&policy, &evidence, "2030-05-01")), ["chain.expired"]);
}

#[test]
fn the_documented_changes_to_it_are_refused() {
    let mut report = sev_milan();
    report.report[21] ^= 0x80;
    let changed = judge(&Policy::default(), &snp_evidence(report), "2024-01-01");
    assert_eq!(codes(changed), ["snp.report.signature"]);
    let mut vek = sev_milan();
    vek.vek.as_mut().unwrap()[40] ^= 0xff;
    assert!(judge(&Policy::default(), &snp_evidence(vek), "2024-01-01").is_err());
}

#[test]
fn milan_v3_and_turin_v5_verify() {
    let cases = [(milan_v3(), 3, Product::Milan), (turin_v5(), 5, Product::Turin)];
    for (evidence, version, product) in cases {
        let Some(evidence) = evidence.map(snp_evidence) else {
            continue;
        };
        let verified = judge(&Policy::default(), &evidence, "2026-06-01").unwrap();
        let Claims::Snp(claims) = verified.claims() else {
            panic!("an SNP report")
        };
        assert_eq!((claims.report_version, claims.product), (version, product));
        assert_eq!(
            codes(judge(&Policy::default(), &evidence, "2026-02-04")),
            ["chain.not-yet-valid"]
        );
        assert_eq!(
            codes(judge(&Policy::default(), &evidence, "2033-02-06")),
            ["chain.expired"]
        );
    }
}

#[test]
fn chains_that_come_along_are_used_if_they_are_amds() {
    for (evidence, product) in [(milan_v3(), "milan"), (turin_v5(), "turin")] {
        let Some(mut evidence) = evidence else { continue };
        evidence.ark = shared(&format!("ms-tav/{product}_ark.pem"));
        evidence.authority = shared(&format!("ms-tav/{product}_ask.pem"));
        judge(&Policy::default(), &snp_evidence(evidence.clone()), "2026-06-01").unwrap();
        evidence.ark = shared("sev-crate/builtin_genoa_ark.pem");
        let refused = codes(judge(&Policy::default(), &snp_evidence(evidence), "2026-06-01"));
        assert_eq!(refused, ["chain.root.unknown"]);
    }
}

#[test]
fn a_debug_report_is_refused_for_that_alone() {
    let Some(evidence) = shared_snp("go-sev-guest/attestation.bin", "go-sev-guest/vcek.testcer") else {
        return;
    };
    let evidence = snp_evidence(evidence);
    assert_eq!(
        codes(judge(&Policy::default(), &evidence, "2024-01-01")),
        ["snp.policy.debug"]
    );
    let mut lax = Policy::default();
    lax.snp.dangerous_allow_debug = true;
    judge(&lax, &evidence, "2024-01-01").unwrap();
}

#[test]
fn every_reason_is_given_at_once() {
    let text = r#"
        revocation = "require"
        require_reference = true
        [snp]
        allow_smt = false
        require_single_socket = true
        minimum_abi = "1.51"
        minimum_firmware = "1.60"
        minimum_guest_svn = 7
        required_mitigations = 1
        require_alias_check = true
        chip_ids = []
        [snp.minimum_tcb.milan]
        microcode = 255
    "#;
    let refused = judge(
        &Policy::from_toml(text).unwrap(),
        &snp_evidence(sev_milan()),
        "2031-01-01",
    );
    let expected = [
        "chain.crl.missing",
        "chain.expired",
        "reference.none",
        "snp.firmware.below-minimum",
        "snp.guest-svn.below-minimum",
        "snp.mitigations.missing",
        "snp.platform.alias-check",
        "snp.policy.abi",
        "snp.policy.single-socket",
        "snp.policy.smt",
        "snp.tcb.below-minimum",
        "snp.tcb.launch-below-minimum",
    ];
    assert_eq!(codes(refused), expected);
}

#[test]
fn the_key_of_another_report_is_refused() {
    let (Some(milan), Some(turin)) = (milan_v3(), turin_v5()) else {
        return;
    };
    let swapped = SnpEvidence {
        vek: turin.vek,
        ..milan
    };
    let refused = codes(judge(&Policy::default(), &snp_evidence(swapped), "2026-06-01"));
    for code in [
        "snp.product.mismatch",
        "snp.report.signature",
        "snp.hwid.mismatch",
        "snp.tcb.vek-mismatch",
    ] {
        assert!(refused.contains(&code), "{code} in {refused:?}");
    }
}

#[test]
fn certificates_without_a_report_are_read() {
    let turin = Cert::from_der(&sev("tests/certs_data/vcek_turin.der")).unwrap();
    let turin = Vek::from_cert(&turin).unwrap();
    assert_eq!(
        (turin.kind, turin.product, turin.hwid.unwrap().len()),
        (VekKind::Vcek, Product::Turin, 8)
    );
    let Some(enarx) = shared("enarx/vcek.der") else {
        return;
    };
    let enarx = Vek::from_cert(&Cert::from_der(&enarx).unwrap()).unwrap();
    assert_eq!((enarx.product, enarx.hwid.unwrap().len()), (Product::Milan, 64));
}

/// Under another machine's key a report is refused, but not for the key's chain, as long as its dates last.
#[test]
fn endorsement_keys_that_came_without_a_report_have_good_chains() {
    let turin = Some(sev("tests/certs_data/vcek_turin.der"));
    let dates = [
        (turin, "2024-11-06", "2031-11-06", "2031-11-08"),
        (shared("enarx/vcek.der"), "2021-10-22", "2028-10-22", "2028-10-24"),
    ];
    for (vek, early, last, late) in dates {
        let Some(vek) = vek else { continue };
        let evidence = snp_evidence(SnpEvidence {
            vek: Some(vek),
            ..sev_milan()
        });
        let of_the_chain = |time: &str| {
            let mut codes = codes(judge(&Policy::default(), &evidence, time));
            assert!(codes.contains(&"snp.report.signature"), "{codes:?}");
            codes.retain(|code| code.starts_with("chain."));
            codes
        };
        assert_eq!(of_the_chain(early), ["chain.not-yet-valid"]);
        assert_eq!(of_the_chain(last), Vec::<&str>::new());
        assert_eq!(of_the_chain(late), ["chain.expired"]);
    }
}

#[test]
fn the_collections_chains_are_the_pinned_ones() {
    let asvks: [&[u8]; 3] = [
        include_bytes!("../../src/snp/roots/asvk_milan.pem"),
        include_bytes!("../../src/snp/roots/asvk_genoa.pem"),
        include_bytes!("../../src/snp/roots/asvk_turin.pem"),
    ];
    let files = [
        ("milan", "ask_ark_milan.pem", "ask_ark_milan_vlek.pem"),
        ("genoa", "ask_ark_genoa.pem", "ask_ark_genoa_vlek.pem"),
        ("turin", "ask_ark_turin_vcek.pem", "ask_ark_turin_vlek.pem"),
    ];
    for ((product, vcek, vlek), asvk) in files.into_iter().zip(asvks) {
        let (Some(vcek), Some(vlek)) = (
            shared(&format!("go-sev-guest/{vcek}")),
            shared(&format!("go-sev-guest/{vlek}")),
        ) else {
            continue;
        };
        // The authority comes first, then the root.
        let chain = |pem: &[u8]| -> Vec<Cert> {
            let text = String::from_utf8(pem.to_vec()).unwrap();
            // Some lines are longer than PEM's, so the text is read by hand.
            text.split("-----BEGIN CERTIFICATE-----")
                .skip(1)
                .map(|rest| rest.split_once("-----END").unwrap().0)
                .map(|base64| STANDARD.decode(base64.replace(['\r', '\n'], "")).unwrap())
                .map(|der| Cert::from_der(&der).unwrap())
                .collect()
        };
        for (pem, authority) in [
            (&vcek, shared(&format!("sev-crate/builtin_{product}_ask.pem"))),
            (&vlek, Some(asvk.to_vec())),
        ] {
            let certs = chain(pem);
            assert!(pinned_roots().any(|root| root == certs[1].der()), "{product}");
            let authority = Cert::from_der_or_pem(&authority.unwrap()).unwrap();
            assert_eq!(certs[0].der(), authority.der(), "{product}");
        }
    }
}

#[test]
fn a_bare_report_finds_its_companions() {
    let mut companions = Companions::default();
    companions
        .add_certificates(&sev("tests/certs_data/vcek_milan.der"))
        .unwrap();
    companions
        .add_certificates(&sev("tests/certs_data/cert_chain_milan"))
        .unwrap();
    let hex_report = sev("tests/certs_data/report_milan.hex");
    let evidence = Evidence::read(&hex_report, companions).unwrap();
    judge(&Policy::default(), &evidence, "2024-01-01").unwrap();
    let again = Evidence::read(&evidence.to_cbor(), Companions::default()).unwrap();
    assert_eq!(again, evidence);
}

#[test]
fn real_bytes_under_a_simulated_name_are_refused() {
    let evidence = Evidence::from(cloak_attestation::evidence::Attestation::SimulatedSnp(sev_milan()));
    let refused = codes(judge(&Policy::default(), &evidence, "2024-01-01"));
    assert!(refused.contains(&"evidence.kind.not-allowed"));
    let lax = Policy::from_toml("platforms = [\"simulated-snp\"]").unwrap();
    assert_eq!(codes(judge(&lax, &evidence, "2024-01-01")), ["chain.missing"]);
    let refused = codes(judge(&lax, &snp_evidence(sev_milan()), "2024-01-01"));
    assert_eq!(refused, ["evidence.kind.not-allowed"]);
}
