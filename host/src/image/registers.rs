//! The registers that a vCPU of the shim starts with: long mode, CPL 0.
//!
//! The plain launch, the measured state of an SNP vCPU and the code that a TDX vCPU starts in have them from here.

/// CR4: PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE.
pub const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 18;
/// CR0: PE, MP, ET, NE, WP, AM, PG.
pub const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18 | 1 << 31;
/// EFER: SCE, LME, LMA, NXE.
pub const EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;
/// Selector and packed attributes (type, S, DPL, P in bits 7:0; AVL, L, DB, G in 11:8) of 64-bit code.
pub const CODE: (u16, u16) = (0x10, 0xa9b);
/// The same of data.
pub const DATA: (u16, u16) = (0x18, 0xc93);

/// What differs from one vCPU to another. All other general registers are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// First instruction, guest-virtual.
    pub rip: u64,
    /// Guest-physical address of the root page table.
    pub root: u64,
    /// First argument: the VM's number of the vCPU.
    pub rdi: u64,
}
