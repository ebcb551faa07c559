//! A domain on the simulated machine: launched by the host's code, attested by the verifier, in the hands of a hostile host.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::channel;
use std::sync::{Arc, LazyLock, Mutex};

use cloak_attestation::bytes::{Bytes48, Bytes64};
use cloak_attestation::evidence::{Attestation, Event, TdxEvidence};
use cloak_attestation::measure::rtmrs;
use cloak_attestation::sim::{QuoteVersion, TdxWorld};
use cloak_attestation::time::Timestamp;
use cloak_attestation::{Evidence, Policy, Request, Verifier};
use cloak_host::image::program::Shim;
use cloak_host::image::{Kind, LaunchImage, Measuring};
use cloak_host::kvm::snp::page_state::PageState;
use cloak_host::kvm::tdx::calls::LaunchCalls;
use cloak_host::kvm::tdx::config::{DEBUG, SEPT_VE_DISABLE};
use cloak_host::kvm::tdx::error::TdxError;
use cloak_host::kvm::tdx::{Configured, Options};
use cloak_host::tdvmcall::buffer::{HEADER, Quoter, SharedMemory, status};
use cloak_host::tdvmcall::service::{Address, QuoteError, QuoteSource};
use cloak_host::tdvmcall::{Status, qgs::REPORT_BYTES};
use cloak_sim::memory::{Gfn, PAGE};
use cloak_sim::tdx::machine::Machine;
use cloak_sim::tdx::module::ModuleError;
use cloak_sim::tdx::quoting::QuotingEnclave;
use cloak_sim::tdx::report::TdReport;
use cloak_sim::tdx::sept::Fault;
use cloak_sim::tdx::tdcall::{self, Registers};
use cloak_tdx::quote::{self, QuoteError as QuoteMismatch};
use proptest::prelude::*;
use sha2::{Digest, Sha384};
use zerocopy::{FromBytes, IntoBytes};

const NOW: Timestamp = Timestamp(1_780_000_000);
const KEY: [u8; 32] = [0x2e; 32];
const MANIFEST: &[u8] = b"version = 1\n";
static WORLD: LazyLock<TdxWorld> = LazyLock::new(|| TdxWorld::new(NOW).expect("keys"));
const MEMORY: &[[u64; 2]] = &[[0, 32 << 20], [0xffff_f000, 1 << 32]];

fn machine() -> Machine {
    Machine::new(&[3; 64], KEY)
}

fn image() -> LaunchImage {
    LaunchImage::new(&Shim::embedded().expect("own"), Measuring::Tdx).expect("an image")
}

fn options(vcpus: u32) -> Options {
    Options {
        attributes: SEPT_VE_DISABLE,
        vcpus,
        mr_config_id: Sha384::digest(MANIFEST).into(),
        parameters: Box::new([0x77; PAGE]),
    }
}

/// A machine on which the domain runs. The host's code owns it while it launches.
fn launched(machine: &mut Machine, image: LaunchImage, options: Options) -> Result<(), TdxError> {
    let domain = Configured::new(machine, image, options)?;
    domain.init()?.vcpus()?.back(MEMORY)?.add()?.finalize().map(drop)
}

fn running() -> Machine {
    let mut machine = machine();
    launched(&mut machine, image(), options(2)).expect("a launch");
    machine
}

fn mrtd(image: LaunchImage, options: Options) -> [u8; 48] {
    let mut machine = machine();
    launched(&mut machine, image, options).expect("a launch");
    machine.module.info().expect("it runs").mrtd
}

fn enclave(version: QuoteVersion) -> QuotingEnclave {
    QuotingEnclave::new(WORLD.clone(), KEY, version)
}

/// Where the tests' guest keeps operands of its calls: memory that it accepts first.
const SCRATCH: u64 = 0x100_0000;

/// Makes a call as a guest on KVM: an exit because of a page that is not there gives the page, and the call is made again.
fn call(machine: &mut Machine, mut registers: Registers) -> Result<Registers, Fault> {
    match tdcall::call(&mut machine.module, 0, &mut registers) {
        Err(Fault::NotMapped) => {
            machine
                .resolve(Gfn(registers.rcx / PAGE as u64))
                .expect("private memory");
            tdcall::call(&mut machine.module, 0, &mut registers)?;
        }
        other => other?,
    }
    Ok(registers)
}

