//! The image: the pages of the shim that a launch adds, in order, each with its address, its kind and its content.
//!
//! One description ([`LaunchImage::new`]) is behind everything that speaks of the image: the launch of an SNP guest and of
//! a TDX domain, the digest that is predicted for them, and the IGVM file. The plain launch places the same programs
//! ([`program`]) with the same builder of page tables ([`tables`]); but there the monitor, which is trusted, also divides
//! RAM among contexts, which on the others is the kernel's work.
//!
//! Nothing in a measured page differs from run to run: not the size of RAM, nor the clock, nor who runs what. Those come
//! on one page that is the host's word, so that two launches of one build have one digest. The manifest isn't in it
//! either: its digest is in HOST_DATA or MRCONFIGID.
//!
//! There are no pages of SNP's type ZERO: zeros are added as content, so that a loader of IGVM files, which knows no such
//! type, measures the same.

pub mod memory;
pub mod program;
pub mod registers;
pub mod reset;
pub mod tables;

use cloak_abi::boot::{LAUNCH_MAGIC, LaunchBlock, MAX_PARTS, PartBlock, platform};
use cloak_abi::kcall::{PTE_NX, PTE_W};
use cloak_abi::layout::{
    BOOT_GPA, CPUID_GPA, KERNEL_GPA, KERNEL_PHYS_VA, KERNEL_VA, LARGE, LAUNCH_TABLES, LAUNCH_TABLES_GPA,
    LAUNCH_WINDOW, PAGE, PARAMETERS_GPA, PLATFORM_GPA, PLATFORM_LEN, RESET_GPA, SECRETS_GPA,
};
use zerocopy::{FromZeros, IntoBytes};

use self::memory::{GuestPages, PageBytes, PageList};
use self::program::Shim;
use self::registers::Registers;
use self::tables::Tables;
use crate::kvm::tdx::config::SHARED_BIT;
use crate::vm::error::VmError;

/// Platforms whose hardware measures the launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measuring {
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

/// Bit of a page-table entry that makes a page private on SNP: the same on Milan, Genoa and Turin (CPUID 8000001F, EBX
/// bits 5:0). The kernel compares it with what the hypervisor says before it uses any other.
pub const C_BIT: u64 = 1 << 51;

impl Measuring {
    fn private(self) -> u64 {
        match self {
            Self::Snp => C_BIT,
            Self::Tdx => 0,
        }
    }

    /// Bit of a page-table entry that makes a page shared on TDX: domains have addresses of 48 bits. The kernel compares it with
    /// what the module says before it uses any other.
    fn shared(self) -> u64 {
        match self {
            Self::Snp => 0,
            Self::Tdx => SHARED_BIT,
        }
    }

    fn number(self) -> u64 {
        match self {
            Self::Snp => platform::SNP,
            Self::Tdx => platform::TDX,
        }
    }
}

/// What a page is to the hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Content that is measured.
    Measured,
    /// Its being there is measured; the content is the host's word.
    Unmeasured,
    /// SNP: keys that the firmware writes.
    Secrets,
    /// SNP: CPUID values that the firmware checks.
    Cpuid,
}

/// One page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Where: a multiple of 4 KiB.
    pub gpa: u64,
    /// What.
    pub kind: Kind,
    /// Content of a measured page; zeros in the others, whose content is not the image's.
    pub contents: Box<PageBytes>,
}

/// What is launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchImage {
    /// For which platform.
    pub platform: Measuring,
    /// In the order of launch, which is that of their addresses.
    pub pages: Vec<Page>,
    /// SNP: the state of the first vCPU. A TDX domain has no state of its own: its vCPUs start at [`reset::VECTOR`].
    pub first: Registers,
    /// SNP: the state of the others, until the kernel gives them another.
    pub others: Registers,
}

impl LaunchImage {
    /// Its pages in their order, in runs of one kind without gaps, which a launch adds by one call each.
    pub fn runs(&self) -> impl Iterator<Item = &[Page]> {
        self.pages
            .chunk_by(|a, b| a.kind == b.kind && a.gpa + PAGE == b.gpa)
    }

