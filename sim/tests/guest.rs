//! A guest on the simulated machine: launched by the host's code, attested by the verifier, its messages in the hands of a
//! hostile host.

use std::sync::LazyLock;

use cloak_attestation::bytes::{Bytes48, Bytes64};
use cloak_attestation::evidence::Attestation;
use cloak_attestation::sim::{IdSigner, SnpWorld};
use cloak_attestation::snp::{GuestPolicy, IdAuth, Product, Report, VekKind};
use cloak_attestation::time::Timestamp;
use cloak_attestation::{Evidence, Policy, Request, Verifier};
use cloak_host::image::program::Shim;
use cloak_host::image::{LaunchImage, Measuring};
use cloak_host::kvm::snp::calls::LaunchCalls;
use cloak_host::kvm::snp::error::SnpError;
use cloak_host::kvm::snp::{Configured, IdBlock, Options, POLICY};
use cloak_sim::machine::{Machine, Secrets};
use cloak_sim::memory::{Gfn, PAGE};
use cloak_sim::message::{HEADER, Header, MessageType, Sealed, seal};
use cloak_sim::processor::Status;
use cloak_sim::requests::{KeyRequest, ReportRequest, fields};
use proptest::prelude::*;
use zerocopy::IntoBytes;

const NOW: Timestamp = Timestamp(1_780_000_000);
const KEY: [u8; 32] = [0x10; 32];
static WORLD: LazyLock<SnpWorld> = LazyLock::new(|| SnpWorld::new(Product::Milan, NOW).expect("keys"));

fn machine(chip: u8) -> Machine {
    let spec = WORLD.vek_spec(VekKind::Vcek);
    let endorsement = WORLD.endorse(&spec).expect("a certificate");
    let secrets = Secrets {
        memory: [3; 64],
        chip: [chip; 32],
        messages: [KEY, [0x11; 32], [0x12; 32], [0x13; 32]],
    };
    Machine::new(&secrets, endorsement, spec)
}

fn options(vcpus: u32) -> Options {
    Options {
        policy: POLICY,
        vcpus,
        host_data: [0x4d; 32],
        cpuid: Box::new([0; PAGE]),
        parameters: Box::new([0x77; PAGE]),
        id: None,
        certificates: false,
    }
}

const MEMORY: &[[u64; 2]] = &[[0, 32 << 20], [0xffff_f000, 1 << 32]];

/// A machine on which the guest runs. The host's code owns it while it launches.
fn launched(machine: &mut Machine, options: Options) -> Result<(), SnpError> {
    let image = LaunchImage::new(&Shim::embedded().expect("own"), Measuring::Snp).expect("an image");
    let guest = Configured::new(machine, image, options)?;
    guest.start()?.back(MEMORY)?.add()?.vcpus()?.finish().map(drop)
}

fn running(chip: u8) -> Machine {
    let mut machine = machine(chip);
    launched(&mut machine, options(1)).expect("a launch");
    machine
}

fn report_request(sequence: u64, nonce: u8) -> Vec<u8> {
    let request = ReportRequest {
        report_data: [nonce; 64],
        vmpl: 0,
        reserved: [0; 28],
    };
    message(sequence, MessageType::ReportRequest, request.as_bytes())
}

fn message(sequence: u64, kind: MessageType, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        sequence,
        kind,
        key: 0,
    };
    let mut page = seal(header, &KEY, payload).expect("it fits");
    page.resize(PAGE, 0);
    page
}

fn opened(response: &[u8], sequence: u64) -> Vec<u8> {
    let sealed = Sealed::parse(response).expect("a message");
    assert_eq!(sealed.header.sequence, sequence);
    sealed.open(&KEY).expect("authentic")
}

#[test]
fn the_pages_of_the_image_are_the_guests_and_hidden_from_the_host() {
    let machine = running(1);
    let image = LaunchImage::new(&Shim::embedded().expect("own"), Measuring::Snp).expect("an image");
    for page in &image.pages {
        let gfn = Gfn(page.gpa / PAGE as u64);
        let bytes = machine
            .memory
            .private_read(gfn)
            .expect("launched pages are accepted");
        match page.kind {
            cloak_host::image::Kind::Measured => assert_eq!(bytes, *page.contents),
            cloak_host::image::Kind::Unmeasured => assert_eq!(bytes, [0x77; PAGE]),
            cloak_host::image::Kind::Secrets => assert_eq!(bytes[0x20..0x40], KEY),
            cloak_host::image::Kind::Cpuid => assert_eq!(bytes, [0; PAGE]),
        }
        assert!(machine.memory.shared_read(gfn).is_err());
    }
}