fn accept(machine: &mut Machine, gpa: u64) -> u64 {
    let registers = Registers {
        rax: tdcall::PAGE_ACCEPT,
        rcx: gpa,
        ..Registers::default()
    };
    call(machine, registers).expect("no fault").rax
}

/// TDREPORT by the guest's own call.
fn report(machine: &mut Machine, nonce: u8) -> TdReport {
    let gfn = Gfn(SCRATCH / PAGE as u64);
    if machine.module.memory.page_of(gfn).is_none() {
        assert_eq!(accept(machine, SCRATCH), 0);
    }
    let mut page = [0; PAGE];
    page[1024..1088].fill(nonce);
    machine.module.memory.write(gfn, &page).expect("accepted");
    let registers = Registers {
        rax: tdcall::MR_REPORT,
        rcx: SCRATCH,
        rdx: SCRATCH + 1024,
        ..Registers::default()
    };
    assert_eq!(call(machine, registers).expect("no fault").rax, 0);
    let page = machine.module.memory.read(gfn).expect("accepted");
    TdReport::read_from_bytes(&page[..REPORT_BYTES]).expect("a report")
}

fn bytes(report: &TdReport) -> [u8; REPORT_BYTES] {
    report.as_bytes().try_into().expect("a report's size")
}

#[test]
fn the_pages_of_the_image_are_the_domains_and_hidden_from_the_host() {
    let machine = running();
    for page in &image().pages {
        let gfn = Gfn(page.gpa / PAGE as u64);
        let found = machine
            .module
            .memory
            .read(gfn)
            .expect("launched pages are accepted");
        match page.kind {
            Kind::Measured => assert_eq!(found, *page.contents),
            _ => assert_eq!(found, [0x77; PAGE]),
        }
        let host = machine.module.memory.page_of(gfn).expect("mapped");
        assert_eq!(machine.module.memory.host_read(host), [0; PAGE]);
    }
}

#[test]
fn one_changed_byte_is_another_mrtd_and_parameters_are_none_of_it() {
    let first = mrtd(image(), options(1));
    for index in [0, 40, image().pages.len() - 1] {
        let mut changed = image();
        let page = &mut changed.pages[index];
        if page.kind == Kind::Measured {
            page.contents[77] ^= 1;
            assert_ne!(mrtd(changed, options(1)), first, "page {index}");
        }
    }
    let mut moved = image();
    let last = moved.pages.pop().expect("a page");
    assert_ne!(mrtd(moved.clone(), options(1)), first, "a page that is missing");
    moved.pages.insert(0, last);
    assert_ne!(mrtd(moved, options(1)), first, "another order");
    let mut parameters = options(1);
    parameters.parameters.fill(1);
    assert_eq!(mrtd(image(), parameters), first);
    assert_eq!(mrtd(image(), options(8)), first);
}

#[test]
fn a_report_has_what_the_launch_was_told() {
    let mut machine = running();
    let report = report(&mut machine, 9);
    assert!(report.holds(&KEY));
    assert_eq!(
        report.info.mr_config_id,
        <[u8; 48]>::from(Sha384::digest(MANIFEST))
    );
    assert_eq!(u64::from_le_bytes(report.info.attributes), SEPT_VE_DISABLE);
    assert_eq!(u64::from_le_bytes(report.info.xfam), 0x2e7);
    assert_eq!(report.mac.report_data, [9; 64]);
    let info = call(
        &mut machine,
        Registers {
            rax: tdcall::VP_INFO,
            ..Registers::default()
        },
    );
    let info = info.expect("no fault");
    assert_eq!((info.rcx, info.rdx, info.r8), (48, SEPT_VE_DISABLE, 2 << 32 | 2));
}

fn codes(verifier: &Verifier, evidence: &Evidence, request: &Request) -> Vec<String> {
    let refused = verifier.verify(evidence, request).expect_err("refused");
    refused
        .codes()
        .iter()
        .map(|code| code.as_str().to_owned())
        .collect()
}

