//! A generated world for what no real report shows.

use std::sync::LazyLock;

use cloak_attestation::bytes::Bytes64;
use cloak_attestation::evidence::{Attestation, Event, SnpEvidence};
use cloak_attestation::sim::{Endorsement, ReportFields, SnpFault, SnpWorld, VekSpec};
use cloak_attestation::snp::{GuestPolicy, Product, TcbComponents, VekKind};
use cloak_attestation::time::{Timestamp, Window};
use cloak_attestation::{Evidence, Policy, Request, Verifier};
use sha2::{Digest, Sha256};

use crate::vectors::codes;

const NOW: Timestamp = Timestamp(1_780_000_000);
const DAY: u64 = 86400;

static MILAN: LazyLock<SnpWorld> = LazyLock::new(|| SnpWorld::new(Product::Milan, NOW).unwrap());
static GENOA: LazyLock<SnpWorld> = LazyLock::new(|| MILAN.for_product(Product::Genoa).unwrap());
static TURIN: LazyLock<SnpWorld> = LazyLock::new(|| MILAN.for_product(Product::Turin).unwrap());

fn policy(text: &str) -> Policy {
    Policy::from_toml(&format!("platforms = [\"simulated-snp\"]\n{text}")).unwrap()
}

fn evidence(snp: SnpEvidence) -> Evidence {
    Attestation::SimulatedSnp(snp).into()
}

fn refuse(snp: SnpEvidence, text: &str) -> Vec<&'static str> {
    codes(Verifier::new(policy(text)).verify(&evidence(snp), &Request::at(NOW)))
}

fn accept(snp: SnpEvidence, text: &str) {
    let verdict = Verifier::new(policy(text)).verify(&evidence(snp), &Request::at(NOW));
    verdict.unwrap_or_else(|refused| panic!("{refused}"));
}

fn endorse(world: &SnpWorld, edit: impl FnOnce(&mut VekSpec)) -> (VekSpec, Endorsement) {
    endorse_kind(world, VekKind::Vcek, edit)
}

fn endorse_kind(world: &SnpWorld, kind: VekKind, edit: impl FnOnce(&mut VekSpec)) -> (VekSpec, Endorsement) {
    let mut spec = world.vek_spec(kind);
    edit(&mut spec);
    let endorsement = world.endorse(&spec).unwrap();
    (spec, endorsement)
}

/// Evidence of a Milan chip whose report is edited before it is signed.
fn report(edit: impl FnOnce(&mut ReportFields)) -> SnpEvidence {
    let (spec, endorsement) = endorse(&MILAN, |_| {});
    let mut fields = endorsement.fields(&spec);
    edit(&mut fields);
    endorsement.attest(&fields)
}

fn vek(edit: impl FnOnce(&mut VekSpec)) -> SnpEvidence {
    let (spec, endorsement) = endorse(&MILAN, edit);
    endorsement.attest(&endorsement.fields(&spec))
}

#[test]
fn every_product_and_kind_of_key_verifies() {
    for world in [&*MILAN, &*GENOA, &*TURIN] {
        for kind in [VekKind::Vcek, VekKind::Vlek] {
            let (spec, endorsement) = endorse_kind(world, kind, |_| {});
            accept(endorsement.attest(&endorsement.fields(&spec)), "");
        }
    }
    for version in 2..=5 {
        accept(report(|fields| fields.version = version), "");
    }
}

#[test]
fn no_default_policy_accepts_any_of_it() {
    let snp = report(|_| {});
    let refused = codes(Verifier::new(Policy::default()).verify(&evidence(snp.clone()), &Request::at(NOW)));
    assert_eq!(refused, ["evidence.kind.not-allowed"]);
    let as_real = Evidence::from(Attestation::SevSnp(snp.clone()));
    let refused = codes(Verifier::new(Policy::default()).verify(&as_real, &Request::at(NOW)));
    assert!(refused.contains(&"chain.root.unknown"), "{refused:?}");
    let without_root = SnpEvidence {
        ark: None,
        ..snp.clone()
    };
    let as_real = Evidence::from(Attestation::SevSnp(without_root));
    let refused = codes(Verifier::new(Policy::default()).verify(&as_real, &Request::at(NOW)));
    assert!(refused.contains(&"chain.signature"), "{refused:?}");
    let pinned = format!("[simulated]\nroot_digests = [\"{}\"]", MILAN.root_digest());
    accept(snp.clone(), &pinned);
    let other = format!("[simulated]\nroot_digests = [\"{}\"]", "00".repeat(32));
    assert_eq!(refuse(snp, &other), ["simulated.root.not-allowed"]);
}

