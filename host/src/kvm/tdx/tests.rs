use std::fmt::Write as _;
use std::path::Path;

use kvm_bindings::kvm_userspace_memory_region2;

use super::*;
use crate::image::Page;
use crate::image::registers::Registers;
use crate::kvm::headers;
use crate::kvm::run_calls;
use crate::kvm::snp::page_state;

/// Writes each call down, and refuses as it is told to.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    trace: String,
    /// Leaves that the module has, more than fit at first.
    leaves: usize,
    /// Pages that one call adds at most before a signal comes.
    pages: Option<u64>,
    /// Refuses this call always.
    forbid: Option<(&'static str, i32, u64)>,
    /// Refuses this call so often, and then no more.
    busy: Option<(&'static str, i32, u64, u32)>,
    /// Answers an addition with success without doing anything.
    lazy: bool,
    /// Says that it went further than it was asked to.
    liar: bool,
    config_id: [u64; 6],
}

fn refusal(errno: i32, module: u64) -> Refusal {
    Refusal {
        source: std::io::Error::from_raw_os_error(errno),
        module,
    }
}

impl Recorder {
    fn line(&mut self, name: &'static str, rest: std::fmt::Arguments<'_>) -> Result<(), Refusal> {
        writeln!(self.trace, "{name} {rest}").expect("a string");
        if let Some((busy, errno, module, times)) = &mut self.busy
            && *busy == name
            && *times > 0
        {
            *times -= 1;
            return Err(refusal(*errno, *module));
        }
        match self.forbid {
            Some((forbidden, errno, module)) if forbidden == name => Err(refusal(errno, module)),
            _ => Ok(()),
        }
    }
}

fn leaf(function: u32, ecx: u32) -> CpuidEntry {
    CpuidEntry {
        function,
        eax: 0xffff_ffff,
        ecx,
        ..Default::default()
    }
}

impl RunCalls for Recorder {
    fn set_attributes(&mut self, a: kvm_memory_attributes) -> Result<(), run_calls::Refusal> {
        let told = format_args!("{:#x}+{:#x} attributes {:#x}", a.address, a.size, a.attributes);
        let result = self.line("KVM_SET_MEMORY_ATTRIBUTES", told);
        result.map_err(|refusal| refusal.source.into())
    }

    fn discard(&mut self, gpa: u64, len: u64, backing: Backing) -> Result<(), run_calls::Refusal> {
        let result = self.line("discard", format_args!("{gpa:#x}+{len:#x} {backing:?}"));
        result.map_err(|refusal| refusal.source.into())
    }
}

impl LaunchCalls for Recorder {
    fn enable(&mut self, capability: u32, argument: u64) -> Result<(), Refusal> {
        self.line("KVM_ENABLE_CAP", format_args!("{capability} {argument:#x}"))
    }

    fn supported_cpuid(&mut self) -> Result<Vec<CpuidEntry>, Refusal> {
        self.line("KVM_GET_SUPPORTED_CPUID", format_args!("of the host"))?;
        Ok(vec![leaf(1, 0x100), leaf(0x8000_0008, 0)])
    }

    fn capabilities(&mut self, room: usize) -> Result<Offered, Refusal> {
        self.line("KVM_TDX_CAPABILITIES", format_args!("room {room}"))?;
        if room < self.leaves {
            return Err(refusal(libc::E2BIG, 0));
        }
        let mut offered = Offered {
            cpuid: vec![leaf(1, 0x1ff), leaf(0x8000_0008, 0)],
            ..Default::default()
        };
        offered.fixed.supported_attrs = config::SEPT_VE_DISABLE;
        offered.fixed.supported_xfam = 0x602e7;
        offered.fixed.user_tdvmcallinfo_1_r11 = 1;
        Ok(offered)
    }

    fn init_vm(&mut self, d: kvm_tdx_init_vm, cpuid: &[CpuidEntry]) -> Result<(), Refusal> {
        self.config_id = d.mrconfigid;
        let leaves = cpuid
            .iter()
            .map(|l| format!("{:#x}:{:#x},{:#x}", l.function, l.eax, l.ecx));
        let leaves = leaves.collect::<Vec<_>>().join(" ");
        self.line(
            "KVM_TDX_INIT_VM",
            format_args!(
                "attributes {:#x} xfam {:#x} mrconfigid {:x?} mrowner {:x?} cpuid {leaves}",
                d.attributes,
                d.xfam,
                &d.mrconfigid[..1],
                &d.mrowner[..1]
            ),
        )
    }

    fn add_vcpu(&mut self, index: u32, cpuid: &[CpuidEntry]) -> Result<(), Refusal> {
        let id = cpuid[0].ebx >> 24;
        self.line("KVM_CREATE_VCPU", format_args!("{index}"))?;
        let told = format_args!("{index} x2apic {} id {id}", cpuid[0].ecx >> 21 & 1);
        self.line("KVM_SET_CPUID2", told)
    }

    fn init_vcpu(&mut self, index: u32, rcx: u64) -> Result<(), Refusal> {
        self.line("KVM_TDX_INIT_VCPU", format_args!("{index} rcx {rcx:#x}"))
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

    fn init_mem_region(
        &mut self,
        d: &mut kvm_tdx_init_mem_region,
        flags: u32,
        source: &[u8],
    ) -> Result<(), Refusal> {
        assert!(
            d.source_addr.is_multiple_of(PAGE),
            "KVM takes whole pages of the source"
        );
        let at = (d.source_addr - source.as_ptr() as u64) as usize;
        let told = format_args!(
            "{:#x} pages {} flags {flags} first byte {:#x}",
            d.gpa, d.nr_pages, source[at]
        );
        self.line("KVM_TDX_INIT_MEM_REGION", told)?;
        if self.lazy {
            return Ok(());
        }
        let asked = d.nr_pages;
        let done = self.pages.map_or(asked, |pages| asked.min(pages));
        d.source_addr += done * PAGE;
        d.gpa += done * PAGE;
        d.nr_pages -= done;
        if self.liar {
            d.nr_pages = 0;
        }
        if done < asked {
            Err(refusal(libc::EINTR, 0))
        } else {
            Ok(())
        }
    }

    fn finalize(&mut self) -> Result<(), Refusal> {
        self.line("KVM_TDX_FINALIZE_VM", format_args!("data 0"))
    }
}

/// Small and never changing, so that the trace is about the calls and not about the shim.
fn image() -> LaunchImage {
    let page = |gpa, kind, byte| Page {
        gpa,
        kind,
        contents: Box::new([byte; 4096]),
    };
    let start = Registers {
        rip: 0,
        root: 0,
        rdi: 0,
    };
    LaunchImage {
        platform: Measuring::Tdx,
        pages: vec![
            page(0x1000, Kind::Measured, 1),
            page(0x1_4000, Kind::Unmeasured, 0),
            page(0x20_0000, Kind::Measured, 2),
            page(0x20_1000, Kind::Measured, 3),
            page(0x20_2000, Kind::Measured, 4),
            page(0xffff_f000, Kind::Measured, 5),
        ],
        first: start,
        others: start,
    }
}

fn options() -> Options {
    let mut mr_config_id = [0xab; 48];
    mr_config_id[0] = 1;
    Options {
        attributes: config::SEPT_VE_DISABLE,
        vcpus: 2,
        mr_config_id,
        parameters: Box::new([0xa1; 4096]),
    }
}

const MEMORY: &[[u64; 2]] = &[[0, 64 << 20], [0xffff_f000, 1 << 32]];

/// A launched domain, of whose calls those after the launch are written down, and `forbid` is refused.
pub(crate) fn launched(forbid: Option<&'static str>) -> Finalized<Recorder> {
    let mut domain = launch(Recorder::default()).expect("a launch");
    domain.calls.trace.clear();
    domain.calls.forbid = forbid.map(|call| (call, libc::EIO, 0));
    domain
}

impl Finalized<Recorder> {
    pub(crate) fn recorded(&self) -> String {
        self.calls.trace.clone()
    }
}

fn launch(calls: Recorder) -> Result<Finalized<Recorder>, TdxError> {
    let domain = Configured::new(calls, image(), options())?;
    domain.init()?.vcpus()?.back(MEMORY)?.add()?.finalize()
}

#[test]
fn the_calls_are_those_of_the_golden_trace() {
    let calls = Recorder {
        leaves: 40,
        pages: Some(2),
        ..Recorder::default()
    };
    let mut domain = launch(calls).expect("a launch");
    let wish = page_state::PageState::parse(&[0x40_0000, 1, 0, 0, 0, 0], MEMORY).expect("own memory");
    wish.grant(&mut domain).expect("granted");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tdx-launch.txt");
    if std::env::var_os("CLOAK_WRITE_GOLDEN").is_some() {
        std::fs::write(&file, &domain.calls.trace).expect("the golden file");
    }
    let golden = std::fs::read_to_string(&file).expect("the golden file");
    assert_eq!(domain.calls.trace, golden);
    assert_eq!(
        domain.offered_calls(),
        1,
        "only what the kernel lets the monitor offer"
    );
}

#[test]
fn the_digest_of_the_manifest_arrives_byte_by_byte() {
    let domain = launch(Recorder::default()).expect("a launch");
    let arrived = domain.calls.config_id.map(u64::to_le_bytes);
    assert_eq!(*arrived.as_flattened(), options().mr_config_id);
}

#[test]
fn more_leaves_are_asked_for_until_they_fit_and_no_longer() {
    let asked = |leaves| {
        let calls = Recorder {
            leaves,
            ..Recorder::default()
        };
        launch(calls).map(|domain| domain.calls.trace.matches("KVM_TDX_CAPABILITIES").count())
    };
    assert_eq!(asked(32).expect("it fits"), 1);
    assert_eq!(asked(256).expect("it fits"), 4);
    let text = asked(257).expect_err("more than KVM takes").to_string();
    assert!(text.contains("KVM_TDX_CAPABILITIES"), "{text}");
}

#[test]
fn what_passes_is_tried_again_and_still_ends() {
    let busy = 0x8000_0200_0000_0001;
    for (name, times) in [
        ("KVM_TDX_INIT_VM", 1),
        ("KVM_TDX_INIT_VCPU", 1),
        ("KVM_TDX_INIT_MEM_REGION", 1),
        ("KVM_TDX_FINALIZE_VM", 1),
    ] {
        for (errno, module) in [(libc::EBUSY, 0), (libc::EIO, busy), (libc::EINTR, 0)] {
            let calls = Recorder {
                busy: Some((name, errno, module, times + 2)),
                ..Recorder::default()
            };
            launch(calls).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let calls = Recorder {
            busy: Some((name, libc::EBUSY, busy, TRIES + 1)),
            ..Recorder::default()
        };
        assert!(launch(calls).is_err(), "{name}");
        // What does not pass is not tried again.
        let mut calls = Recorder {
            forbid: Some((name, libc::EIO, 0xc000_0100_0000_0000)),
            ..Recorder::default()
        };
        let domain = Configured::new(&mut calls, image(), options()).expect("fine");
        let end = domain
            .init()
            .and_then(|domain| domain.vcpus()?.back(MEMORY)?.add()?.finalize());
        assert!(end.is_err());
        assert_eq!(calls.trace.matches(name).count(), 1, "{name}");
    }
}

#[test]
fn a_kernel_that_says_one_thing_and_does_another_is_not_believed() {
    for calls in [
        Recorder {
            lazy: true,
            ..Recorder::default()
        },
        Recorder {
            liar: true,
            pages: Some(1),
            ..Recorder::default()
        },
    ] {
        assert!(matches!(launch(calls), Err(TdxError::NoProgress { .. })));
    }
}

#[test]
fn each_failure_names_its_step_and_what_to_try() {
    let cases = [
        (
            "KVM_ENABLE_CAP",
            libc::EINVAL,
            0,
            "KVM_CAP_SPLIT_IRQCHIP",
            "Linux 6.16",
        ),
        (
            "KVM_TDX_CAPABILITIES",
            libc::EINVAL,
            0,
            "KVM_TDX_CAPABILITIES",
            "Linux 6.16",
        ),
        (
            "KVM_TDX_INIT_VM",
            libc::ENOSPC,
            0,
            "KVM_TDX_INIT_VM",
            "key number",
        ),
        (
            "KVM_TDX_INIT_VM",
            libc::EIO,
            0xc000_0100_0000_0045,
            "OPERAND_INVALID",
            "CPUID configuration",
        ),
        (
            "KVM_TDX_INIT_VM",
            libc::EIO,
            0x8000_ff00_ffff_0000,
            "SEAMCALL",
            "BIOS",
        ),
        ("KVM_CREATE_VCPU", libc::EINVAL, 0, "vCPU 0", "logical processors"),
        ("KVM_TDX_INIT_VCPU", libc::EINVAL, 0, "vCPU 0", "x2APIC"),
        (
            "KVM_CREATE_GUEST_MEMFD",
            libc::ENOTTY,
            0,
            "KVM_CREATE_GUEST_MEMFD",
            "doctor",
        ),
        (
            "KVM_SET_MEMORY_ATTRIBUTES",
            libc::EINVAL,
            0,
            "KVM_SET_MEMORY_ATTRIBUTES",
            "doctor",
        ),
        ("KVM_TDX_INIT_MEM_REGION", libc::EIO, 0, "0x1000", "overlap"),
        (
            "KVM_TDX_INIT_MEM_REGION",
            libc::EFAULT,
            0,
            "0x1000",
            "guest_memfd",
        ),
        (
            "KVM_TDX_FINALIZE_VM",
            libc::EINVAL,
            0,
            "KVM_TDX_FINALIZE_VM",
            "all pages",
        ),
    ];
    for (call, errno, module, named, advice) in cases {
        let calls = Recorder {
            forbid: Some((call, errno, module)),
            ..Recorder::default()
        };
        let text = launch(calls).expect_err("refused").to_string();
        assert!(text.contains(named) && text.contains(advice), "{call}: {text}");
    }
}

#[test]
fn what_no_module_takes_is_refused_before_it_is_asked() {
    let refused = |image: LaunchImage, options: Options| {
        let end = Configured::new(Recorder::default(), image, options)
            .and_then(|domain| domain.init()?.vcpus()?.back(MEMORY)?.add());
        matches!(end, Err(TdxError::Request { .. } | TdxError::Lacking { .. }))
    };
    let snp = LaunchImage {
        platform: Measuring::Snp,
        ..image()
    };
    assert!(refused(snp, options()));
    let none = Options {
        vcpus: 0,
        ..options()
    };
    assert!(refused(image(), none));
    let debug = Options {
        attributes: config::SEPT_VE_DISABLE | config::DEBUG,
        ..options()
    };
    assert!(refused(image(), debug), "the module of this test has no DEBUG");
    let mut secrets = image();
    secrets.pages[0].kind = Kind::Secrets;
    assert!(refused(secrets, options()));
    for range in [
        [0, 0],
        [0x2000, 0x1000],
        [1, 0x1000],
        [0, 0x1001],
        [0, config::SHARED_BIT + PAGE],
    ] {
        let domain = Configured::new(Recorder::default(), image(), options()).expect("fine");
        let staffed = domain.init().and_then(Initialised::vcpus).expect("fine");
        assert!(staffed.back(&[range]).is_err());
    }
}

/// Structures and numbers, by a C compiler, against the kernel's headers.
#[test]
fn structures_are_those_of_the_kernels_headers() {
    let mut c = headers::Asserted::including(&["linux/kvm.h"]);
    headers::layout! { c, abi,
        kvm_tdx_cmd { id as "id", flags as "flags", data as "data", hw_error as "hw_error" }
        kvm_tdx_capabilities {
            supported_attrs as "supported_attrs", supported_xfam as "supported_xfam",
            kernel_tdvmcallinfo_1_r11 as "kernel_tdvmcallinfo_1_r11",
            user_tdvmcallinfo_1_r11 as "user_tdvmcallinfo_1_r11",
            kernel_tdvmcallinfo_1_r12 as "kernel_tdvmcallinfo_1_r12",
            user_tdvmcallinfo_1_r12 as "user_tdvmcallinfo_1_r12",
            reserved as "reserved", nent as "cpuid.nent", padding as "cpuid.padding"
        }
        kvm_tdx_init_vm {
            attributes as "attributes", xfam as "xfam", mrconfigid as "mrconfigid", mrowner as "mrowner",
            mrownerconfig as "mrownerconfig", reserved as "reserved", nent as "cpuid.nent",
            padding as "cpuid.padding"
        }
        kvm_tdx_init_mem_region { source_addr as "source_addr", gpa as "gpa", nr_pages as "nr_pages" }
    }
    c.equal("sizeof(struct kvm_cpuid_entry2)", size_of::<CpuidEntry>() as u64);
    for (name, value) in [
        ("KVM_X86_TDX_VM", abi::KVM_X86_TDX_VM),
        ("KVM_TDX_CAPABILITIES", abi::KVM_TDX_CAPABILITIES.into()),
        ("KVM_TDX_INIT_VM", abi::KVM_TDX_INIT_VM.into()),
        ("KVM_TDX_INIT_VCPU", abi::KVM_TDX_INIT_VCPU.into()),
        ("KVM_TDX_INIT_MEM_REGION", abi::KVM_TDX_INIT_MEM_REGION.into()),
        ("KVM_TDX_FINALIZE_VM", abi::KVM_TDX_FINALIZE_VM.into()),
        (
            "KVM_TDX_MEASURE_MEMORY_REGION",
            KVM_TDX_MEASURE_MEMORY_REGION.into(),
        ),
        ("KVM_EXIT_TDX", abi::KVM_EXIT_TDX.into()),
        (
            "KVM_SYSTEM_EVENT_TDX_FATAL",
            abi::KVM_SYSTEM_EVENT_TDX_FATAL.into(),
        ),
        ("KVM_MEMORY_ENCRYPT_OP", abi::KVM_MEMORY_ENCRYPT_OP),
        ("KVM_CAP_SPLIT_IRQCHIP", KVM_CAP_SPLIT_IRQCHIP.into()),
    ] {
        c.equal(name, value);
    }
    // Where the exit's words are, by what each is called there.
    let exit = std::mem::offset_of!(kvm_bindings::kvm_run, __bindgen_anon_1);
    for (word, names) in [
        (0, &["flags"][..]),
        (1, &["nr"]),
        (
            2,
            &[
                "unknown.ret",
                "get_quote.ret",
                "get_tdvmcall_info.ret",
                "setup_event_notify.ret",
            ],
        ),
        (
            3,
            &[
                "get_quote.gpa",
                "get_tdvmcall_info.leaf",
                "setup_event_notify.vector",
            ],
        ),
        (4, &["get_quote.size", "get_tdvmcall_info.r11"]),
        (7, &["get_tdvmcall_info.r14"]),
    ] {
        for name in names {
            let at = format!("__builtin_offsetof(struct kvm_run, tdx.{name})");
            c.equal(&at, (exit + word * 8) as u64);
        }
    }
    c.equal(
        "__builtin_offsetof(struct kvm_run, system_event.data)",
        exit as u64 + 8,
    );
    for include in headers::knowing("KVM_TDX_FINALIZE_VM") {
        c.check(&include);
    }
}

/// The watch itself can fail: another number is another ABI.
#[test]
#[should_panic(expected = "KVM_TDX_INIT_VM")]
fn another_number_would_be_noticed() {
    let mut c = headers::Asserted::including(&["linux/kvm.h"]);
    c.equal("KVM_TDX_INIT_VM", abi::KVM_TDX_INIT_VM + 1);
    let found = headers::knowing("KVM_TDX_FINALIZE_VM");
    assert!(!found.is_empty(), "skipped, as there is no KVM_TDX_INIT_VM here");
    found.iter().for_each(|include| c.check(include));
}
