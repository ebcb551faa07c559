//! What the monitor leaves for the shim to find: the boot block (kernel) and the header at the start of
//! the libos image (from which the kernel learns the libos's entry points).

use crate::layout::{MAX_CONTEXTS, MAX_SEGMENTS};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// "CLOAKBB1", little endian.
pub const BOOT_MAGIC: u64 = u64::from_le_bytes(*b"CLOAKBB1");
/// "CLOAKLB1", little endian.
pub const LAUNCH_MAGIC: u64 = u64::from_le_bytes(*b"CLOAKLB1");
/// "CLOAKLO1", little endian.
pub const LIBOS_MAGIC: u64 = u64::from_le_bytes(*b"CLOAKLO1");

/// At [`crate::layout::BOOT_GPA`]. Written by the monitor before the first instruction; no context sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BootBlock {
    /// [`BOOT_MAGIC`].
    pub magic: u64,
    /// [`crate::VERSION`].
    pub version: u32,
    /// Number of contexts, 1..=[`MAX_CONTEXTS`].
    pub contexts: u32,
    /// The contexts; the rest are zeros.
    pub list: [ContextBlock; MAX_CONTEXTS],
}

/// What one context has. Its libos finds a copy in its image ([`LibosHeader::boot_copy`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ContextBlock {
    /// Index of the context in the VM; its ports follow from it ([`crate::layout::doorbell_port`]).
    pub index: u32,
    /// Number of vCPUs, which are this context's alone, 1..=[`crate::layout::MAX_VCPUS`].
    pub vcpus: u32,
    /// The VM's number of its first vCPU. The context itself counts its vCPUs from 0.
    pub first_vcpu: u32,
    /// 1: the VM has one context, whose libos edits its page tables itself; 0: the kernel edits them, after
    /// checking each operation.
    pub own_tables: u32,
    /// Its frames: half-open guest-physical ranges, multiples of [`crate::layout::LARGE`]; unused ones are zeros.
    pub frames: [[u64; 2]; 2],
    /// What it shares with other contexts that name it too: half-open guest-physical ranges; unused ones are zeros.
    pub segments: [[u64; 2]; MAX_SEGMENTS],
    /// First guest-physical address of its page-table pool.
    pub table_pool: u64,
    /// First guest-physical address after the pool.
    pub table_pool_end: u64,
    /// First page of the pool that the monitor has not used.
    pub table_pool_next: u64,
    /// Guest-physical address of its first root page table.
    pub root: u64,
    /// First of its frames that holds nothing (after the libos image, vCPU pages and configuration).
    pub free_frames: u64,
    /// Guest-physical address of the libos image's first byte.
    pub libos_gpa: u64,
    /// Guest-physical address of vCPU 0's [`crate::vcpu::VcpuBlock`]; the others follow it.
    pub vcpu_blocks: u64,
    /// Guest-physical address of the configuration ([`crate::config`]).
    pub config_gpa: u64,
    /// Bytes of the configuration.
    pub config_len: u64,
    /// Frequency of the guest's time-stamp counter, kHz.
    pub tsc_khz: u64,
    /// Which [`platform`] this is. Where the launch is measured the kernel writes this block, and it is so.
    pub platform: u32,
    /// Number of the bit of [`LaunchBlock::private`], where the machine has such a bit, else 0.
    pub private_bit: u32,
    /// Identity of the context: what shim and manifest it is of (`cloak_manifest::Identity`, SHA-384).
    pub identity: [u8; 48],
}

impl ContextBlock {
    /// What is set in each entry of a page table that leads to private memory.
    #[must_use]
    pub const fn private(&self) -> u64 {
        if self.private_bit == 0 {
            0
        } else {
            1 << (self.private_bit & 63)
        }
    }
}

/// Platforms whose hardware measures the launch, as [`LaunchBlock::platform`] and [`ContextBlock::platform`] name them.
pub mod platform {
    /// Plain KVM: nothing measures.
    pub const PLAIN: u64 = 0;
    /// AMD SEV-SNP.
    pub const SNP: u64 = 1;
    /// Intel TDX.
    pub const TDX: u64 = 2;
}

/// "CLOAKPP1", little endian.
pub const PARAMETERS_MAGIC: u64 = u64::from_le_bytes(*b"CLOAKPP1");

