//! Kernel calls: what the libos may ask of the kernel.
//!
//! Registers: RAX = number, RDI, RSI, RDX = arguments; RAX = result (negative: a [`KcallError`]). All
//! others are preserved. Page-table work is batched: the operations stand in the vCPU's
//! [`crate::vcpu::VcpuBlock`], one kernel entry carries out up to [`crate::vcpu::MAX_OPS`] of them.

use core::sync::atomic::AtomicU64;

/// Kernel-call numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Kcall {
    /// RDI = count (low half) and address space (high half): carry out `ops[..count]` there, in order; stops
    /// at the first that fails. Result: the number carried out. Refused where the libos edits its tables itself
    /// ([`crate::boot::ContextBlock::own_tables`]), as are the calls that make, copy and free address spaces.
    PageOps = 0,
    /// Reload this vCPU's translations.
    Flush = 1,
    /// RDI = vCPU: make it enter its libos soon.
    Kick = 2,
    /// RDI = vCPU: start it at [`crate::boot::LibosHeader::start`].
    Start = 3,
    /// The context ends; the status is in the shared header. Does not return.
    Exit = 4,
    /// RDI = 1: `SYSCALL` stays at CPL 3 on this host, point it at the libos's entry itself;
    /// RDI = 0: at the kernel's hand-over stub; RDI = 2: at the libos's probe, to find out.
    /// The first vCPU of a context says 0 or 1 once, before any program runs; that holds for all, and nothing else is
    /// taken afterwards: elsewhere code of the libos would run at CPL 0.
    SyscallMode = 5,
    /// RDI = number, not in use: a new address space without a program's part. Result: the guest-physical
    /// address of its root table.
    SpaceNew = 6,
    /// RDI = number: this vCPU continues in that address space. RSI: guest-physical address of its root table,
    /// where the libos edits its tables itself.
    SpaceSwitch = 7,
    /// RDI = number: give its page tables back. It must not be current on another vCPU; one that is current
    /// here is left for the first space.
    SpaceFree = 8,
    /// RDI = number, not in use, RSI = source: a new address space that maps what the source does. What is
    /// private ([`PTE_SHARED`] clear) loses its write permission in both. Result: as [`Kcall::SpaceNew`].
    SpaceCopy = 9,
    /// RDI = address space, or [`ALL_SPACES`]: let every vCPU on which it is current forget its translations before
    /// returning.
    Shoot = 10,
    /// RDI = guest-physical address, a multiple of [`crate::layout::LARGE`]: accept so much memory from there on as the guest's.
    /// Its content is anything then. Once for each address, and only where [`crate::boot::ContextBlock::platform`] is not
    /// plain.
    Accept = 11,
    /// A report by the machine's security processor, or its TDX module, over the [`REPORT_DATA`] bytes at the start of the
    /// vCPU's `ops`, where the report is left, too. RDI = 1: with certificates, at [`crate::layout::CERTIFICATES_GPA`], which
    /// are the host's word; on TDX the host is asked to leave a quote there, and has not done so yet when this returns.
    /// Result: bytes of the report.
    Report = 12,
    /// TDX: RDI = number of a run-time register, which is extended with the [`EXTENSION`] bytes at the start of the vCPU's
    /// `ops`.
    Extend = 13,
    /// RDI = 1: the root of the context's keys, [`ROOT_KEY`] bytes, is left at the start of the vCPU's `ops`: it comes from the
    /// machine, and depends on what was launched and for which manifest. RDI = 0: nobody needs it. Either way only the first
    /// call is answered, and it has to come after a [`Kcall::Report`] and before any program runs: afterwards nobody in the
    /// VM can have the machine make keys.
    Key = 14,
}

/// Bytes that a report is over.
pub const REPORT_DATA: usize = 64;

/// Bytes that a run-time register is extended with: a SHA-384.
pub const EXTENSION: usize = 48;
/// Bytes of a root key.
pub const ROOT_KEY: usize = 32;

/// Number of kernel calls.
pub const KCALLS: u64 = 15;

/// Why a kernel call failed; the result register holds its negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub enum KcallError {
    /// Unknown number or argument out of range.
    Invalid = 1,
    /// The address range is not a program's.
    Address = 2,
    /// A frame is not this context's.
    Frame = 3,
    /// No page-table frame is left.
    Tables = 4,
    /// The address space is current on another vCPU.
    Busy = 5,
    /// This platform has nothing of the kind.
    Absent = 6,
    /// The platform refused, or did not answer as it must. It will not answer again.
    Platform = 7,
}

/// Most address spaces at a time. Number 0 is the one that the first vCPU starts in; it is never freed.
pub const MAX_SPACES: usize = 4096;

/// In the place of a number: every address space of the context.
pub const ALL_SPACES: u64 = u64::MAX;

/// An entry of the last level, or one that maps a large page, as both sides of a copied address space have
/// it: what is private can't be written.
#[must_use]
pub const fn copied(entry: u64) -> u64 {
    if entry & PTE_SHARED == 0 {
        entry & !PTE_W
    } else {
        entry
    }
}

/// One page-table operation. Addresses and lengths are multiples of 4 KiB.
#[derive(Debug)]
#[repr(C)]
pub struct PageOp {
    /// First guest-virtual address, with the [`PageOpKind`] in the low bits.
    pub va_kind: AtomicU64,
    /// Bytes.
    pub len: AtomicU64,
    /// Map: first guest-physical address. Else unused.
    pub gpa: AtomicU64,
    /// Map, Protect: PTE flags, a subset of [`PTE_ALLOWED`].
    pub flags: AtomicU64,
}

/// What a [`PageOp`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum PageOpKind {
    /// Map contiguous frames; large pages where address, frame and length allow. The range must be empty
    /// or is replaced.
    Map = 0,
    /// Remove what is mapped.
    Unmap = 1,
    /// Change the flags of what is mapped; holes stay holes. A large page that the range cuts is split.
    Protect = 2,
    /// Let other vCPUs forget translations before returning: as the last of a batch that took rights away.
    Shoot = 3,
    /// Clear the dirty bit of what is mapped.
    Clean = 4,
}

/// Present.
pub const PTE_P: u64 = 1;
/// Writable.
pub const PTE_W: u64 = 1 << 1;
/// Reachable from CPL 3.
pub const PTE_U: u64 = 1 << 2;
/// Accessed. Preset by the libos: hosts that shadow page tables prefetch only entries that have it.
pub const PTE_A: u64 = 1 << 5;
/// Dirty.
pub const PTE_D: u64 = 1 << 6;
/// Large page (second level).
pub const PTE_PS: u64 = 1 << 7;
/// Software bit: shared between address spaces on purpose, never copied on write.
pub const PTE_SHARED: u64 = 1 << 9;
/// Software bit: libos's own use.
pub const PTE_SOFT: u64 = 1 << 10;
/// No execution.
pub const PTE_NX: u64 = 1 << 63;
/// Address bits of an entry.
pub const PTE_ADDR: u64 = 0x000f_ffff_ffff_f000;
/// Flags that the libos may set.
pub const PTE_ALLOWED: u64 = PTE_P | PTE_W | PTE_U | PTE_A | PTE_D | PTE_SHARED | PTE_SOFT | PTE_NX;

crate::tripwire!(size_of::<PageOp>() == 32, "PageOp");
