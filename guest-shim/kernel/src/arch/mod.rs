//! What needs the CPU at CPL 0: entry code, descriptor tables, traps, kernel calls.
//!
//! All `unsafe` of the kernel is in this module and the two below it.

mod cpu;
mod entry;
mod kcall;
mod platform;

pub use cpu::{Cpu, panic_stop};

use kcall::block;

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use cloak_abi::boot::{
    BOOT_MAGIC, BootBlock, ContextBlock, LAUNCH_MAGIC, LIBOS_MAGIC, LaunchBlock, LibosHeader,
};
use cloak_abi::layout::{BOOT_GPA, KERNEL_PHYS_VA, LIBOS_BASE, LIBOS_IMAGE_MAX, MAX_CONTEXTS, PAGE};

use cloak_pagetables::frames::{Memory, Owned, Pool};

use crate::shoot::Generation;
use crate::spaces::Spaces;

/// The kernel's window on guest-physical memory.
#[derive(Debug)]
pub struct Window;

impl Memory for Window {
    fn read(&self, gpa: u64) -> u64 {
        // SAFETY: callers pass addresses of page tables, which are RAM and mapped in the window.
        unsafe { ptr::read_volatile((KERNEL_PHYS_VA + gpa) as *const u64) }
    }

    fn write(&mut self, gpa: u64, value: u64) {
        // SAFETY: as above; the kernel's lock is held.
        unsafe { ptr::write_volatile((KERNEL_PHYS_VA + gpa) as *mut u64, value) }
    }

    #[inline(always)]
    fn fill(&mut self, gpa: u64, first: u64, step: u64, count: u64) {
        let at = (KERNEL_PHYS_VA + gpa) as *mut u64;
        // Each instruction costs 0.6 us where CPL 0 is interpreted: two per entry, no loop counter but one
        // per eight entries.
        // SAFETY: `[gpa, gpa + 8 * count)` lies in one table in RAM (the editor's arithmetic).
        unsafe {
            core::arch::asm!(
                "sub {n}, 8",
                "jc 3f",
                "2:",
                "mov [{p}], {v}", "add {v}, {s}",
                "mov [{p} + 8], {v}", "add {v}, {s}",
                "mov [{p} + 16], {v}", "add {v}, {s}",
                "mov [{p} + 24], {v}", "add {v}, {s}",
                "mov [{p} + 32], {v}", "add {v}, {s}",
                "mov [{p} + 40], {v}", "add {v}, {s}",
                "mov [{p} + 48], {v}", "add {v}, {s}",
                "mov [{p} + 56], {v}", "add {v}, {s}",
                "add {p}, 64",
                "sub {n}, 8",
                "jnc 2b",
                "3:",
                "add {n}, 8",
                "jz 5f",
                "4:",
                "mov [{p}], {v}", "add {v}, {s}",
                "add {p}, 8",
                "dec {n}",
                "jnz 4b",
                "5:",
                p = inout(reg) at => _,
                v = inout(reg) first => _,
                n = inout(reg) count => _,
                s = in(reg) step,
                options(nostack),
            );
        }
    }
}

/// What the vCPUs of a context share, under its lock.
#[derive(Debug)]
struct Shared {
    pool: Pool,
    owned: Owned,
    spaces: Spaces,
}

/// What does not change after the start of a context's first vCPU.
#[derive(Debug)]
struct Constants {
    /// The VM's number of its first vCPU.
    first_vcpu: u32,
    vcpus: u32,
    /// Page tables are changed here only.
    checks: bool,
    first_root: u64,
    /// Where a root table may be: the pool, or any frame of a context that edits its tables itself.
    roots: [core::ops::Range<u64>; 2],
    /// First of its frames that nothing is in at the start.
    free_frames: u64,
    /// Bit of private memory, in page tables and in CR3; 0 where there is none.
    private: u64,
    /// A copy, made before any program could change the libos's image.
    header: LibosHeader,
}

/// One context. Contexts have nothing in common: neither frames nor tables, vCPUs, locks or numbers.
#[derive(Debug)]
struct Context {
    constants: UnsafeCell<Constants>,
    shared: UnsafeCell<Shared>,
    /// Guards `shared` and the context's page tables.
    lock: AtomicU32,
    generation: Generation,
    /// Where SYSCALL goes, with [`UNKNOWN_MODE`] until the first vCPU has found out.
    mode: AtomicU32,
}

/// Not yet known where SYSCALL lands.
const UNKNOWN_MODE: u32 = 2;

// SAFETY: `constants` is written by the context's first vCPU before the others are started, `shared` is reached under
// `lock` only.
unsafe impl Sync for Context {}

static CONTEXTS: [Context; MAX_CONTEXTS] = [const {
    Context {
        constants: UnsafeCell::new(Constants {
            first_vcpu: 0,
            vcpus: 0,
            checks: true,
            first_root: 0,
            roots: [0..0, 0..0],
            free_frames: 0,
            private: 0,
            header: LibosHeader {
                magic: 0,
                version: 0,
                start: 0,
                syscall: 0,
                syscall_stashed: 0,
                upcall: 0,
                kcall: 0,
                boot_copy: 0,
                syscall_probe: 0,
            },
        }),
        shared: UnsafeCell::new(Shared {
            pool: Pool::new(0, 0),
            owned: Owned::new((0, 0), (0, 0)),
            spaces: Spaces::new(),
        }),
        lock: AtomicU32::new(0),
        generation: Generation::new(),
        mode: AtomicU32::new(UNKNOWN_MODE),
    }
}; MAX_CONTEXTS];

