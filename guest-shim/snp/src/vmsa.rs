//! The state in which a further vCPU starts: a page that RMPADJUST makes one (AMD64 Architecture Programmer's Manual, volume
//! 2, table B-4).
//!
//! It starts as the first one did, in long mode at CPL 0, but for four registers.

/// SEV_FEATURES of each vCPU: SNP, nothing else. It has to be what the launch measured.
pub const SEV_FEATURES: u64 = 1;
/// RMPADJUST's attributes of such a page: VMSA, for the level below ours, which gets no rights on it.
pub const ATTRIBUTES: u64 = 1 << 16 | 1;

/// CR4: PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE; and MCE, which an SNP guest always has.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 18 | 1 << 6;
/// CR0: PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18 | 1 << 31;
/// EFER: SCE, LME, LMA, NXE; and SVME, which each such state has.
const EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12;

/// Flat segments: selector, packed attributes, limit.
const CODE: u64 = 0x10 | 0xa9b << 16 | 0xffff_ffff << 32;
const DATA: u64 = 0x18 | 0xc93 << 16 | 0xffff_ffff << 32;
const GLOBAL: u64 = 0xffff << 32;
const LOCAL: u64 = 0x82 << 16 | 0xffff << 32;
const TASK: u64 = 0x8b << 16 | 0xffff << 32;

/// Where the registers are that differ.
pub mod at {
    /// CR3.
    pub const CR3: u64 = 0x150;
    /// RIP.
    pub const RIP: u64 = 0x178;
    /// RDI.
    pub const RDI: u64 = 0x338;
}

/// The words of the page that are not zero, for a vCPU that starts at `rip` on the tables of `root`, with its number in RDI.
#[must_use]
pub fn words(rip: u64, root: u64, number: u64) -> [(u64, u64); 24] {
    [
        (0x000, DATA),
        (0x010, CODE),
        (0x020, DATA),
        (0x030, DATA),
        (0x040, DATA),
        (0x050, DATA),
        (0x060, GLOBAL),
        (0x070, LOCAL),
        (0x080, GLOBAL),
        (0x090, TASK),
        (0x0d0, EFER),
        (0x148, CR4),
        (at::CR3, root),
        (0x158, CR0),
        (0x160, 0x400),       // DR7
        (0x168, 0xffff_0ff0), // DR6
        (0x170, 2),           // RFLAGS
        (at::RIP, rip),
        (0x268, 0x0007_0406_0007_0406), // PAT
        (at::RDI, number),
        (0x3b0, SEV_FEATURES),
        (0x3e8, 1),      // XCR0
        (0x408, 0x1f80), // MXCSR
        (0x410, 0x37f),  // x87 control word
    ]
}