fn trusting(extra: &str) -> Verifier {
    let pinned = format!(
        "platforms = [\"simulated-tdx\"]\n[simulated]\nroot_digests = [\"{}\"]\n{extra}",
        WORLD.root_digest()
    );
    Verifier::new(Policy::from_toml(&pinned).expect("a policy"))
}

#[test]
fn a_quote_verifies_where_the_policy_trusts_the_root_and_nowhere_else() {
    for version in [QuoteVersion::V4, QuoteVersion::V5] {
        let mut machine = running();
        let report = report(&mut machine, 9);
        let tdx = enclave(version).evidence(&bytes(&report)).expect("a quote");
        let request = Request::at(NOW).with_report_data(Bytes64::from([9; 64]));
        let evidence = Evidence::from(Attestation::SimulatedTdx(tdx.clone()));
        trusting("").verify(&evidence, &request).expect("trusted");
        let default = Verifier::new(Policy::default());
        assert_eq!(
            codes(&default, &evidence, &request),
            ["evidence.kind.not-allowed"]
        );
        let as_real = Evidence::from(Attestation::Tdx(tdx));
        assert!(!codes(&default, &as_real, &request).is_empty());
        let other = Request::at(NOW).with_report_data(Bytes64::from([8; 64]));
        assert!(!codes(&trusting(""), &evidence, &other).is_empty());
        let other_world = TdxWorld::new(NOW).expect("keys");
        let foreign = QuotingEnclave::new(other_world, KEY, version).evidence(&bytes(&report));
        let foreign = Evidence::from(Attestation::SimulatedTdx(foreign.expect("a quote")));
        assert!(
            !codes(&trusting(""), &foreign, &request).is_empty(),
            "another simulated root"
        );
    }
}

/// What a host may hand to a guest in the place of the quote that it asked for: a genuine one, of the same domain, over other data. A
/// verifier that names no data takes it; the guest that asked does not.
#[test]
fn a_genuine_quote_over_other_data_is_no_answer() {
    for version in [QuoteVersion::V4, QuoteVersion::V5] {
        let mut machine = running();
        let [mine, other] = [9, 8].map(|nonce| bytes(&report(&mut machine, nonce)));
        let tdx = enclave(version).evidence(&other).expect("a quote");
        assert_eq!(quote::check(&tdx.quote, &mine), Err(QuoteMismatch::Other));
        assert_eq!(quote::check(&tdx.quote, &other), Ok(()));
        let evidence = Evidence::from(Attestation::SimulatedTdx(tdx));
        trusting("")
            .verify(&evidence, &Request::at(NOW))
            .expect("genuine");
    }
}

#[test]
fn a_domain_with_debug_is_refused_by_a_policy_that_does_not_speak_of_it() {
    let mut machine = machine();
    let debug = Options {
        attributes: SEPT_VE_DISABLE | DEBUG,
        ..options(1)
    };
    launched(&mut machine, image(), debug).expect("the module has it");
    let report = report(&mut machine, 9);
    let tdx = enclave(QuoteVersion::V4)
        .evidence(&bytes(&report))
        .expect("a quote");
    let request = Request::at(NOW).with_report_data(Bytes64::from([9; 64]));
    let evidence = Evidence::from(Attestation::SimulatedTdx(tdx));
    assert!(!codes(&trusting(""), &evidence, &request).is_empty());
}

#[test]
fn run_time_registers_follow_what_is_extended() {
    let mut machine = running();
    assert_eq!(accept(&mut machine, SCRATCH), 0);
    let events = [(2, "manifest"), (2, "program"), (3, "policy")];
    let events = events.map(|(register, what)| Event::of_data(register, what.as_bytes().to_vec()));
    for event in &events {
        let mut page = [0; PAGE];
        page[64..112].copy_from_slice(&event.digest.0);
        machine
            .module
            .memory
            .write(Gfn(SCRATCH / PAGE as u64), &page)
            .expect("accepted");
        let registers = Registers {
            rax: tdcall::RTMR_EXTEND,
            rcx: SCRATCH + 64,
            rdx: event.rtmr.into(),
            ..Registers::default()
        };
        assert_eq!(call(&mut machine, registers).expect("no fault").rax, 0);
    }
    let predicted = rtmrs(&events).expect("registers 2 and 3");
    let found = report(&mut machine, 1).info.rtmrs.map(Bytes48::from);
    assert_eq!(found, predicted);
    for (rcx, rdx) in [
        (SCRATCH + 64, 4),
        (SCRATCH + 64, u64::MAX),
        (SCRATCH + 32, 2),
        (1 << 47 | SCRATCH, 2),
    ] {
        let registers = Registers {
            rax: tdcall::RTMR_EXTEND,
            rcx,
            rdx,
            ..Registers::default()
        };
        let refused = call(&mut machine, registers).expect("no fault").rax;
        assert_eq!(refused, ModuleError::OperandInvalid as u64, "{rcx:#x} {rdx}");
    }
}

