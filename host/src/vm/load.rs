//! Puts the shim into guest RAM: images, first page tables, boot block, configurations; a copy of the libos for each
//! context, in frames of its own.

use cloak_abi::boot::{BOOT_MAGIC, BootBlock, ContextBlock, platform};
use cloak_abi::kcall::{PTE_NX, PTE_U, PTE_W};
use cloak_abi::layout::{
    BOOT_GPA, HOLE_END, HOLE_START, KERNEL_GPA, KERNEL_PHYS_VA, KERNEL_VA, LARGE, LIBOS_BASE, LIBOS_PHYS_VA,
    LIBOS_SHARED_VA, LIBOS_VCPU_VA, MAX_RAM, MAX_SEGMENTS, PAGE, ROOT_GPA, SHARED_GPA,
};
use cloak_abi::ring::SHARED_LEN;
use vm_memory::GuestMemoryMmap;
use zerocopy::{FromZeros, IntoBytes};

use super::error::VmError;
use crate::image::memory::GuestPages;
use crate::image::program::Shim;
use crate::image::tables::Tables;
use crate::kvm::ram;

/// What one context is to have.
#[derive(Debug, Clone, Copy)]
pub struct Share<'a> {
    /// Bytes of guest RAM, for its page tables, its libos and itself.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Configuration for its libos ([`cloak_abi::config`]).
    pub config: &'a [u8],
    /// Identity of the context.
    pub identity: [u8; 48],
}

/// Memory that several contexts share.
#[derive(Debug, Clone)]
pub struct Segment {
    /// Bytes.
    pub bytes: u64,
    /// Indices of the contexts, each of which names it.
    pub contexts: Vec<usize>,
}

/// Where a context's first part lies: page-table pool, libos image, vCPU pages, configuration, anchors, further
/// processes.
#[derive(Debug, Clone, Copy)]
struct Head {
    pool: u64,
    pool_end: u64,
    libos: u64,
    vcpu_blocks: u64,
    config: u64,
    anchors: u64,
    exec: u64,
    end: u64,
}

impl Head {
    fn at(start: u64, libos_len: u64, share: &Share<'_>, own_tables: bool) -> Self {
        // Enough for the kernel's window, the libos and a first program; frames become further tables. Where the
        // kernel edits them they can't: they are what memory that is mapped sparsely may need.
        let part = if own_tables { 256 } else { 64 };
        let pool_end = start + (share.memory / part).next_multiple_of(LARGE).max(2 * LARGE);
        let vcpu_blocks = pool_end + libos_len.next_multiple_of(PAGE);
        let config = vcpu_blocks + u64::from(share.vcpus) * PAGE;
        let anchors = cloak_abi::anchor::page_at(config, share.config.len() as u64);
        Self {
            pool: start,
            pool_end,
            libos: pool_end,
            vcpu_blocks,
            config,
            anchors,
            exec: cloak_abi::exec::head_at(config, share.config.len() as u64),
            end: anchors + PAGE + cloak_abi::exec::LEN,
        }
    }
}

/// What the rest of the monitor has to know of a context that was loaded.
#[derive(Debug, Clone, Copy)]
pub struct Placed {
    /// Guest-physical address of its first root table.
    pub root: u64,
    /// The VM's number of its first vCPU.
    pub first_vcpu: u32,
    /// Its frames, as [`ContextBlock::frames`].
    pub frames: [[u64; 2]; 2],
    /// Guest-physical address of its page of anchors.
    pub anchors: u64,
    /// Guest-physical address of the head for further processes.
    pub exec: u64,
    /// First guest-physical address beyond what was loaded. Below it lies what KVM reads by itself.
    pub free_frames: u64,
}

/// Which part of guest RAM is whose.
#[derive(Debug)]
pub struct Layout<'a> {
    /// Bytes of guest RAM in all, a multiple of 2 MiB.
    pub ram: u64,
    shim: Shim<'static>,
    contexts: Vec<(Share<'a>, Head, [[u64; 2]; 2])>,
    /// Range and contexts of each.
    segments: Vec<([u64; 2], Vec<usize>)>,
    own_tables: bool,
}

