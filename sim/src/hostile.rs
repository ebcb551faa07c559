//! A hypervisor that does one thing that it must not: what the guest does about it is tested by running it.

use cloak_abi::layout::{PAGE, doorbell_port};
use cloak_host::platform::{Injection, Out};
use cloak_snp::exception::reasons;
use kvm_bindings::{
    KVM_SEV_SNP_PAGE_TYPE_CPUID, KVM_SEV_SNP_PAGE_TYPE_NORMAL, KVM_SEV_SNP_PAGE_TYPE_UNMEASURED,
    kvm_sev_snp_launch_update,
};

use crate::cases::cases;
use crate::live::VC;

cases! {
    /// It speaks version 1 of the GHCB protocol only.
    OldProtocol = "old-protocol",
    /// It names another C-bit.
    CBit = "c-bit",
    /// So does the table of CPUID values.
    CpuidCBit = "cpuid-c-bit",
    /// The table has no vector state.
    CpuidState = "cpuid-state",
    /// The table is longer than its page.
    CpuidCount = "cpuid-count",
    /// The page of parameters has more memory than there can be, which would reach into what is shared.
    Memory = "memory",
    /// It has less than the shim needs.
    LittleMemory = "little-memory",
    /// It has more vCPUs than there can be.
    Vcpus = "vcpus",
    /// The configuration is longer than its place, and would reach into the shared region.
    Config = "config",
    /// A byte of the measured shim is another.
    Shim = "shim",
    /// HOST_DATA is another manifest's.
    OtherHostData = "other-host-data",
    /// The configuration names another program than the manifest.
    OtherProgram = "other-program",
    /// It registers another page as the GHCB.
    OtherGhcb = "other-ghcb",
    /// It puts pages that were accepted before in the place of new ones.
    Replay = "replay",
    /// It puts its own pages there.
    Remap = "remap",
    /// It says of a page-state change that it goes on for ever.
    PageStateNever = "page-state-never",
    /// It says that it did another one.
    PageStateElsewhere = "page-state-elsewhere",
    /// It refuses.
    PageStateRefused = "page-state-refused",
    /// It delivers no message.
    DropMessages = "drop-messages",
    /// It gives the first answer to all messages.
    RepeatAnswers = "repeat-answers",
    /// It gives the answer before, under this one's number.
    ReorderAnswers = "reorder-answers",
    /// It changes a bit of answers.
    ChangeAnswers = "change-answers",
    /// It lets no page become the state of a vCPU.
    NoVmsa = "no-vmsa",
    /// It creates no vCPU.
    NoVcpu = "no-vcpu",
    /// It injects interrupts of other vectors than the kick's.
    WildInterrupts = "wild-interrupts",
    /// It injects exceptions that no instruction of a program raises.
    WildExceptions = "wild-exceptions",
    /// It injects events in the other form, with an error code where there is none and the other way round.
    WildFrames = "wild-frames",
    /// It injects #VC, for CPUID, where there is another instruction.
    VcReason = "vc-reason",
    /// It says of an access to memory that it is one to a device.
    VcDevice = "vc-device",
    /// It intercepts what nobody asks it for.
    VcUnknown = "vc-unknown",
    /// It injects #VC while the kernel runs.
    VcKernel = "vc-kernel",
    /// It injects an interrupt while the kernel runs.
    InterruptKernel = "interrupt-kernel",
    /// As `wild-exceptions`, to a guest without the table of vectors that a measured one has ([`unguard`]).
    UnguardedExceptions = "unguarded-exceptions",
    /// The same of `wild-frames`.
    UnguardedFrames = "unguarded-frames",
    /// It does nothing that it must not, but intercepts instructions that a program names: an OUT to the second of the
    /// context's ports raises #VC for CPUID at the instruction behind it, one to the third of the reason in the value. So
    /// programs show that the guest answers what the CPU of this machine does not intercept.
    Intercept = "intercept",
}