    /// The image of `shim` for `platform`.
    ///
    /// # Errors
    /// [`VmError::Shim`]: it has more parts, or needs more page tables, than an image has room for.
    pub fn new(shim: &Shim<'_>, platform: Measuring) -> Result<Self, VmError> {
        let libos_gpa = (KERNEL_GPA + shim.kernel.len).next_multiple_of(LARGE);
        let mut list = PageList::default();
        list.reserve(KERNEL_GPA, shim.kernel.len);
        shim.kernel.place(&mut list, KERNEL_GPA)?;
        let (libos, end) = place_libos(&mut list, shim, libos_gpa)?;
        list.put(RESET_GPA, &reset::page(shim.kernel.entry))?;
        map(&mut list, shim, platform, end)?;
        let snp = |gpa| if platform == Measuring::Snp { gpa } else { 0 };
        let block = LaunchBlock {
            magic: LAUNCH_MAGIC,
            version: u64::from(cloak_abi::VERSION),
            platform: platform.number(),
            private: platform.private(),
            shared: platform.shared(),
            parameters: PARAMETERS_GPA,
            secrets: snp(SECRETS_GPA),
            cpuid: snp(CPUID_GPA),
            root: LAUNCH_TABLES_GPA,
            end,
            libos,
        };
        list.put(BOOT_GPA, block.as_bytes())?;
        let at = |rip| Registers {
            rip,
            root: LAUNCH_TABLES_GPA,
            rdi: 0,
        };
        Ok(Self {
            platform,
            pages: kinds(list, platform),
            first: at(shim.kernel.entry),
            others: at(reset::PARKED),
        })
    }
}

/// The libos as built, without its zeros: the kernel copies it for each context.
fn place_libos(
    list: &mut PageList,
    shim: &Shim<'_>,
    gpa: u64,
) -> Result<([PartBlock; MAX_PARTS], u64), VmError> {
    let mut blocks = [PartBlock::new_zeroed(); MAX_PARTS];
    if shim.libos.parts.len() > MAX_PARTS {
        return Err(VmError::Shim("libos of too many parts"));
    }
    let mut next = gpa;
    for (block, part) in blocks.iter_mut().zip(&shim.libos.parts) {
        *block = PartBlock {
            va: part.va,
            memory: part.memory,
            content: part.data.len() as u64,
            gpa: next,
            flags: part.flags(),
        };
        list.put(next, part.data)?;
        next += (part.data.len() as u64).next_multiple_of(PAGE);
    }
    Ok((blocks, next))
}

/// The tables that vCPUs start on: the kernel where it is linked, its window on the first of RAM, in which it makes tables of
/// its own, and on what it shares with the hypervisor, and the reset page where it lies.
fn map(list: &mut PageList, shim: &Shim<'_>, platform: Measuring, end: u64) -> Result<(), VmError> {
    let pool = [LAUNCH_TABLES_GPA + PAGE, LAUNCH_TABLES_GPA + LAUNCH_TABLES * PAGE];
    let mut tables = Tables::new(list, LAUNCH_TABLES_GPA, pool, platform.private());
    for part in &shim.kernel.parts {
        let first = part.va & !(PAGE - 1);
        let len = (part.va + part.memory).next_multiple_of(PAGE) - first;
        tables.map(first, KERNEL_GPA + (first - KERNEL_VA), len, part.flags())?;
    }
    if end > LAUNCH_WINDOW {
        return Err(VmError::Shim("larger than the first window"));
    }
    // An access to what is there before the guest has accepted it faults.
    tables.map(KERNEL_PHYS_VA, 0, LAUNCH_WINDOW, PTE_W | PTE_NX)?;
    let (at, flags) = (KERNEL_PHYS_VA + PLATFORM_GPA, PTE_W | PTE_NX | platform.shared());
    tables.map_shared(at, PLATFORM_GPA, PLATFORM_LEN, flags)?;
    tables.map(RESET_GPA, RESET_GPA, PAGE, 0)
}

/// Measured pages, with those of other kinds at their places among them.
fn kinds(list: PageList, platform: Measuring) -> Vec<Page> {
    let measured = list.into_pages().map(|(gpa, contents)| Page {
        gpa,
        kind: Kind::Measured,
        contents,
    });
    let mut pages: Vec<Page> = measured.collect();
    let mut others = vec![(PARAMETERS_GPA, Kind::Unmeasured)];
    if platform == Measuring::Snp {
        others.extend([(SECRETS_GPA, Kind::Secrets), (CPUID_GPA, Kind::Cpuid)]);
    }
    pages.extend(others.into_iter().map(|(gpa, kind)| Page {
        gpa,
        kind,
        contents: Box::new([0; PAGE as usize]),
    }));
    pages.sort_by_key(|page| page.gpa);
    pages
}

#[cfg(test)]
mod tests;
