use std::fmt::Write as _;
use std::path::Path;

use kvm_bindings::{KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_userspace_memory_region2};

use super::*;
use crate::image::Page;
use crate::image::registers::Registers;
use crate::kvm::headers;

/// Writes each call down, and refuses as it is told to.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    trace: String,
    /// Pages that one update takes at most.
    pages: Option<u64>,
    /// For the update of this page, this answer, once: errno, firmware status.
    refuse: Option<(u64, i32, Option<u32>)>,
    /// Refuses this call always.
    forbid: Option<(&'static str, i32, Option<u32>)>,
    /// Answers an update with success without doing anything.
    lazy: bool,
    corrected: bool,
}

impl Recorder {
    fn line(&mut self, name: &'static str, rest: std::fmt::Arguments<'_>) -> Result<(), Refusal> {
        writeln!(self.trace, "{name} {rest}").expect("a string");
        match self.forbid {
            Some((forbidden, errno, firmware)) if forbidden == name => Err(refusal(errno, firmware)),
            _ => Ok(()),
        }
    }
}

fn refusal(errno: i32, firmware: Option<u32>) -> Refusal {
    Refusal {
        source: std::io::Error::from_raw_os_error(errno),
        firmware,
    }
}

impl RunCalls for Recorder {
    fn set_attributes(&mut self, a: kvm_memory_attributes) -> Result<(), Refusal> {
        self.line(
            "KVM_SET_MEMORY_ATTRIBUTES",
            format_args!("{:#x}+{:#x} attributes {:#x}", a.address, a.size, a.attributes),
        )
    }

    fn discard(&mut self, gpa: u64, len: u64, backing: Backing) -> Result<(), Refusal> {
        self.line("discard", format_args!("{gpa:#x}+{len:#x} {backing:?}"))
    }
}

impl LaunchCalls for Recorder {
    fn enable(&mut self, capability: u32, argument: u64) -> Result<(), Refusal> {
        self.line("KVM_ENABLE_CAP", format_args!("{capability} {argument:#x}"))
    }

    fn init2(&mut self, d: &mut kvm_sev_init) -> Result<(), Refusal> {
        self.line(
            "KVM_SEV_INIT2",
            format_args!(
                "features {:#x} flags {:#x} ghcb {}",
                d.vmsa_features, d.flags, d.ghcb_version
            ),
        )
    }

    fn start(&mut self, d: &mut kvm_sev_snp_launch_start) -> Result<(), Refusal> {
        self.line(
            "KVM_SEV_SNP_LAUNCH_START",
            format_args!("policy {:#x} flags {:#x}", d.policy, d.flags),
        )
    }

    fn enable_certificates(&mut self) -> Result<(), Refusal> {
        self.line("KVM_SEV_SNP_ENABLE_REQ_CERTS", format_args!("no data"))
    }

    fn add_memory(&mut self, r: kvm_userspace_memory_region2) -> Result<(), Refusal> {
        self.line("KVM_CREATE_GUEST_MEMFD", format_args!("{:#x}", r.memory_size))?;
        self.line(
            "KVM_SET_USER_MEMORY_REGION2",
            format_args!(
                "slot {} flags {:#x} {:#x}+{:#x} offset {:#x}",
                r.slot, r.flags, r.guest_phys_addr, r.memory_size, r.guest_memfd_offset
            ),
        )
    }

    fn update(&mut self, d: &mut kvm_sev_snp_launch_update, source: &mut [u8]) -> Result<(), Refusal> {
        let at = (d.uaddr - source.as_ptr() as u64) as usize;
        self.line(
            "KVM_SEV_SNP_LAUNCH_UPDATE",
            format_args!(
                "gfn {:#x} len {:#x} type {} first byte {:#x}",
                d.gfn_start, d.len, d.type_, source[at]
            ),
        )?;
        if let Some((gpa, errno, firmware)) = self.refuse
            && gpa == d.gfn_start * PAGE
        {
            self.refuse = None;
            if d.type_ == KVM_SEV_SNP_PAGE_TYPE_CPUID as u8 {
                source[at] = 0x99;
                self.corrected = true;
            }
            return Err(refusal(errno, firmware));
        }
        if !self.lazy {
            let step = self.pages.map_or(d.len, |pages| d.len.min(pages * PAGE));
            d.gfn_start += step / PAGE;
            d.uaddr += step;
            d.len -= step;
        }
        Ok(())
    }