impl Context {
    fn constants(&self) -> &Constants {
        // SAFETY: written once, by `begin`, before any kernel call of the context.
        unsafe { &*self.constants.get() }
    }

    /// What the context's first vCPU does, alone.
    fn begin(&self, block: &ContextBlock) {
        // Through the window: the libos's own mapping of it is not the kernel's to rely on.
        // SAFETY: the image starts with its header, and is as the monitor left it.
        let header = unsafe { ptr::read_volatile((KERNEL_PHYS_VA + block.libos_gpa) as *const LibosHeader) };
        check_header(&header);
        // SAFETY: no other vCPU of the context runs.
        let (constants, shared) = unsafe { (&mut *self.constants.get(), &mut *self.shared.get()) };
        shared.pool = Pool::new(block.table_pool_next, block.table_pool_end);
        shared.owned = Owned::of(block);
        if let Ok(first) = shared.spaces.vacant(0) {
            *first = block.root;
        }
        *constants = Constants {
            first_vcpu: block.first_vcpu,
            vcpus: block.vcpus,
            checks: block.own_tables == 0,
            first_root: block.root,
            roots: block.frames.map(|[start, end]| start..end),
            free_frames: block.free_frames,
            private: block.private(),
            header,
        };
    }
}

impl Context {
    /// The bit of private memory.
    fn private(&self) -> u64 {
        self.constants().private
    }

    /// Whether there is memory of the context's at `gpa`: a frame, or what was measured.
    fn may_hold(&self, gpa: u64) -> bool {
        let all = self.constants();
        gpa < all.free_frames || all.roots.iter().any(|range| range.contains(&gpa))
    }

    /// Whether the large page at `gpa` is the context's, and was nothing's at the start.
    fn may_accept(&self, gpa: u64) -> bool {
        let all = self.constants();
        gpa >= all.free_frames && all.roots.iter().any(|range| range.contains(&gpa))
    }
}

/// The kernel goes on at these addresses, and some CPUs fault at CPL 0 on those that are not canonical.
fn check_header(header: &LibosHeader) {
    if header.magic != LIBOS_MAGIC || header.version != u64::from(cloak_abi::VERSION) {
        panic_stop(2);
    }
    let entries = [
        header.start,
        header.syscall,
        header.syscall_stashed,
        header.upcall,
        header.kcall,
        header.syscall_probe,
    ];
    if !entries
        .iter()
        .all(|entry| (LIBOS_BASE..LIBOS_BASE + LIBOS_IMAGE_MAX).contains(entry))
    {
        panic_stop(2);
    }
}

/// First Rust code on each vCPU: makes its descriptor tables and enters the libos. `index` is the VM's number of it.
extern "C" fn start(index: u32) -> ! {
    cpu::load_tables(index as usize);
    // SAFETY: a word of RAM, in every kind of start.
    let magic = unsafe { ptr::read_volatile((KERNEL_PHYS_VA + BOOT_GPA) as *const u64) };
    if magic == LAUNCH_MAGIC {
        // SAFETY: as above.
        let block = unsafe { ptr::read_volatile((KERNEL_PHYS_VA + BOOT_GPA) as *const LaunchBlock) };
        platform::start(block.platform, index);
    }
    // SAFETY: the monitor wrote the boot block before the first instruction and does not change it.
    let boot = unsafe { &*((KERNEL_PHYS_VA + BOOT_GPA) as *const BootBlock) };
    if boot.magic != BOOT_MAGIC || boot.version != cloak_abi::VERSION {
        panic_stop(1);
    }
    let mut number = 0;
    while number < boot.contexts as usize {
        let block = &boot.list[number];
        if index.wrapping_sub(block.first_vcpu) < block.vcpus {
            if index == block.first_vcpu {
                CONTEXTS[number].begin(block);
            }
            if block.own_tables != 0 {
                cpu::take_short_way();
            }
            start_in(&CONTEXTS[number], number, block.vcpu_blocks, index);
        }
        number += 1;
    }
    panic_stop(1)
}

/// The vCPU `index` enters its context, which has begun; the blocks of the context's vCPUs are at `blocks`.
fn start_in(context: &'static Context, number: usize, blocks: u64, index: u32) -> ! {
    let all = context.constants();
    let own = index - all.first_vcpu;
    let header = &all.header;
    cpu::install(
        index as usize,
        number as u32,
        KERNEL_PHYS_VA + blocks + u64::from(own) * PAGE,
        header,
    );
    let mode = context.mode.load(Ordering::Relaxed);
    if mode != UNKNOWN_MODE {
        kcall::set_syscall_mode(header, mode);
    }
    entry::enter_libos(header.start, u64::from(own), [0; 2])
}