#[test]
fn dates() {
    let ended = Window {
        from: NOW.minus_seconds(9 * DAY),
        until: NOW.minus_seconds(DAY),
    };
    let future = Window {
        from: NOW.plus_seconds(DAY),
        until: NOW.plus_seconds(9 * DAY),
    };
    assert_eq!(refuse(vek(|spec| spec.window = ended), ""), ["chain.expired"]);
    assert_eq!(
        refuse(vek(|spec| spec.window = future), ""),
        ["chain.not-yet-valid"]
    );
    accept(vek(|spec| spec.window = ended), "clock_tolerance_seconds = 86400");
    accept(
        vek(|spec| spec.window = future),
        "clock_tolerance_seconds = 86400",
    );
}

#[test]
fn revocation() {
    let current = Window {
        from: NOW.minus_seconds(DAY),
        until: NOW.plus_seconds(DAY),
    };
    let stale = Window {
        from: NOW.minus_seconds(9 * DAY),
        until: NOW.minus_seconds(DAY),
    };
    let future = Window {
        from: NOW.plus_seconds(DAY),
        until: NOW.plus_seconds(9 * DAY),
    };
    let with = |crls: Vec<Vec<u8>>| SnpEvidence {
        crls,
        ..report(|_| {})
    };
    let require = "revocation = \"require\"";
    let good = MILAN.root_crl(current, &[]).unwrap();
    accept(with(vec![good.clone()]), require);
    accept(with(vec![]), "");
    assert_eq!(refuse(with(vec![]), require), ["chain.crl.missing"]);
    let vcek = MILAN.vek_crl(current, VekKind::Vcek).unwrap();
    assert_eq!(
        refuse(with(vec![good.clone(), vcek.clone()]), require),
        ["chain.revoked"]
    );
    assert_eq!(
        refuse(with(vec![vcek]), require),
        ["chain.crl.missing", "chain.revoked"]
    );
    let ask = MILAN.root_crl(current, &[VekKind::Vcek]).unwrap();
    assert_eq!(refuse(with(vec![ask]), require), ["chain.revoked"]);
    accept(
        with(vec![MILAN.root_crl(current, &[VekKind::Vlek]).unwrap()]),
        require,
    );
    assert_eq!(
        refuse(with(vec![MILAN.root_crl(stale, &[]).unwrap()]), require),
        ["chain.crl.expired"]
    );
    assert_eq!(
        refuse(with(vec![MILAN.root_crl(future, &[]).unwrap()]), ""),
        ["chain.crl.not-yet-valid"]
    );
    let foreign = GENOA.root_crl(current, &[]).unwrap();
    assert_eq!(refuse(with(vec![foreign]), ""), ["chain.crl.issuer"]);
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(refuse(with(vec![forged]), ""), ["chain.crl.signature"]);
    assert_eq!(refuse(with(vec![vec![1, 2, 3]]), ""), ["chain.crl.malformed"]);
    assert_eq!(
        refuse(with(vec![[good.clone(), vec![0]].concat()]), ""),
        ["chain.crl.malformed"]
    );
    assert_eq!(refuse(with(vec![good; 5]), ""), ["evidence.size"]);
}