    fn add_vcpu(&mut self, index: u32, r: Registers) -> Result<(), Refusal> {
        self.line(
            "vcpu",
            format_args!("{index} rip {:#x} cr3 {:#x} rdi {}", r.rip, r.root, r.rdi),
        )
    }

    fn finish(&mut self, d: &mut kvm_sev_snp_launch_finish, id: Option<&IdBlock>) -> Result<(), Refusal> {
        let block = id.map_or_else(|| "none".to_owned(), |id| format!("{:?}", &id.block[..2]));
        self.line(
            "KVM_SEV_SNP_LAUNCH_FINISH",
            format_args!(
                "id {} {block} author {} vcek_disabled {} host data {:x?} flags {:#x}",
                u8::from(id.is_some()),
                u8::from(id.is_some_and(|id| id.author_key)),
                d.vcek_disabled,
                &d.host_data[..4],
                d.flags
            ),
        )
    }
}

/// Small and never changing, so that the trace is about the calls and not about the shim.
fn image() -> LaunchImage {
    let page = |gpa, kind, byte| Page {
        gpa,
        kind,
        contents: Box::new([byte; 4096]),
    };
    let at = |rip| Registers {
        rip,
        root: 0x1_5000,
        rdi: 0,
    };
    LaunchImage {
        platform: Measuring::Snp,
        pages: vec![
            page(0x1000, Kind::Measured, 1),
            page(0x1_2000, Kind::Secrets, 0),
            page(0x1_3000, Kind::Cpuid, 0),
            page(0x1_4000, Kind::Unmeasured, 0),
            page(0x20_0000, Kind::Measured, 2),
            page(0x20_1000, Kind::Measured, 3),
            page(0x20_2000, Kind::Measured, 4),
            page(0xffff_f000, Kind::Measured, 5),
        ],
        first: at(0xffff_ffff_8020_0000),
        others: at(0xffff_f080),
    }
}

fn options() -> Options {
    Options {
        policy: POLICY,
        vcpus: 2,
        host_data: [0xab; 32],
        cpuid: Box::new([0xc1; 4096]),
        parameters: Box::new([0xa1; 4096]),
        certificates: true,
        id: Some(IdBlock {
            block: [7; 96],
            auth: Box::new([8; 4096]),
            author_key: true,
        }),
    }
}

const MEMORY: &[[u64; 2]] = &[[0, 64 << 20], [0xffff_f000, 1 << 32]];

/// A launched guest, of whose calls those after the launch are written down, and `forbid` is refused.
pub(crate) fn launched(forbid: Option<&'static str>) -> Launched<Recorder> {
    let mut guest = launch(Recorder::default()).expect("a launch");
    guest.calls.trace.clear();
    guest.calls.forbid = forbid.map(|call| (call, libc::EIO, None));
    guest
}

impl Launched<Recorder> {
    pub(crate) fn recorded(&self) -> String {
        self.calls.trace.clone()
    }
}

fn launch(calls: Recorder) -> Result<Launched<Recorder>, SnpError> {
    let guest = Configured::new(calls, image(), options())?;
    guest.start()?.back(MEMORY)?.add()?.vcpus()?.finish()
}

#[test]
fn the_calls_are_those_of_the_golden_trace() {
    let calls = Recorder {
        pages: Some(2),
        ..Recorder::default()
    };
    let mut guest = launch(calls).expect("a launch");
    let wish = page_state::PageState::parse(&[0x40_0000, 1, 0, 0, 0, 0], MEMORY).expect("own memory");
    wish.grant(&mut guest).expect("granted");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/snp-launch.txt");
    if std::env::var_os("CLOAK_WRITE_GOLDEN").is_some() {
        std::fs::write(&file, &guest.calls.trace).expect("the golden file");
    }
    let golden = std::fs::read_to_string(&file).expect("the golden file");
    assert_eq!(guest.calls.trace, golden);
}