#[test]
fn a_report_verifies_where_the_policy_trusts_the_root_and_nowhere_else() {
    let mut machine = running(1);
    let response = machine
        .processor
        .request(&report_request(1, 9))
        .expect("an answer");
    let payload = opened(&response, 2);
    assert_eq!(payload[..4], [0; 4], "status");
    let report = payload[32..].to_vec();
    let parsed = Report::parse(&report).expect("a report");
    assert_eq!(Some(parsed.measurement()), machine.processor.measurement());
    assert_eq!(parsed.host_data().0, [0x4d; 32]);
    let snp = machine.processor.evidence(report);
    let request = Request::at(NOW).with_report_data(Bytes64::from([9; 64]));
    let pinned = format!(
        "platforms = [\"simulated-snp\"]\n[simulated]\nroot_digests = [\"{}\"]",
        WORLD.root_digest()
    );
    let trusting = Verifier::new(Policy::from_toml(&pinned).expect("a policy"));
    let evidence = Evidence::from(Attestation::SimulatedSnp(snp.clone()));
    trusting.verify(&evidence, &request).expect("trusted");
    let codes = |verifier: &Verifier, evidence: &Evidence, request: &Request| -> Vec<&str> {
        let refused = verifier.verify(evidence, request).expect_err("refused");
        refused.codes().iter().map(|code| code.as_str()).collect()
    };
    let default = Verifier::new(Policy::default());
    assert_eq!(
        codes(&default, &evidence, &request),
        ["evidence.kind.not-allowed"]
    );
    let as_real = Evidence::from(Attestation::SevSnp(snp));
    assert!(codes(&default, &as_real, &request).contains(&"chain.root.unknown"));
    let other = Request::at(NOW).with_report_data(Bytes64::from([8; 64]));
    assert!(!codes(&trusting, &evidence, &other).is_empty());
}

#[test]
fn no_sequence_number_is_taken_twice() {
    let mut machine = running(1);
    let first = report_request(1, 1);
    machine.processor.request(&first).expect("an answer");
    // Replayed, with another payload, skipped, backwards, even.
    for again in [
        first,
        report_request(1, 2),
        report_request(5, 1),
        report_request(2, 1),
        report_request(0, 1),
    ] {
        assert_eq!(machine.processor.request(&again), Err(Status::InvalidParam));
    }
    // A lost answer: the guest goes on with the next number, not with the same.
    machine
        .processor
        .request(&report_request(3, 2))
        .expect("an answer");
    let spent = message(u64::MAX, MessageType::ReportRequest, &[0; 96]);
    assert_eq!(machine.processor.request(&spent), Err(Status::InvalidParam));
}

#[test]
fn an_answer_opens_under_its_own_number_only() {
    let mut machine = running(1);
    let mut response = machine
        .processor
        .request(&report_request(1, 1))
        .expect("an answer");
    opened(&response, 2);
    // Relabelled as the answer to the next request.
    response[0x20] = 4;
    assert!(Sealed::parse(&response).expect("well-formed").open(&KEY).is_err());
}

/// A key of the chip, the measurement and the policy.
const BY_MEASUREMENT: KeyRequest = KeyRequest {
    root_key_select: 0,
    reserved: 0,
    field_select: fields::MEASUREMENT | fields::POLICY,
    vmpl: 0,
    guest_svn: 0,
    tcb: [0; 8],
};

fn derived(machine: &mut Machine, sequence: u64, request: KeyRequest) -> (u32, [u8; 32]) {
    let page = message(sequence, MessageType::KeyRequest, request.as_bytes());
    let payload = opened(
        &machine.processor.request(&page).expect("an answer"),
        sequence + 1,
    );
    let status = u32::from_le_bytes(payload[..4].try_into().expect("four"));
    (status, payload[32..64].try_into().expect("thirty-two"))
}