/// At [`crate::layout::PARAMETERS_GPA`]: what differs from run to run where the launch is measured. The host's word. It has
/// no address in it, so that nothing in it can overlap anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Parameters {
    /// [`PARAMETERS_MAGIC`].
    pub magic: u64,
    /// [`crate::VERSION`].
    pub version: u64,
    /// Bytes of RAM: those below the hole, then those behind it. A multiple of [`crate::layout::LARGE`].
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u64,
    /// Frequency of the time-stamp counter, kHz.
    pub tsc_khz: u64,
    /// Bytes of the configuration, which is at [`crate::layout::CONFIG_GPA`].
    pub config_len: u64,
    /// What the host says that the identity of the context is.
    pub identity: [u8; 48],
}

/// Most loadable parts of the libos.
pub const MAX_PARTS: usize = 4;

/// Where a launch is measured, this is at [`crate::layout::BOOT_GPA`] in place of the [`BootBlock`], and measured. It
/// says what the image holds; what differs from run to run is not in it, but on the page of parameters, which is the
/// host's word. A kernel that knows plain KVM only finds another magic number here, and stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LaunchBlock {
    /// [`LAUNCH_MAGIC`].
    pub magic: u64,
    /// [`crate::VERSION`].
    pub version: u64,
    /// Which of [`platform`] the image is for.
    pub platform: u64,
    /// Bit of a page-table entry that says that the page is private; 0 where private is what has no bit.
    pub private: u64,
    /// Bit of a page-table entry that says that the page is shared with the hypervisor; 0 where that is what has no bit.
    pub shared: u64,
    /// Guest-physical address of the page of parameters.
    pub parameters: u64,
    /// SNP: guest-physical address of the secrets page, else 0.
    pub secrets: u64,
    /// SNP: guest-physical address of the page of CPUID values, else 0.
    pub cpuid: u64,
    /// Guest-physical address of the first root table.
    pub root: u64,
    /// First guest-physical address after the image.
    pub end: u64,
    /// Parts of the libos; unused ones are zeros.
    pub libos: [PartBlock; MAX_PARTS],
}

/// One loadable part of a program in a measured image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PartBlock {
    /// First guest-virtual address.
    pub va: u64,
    /// Bytes in memory; those after the content are zeros.
    pub memory: u64,
    /// Bytes of content.
    pub content: u64,
    /// Guest-physical address of the content in the image.
    pub gpa: u64,
    /// [`crate::kcall::PTE_W`] and [`crate::kcall::PTE_NX`], as pages of it are mapped.
    pub flags: u64,
}

/// First bytes of the libos image: where the kernel enters it. All addresses are guest-virtual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LibosHeader {
    /// [`LIBOS_MAGIC`].
    pub magic: u64,
    /// [`crate::VERSION`].
    pub version: u64,
    /// First instruction of each vCPU at CPL 3; RDI = the context's number of the vCPU, RSP undefined.
    pub start: u64,
    /// `SYSCALL` entry at CPL 3: RCX = return address, R11 = flags, as after the instruction.
    pub syscall: u64,
    /// The same, when RCX and R11 have been stashed in the [`crate::vcpu::VcpuBlock`].
    pub syscall_stashed: u64,
    /// An exception came, or an interrupt while the program ran. What is not in the [`crate::vcpu::VcpuBlock`] is in
    /// the registers as it was. RAX, RCX, RSP and the flags mean nothing.
    pub upcall: u64,
    /// Return address of the one kernel-call instruction.
    pub kcall: u64,
    /// Where in the image the monitor leaves a copy of the [`ContextBlock`].
    pub boot_copy: u64,
    /// Code that finds out, at boot, at which privilege level a `SYSCALL` lands.
    pub syscall_probe: u64,
}

crate::tripwire!(size_of::<ContextBlock>() == 248, "ContextBlock");
crate::tripwire!(
    size_of::<BootBlock>() <= crate::layout::PAGE as usize,
    "BootBlock fits a page"
);
crate::tripwire!(size_of::<LibosHeader>() == 72, "LibosHeader");
crate::tripwire!(size_of::<PartBlock>() == 40, "PartBlock");
crate::tripwire!(size_of::<Parameters>() == 96, "Parameters");
crate::tripwire!(size_of::<LaunchBlock>() == 240, "LaunchBlock");
