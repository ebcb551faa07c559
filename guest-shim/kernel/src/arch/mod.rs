//! What needs the CPU at CPL 0: entry code, descriptor tables, traps, kernel calls.
//!
//! All `unsafe` of the kernel is in this module and the two below it.

mod cpu;
mod entry;
mod kcall;

pub use cpu::{Cpu, cpu, panic_stop};

use core::ptr;

use cloak_abi::boot::{BOOT_MAGIC, BootBlock, LIBOS_MAGIC, LibosHeader};
use cloak_abi::layout::{BOOT_GPA, KERNEL_PHYS_VA, LIBOS_BASE, LIBOS_VCPU_VA, PAGE};

use cloak_pagetables::frames::{Memory, Owned, Pool};

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

/// What all vCPUs share, under [`kcall::LOCK`].
#[derive(Debug)]
struct Shared {
    pool: Pool,
    owned: Owned,
    spaces: Spaces,
}

/// What the first vCPU finds at its start. Not changed afterwards.
#[derive(Debug)]
struct Constants {
    vcpus: u32,
    /// Several contexts share the VM: page tables are changed here only.
    checks: bool,
    first_root: u64,
    /// The pool of page-table frames.
    tables: core::ops::Range<u64>,
}

static mut CONSTANTS: Constants = Constants {
    vcpus: 0,
    checks: true,
    first_root: 0,
    tables: 0..0,
};

static mut SHARED: Shared = Shared {
    pool: Pool::new(0, 0),
    owned: Owned::new((0, 0), (0, 0)),
    spaces: Spaces::new(),
};

/// First Rust code on each vCPU: makes its descriptor tables and enters the libos.
extern "C" fn start(index: u32) -> ! {
    // SAFETY: the monitor wrote the boot block before the first instruction and does not change it.
    let boot = unsafe { &*((KERNEL_PHYS_VA + BOOT_GPA) as *const BootBlock) };
    if boot.magic != BOOT_MAGIC || boot.version != cloak_abi::VERSION {
        panic_stop(1);
    }
    // SAFETY: the libos image is mapped at LIBOS_BASE by the monitor's page tables.
    let header = unsafe { &*(LIBOS_BASE as *const LibosHeader) };
    if header.magic != LIBOS_MAGIC || header.version != u64::from(cloak_abi::VERSION) {
        panic_stop(2);
    }
    if index == 0 {
        // SAFETY: vCPU 0 alone runs until the libos starts the others by a kernel call.
        unsafe {
            let shared = &mut *(&raw mut SHARED);
            shared.pool = Pool::new(boot.table_pool_next, boot.table_pool_end);
            let low = (boot.table_pool_end, boot.ram_low);
            let high = (
                cloak_abi::layout::HOLE_END,
                cloak_abi::layout::HOLE_END + boot.ram_high,
            );
            shared.owned = Owned::new(low, high);
            if let Ok(first) = shared.spaces.vacant(0) {
                *first = cpu::root();
            }
            *(&raw mut CONSTANTS) = Constants {
                vcpus: boot.vcpus,
                checks: boot.own_tables == 0,
                first_root: cpu::root(),
                tables: boot.table_pool_next..boot.table_pool_end,
            };
        }
    }
    let block = KERNEL_PHYS_VA + boot.vcpu_blocks + u64::from(index) * PAGE;
    cpu::install(
        index as usize,
        block,
        LIBOS_VCPU_VA + u64::from(index) * PAGE,
        header,
    );
    entry::enter_libos(header.start, u64::from(index))
}