#[test]
fn derived_keys_depend_on_the_chip_and_on_what_was_chosen() {
    let all = BY_MEASUREMENT;
    let policy = KeyRequest {
        field_select: fields::POLICY,
        ..all
    };
    let mut one = running(1);
    let (status, key) = derived(&mut one, 1, all);
    assert!(status == 0 && key != [0; 32]);
    assert_eq!(derived(&mut one, 3, all), (0, key), "the same each time");
    let (_, by_policy) = derived(&mut one, 5, policy);
    assert_ne!(by_policy, key);
    let unread = KeyRequest {
        tcb: [1, 0, 0, 0, 0, 0, 1, 1],
        ..policy
    };
    assert_eq!(
        derived(&mut one, 7, unread),
        (0, by_policy),
        "what is not chosen is not in it"
    );
    assert_ne!(derived(&mut running(2), 1, all).1, key, "another chip");
    let mut two = machine(1);
    launched(&mut two, options(2)).expect("a launch");
    assert_ne!(derived(&mut two, 1, all).1, key, "another measurement");
    assert_eq!(derived(&mut two, 3, policy).1, by_policy);
    let mut sequence = 9;
    for refused in [
        KeyRequest { reserved: 1, ..all },
        KeyRequest {
            field_select: 64,
            ..all
        },
        KeyRequest {
            root_key_select: 1,
            ..all
        },
        KeyRequest {
            root_key_select: 2,
            ..all
        },
        KeyRequest { vmpl: 4, ..all },
        KeyRequest { guest_svn: 1, ..all },
        KeyRequest { tcb: [255; 8], ..all },
    ] {
        assert_eq!(
            derived(&mut one, sequence, refused),
            (Status::InvalidParam as u32, [0; 32])
        );
        sequence += 2;
    }
}

/// What the shim's kernel counts on when it throws the first key away before a program runs: the one that is left gets nobody the
/// root of another manifest's keys. With the first key every guest of this measurement would get it, whatever its HOST_DATA.
#[test]
fn the_key_of_a_lower_level_gets_no_key_of_the_highest() {
    let wanted = BY_MEASUREMENT;
    let (_, victims) = derived(&mut running(1), 1, wanted);
    let mut attacker = machine(1);
    let other = Options {
        host_data: [0x66; 32],
        ..options(1)
    };
    launched(&mut attacker, other).expect("a launch");
    assert_eq!(
        derived(&mut attacker, 1, wanted),
        (0, victims),
        "with the first key"
    );
    let under = |sequence, request: KeyRequest, machine: &mut Machine| {
        let header = Header {
            sequence,
            kind: MessageType::KeyRequest,
            key: 1,
        };
        let mut page = seal(header, &[0x11; 32], request.as_bytes()).expect("it fits");
        page.resize(PAGE, 0);
        let response = machine.processor.request(&page).expect("an answer");
        let sealed = Sealed::parse(&response).expect("a message");
        sealed.open(&[0x11; 32]).expect("authentic")
    };
    let refused = under(1, wanted, &mut attacker);
    assert_eq!(refused[..4], (Status::InvalidParam as u32).to_le_bytes());
    assert_eq!(refused[32..64], [0; 32]);
    let own = under(3, KeyRequest { vmpl: 1, ..wanted }, &mut attacker);
    assert_eq!(own[..4], [0; 4]);
    assert_ne!(own[32..64], victims);
}

#[test]
fn a_launch_out_of_order_is_refused() {
    let mut machine = machine(1);
    let mut update = kvm_bindings::kvm_sev_snp_launch_update::default();
    assert!(machine.update(&mut update, &mut []).is_err());
    assert!(
        machine
            .finish(&mut kvm_bindings::kvm_sev_snp_launch_finish::default(), None)
            .is_err()
    );
    assert_eq!(
        machine.processor.request(&report_request(1, 1)),
        Err(Status::InvalidGuestState)
    );
    launched(&mut machine, options(1)).expect("a launch");
    let measured = machine.processor.measurement();
    let mut page = [0; PAGE];
    let late = machine.processor.update(
        &mut machine.memory,
        Gfn(0x300),
        cloak_attestation::measure::PageKind::Normal,
        &mut page,
    );
    assert_eq!(late, Err(Status::InvalidGuestState));
    assert!(
        machine
            .finish(&mut kvm_bindings::kvm_sev_snp_launch_finish::default(), None)
            .is_err()
    );
    assert_eq!(machine.processor.measurement(), measured);
}

#[test]
fn policies_that_can_not_be_met_are_refused() {
    for policy in [POLICY | 1 << 18, POLICY | 0xff00, POLICY | 1 << 40] {
        let refused = launched(&mut machine(1), Options { policy, ..options(1) });
        let text = refused.expect_err("refused").to_string();
        assert!(
            text.contains("POLICY_FAILURE") && text.contains("LAUNCH_START"),
            "{text}"
        );
    }
}

