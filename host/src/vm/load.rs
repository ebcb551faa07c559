//! Puts the shim into guest RAM: images, first page tables, boot block, configuration.

use cloak_abi::boot::{BOOT_MAGIC, BootBlock, LIBOS_MAGIC, LibosHeader};
use cloak_abi::kcall::{PTE_A, PTE_D, PTE_NX, PTE_P, PTE_PS, PTE_U, PTE_W};
use cloak_abi::layout::{
    BOOT_GPA, HOLE_END, KERNEL_GPA, KERNEL_PHYS_VA, KERNEL_VA, LARGE, LIBOS_BASE, LIBOS_IMAGE_MAX,
    LIBOS_PHYS_VA, LIBOS_SHARED_VA, LIBOS_VCPU_VA, PAGE, ROOT_GPA, SHARED_GPA,
};
use cloak_abi::ring::SHARED_LEN;
use object::Endianness;
use object::elf::{FileHeader64, PF_W, PF_X, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, IntoBytes};

use super::error::VmError;
use crate::kvm::ram;

/// What the loader is told.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// Bytes of guest RAM, a multiple of 2 MiB.
    pub ram: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Guest TSC frequency.
    pub tsc_khz: u64,
    /// Configuration for the libos ([`cloak_abi::config`]).
    pub config: &'a [u8],
    /// Identity of the context.
    pub identity: [u8; 48],
    /// The VM has one context, which edits its page tables itself.
    pub own_tables: bool,
}

/// What the rest of the monitor has to know of what was loaded.
#[derive(Debug, Clone, Copy)]
pub struct Loaded {
    /// The kernel's entry point.
    pub entry: u64,
    /// Guest-physical address of the page of anchors.
    pub anchors: u64,
    /// First guest-physical address beyond what was loaded. Below it lies what KVM reads by itself.
    pub free_frames: u64,
}