#[test]
fn a_page_of_cpuid_values_is_offered_again_as_the_firmware_corrected_it() {
    let firmware = Some(firmware::INVALID_PARAM);
    let calls = Recorder {
        refuse: Some((0x1_3000, libc::EIO, firmware)),
        ..Recorder::default()
    };
    let guest = launch(calls).expect("a launch");
    assert!(guest.calls.corrected);
    let offers: Vec<_> = guest
        .calls
        .trace
        .lines()
        .filter(|l| l.contains("gfn 0x13 "))
        .collect();
    assert!(offers.len() == 2 && offers[1].ends_with("0x99"), "{offers:?}");
    // Once: who refuses its own correction does so for good.
    let calls = Recorder {
        forbid: Some(("KVM_SEV_SNP_LAUNCH_UPDATE", libc::EIO, firmware)),
        ..Recorder::default()
    };
    let mut bytes = [0; 4096];
    let mut calls = calls;
    assert!(add_run(&mut calls, 0x1_3000, Kind::Cpuid, &mut bytes).is_err());
    assert_eq!(calls.trace.lines().count(), 2);
    // No other page is.
    let mut calls = Recorder {
        refuse: Some((0x1000, libc::EIO, firmware)),
        ..Recorder::default()
    };
    assert!(add_run(&mut calls, 0x1000, Kind::Measured, &mut bytes).is_err());
}

#[test]
fn an_interrupted_update_goes_on_and_one_that_stands_still_ends() {
    for errno in [libc::EAGAIN, libc::EINTR] {
        let calls = Recorder {
            refuse: Some((0x20_0000, errno, None)),
            ..Recorder::default()
        };
        launch(calls).expect("a launch");
        let mut calls = Recorder {
            forbid: Some(("KVM_SEV_SNP_LAUNCH_UPDATE", errno, None)),
            ..Recorder::default()
        };
        assert!(add_run(&mut calls, 0, Kind::Measured, &mut [0; 4096]).is_err());
        assert_eq!(calls.trace.lines().count(), 1 + TRIES as usize);
    }
    let lazy = Recorder {
        lazy: true,
        ..Recorder::default()
    };
    assert!(matches!(launch(lazy), Err(SnpError::NoProgress { .. })));
}

#[test]
fn each_failure_names_its_step_and_what_to_try() {
    let cases = [
        (
            "KVM_ENABLE_CAP",
            libc::EINVAL,
            None,
            "KVM_CAP_EXIT_HYPERCALL",
            "Linux 6.11",
        ),
        ("KVM_SEV_INIT2", libc::EBUSY, None, "KVM_SEV_INIT2", "ASID"),
        (
            "KVM_SEV_SNP_LAUNCH_START",
            libc::EIO,
            Some(7),
            "POLICY_FAILURE",
            "SMT",
        ),
        (
            "KVM_SEV_SNP_LAUNCH_START",
            libc::EIO,
            Some(0x20),
            "RMP_INIT_REQUIRED",
            "BIOS",
        ),
        (
            "KVM_CREATE_GUEST_MEMFD",
            libc::ENOTTY,
            None,
            "KVM_CREATE_GUEST_MEMFD",
            "Linux 6.11",
        ),
        (
            "KVM_SET_MEMORY_ATTRIBUTES",
            libc::EINVAL,
            None,
            "KVM_SET_MEMORY_ATTRIBUTES",
            "doctor",
        ),
        (
            "KVM_SEV_SNP_LAUNCH_UPDATE",
            libc::EEXIST,
            None,
            "0x1000",
            "overlap",
        ),
        ("vcpu", libc::EINVAL, None, "vCPU 0", "CPUID"),
        (
            "KVM_SEV_SNP_LAUNCH_FINISH",
            libc::EIO,
            Some(0x0b),
            "BAD_MEASUREMENT",
            "cloak measure",
        ),
        (
            "KVM_SEV_SNP_LAUNCH_FINISH",
            libc::EIO,
            Some(0x77),
            "0x77",
            "kernel's log",
        ),
        (
            "KVM_SEV_SNP_LAUNCH_FINISH",
            libc::EIO,
            Some(u32::MAX),
            "FINISH",
            "ID block",
        ),
    ];
    for (call, errno, firmware, named, advice) in cases {
        let calls = Recorder {
            forbid: Some((call, errno, firmware)),
            ..Recorder::default()
        };
        let text = launch(calls).expect_err("refused").to_string();
        assert!(text.contains(named) && text.contains(advice), "{call}: {text}");
    }
}