#[test]
fn chains_that_are_not_amds() {
    let fault = |fault| refuse(vek(|spec| spec.fault = Some(fault)), "");
    assert_eq!(fault(SnpFault::WrongAuthority), ["chain.name"]);
    assert_eq!(fault(SnpFault::ForeignSignature), ["chain.signature"]);
    assert_eq!(fault(SnpFault::WeakAuthority), ["chain.key.weak"]);
    assert_eq!(fault(SnpFault::AuthorityIsNoCa), ["chain.usage"]);
    assert_eq!(fault(SnpFault::CriticalExtension), ["chain.usage"]);
    assert_eq!(fault(SnpFault::VekIsCa), ["chain.usage"]);
    assert_eq!(
        fault(SnpFault::WrongCurve),
        ["chain.key.curve", "snp.report.signature"]
    );
    let (spec, vlek) = endorse_kind(&MILAN, VekKind::Vlek, |spec| {
        spec.fault = Some(SnpFault::WrongAuthority)
    });
    assert_eq!(
        refuse(vlek.attest(&vlek.fields(&spec)), ""),
        ["chain.name"],
        "VLEK under ASK"
    );
}

#[test]
fn the_chain_of_another_product() {
    let genoa = {
        let (spec, endorsement) = endorse(&GENOA, |_| {});
        endorsement.attest(&endorsement.fields(&spec))
    };
    let swapped = SnpEvidence {
        ark: genoa.ark.clone(),
        authority: genoa.authority,
        ..report(|_| {})
    };
    assert_eq!(refuse(swapped, ""), ["chain.name"]);
    let (spec, endorsement) = endorse(&MILAN, |_| {});
    let mut fields = endorsement.fields(&spec);
    fields.cpuid = [0x19, 0x11, 1];
    assert_eq!(refuse(endorsement.attest(&fields), ""), ["snp.product.mismatch"]);
    fields.cpuid = [0x1b, 0, 0];
    assert_eq!(refuse(endorsement.attest(&fields), ""), ["snp.product.mismatch"]);
    assert_eq!(
        refuse(report(|_| {}), "[snp]\nproducts = [\"turin\"]"),
        ["snp.product.not-allowed"]
    );
    assert_eq!(
        refuse(report(|_| {}), "[snp]\nendorsement_keys = [\"vlek\"]"),
        ["snp.vek.not-allowed"]
    );
}

#[test]
fn tcb_and_chip_have_to_be_the_certificates() {
    let above = refuse(
        report(|fields| {
            fields.reported_tcb.microcode += 1;
            fields.committed_tcb.microcode += 1;
            fields.current_tcb.microcode += 1;
        }),
        "",
    );
    assert_eq!(above, ["snp.tcb.vek-mismatch"]);
    assert_eq!(
        refuse(report(|fields| fields.chip_id.0[0] ^= 1), ""),
        ["snp.hwid.mismatch"]
    );
    let masked = report(|fields| fields.chip_id = Bytes64::ZERO);
    assert_eq!(
        refuse(masked.clone(), ""),
        ["snp.chip.masked", "snp.hwid.mismatch"]
    );
    accept(masked, "[snp]\nallow_masked_chip = true");
    assert_eq!(
        refuse(report(|fields| fields.committed_tcb.snp -= 1), ""),
        ["snp.firmware.provisional", "snp.tcb.inconsistent"]
    );
    let key_of_other_kind = report(|fields| fields.key_info = 1 << 2);
    assert_eq!(refuse(key_of_other_kind, ""), ["snp.vek.kind"]);
}

#[test]
fn turin_has_an_fmc_and_a_short_chip_identity() {
    let (spec, endorsement) = endorse(&TURIN, |_| {});
    let mut fields = endorsement.fields(&spec);
    fields.reported_tcb.fmc = 0;
    assert_eq!(refuse(endorsement.attest(&fields), ""), ["snp.tcb.vek-mismatch"]);
    let mut fields = endorsement.fields(&spec);
    fields.chip_id.0[8] = 1;
    assert_eq!(refuse(endorsement.attest(&fields), ""), ["snp.hwid.mismatch"]);
    let fields = endorsement.fields(&spec);
    let minimum = "[snp.minimum_tcb.turin]\nfmc = 2";
    assert_eq!(
        refuse(endorsement.attest(&fields), minimum),
        ["snp.tcb.below-minimum", "snp.tcb.launch-below-minimum"]
    );
}