/// Memory that the domain shares, as the host's service of quotes sees it.
struct Shared(Mutex<Machine>);

impl Shared {
    fn each(
        &self,
        gpa: u64,
        len: usize,
        mut deed: impl FnMut(&mut [u8; PAGE], usize, usize),
    ) -> io::Result<()> {
        let mut machine = self.0.lock().expect("no panic");
        for at in 0..len {
            let gpa = gpa.checked_add(at as u64).ok_or(io::ErrorKind::InvalidInput)?;
            if gpa >= MEMORY[0][1] {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let host = machine.shared_page(Gfn(gpa / PAGE as u64));
            let mut page = machine.module.memory.host_read(host);
            deed(&mut page, (gpa % PAGE as u64) as usize, at);
            machine.module.memory.host_write(host, &page);
        }
        Ok(())
    }
}

impl SharedMemory for Shared {
    fn read(&self, gpa: u64, into: &mut [u8]) -> io::Result<()> {
        self.each(gpa, into.len(), |page, from, to| into[to] = page[from])
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> io::Result<()> {
        self.each(gpa, bytes.len(), |page, to, from| page[to] = bytes[from])
    }
}

/// The whole way: the guest shares two pages, puts its report there, asks; the host's code carries it to a quoting service
/// behind a socket, and back.
#[test]
fn a_quote_goes_from_the_guest_to_the_service_and_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("qgs.socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            enclave(QuoteVersion::V5).serve(&mut stream).expect("served");
        }
    });

    let mut machine = running();
    let report = report(&mut machine, 4);
    let buffer = 0x180_0000;
    let wish = PageState::parse(&[buffer, 4, 0, 0, 0, 0], MEMORY).expect("own memory");
    wish.grant(&mut machine).expect("granted");
    let write = |machine: &mut Machine, report: &[u8]| {
        let mut page = [0; PAGE];
        page[..8].copy_from_slice(&1u64.to_le_bytes());
        page[16..20].copy_from_slice(&(REPORT_BYTES as u32).to_le_bytes());
        page[HEADER..HEADER + REPORT_BYTES].copy_from_slice(report);
        let gfn = Gfn(buffer / PAGE as u64);
        machine.module.memory.shared_write(gfn, &page).expect("shared");
    };
    write(&mut machine, report.as_bytes());
    let memory = Arc::new(Shared(Mutex::new(machine)));
    let quoter = Quoter::new(Arc::clone(&memory), Address::Unix(path));
    let fetch = || {
        let (end, ended) = channel();
        let begun = quoter.begin(buffer, 4 * PAGE as u64, move || {
            end.send(()).expect("someone waits")
        });
        assert_eq!(begun, Status::Success);
        ended.recv().expect("the end");
        let mut bytes = vec![0; 4 * PAGE];
        memory.read(buffer, &mut bytes).expect("shared");
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let len = (word(16) >> 32) as usize;
        (word(8), bytes[HEADER..HEADER + len].to_vec())
    };
    let (found, quote) = fetch();
    assert_eq!(found, status::SUCCESS);
    let whole = enclave(QuoteVersion::V5)
        .evidence(&bytes(&report))
        .expect("a quote");
    let evidence = Evidence::from(Attestation::SimulatedTdx(TdxEvidence { quote, ..whole }));
    let request = Request::at(NOW).with_report_data(Bytes64::from([4; 64]));
    trusting("").verify(&evidence, &request).expect("trusted");

    // The host changes the report on the way: the service refuses, and the guest learns that there is none.
    let mut forged = report;
    forged.info.mrtd = [0; 48];
    write(&mut memory.0.lock().expect("no panic"), forged.as_bytes());
    assert_eq!(fetch(), (status::ERROR, Vec::new()));
}