impl Hostile {
    /// What it injects in the place of #VC where code at CPL 3 executes an OUT; `before` is how many events it has made up.
    pub(crate) fn event(self, out: Out, before: u64) -> Option<Injection> {
        let vc = |error| Injection {
            vector: VC,
            error: Some(error),
            behind: false,
        };
        let wild = |vectors: &[u8], error| Injection {
            vector: vectors[(before / 4) as usize % vectors.len()],
            error,
            behind: false,
        };
        // Each second time, so that the program gets on.
        let turn = out.user && before.is_multiple_of(2);
        match self.guarded() {
            Self::WildInterrupts if turn => Some(wild(&[0x21, 0x30, 0x80, 0xef, 0xff], None)),
            Self::WildExceptions if turn => Some(wild(&[2, 9, 15, 20, 21, 22, 27, 28, 30, 31], None)),
            Self::WildFrames if turn && before.is_multiple_of(4) => Some(wild(&[13, 14, 29, 10, 17], None)),
            Self::WildFrames if turn => Some(wild(&[6, 0, 3, 0x20, 0x80, 16], Some(7))),
            Self::WildInterrupts | Self::WildExceptions | Self::WildFrames if out.user => {
                Some(vc(reasons::PORT))
            }
            Self::VcReason if out.user => Some(vc(reasons::CPUID)),
            Self::VcDevice if out.user => Some(vc(reasons::DEVICE)),
            Self::VcUnknown if out.user => Some(vc(0x7777)),
            Self::Intercept if out.user && out.port == doorbell_port(0) + 1 => Some(Injection {
                behind: true,
                ..vc(reasons::CPUID)
            }),
            Self::Intercept if out.user && out.port == doorbell_port(0) + 2 => Some(Injection {
                behind: true,
                ..vc(u64::from(out.value >> 8))
            }),
            _ => None,
        }
    }

    /// What it injects while the kernel runs.
    pub(crate) fn event_in_kernel(self) -> Option<Injection> {
        let (vector, error) = match self {
            Self::VcKernel => (VC, Some(reasons::CPUID)),
            Self::InterruptKernel => (0x20, None),
            _ => return None,
        };
        Some(Injection {
            vector,
            error,
            behind: true,
        })
    }

    /// The case of which this is the other side.
    fn guarded(self) -> Self {
        match self {
            Self::UnguardedExceptions => Self::WildExceptions,
            Self::UnguardedFrames => Self::WildFrames,
            other => other,
        }
    }

    /// What it makes of pages that are launched.
    pub(crate) fn change(self, data: &kvm_sev_snp_launch_update, source: &mut [u8]) {
        let mut put = |at: usize, word: u64| source[at..at + 8].copy_from_slice(&word.to_le_bytes());
        let kind = u32::from(data.type_);
        if kind == KVM_SEV_SNP_PAGE_TYPE_UNMEASURED {
            // As `cloak_abi::boot::Parameters` has them.
            match self {
                Self::Memory => put(16, 1 << 40),
                Self::LittleMemory => put(16, 16 << 20),
                Self::Vcpus => put(24, 65),
                Self::Config => put(40, 64 << 20),
                _ => {}
            }
        }
        if kind == KVM_SEV_SNP_PAGE_TYPE_CPUID {
            let entries = source[16..].chunks_exact_mut(48).take(64);
            let leaf = |entry: &[u8]| u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
            for entry in entries {
                match (self, leaf(entry)) {
                    (Self::CpuidCBit, 0x8000_001f) => entry[28] = 47 | 1 << 6,
                    (Self::CpuidState, 0xd) if entry[4] == 0 => entry[24] = 1,
                    _ => {}
                }
            }
            if self == Self::CpuidCount {
                source[4..8].copy_from_slice(&1u32.to_le_bytes());
            }
        }
        if kind == KVM_SEV_SNP_PAGE_TYPE_NORMAL && self == Self::Shim && data.gfn_start == 0x200 {
            // The last of the kernel's zeros, which belong to a vCPU that there is not: it runs all the same.
            if let Some(last) = source.last_mut() {
                *last ^= 1;
            }
        }
        if kind == KVM_SEV_SNP_PAGE_TYPE_NORMAL && data.gfn_start == 0x200 && self != self.guarded() {
            unguard(source);
        }
    }
}

/// Takes a measured guest's protection from exceptions away: what its table of vectors leads to goes on at once to what plain
/// KVM's does. The kernel's image begins with the stubs of both, of 16 bytes each (`kernel.ld`, `guard.rs`).
fn unguard(kernel: &mut [u8]) {
    let plain = |vector: usize| 16 * vector;
    let guarded = |stub: usize| PAGE as usize + 16 * stub;
    for vector in (0..32).filter(|&vector| vector != usize::from(VC)) {
        // JMP with a distance of 32 bits from its end.
        let distance = plain(vector) as i32 - (guarded(vector) as i32 + 5);
        let stub = &mut kernel[guarded(vector)..][..5];
        stub[0] = 0xe9;
        stub[1..].copy_from_slice(&distance.to_le_bytes());
    }
}