#[test]
fn what_no_firmware_takes_is_refused_before_it_is_asked() {
    let refused = |image: LaunchImage, options: Options| {
        let calls = Recorder::default();
        matches!(
            Configured::new(calls, image, options),
            Err(SnpError::Request { .. })
        )
    };
    let tdx = LaunchImage {
        platform: Measuring::Tdx,
        ..image()
    };
    assert!(refused(tdx, options()));
    let policy = Options {
        policy: 1 << 16,
        ..options()
    };
    assert!(refused(image(), policy));
    let none = Options {
        vcpus: 0,
        ..options()
    };
    assert!(refused(image(), none));
    for range in [[0, 0], [0x2000, 0x1000], [1, 0x1000], [0, 0x1001]] {
        let started = Configured::new(Recorder::default(), image(), options()).expect("fine");
        assert!(started.start().expect("fine").back(&[range]).is_err());
    }
}

/// Names and numbers of the firmware's statuses, against the kernel's headers. Older headers know fewer.
#[test]
fn statuses_are_those_of_the_kernels_headers() {
    let mut most = None;
    for include in headers::folders() {
        let Ok(text) = std::fs::read_to_string(include.join("linux/psp-sev.h")) else {
            continue;
        };
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words: Vec<_> = text.split(|c| !word(c)).collect();
        let mut c = headers::Asserted::including(&["linux/psp-sev.h"]);
        let mut compared = 0;
        for (code, name, _) in firmware::CODES {
            let name = format!("SEV_RET_{name}");
            if words.contains(&&*name) {
                c.equal(&name, *code);
                compared += 1;
            }
        }
        c.check(&include);
        most = most.max(Some(compared));
    }
    match most {
        Some(compared) => assert!(compared >= 24, "only {compared} statuses found"),
        None => crate::skipped::skip("no linux/psp-sev.h here"),
    }
}

/// Structures and numbers, by a C compiler, against the kernel's headers.
#[test]
fn structures_are_those_of_the_kernels_headers() {
    let mut c = headers::Asserted::including(&["linux/kvm.h", "linux/kvm_para.h"]);
    headers::layout! { c, kvm_bindings,
        kvm_sev_cmd { id as "id", data as "data", error as "error", sev_fd as "sev_fd" }
        kvm_sev_init { vmsa_features as "vmsa_features", flags as "flags", ghcb_version as "ghcb_version" }
        kvm_sev_snp_launch_start { policy as "policy", gosvw as "gosvw", flags as "flags" }
        kvm_sev_snp_launch_update {
            gfn_start as "gfn_start", uaddr as "uaddr", len as "len", type_ as "type", flags as "flags"
        }
        kvm_sev_snp_launch_finish {
            id_block_uaddr as "id_block_uaddr", id_auth_uaddr as "id_auth_uaddr", id_block_en as "id_block_en",
            auth_key_en as "auth_key_en", vcek_disabled as "vcek_disabled", host_data as "host_data", flags as "flags"
        }
        kvm_userspace_memory_region2 {
            slot as "slot", flags as "flags", guest_phys_addr as "guest_phys_addr", memory_size as "memory_size",
            userspace_addr as "userspace_addr", guest_memfd_offset as "guest_memfd_offset", guest_memfd as "guest_memfd"
        }
        kvm_memory_attributes { address as "address", size as "size", attributes as "attributes", flags as "flags" }
        kvm_create_guest_memfd { size as "size", flags as "flags" }
    }
    for (name, value) in [
        ("KVM_SEV_INIT2", kvm_bindings::sev_cmd_id_KVM_SEV_INIT2),
        (
            "KVM_SEV_SNP_LAUNCH_START",
            kvm_bindings::sev_cmd_id_KVM_SEV_SNP_LAUNCH_START,
        ),
        (
            "KVM_SEV_SNP_LAUNCH_UPDATE",
            kvm_bindings::sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE,
        ),
        (
            "KVM_SEV_SNP_LAUNCH_FINISH",
            kvm_bindings::sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH,
        ),
        ("KVM_SEV_SNP_PAGE_TYPE_NORMAL", KVM_SEV_SNP_PAGE_TYPE_NORMAL),
        (
            "KVM_SEV_SNP_PAGE_TYPE_UNMEASURED",
            KVM_SEV_SNP_PAGE_TYPE_UNMEASURED,
        ),
        ("KVM_SEV_SNP_PAGE_TYPE_SECRETS", KVM_SEV_SNP_PAGE_TYPE_SECRETS),
        ("KVM_SEV_SNP_PAGE_TYPE_CPUID", KVM_SEV_SNP_PAGE_TYPE_CPUID),
        ("KVM_X86_SNP_VM", kvm_bindings::KVM_X86_SNP_VM),
        ("KVM_CAP_EXIT_HYPERCALL", KVM_CAP_EXIT_HYPERCALL),
        ("KVM_HC_MAP_GPA_RANGE", KVM_HC_MAP_GPA_RANGE as u32),
        ("KVM_MEM_GUEST_MEMFD", KVM_MEM_GUEST_MEMFD),
        ("KVM_MEMORY_ATTRIBUTE_PRIVATE", KVM_MEMORY_ATTRIBUTE_PRIVATE),
        ("KVM_MEMORY_ENCRYPT_OP", 0xc008_aeba),
        ("KVM_SET_USER_MEMORY_REGION2", 0x40a0_ae49),
        ("KVM_SET_MEMORY_ATTRIBUTES", 0x4020_aed2),
        ("KVM_CREATE_GUEST_MEMFD", 0xc040_aed4),
    ] {
        c.equal(name, value);
    }
    for include in headers::knowing("KVM_SEV_SNP_LAUNCH_FINISH") {
        c.check(&include);
    }
}