#[test]
fn reports_that_no_firmware_writes() {
    let (spec, endorsement) = endorse(&MILAN, |_| {});
    let bytes = endorsement.fields(&spec).unsigned(Product::Milan);
    let edited = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        edit(&mut bytes);
        refuse(endorsement.attest_bytes(bytes), "")
    };
    for offset in [
        0x4c, 0x18b, 0x19f, 0x1eb, 0x1ef, 0x1f8, 0x207, 0x208, 0x29f, 0x330, 0x49f,
    ] {
        assert_eq!(
            edited(&|bytes| bytes[offset] = 1),
            ["snp.report.reserved"],
            "{offset:#x}"
        );
    }
    for (offset, value) in [(0x182, 1), (0x48, 0x20), (0x41, 1)] {
        assert_eq!(
            edited(&|bytes| bytes[offset] = value),
            ["snp.report.reserved"],
            "{offset:#x}"
        );
    }
    assert_eq!(edited(&|bytes| bytes.push(0)), ["snp.report.size"]);
    assert_eq!(edited(&|bytes| bytes.truncate(1183)), ["snp.report.size"]);
    assert_eq!(edited(&|bytes| bytes[0] = 1), ["snp.report.version"]);
    assert_eq!(edited(&|bytes| bytes[0] = 6), ["snp.report.version"]);
    assert_eq!(edited(&|bytes| bytes[0x34] = 2), ["snp.report.algorithm"]);
    assert_eq!(edited(&|bytes| bytes[0x48] = 2), ["snp.report.unsigned"]);
    assert_eq!(
        edited(&|bytes| bytes[0x48] = 7 << 2),
        ["snp.report.unsigned", "snp.vek.kind"]
    );
    assert_eq!(edited(&|bytes| bytes[0x0a] = 1), ["snp.policy.reserved"]);
    let mut unsigned = endorsement.attest_bytes(bytes.clone());
    unsigned.report[0x2a0..].fill(0);
    assert_eq!(refuse(unsigned, ""), ["snp.report.signature"]);
}

#[test]
fn the_guest_policy_speaks() {
    let guest = |bits: u64| report(move |fields| fields.policy = GuestPolicy(0x20000 | bits));
    accept(guest(0), "");
    assert_eq!(refuse(guest(1 << 19), ""), ["snp.policy.debug"]);
    assert_eq!(refuse(guest(1 << 18), ""), ["snp.policy.migration-agent"]);
    assert_eq!(refuse(guest(1 << 21), ""), ["snp.policy.cxl"]);
    assert_eq!(
        refuse(guest(1 << 16), "[snp]\nallow_smt = false"),
        ["snp.policy.smt"]
    );
    for (word, code) in [
        ("require_single_socket", "snp.policy.single-socket"),
        ("require_aes_256_xts", "snp.policy.aes-256-xts"),
        ("require_rapl_off", "snp.policy.rapl"),
        ("require_ciphertext_hiding", "snp.policy.ciphertext-hiding"),
        ("require_page_swap_disabled", "snp.policy.page-swap"),
    ] {
        assert_eq!(refuse(guest(0), &format!("[snp]\n{word} = true")), [code]);
        accept(guest(0x3f << 20 & !(1 << 21)), &format!("[snp]\n{word} = true"));
    }
    assert_eq!(refuse(report(|fields| fields.vmpl = 1), ""), ["snp.vmpl"]);
    accept(report(|fields| fields.vmpl = 1), "[snp]\nmaximum_vmpl = 1");
    assert_eq!(
        refuse(report(|fields| fields.vmpl = u32::MAX), "[snp]\nmaximum_vmpl = 3"),
        ["snp.vmpl"]
    );
}

