//! A hypervisor that does one thing that it must not to a domain: what the domain does about it is tested by running it.
//!
//! Some are of a module that errs, which is the processor's maker to be trusted with: the guest stops there, too.

use cloak_abi::layout::PARAMETERS_GPA;
use kvm_bindings::CpuId;

use crate::cases::cases;
use crate::memory::PageBytes;

cases! {
    /// The page of parameters has more memory than there can be, which would reach into what is shared.
    Memory = "memory",
    /// It has less than the shim needs.
    LittleMemory = "little-memory",
    /// It has more vCPUs than there can be.
    Vcpus = "vcpus",
    /// It has more than the domain was made with.
    MoreVcpus = "more-vcpus",
    /// The configuration is longer than its place, and would reach into the shared region.
    Config = "config",
    /// A byte of the measured shim is another.
    Shim = "shim",
    /// MRCONFIGID is another manifest's.
    OtherConfigId = "other-config-id",
    /// The domain may be debugged.
    Debug = "debug",
    /// A page that is taken away raises an exception instead of stopping the domain.
    NoSeptVeDisable = "no-sept-ve-disable",
    /// The domain has addresses of 52 bits.
    Width = "width",
    /// CPUID says that this is a domain of real hardware.
    CpuidTdx = "cpuid-tdx",
    /// Memory is the domain's before it accepts it.
    AcceptedBefore = "accepted-before",
    /// No memory can be accepted.
    NotAccepted = "not-accepted",
    /// It takes accepted memory away.
    TakePages = "take-pages",
    /// It backs memory by small pages, which it may.
    SmallPages = "small-pages",
    /// It says of MapGPA that it goes on for ever.
    MapGpaNever = "map-gpa-never",
    /// It says that it goes on elsewhere.
    MapGpaElsewhere = "map-gpa-elsewhere",
    /// It refuses it.
    MapGpaRefused = "map-gpa-refused",
    /// It says that a quote is there before it is.
    EarlyQuote = "early-quote",
    /// It never makes one.
    NeverQuote = "never-quote",
    /// It changes a bit of quotes.
    ChangedQuote = "changed-quote",
    /// It gives the quote of another report.
    OtherQuote = "other-quote",
    /// It gives a quote that is longer than the buffer.
    LongQuote = "long-quote",
    /// It refuses to make one.
    NoQuote = "no-quote",
    /// An exception without a cause.
    NoCause = "no-cause",
    /// An exception because of a device in memory.
    DeviceCause = "device-cause",
    /// An exception of a kind that nothing causes.
    OtherCause = "other-cause",
    /// It injects interrupts of all vectors that a domain can be given.
    WildInterrupts = "wild-interrupts",
    /// It starts the second vCPU at once.
    EarlyVcpu = "early-vcpu",
    /// It answers no call as one that was taken.
    RefuseCalls = "refuse-calls",
}

impl Hostile {
    /// What it makes of the page of parameters.
    pub(super) fn change(self, gpa: u64, page: &mut PageBytes) {
        if gpa != PARAMETERS_GPA {
            return;
        }
        let word =
            |page: &PageBytes, at: usize| page[at..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        let vcpus = word(page, 24);
        let mut put = |at: usize, word: u64| page[at..at + 8].copy_from_slice(&word.to_le_bytes());
        // As `cloak_abi::boot::Parameters` has them.
        match self {
            Self::Memory => put(16, 1 << 40),
            Self::LittleMemory => put(16, 16 << 20),
            Self::Vcpus => put(24, 65),
            Self::MoreVcpus => put(24, vcpus + 1),
            Self::Config => put(40, 64 << 20),
            _ => {}
        }
    }

    /// What it makes of CPUID.
    pub(super) fn change_cpuid(self, cpuid: &mut CpuId) {
        let name = |at: usize| {
            b"IntelTDX    "[at..]
                .first_chunk()
                .map_or(0, |b| u32::from_le_bytes(*b))
        };
        if self != Self::CpuidTdx {
            return;
        }
        let leaf = kvm_bindings::kvm_cpuid_entry2 {
            function: 0x21,
            ebx: name(0),
            edx: name(4),
            ecx: name(8),
            ..Default::default()
        };
        let highest = cpuid.as_mut_slice().iter_mut().find(|leaf| leaf.function == 0);
        if let Some(highest) = highest {
            highest.eax = highest.eax.max(leaf.function);
        }
        let others = cpuid.as_mut_slice().iter_mut();
        others
            .filter(|other| other.function == leaf.function)
            .for_each(|other| *other = leaf);
        // There is room: KVM gives fewer leaves than there can be.
        let _ = cpuid.push(leaf);
    }
}