/// Loads everything.
///
/// # Errors
/// [`VmError::Shim`] for a damaged image, [`VmError::MemoryTooSmall`] when RAM does not hold it all.
pub fn load(memory: &GuestMemoryMmap, plan: &Plan<'_>) -> Result<Loaded, VmError> {
    let kernel = Image::parse(cloak_shim_image::KERNEL, KERNEL_VA)?;
    let libos = Image::parse(cloak_shim_image::LIBOS, LIBOS_BASE)?;
    let header = libos.header()?;
    let pool = (KERNEL_GPA + kernel.len).next_multiple_of(LARGE);
    let pool_end = pool + (plan.ram / 256).next_multiple_of(LARGE).max(2 * LARGE);
    let libos_gpa = pool_end;
    let vcpu_blocks = libos_gpa + libos.len.next_multiple_of(PAGE);
    let config_gpa = vcpu_blocks + u64::from(plan.vcpus) * PAGE;
    let anchors = cloak_abi::anchor::page_at(config_gpa, plan.config.len() as u64);
    let free_frames = anchors + PAGE;
    let (ram_low, ram_high) = ram::split(plan.ram);
    if free_frames + 8 * LARGE > ram_low {
        return Err(VmError::MemoryTooSmall {
            asked: plan.ram >> 20,
            least: (free_frames + 8 * LARGE).next_multiple_of(LARGE) >> 20,
        });
    }

    let mut tables = Tables {
        memory,
        next: pool,
        end: pool_end,
    };
    kernel.place(memory, KERNEL_GPA)?;
    libos.place(memory, libos_gpa)?;
    for segment in &kernel.segments {
        let first = segment.va & !(PAGE - 1);
        let pages = (segment.va + segment.memory).next_multiple_of(PAGE) - first;
        tables.map(first, KERNEL_GPA + (first - KERNEL_VA), pages, segment.flags())?;
    }
    for segment in &libos.segments {
        // Each segment starts a large page of its own (linker script): one translation for the whole text.
        let first = segment.va & !(LARGE - 1);
        let len = (segment.va + segment.memory).next_multiple_of(LARGE) - first;
        tables.map(
            first,
            libos_gpa + (first - LIBOS_BASE),
            len,
            segment.flags() | PTE_U,
        )?;
    }
    let rw = PTE_W | PTE_NX;
    for (start, end) in [(0, ram_low), (HOLE_END, HOLE_END + ram_high)] {
        tables.map(KERNEL_PHYS_VA + start, start, end - start, rw)?;
    }
    // The libos reads its page tables (it keeps no second copy of what is mapped). It writes them only where
    // there is no other context whose frames it could map.
    let access = if plan.own_tables { rw } else { PTE_NX };
    tables.map(LIBOS_PHYS_VA + ROOT_GPA, ROOT_GPA, PAGE, access | PTE_U)?;
    tables.map(LIBOS_PHYS_VA + pool, pool, pool_end - pool, access | PTE_U)?;
    tables.map(LIBOS_PHYS_VA + pool_end, pool_end, ram_low - pool_end, rw | PTE_U)?;
    tables.map(LIBOS_PHYS_VA + HOLE_END, HOLE_END, ram_high, rw | PTE_U)?;
    tables.map(
        LIBOS_VCPU_VA,
        vcpu_blocks,
        u64::from(plan.vcpus) * PAGE,
        rw | PTE_U,
    )?;
    tables.map(LIBOS_SHARED_VA, SHARED_GPA, SHARED_LEN as u64, rw | PTE_U)?;

    put(memory, config_gpa, plan.config)?;
    let boot = BootBlock {
        magic: BOOT_MAGIC,
        version: cloak_abi::VERSION,
        vcpus: plan.vcpus,
        ram_low,
        ram_high,
        table_pool: pool,
        table_pool_end: pool_end,
        table_pool_next: tables.next,
        free_frames,
        libos_gpa,
        vcpu_blocks,
        config_gpa,
        config_len: plan.config.len() as u64,
        shared_len: SHARED_LEN as u64,
        tsc_khz: plan.tsc_khz,
        platform: 0,
        own_tables: u32::from(plan.own_tables),
        identity: plan.identity,
    };
    put(memory, BOOT_GPA, boot.as_bytes())?;
    // The libos reads its own copy: the kernel's page is not its to see.
    put(
        memory,
        libos_gpa + (header.boot_copy - LIBOS_BASE),
        boot.as_bytes(),
    )?;
    Ok(Loaded {
        entry: kernel.entry,
        anchors,
        free_frames,
    })
}

fn put(memory: &GuestMemoryMmap, gpa: u64, bytes: &[u8]) -> Result<(), VmError> {
    memory
        .write_slice(bytes, GuestAddress(gpa))
        .map_err(|_| VmError::Shim("does not fit guest RAM"))
}

/// One loadable part of an image.
#[derive(Debug)]
struct Segment {
    va: u64,
    memory: u64,
    data: &'static [u8],
    elf_flags: u32,
}

impl Segment {
    fn flags(&self) -> u64 {
        let write = if self.elf_flags & PF_W != 0 { PTE_W } else { 0 };
        let execute = if self.elf_flags & PF_X != 0 { 0 } else { PTE_NX };
        write | execute
    }
}

/// One of the shim's programs.
#[derive(Debug)]
struct Image {
    base: u64,
    entry: u64,
    len: u64,
    segments: Vec<Segment>,
}