#[test]
fn identities_on_lists() {
    let digest = "11".repeat(48);
    let id_key = format!("[snp]\nid_key_digests = [\"{digest}\"]");
    let author = format!("[snp]\nauthor_key_digests = [\"{digest}\"]");
    assert_eq!(refuse(report(|_| {}), &id_key), ["snp.id-key.not-allowed"]);
    assert_eq!(refuse(report(|_| {}), &author), ["snp.author-key.not-allowed"]);
    accept(report(|fields| fields.id_key_digest.0 = [0x11; 48]), &id_key);
    let without_bit = report(|fields| fields.author_key_digest.0 = [0x11; 48]);
    assert_eq!(refuse(without_bit, &author), ["snp.author-key.not-allowed"]);
    let with_bit = report(|fields| {
        fields.author_key_digest.0 = [0x11; 48];
        fields.key_info |= 1;
    });
    accept(with_bit, &author);
    let chips = |byte: &str| format!("[snp]\nchip_ids = [\"{}\"]", byte.repeat(64));
    accept(report(|_| {}), &chips("c5"));
    assert_eq!(refuse(report(|_| {}), &chips("c6")), ["snp.chip.not-allowed"]);
}

#[test]
fn nonce_manifest_and_event_log_are_bound() {
    let manifest = b"program = \"/bin/true\"".to_vec();
    let snp = report(|fields| {
        fields.host_data.0 = Sha256::digest(&manifest).into();
        fields.report_data.0 = [7; 64];
    });
    let verifier = Verifier::new(policy(""));
    let request = Request::at(NOW).with_report_data(Bytes64::from([7; 64]));
    let good = Evidence {
        manifest: Some(manifest),
        ..evidence(snp)
    };
    assert!(verifier.verify(&good, &request).unwrap().pins().report_data);
    let old = Request::at(NOW).with_report_data(Bytes64::from([8; 64]));
    assert_eq!(
        codes(verifier.verify(&good, &old)),
        ["evidence.report-data.mismatch"]
    );
    let other = Evidence {
        manifest: Some(b"other".to_vec()),
        ..good.clone()
    };
    assert_eq!(
        codes(verifier.verify(&other, &request)),
        ["evidence.manifest.mismatch"]
    );
    let logged = Evidence {
        event_log: vec![Event::of_data(0, vec![1])],
        ..good.clone()
    };
    assert_eq!(
        codes(verifier.verify(&logged, &request)),
        ["evidence.event-log.mismatch"]
    );
    let runtime = Evidence {
        runtime_data: Some(vec![1]),
        ..good
    };
    assert_eq!(
        codes(verifier.verify(&runtime, &request)),
        ["evidence.runtime-data.mismatch"]
    );
}

#[test]
fn certificates_with_bytes_to_spare_or_missing() {
    let good = report(|_| {});
    let longer = |der: &Option<Vec<u8>>| der.clone().map(|der| [der, vec![0]].concat());
    let vek = SnpEvidence {
        vek: longer(&good.vek),
        ..good.clone()
    };
    assert_eq!(refuse(vek, ""), ["chain.malformed"]);
    let authority = SnpEvidence {
        authority: longer(&good.authority),
        ..good.clone()
    };
    assert!(refuse(authority, "").contains(&"chain.malformed"));
    let none = SnpEvidence {
        vek: None,
        ..good.clone()
    };
    assert_eq!(refuse(none, ""), ["chain.missing"]);
    let not_a_vek = SnpEvidence {
        vek: good.authority.clone(),
        ..good
    };
    assert!(refuse(not_a_vek, "").contains(&"snp.vek.extension"));
}

#[test]
fn a_minimum_is_for_one_product() {
    let minimum = "[snp.minimum_tcb.genoa]\nmicrocode = 255";
    accept(report(|_| {}), minimum);
    let tcb = TcbComponents {
        microcode: 255,
        ..MILAN.vek_spec(VekKind::Vcek).tcb
    };
    let minimum = format!("[snp.minimum_tcb.milan]\nmicrocode = {}", tcb.microcode);
    assert_eq!(
        refuse(report(|_| {}), &minimum),
        ["snp.tcb.below-minimum", "snp.tcb.launch-below-minimum"]
    );
}