#[test]
fn the_enclave_takes_reports_of_its_own_processor_only() {
    let mut machine = running();
    let report = report(&mut machine, 1);
    let own = enclave(QuoteVersion::V4);
    own.quote(&bytes(&report)).expect("a quote");
    let other = QuotingEnclave::new(WORLD.clone(), [9; 32], QuoteVersion::V4);
    assert!(matches!(
        other.quote(&bytes(&report)),
        Err(QuoteError::Service { .. })
    ));
}

/// What a host can do to a page after the launch, and what the domain sees of it.
#[test]
fn a_hostile_host_stops_the_domain_and_learns_nothing() {
    // A launched page is taken and another given in its place.
    let mut machine = running();
    let gpa = image().pages[3].gpa;
    let gfn = Gfn(gpa / PAGE as u64);
    let wish = PageState::parse(&[gpa, 1, 0, 0, 0, 0], MEMORY).expect("own memory");
    wish.grant(&mut machine).expect("the host does as it likes");
    assert_eq!(machine.module.memory.read(gfn), Err(Fault::NotMapped));
    let back = PageState::parse(&[gpa, 1, 0x10, 0, 0, 0], MEMORY).expect("own memory");
    back.grant(&mut machine).expect("the host does as it likes");
    machine.resolve(gfn).expect("private memory");
    assert_eq!(machine.module.memory.read(gfn), Err(Fault::Pending));
    // Accepting what is accepted is no error, and has to be seen as the attack that it may be.
    assert_eq!(accept(&mut machine, SCRATCH), 0);
    assert_eq!(accept(&mut machine, SCRATCH), tdcall::PAGE_ALREADY_ACCEPTED);
    // Overlapping memory, pages of nobody, a page twice.
    let region = kvm_bindings::kvm_userspace_memory_region2 {
        guest_phys_addr: 0x1000,
        memory_size: 0x1000,
        ..Default::default()
    };
    assert!(machine.add_memory(region).is_err());
    assert!(machine.resolve(Gfn(0x5_0000)).is_err());
    assert!(machine.resolve(Gfn(SCRATCH / PAGE as u64)).is_err());
    // Another finish, another vCPU, another page.
    assert!(machine.finalize().is_err());
    assert!(
        machine
            .add_vcpu(2, &[])
            .and_then(|()| machine.init_vcpu(2, 0))
            .is_err()
    );
    let mut region = cloak_host::kvm::tdx::abi::kvm_tdx_init_mem_region {
        gpa: SCRATCH + 0x1000,
        nr_pages: 1,
        ..Default::default()
    };
    assert!(machine.init_mem_region(&mut region, 1, &[]).is_err());
}

#[test]
fn an_image_with_a_page_twice_is_not_launched() {
    let mut twice = image();
    let again = twice.pages[1].clone();
    twice.pages.push(again);
    let error = launched(&mut machine(), twice, options(1)).expect_err("refused");
    assert!(error.to_string().contains("EPT_ENTRY_STATE_INCORRECT"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever registers a guest calls with: a status or a fault, and nothing but memory that it named has changed.
    #[test]
    fn any_call_ends(rax in 0u64..9, rcx: u64, rdx: u64, r8 in 0u64..2, near: bool) {
        let mut machine = Machine::new(&[3; 64], KEY);
        let small = LaunchImage { pages: image().pages[..2].to_vec(), ..image() };
        launched(&mut machine, small, options(1)).expect("a launch");
        let before = machine.module.info().expect("it runs").clone();
        let place = |address: u64| if near { address & 0x1fff } else { address };
        let mut registers = Registers { rax, rcx: place(rcx), rdx: place(rdx), r8, r9: 0 };
        let end = tdcall::call(&mut machine.module, 0, &mut registers);
        let after = machine.module.info().expect("it still runs");
        if rax != tdcall::RTMR_EXTEND {
            prop_assert_eq!(&before, after);
        }
        prop_assert_eq!(before.mrtd, after.mrtd);
        if end.is_err() {
            prop_assert_eq!(registers.rax, rax, "the call can be made again");
        }
    }
}
