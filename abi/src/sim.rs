//! What the kernel asks of simulated hardware, in the place of instructions that an ordinary VM has not.
//!
//! By `OUT` to [`crate::layout::SIM_PORT`]: EAX = the call, RDI, RSI = arguments; RAX = result afterwards. A kernel on real
//! hardware makes none of them: it asks the CPU, which no hypervisor can answer for, what it runs on
//! (`MSR_SEV_STATUS`), and not the hypervisor.

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
}

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
            _ => None,
        }
    }
}
