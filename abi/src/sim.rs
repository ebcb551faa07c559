//! What the kernel asks of simulated hardware, in the place of instructions that an ordinary VM has not.
//!
//! By `OUT` to [`crate::layout::SIM_PORT`]: EAX = the call, RDI, RSI = arguments; RAX = result afterwards. A kernel on real
//! hardware makes none of them: it asks the CPU or the TDX module, for which no hypervisor can answer, what it runs on
//! (`MSR_SEV_STATUS`, leaf 0x21 of CPUID), and not the hypervisor.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SimCall {
    /// PVALIDATE. RDI = guest-physical address, with bit 0: a large page; RSI = 1 to accept, 0 to take that back. Result:
    /// EAX of the instruction, with [`UNCHANGED`] for its carry flag.
    Pvalidate = 0,
    /// RMPADJUST. RDI as above, RSI = attributes. Result: EAX of the instruction.
    RmpAdjust = 1,
    /// Writes RDI to the GHCB's model-specific register, then VMGEXIT. Result: what the register holds afterwards.
    VmgExit = 2,
    /// TDCALL. RDI = guest-physical address, a multiple of 8, of [`TdRegisters`], which the call takes and leaves there.
    Tdcall = 3,
    /// XSETBV of XCR0, which the vCPU has executed: RDI = its value. An emulated CPU may not show the instruction to KVM, which then
    /// takes the value back at the next exit.
    VectorState = 4,
}

/// General registers of a TDCALL, but for RSP and RBP, which no call takes or gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "registers by their names")]
pub struct TdRegisters {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

crate::tripwire!(size_of::<TdRegisters>() == 112, "TdRegisters (used by assembly)");

/// The carry flag of PVALIDATE in a result.
pub const UNCHANGED: u64 = 1 << 32;

impl SimCall {
    /// The call, from the value written to the port.
    #[must_use]
    pub const fn decode(value: u32) -> Option<Self> {
        match value {
            0 => Some(Self::Pvalidate),
            1 => Some(Self::RmpAdjust),
            2 => Some(Self::VmgExit),
            3 => Some(Self::Tdcall),
            4 => Some(Self::VectorState),
            _ => None,
        }
    }
}