impl Image {
    fn parse(file: &'static [u8], base: u64) -> Result<Self, VmError> {
        let bad = |_| VmError::Shim("not an ELF file");
        let elf = FileHeader64::<Endianness>::parse(file).map_err(bad)?;
        let endian = elf.endian().map_err(bad)?;
        let mut segments = Vec::new();
        let mut len = 0;
        for ph in elf.program_headers(endian, file).map_err(bad)? {
            if ph.p_type(endian) != PT_LOAD || ph.p_memsz(endian) == 0 {
                continue;
            }
            let va = ph.p_vaddr(endian);
            let data = ph
                .data(endian, file)
                .map_err(|()| VmError::Shim("segment outside the file"))?;
            let memory = ph.p_memsz(endian);
            let end = va.checked_sub(base).and_then(|offset| offset.checked_add(memory));
            len = len.max(end.ok_or(VmError::Shim("segment below its base"))?);
            segments.push(Segment {
                va,
                memory,
                data,
                elf_flags: ph.p_flags(endian),
            });
        }
        if len > LIBOS_IMAGE_MAX {
            return Err(VmError::Shim("image too large"));
        }
        Ok(Self {
            base,
            entry: elf.e_entry(endian),
            len,
            segments,
        })
    }

    fn place(&self, memory: &GuestMemoryMmap, gpa: u64) -> Result<(), VmError> {
        self.segments
            .iter()
            .try_for_each(|s| put(memory, gpa + (s.va - self.base), s.data))
    }

    fn header(&self) -> Result<LibosHeader, VmError> {
        let first = self
            .segments
            .iter()
            .find(|s| s.va == self.base)
            .ok_or(VmError::Shim("no first segment"))?;
        let (header, _) =
            LibosHeader::read_from_prefix(first.data).map_err(|_| VmError::Shim("no header"))?;
        let in_image = |va: u64| va.checked_sub(self.base).is_some_and(|o| o < self.len);
        if header.magic != LIBOS_MAGIC || header.version != u64::from(cloak_abi::VERSION) {
            return Err(VmError::Shim("libos header of another version"));
        }
        if !in_image(header.boot_copy) {
            return Err(VmError::Shim("libos header points outside"));
        }
        Ok(header)
    }
}

/// Builds the first page tables in frames of the pool.
struct Tables<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
    end: u64,
}

impl Tables<'_> {
    /// Maps contiguous memory, by large pages where all three numbers allow. Accessed and dirty bits are
    /// preset: a host that shadows page tables prefetches such entries.
    fn map(&mut self, va: u64, gpa: u64, len: u64, flags: u64) -> Result<(), VmError> {
        let flags = flags | PTE_P | PTE_A | PTE_D;
        let large = (va | gpa | len).is_multiple_of(LARGE);
        let step = if large { LARGE } else { PAGE };
        let mut offset = 0;
        while offset < len {
            let leaf_shift = if large { 21 } else { 12 };
            let mut table = ROOT_GPA;
            for shift in [39, 30, 21].into_iter().take_while(|&s| s > leaf_shift) {
                table = self.child(table, va + offset, shift)?;
            }
            let size = if large { PTE_PS } else { 0 };
            // One table's worth at a time.
            let first = (va + offset) >> leaf_shift & 511;
            let count = (512 - first).min((len - offset) / step);
            let entries: Vec<u8> = (0..count)
                .flat_map(|i| ((gpa + offset + i * step) | flags | size).to_le_bytes())
                .collect();
            put(self.memory, table + first * 8, &entries)?;
            offset += count * step;
        }
        Ok(())
    }

    fn child(&mut self, table: u64, va: u64, shift: u32) -> Result<u64, VmError> {
        let at = GuestAddress(table + (va >> shift & 511) * 8);
        let entry: u64 = self
            .memory
            .read_obj(at)
            .map_err(|_| VmError::Shim("page table outside guest RAM"))?;
        if entry & PTE_P != 0 {
            return Ok(entry & cloak_abi::kcall::PTE_ADDR);
        }
        if self.next == self.end {
            return Err(VmError::Shim("page-table pool too small"));
        }
        let frame = self.next;
        self.next += PAGE;
        // The upper half is the kernel's: not reachable from CPL 3 whatever the entries below say.
        let user = if va >> 63 == 0 { PTE_U } else { 0 };
        self.memory
            .write_obj(frame | PTE_P | PTE_W | PTE_A | user, at)
            .map_err(|_| VmError::Shim("page table outside guest RAM"))?;
        Ok(frame)
    }
}