impl<'a> Layout<'a> {
    /// Divides guest RAM: the kernel, then the contexts one after the other, then what they share.
    ///
    /// # Errors
    /// [`VmError::Shim`] for a damaged image, [`VmError::MemoryTooSmall`] when a context's memory does not hold what it
    /// begins with, [`VmError::MemoryTooLarge`].
    pub fn new(shares: &[Share<'a>], segments: &[Segment], own_tables: bool) -> Result<Self, VmError> {
        let shim = Shim::embedded()?;
        // Bytes of RAM given away, without the hole.
        let mut next = (KERNEL_GPA + shim.kernel.len).next_multiple_of(LARGE);
        let mut contexts = Vec::new();
        for share in shares {
            let memory = share.memory & !(LARGE - 1);
            let least = Head::at(0, shim.libos.len, share, own_tables).end + 8 * LARGE;
            if least > memory {
                return Err(VmError::MemoryTooSmall {
                    asked: share.memory >> 20,
                    least: least.next_multiple_of(LARGE) >> 20,
                });
            }
            // What is loaded does not go around the hole.
            if next < HOLE_START && next + least > HOLE_START {
                next = HOLE_START;
            }
            let end = next + memory;
            let frames = if next >= HOLE_START {
                [[beyond(next), beyond(end)], [0, 0]]
            } else if end > HOLE_START {
                [[next, HOLE_START], [HOLE_END, beyond(end)]]
            } else {
                [[next, end], [0, 0]]
            };
            let head = Head::at(frames[0][0], shim.libos.len, share, own_tables);
            contexts.push((*share, head, frames));
            next = end;
        }
        let mut shared = Vec::new();
        for segment in segments {
            let bytes = segment.bytes.next_multiple_of(LARGE);
            if next < HOLE_START && next + bytes > HOLE_START {
                next = HOLE_START;
            }
            let start = if next >= HOLE_START { beyond(next) } else { next };
            let end = start + segment.bytes.next_multiple_of(PAGE);
            shared.push(([start, end], segment.contexts.clone()));
            next += bytes;
        }
        if next > MAX_RAM {
            let asked = shares.iter().map(|share| share.memory).sum::<u64>();
            return Err(VmError::MemoryTooLarge {
                asked: asked >> 20,
                most: (MAX_RAM - (next - asked)) >> 20,
            });
        }
        Ok(Self {
            ram: next,
            shim,
            contexts,
            segments: shared,
            own_tables,
        })
    }

    /// The segments of context `index`, in their order.
    fn segments_of(&self, index: usize) -> Result<[[u64; 2]; MAX_SEGMENTS], VmError> {
        let mut all = [[0; 2]; MAX_SEGMENTS];
        let own = self
            .segments
            .iter()
            .filter(|(_, contexts)| contexts.contains(&index));
        for (number, (range, _)) in own.enumerate() {
            *all.get_mut(number)
                .ok_or(VmError::Segments { most: MAX_SEGMENTS })? = *range;
        }
        Ok(all)
    }

    /// Loads everything; gives the kernel's entry point, and where the contexts are.
    ///
    /// # Errors
    /// [`VmError::Shim`].
    pub fn load(&self, memory: &GuestMemoryMmap, tsc_khz: u64) -> Result<(u64, Vec<Placed>), VmError> {
        let mut memory = memory;
        self.shim.kernel.place(&mut memory, KERNEL_GPA)?;
        let mut boot = BootBlock::new_zeroed();
        boot.magic = BOOT_MAGIC;
        boot.version = cloak_abi::VERSION;
        boot.contexts = self.contexts.len() as u32;
        let mut first_vcpu = 0;
        let mut placed = Vec::new();
        for (index, (share, head, frames)) in (0u32..).zip(&self.contexts) {
            let block = ContextBlock {
                index,
                vcpus: share.vcpus,
                first_vcpu,
                own_tables: u32::from(self.own_tables),
                frames: *frames,
                segments: self.segments_of(index as usize)?,
                table_pool: head.pool,
                table_pool_end: head.pool_end,
                table_pool_next: 0,
                root: ROOT_GPA + u64::from(index) * PAGE,
                free_frames: head.end,
                libos_gpa: head.libos,
                vcpu_blocks: head.vcpu_blocks,
                config_gpa: head.config,
                config_len: share.config.len() as u64,
                tsc_khz,
                platform: platform::PLAIN as u32,
                private_bit: 0,
                identity: share.identity,
            };
            let block = self.load_context(&mut memory, block)?;
            memory.put(head.config, share.config)?;
            boot.list[index as usize] = block;
            placed.push(Placed {
                root: block.root,
                first_vcpu,
                frames: *frames,
                anchors: head.anchors,
                exec: head.exec,
                free_frames: head.end,
            });
            first_vcpu += share.vcpus;
        }
        memory.put(BOOT_GPA, boot.as_bytes())?;
        Ok((self.shim.kernel.entry, placed))
    }

    /// One context's libos and page tables; gives its block, with the tables used.
    fn load_context(
        &self,
        memory: &mut impl GuestPages,
        mut block: ContextBlock,
    ) -> Result<ContextBlock, VmError> {
        self.shim.libos.place(memory, block.libos_gpa)?;
        let pool = [block.table_pool, block.table_pool_end];
        let mut tables = Tables::new(&mut *memory, block.root, pool, 0);
        self.map_kernel(&mut tables)?;
        for part in &self.shim.libos.parts {
            // Each segment starts a large page of its own (linker script): one translation for the whole text.
            let first = part.va & !(LARGE - 1);
            let len = (part.va + part.memory).next_multiple_of(LARGE) - first;
            tables.map(
                first,
                block.libos_gpa + (first - LIBOS_BASE),
                len,
                part.flags() | PTE_U,
            )?;
        }
        let rw = PTE_W | PTE_NX | PTE_U;
        // The libos reads its page tables (it keeps no second copy of what is mapped). It writes them only where
        // there is no other context whose frames it could map.
        let access = if block.own_tables == 1 { rw } else { PTE_NX | PTE_U };
        let pool_len = block.table_pool_end - block.table_pool;
        tables.map(LIBOS_PHYS_VA + block.root, block.root, PAGE, access)?;
        tables.map(
            LIBOS_PHYS_VA + block.table_pool,
            block.table_pool,
            pool_len,
            access,
        )?;
        let [[_, end], rest] = block.frames;
        let segments = block.segments;
        for [start, end] in [[block.table_pool_end, end], rest].into_iter().chain(segments) {
            tables.map(LIBOS_PHYS_VA + start, start, end - start, rw)?;
        }
        let blocks_len = u64::from(block.vcpus) * PAGE;
        tables.map(LIBOS_VCPU_VA, block.vcpu_blocks, blocks_len, rw)?;
        tables.map(LIBOS_SHARED_VA, shared_gpa(block.index), SHARED_LEN as u64, rw)?;
        block.table_pool_next = tables.next();
        // The libos reads its own copy: the boot block is the kernel's, and tells of other contexts.
        let copy = block.libos_gpa + (self.shim.header.boot_copy - LIBOS_BASE);
        memory.put(copy, block.as_bytes())?;
        Ok(block)
    }

    /// The kernel, and its window on all RAM: the same in every context's tables.
    fn map_kernel(&self, tables: &mut Tables<'_, impl GuestPages>) -> Result<(), VmError> {
        for part in &self.shim.kernel.parts {
            let first = part.va & !(PAGE - 1);
            let len = (part.va + part.memory).next_multiple_of(PAGE) - first;
            tables.map(first, KERNEL_GPA + (first - KERNEL_VA), len, part.flags())?;
        }
        let (low, high) = ram::split(self.ram);
        for (start, len) in [(0, low), (HOLE_END, high)] {
            tables.map(KERNEL_PHYS_VA + start, start, len, PTE_W | PTE_NX)?;
        }
        Ok(())
    }
}

/// Guest-physical address of the shared region of context `index`.
#[must_use]
pub fn shared_gpa(index: u32) -> u64 {
    SHARED_GPA + u64::from(index) * SHARED_LEN as u64
}

/// Guest-physical address of byte `offset` of RAM, which lies behind the hole.
fn beyond(offset: u64) -> u64 {
    offset + (HOLE_END - HOLE_START)
}