/// What newer kernels have: by a C compiler, against those of the headers that know it.
#[test]
fn requests_for_certificates_are_those_of_the_kernels_headers() {
    let mut c = headers::Asserted::including(&["linux/kvm.h"]);
    c.equal("KVM_SEV_SNP_ENABLE_REQ_CERTS", KVM_SEV_SNP_ENABLE_REQ_CERTS);
    c.equal("KVM_EXIT_SNP_REQ_CERTS", KVM_EXIT_SNP_REQ_CERTS);
    c.equal("sizeof(struct kvm_exit_snp_req_certs)", 24u32);
    // The three words in the order in which they are read and answered.
    let exit = std::mem::offset_of!(kvm_bindings::kvm_run, __bindgen_anon_1) as u64;
    for (word, name) in (0..).zip(["gpa", "npages", "ret"]) {
        let at = format!("__builtin_offsetof(struct kvm_run, snp_req_certs.{name})");
        c.equal(&at, exit + word * 8);
    }
    for include in headers::knowing("KVM_SEV_SNP_ENABLE_REQ_CERTS") {
        c.check(&include);
    }
}

/// The watch itself can fail: another number is another ABI.
#[test]
#[should_panic(expected = "KVM_EXIT_SNP_REQ_CERTS")]
fn another_number_of_an_exit_would_be_noticed() {
    let mut c = headers::Asserted::including(&["linux/kvm.h"]);
    c.equal("KVM_EXIT_SNP_REQ_CERTS", KVM_EXIT_SNP_REQ_CERTS + 1);
    let found = headers::knowing("KVM_SEV_SNP_ENABLE_REQ_CERTS");
    assert!(
        !found.is_empty(),
        "skipped, as there is no KVM_EXIT_SNP_REQ_CERTS here"
    );
    found.iter().for_each(|include| c.check(include));
}

/// The sizes that the kernel reads, from its sources: 6.11 and later. One of the libraries has a shorter last one, by
/// which HOST_DATA moves.
#[test]
fn structures_have_the_sizes_that_the_kernel_reads() {
    assert_eq!(size_of::<kvm_bindings::kvm_sev_cmd>(), 24);
    assert_eq!(size_of::<kvm_sev_init>(), 48);
    assert_eq!(size_of::<kvm_sev_snp_launch_start>(), 64);
    assert_eq!(size_of::<kvm_sev_snp_launch_update>(), 64);
    assert_eq!(size_of::<kvm_sev_snp_launch_finish>(), 88);
    assert_eq!(std::mem::offset_of!(kvm_sev_snp_launch_finish, host_data), 19);
    assert_eq!(size_of::<kvm_userspace_memory_region2>(), 160);
}