/// The host offers CPUID values that the firmware corrects; the launch goes on with the corrected ones.
#[test]
fn cpuid_values_are_corrected_once() {
    let mut page = Box::new([0u8; PAGE]);
    page[0] = 1;
    page[16] = 0xd;
    page[16 + 8] = 1;
    page[16 + 28] = 0x99;
    let mut machine = machine(1);
    launched(
        &mut machine,
        Options {
            cpuid: page,
            ..options(1)
        },
    )
    .expect("a launch");
    let table = machine.memory.private_read(Gfn(0x13)).expect("launched");
    assert_eq!(table[16 + 28..16 + 32], 0x240u32.to_le_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the host makes of a request on its way: it is answered as it was sent, or refused, and a refusal costs the
    /// guest nothing.
    #[test]
    fn a_changed_request_is_refused(at in 0usize..HEADER + 96, bit in 0u8..8) {
        let mut machine = running(1);
        let good = report_request(1, 5);
        let mut changed = good.clone();
        changed[at] ^= 1 << bit;
        prop_assert!(machine.processor.request(&changed).is_err());
        prop_assert!(machine.processor.request(&good).is_ok());
    }
}

/// An ID block of `signer`'s for a guest of this measurement, as the host takes it, and what vouches for it.
fn vouched(signer: &IdSigner, measurement: Bytes48, policy: u64) -> (IdBlock, IdAuth) {
    let (block, auth) = signer.sign(measurement, GuestPolicy(policy), 3);
    let id = IdBlock {
        block: *block.raw(),
        auth: Box::new(*auth.raw()),
        author_key: auth.has_author(),
    };
    (id, auth)
}

#[test]
fn a_report_names_who_vouched_for_the_guest() {
    let measurement = running(1).processor.measurement().expect("launched");
    for author in [false, true] {
        let (id, auth) = vouched(&IdSigner::new(author), measurement, POLICY);
        let mut machine = machine(1);
        let id = Some(id);
        launched(&mut machine, Options { id, ..options(1) }).expect("a launch");
        let response = machine
            .processor
            .request(&report_request(1, 9))
            .expect("an answer");
        let report = Report::parse(&opened(&response, 2)[32..]).expect("a report");
        assert_eq!(report.measurement(), measurement, "it is not measured itself");
        assert_eq!(report.id_key_digest(), auth.id_key_digest());
        assert_eq!(report.key_info().author_key_enabled(), author);
        let digest = auth.author_key_digest().unwrap_or(Bytes48::ZERO);
        assert_eq!(report.author_key_digest(), digest);
        assert_eq!(report.family_id().0, *b"a family of imag");
        assert_eq!(
            (report.image_id().0, report.guest_svn()),
            (*b"an image of them", 3)
        );
    }
}

/// What the block is for: a host that starts another image gets no guest. Without the block it gets one.
#[test]
fn the_firmware_starts_no_guest_but_the_one_that_was_vouched_for() {
    let measurement = running(1).processor.measurement().expect("launched");
    let signer = IdSigner::new(true);
    let attempt = |id: IdBlock, vcpus| {
        let mut machine = machine(1);
        let id = Some(id);
        let refused = launched(&mut machine, Options { id, ..options(vcpus) }).expect_err("refused");
        assert_eq!(machine.processor.measurement(), None, "nothing runs");
        assert_eq!(
            machine.processor.request(&report_request(1, 1)),
            Err(Status::InvalidGuestState)
        );
        refused.to_string()
    };
    let (good, _) = vouched(&signer, measurement, POLICY);
    // One vCPU more is another guest.
    let text = attempt(good.clone(), 2);
    assert!(
        text.contains("BAD_MEASUREMENT") && text.contains("LAUNCH_FINISH"),
        "{text}"
    );
    launched(&mut machine(1), options(2)).expect("without a block anything is launched");
    let (other, _) = vouched(&signer, measurement, POLICY | 1 << 19);
    assert!(attempt(other, 1).contains("POLICY_FAILURE"));
    // A block that was changed to fit, and one that somebody else's key is put to.
    for at in [0, 0x30, 0x54, 0x58] {
        let mut changed = good.clone();
        changed.block[at] ^= 1;
        assert!(attempt(changed, 1).contains("BAD_SIGNATURE"), "{at:#x}");
    }
    for at in [0x40, 0x88, 0x244, 0x680, 0x884] {
        let mut changed = good.clone();
        changed.auth[at] ^= 1;
        assert!(attempt(changed, 1).contains("BAD_SIGNATURE"), "{at:#x}");
    }
    let (theirs, _) = vouched(&IdSigner::new(true), measurement, POLICY);
    let mut mixed = good.clone();
    mixed.auth[0x240..0x644].copy_from_slice(&theirs.auth[0x240..0x644]);
    assert!(attempt(mixed, 1).contains("BAD_SIGNATURE"));
    for author_key in [false, true] {
        let (id, _) = vouched(&IdSigner::new(!author_key), measurement, POLICY);
        let id = IdBlock { author_key, ..id };
        assert!(attempt(id, 1).contains("INVALID_PARAM"), "{author_key}");
    }
    launched(
        &mut machine(1),
        Options {
            id: Some(good),
            ..options(1)
        },
    )
    .expect("its own");
}
