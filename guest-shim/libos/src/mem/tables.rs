//! Reading and changing the page tables of an address space: reads go straight to the tables (they are mapped
//! read-only in the window), changes are batched into kernel calls.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use cloak_abi::kcall::{
    Kcall, MAX_SPACES, PTE_A, PTE_ADDR, PTE_D, PTE_NX, PTE_P, PTE_PS, PTE_SHARED, PTE_U, PTE_W, PageOpKind,
};
use cloak_abi::layout::{LARGE, PAGE, ROOT_GPA};
use cloak_abi::vcpu::MAX_OPS;
use spin::Mutex;

use super::area::Protection;
use super::frames::window;
use crate::arch;
use crate::errno::{Errno, SysResult};

/// What a page-table entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// Guest-physical address of the page.
    pub gpa: u64,
    /// Flags of the entry.
    pub flags: u64,
    /// Whether it is part of a large page.
    pub large: bool,
}

impl Leaf {
    /// Whether an access with these rights works.
    #[must_use]
    pub fn allows(&self, write: bool, execute: bool) -> bool {
        self.flags & PTE_P != 0
            && (!write || self.flags & PTE_W != 0)
            && (!execute || self.flags & PTE_NX == 0)
    }

    /// Whether the frame belongs to something else than this address space (a shared file's page).
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.flags & PTE_SHARED != 0
    }
}

fn read(table: u64, va: u64, shift: u32) -> u64 {
    let at = window(table) + ((va >> shift) & 511) * 8;
    // SAFETY: page-table frames are mapped in the window; the kernel may change the word at any time.
    unsafe { core::ptr::read_volatile(at as *const u64) }
}

/// The page tables of one address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tables {
    number: u32,
    root: u64,
}

impl Tables {
    /// Those that the first vCPU starts on.
    #[must_use]
    pub const fn first() -> Self {
        Self {
            number: 0,
            root: ROOT_GPA,
        }
    }

    /// Number of the address space.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.number
    }

    /// What is mapped at `va`, and where the range of which that is true ends.
    #[must_use]
    pub fn look(self, va: u64) -> (Option<Leaf>, u64) {
        let mut table = self.root;
        for shift in [39u32, 30] {
            let value = read(table, va, shift);
            if value == 0 {
                return (None, (va | ((1 << shift) - 1)) + 1);
            }
            table = value & PTE_ADDR;
        }
        let value = read(table, va, 21);
        let end = (va | (LARGE - 1)) + 1;
        if value == 0 {
            return (None, end);
        }
        if value & PTE_PS != 0 || value & PTE_P == 0 {
            let gpa = (value & PTE_ADDR & !(LARGE - 1)) + (va & (LARGE - 1) & !(PAGE - 1));
            return (
                Some(Leaf {
                    gpa,
                    flags: value & !PTE_ADDR,
                    large: true,
                }),
                end,
            );
        }
        let value = read(value & PTE_ADDR, va, 12);
        let end = (va | (PAGE - 1)) + 1;
        let leaf = Leaf {
            gpa: value & PTE_ADDR,
            flags: value & !PTE_ADDR,
            large: false,
        };
        ((value != 0).then_some(leaf), end)
    }

    /// Whether nothing at all is mapped in the 2 MiB range of `va`.
    #[must_use]
    pub fn range_is_empty(self, va: u64) -> bool {
        let (leaf, end) = self.look(va & !(LARGE - 1));
        leaf.is_none() && end > (va | (LARGE - 1))
    }

    /// The parts of `[low, high)` where nothing is mapped, none longer than a large page.
    #[must_use]
    pub fn holes(self, low: u64, high: u64) -> Vec<(u64, u64)> {
        self.ranges(low, high, false)
    }

    /// The parts of `[low, high)` where something is mapped.
    #[must_use]
    pub fn present(self, low: u64, high: u64) -> Vec<(u64, u64)> {
        self.ranges(low, high, true)
    }

    fn ranges(self, low: u64, high: u64, mapped: bool) -> Vec<(u64, u64)> {
        let mut out: Vec<(u64, u64)> = Vec::new();
        let mut va = low;
        while va < high {
            let (leaf, next) = self.look(va);
            let next = next.min(high);
            if leaf.is_some() == mapped {
                match out.last_mut() {
                    Some((start, end)) if *end == va && (mapped || next - *start <= LARGE) => *end = next,
                    _ => out.push((va, next)),
                }
            }
            va = next;
        }
        out
    }
}

/// Numbers of address spaces.
#[derive(Debug)]
struct Numbers {
    next: u32,
    free: Vec<u32>,
    /// Ended, but still current on a vCPU that has had nothing else to do since.
    lingering: Vec<u32>,
}

static NUMBERS: Mutex<Numbers> = Mutex::new(Numbers {
    next: 1,
    free: Vec::new(),
    lingering: Vec::new(),
});

/// Makes an address space: `call` asks the kernel for it by number and gives the root table.
///
/// # Errors
/// ENOMEM when there are no tables or numbers left.
pub fn make(call: impl FnOnce(u64) -> i64) -> SysResult<Tables> {
    retry();
    let number = {
        let mut numbers = NUMBERS.lock();
        match numbers.free.pop() {
            Some(number) => number,
            None if (numbers.next as usize) < MAX_SPACES => {
                numbers.next += 1;
                numbers.next - 1
            }
            None => return Err(Errno::ENOMEM),
        }
    };
    match u64::try_from(call(u64::from(number))) {
        Ok(root) => Ok(Tables { number, root }),
        Err(_) => {
            NUMBERS.lock().free.push(number);
            Err(Errno::ENOMEM)
        }
    }
}

/// The address space is not used any more.
pub fn release(tables: Tables) {
    if !free(tables.number) {
        NUMBERS.lock().lingering.push(tables.number);
    }
}

fn free(number: u32) -> bool {
    let freed = arch::kcall(Kcall::SpaceFree, u64::from(number)) == 0;
    if freed {
        crate::sched::space_freed(number);
        NUMBERS.lock().free.push(number);
    }
    freed
}

/// Tries again to free what was still current on some vCPU.
fn retry() {
    if NUMBERS.lock().lingering.is_empty() {
        return;
    }
    let lingering = core::mem::take(&mut NUMBERS.lock().lingering);
    for number in lingering {
        if !free(number) {
            NUMBERS.lock().lingering.push(number);
        }
    }
}

/// Page-table flags for a protection. Accessed and dirty bits are preset: hosts that shadow page tables
/// prefetch such entries.
#[must_use]
pub fn flags(protection: Protection) -> u64 {
    if protection.is_empty() {
        return PTE_NX;
    }
    let mut flags = PTE_P | PTE_U | PTE_A | PTE_D;
    if protection.contains(Protection::WRITE) {
        flags |= PTE_W;
    }
    if !protection.contains(Protection::EXECUTE) {
        flags |= PTE_NX;
    }
    flags
}

/// Collects operations and carries them out. They are kept here until [`Batch::run`], because a thread that
/// parks between two of them may go on on another vCPU.
#[derive(Debug)]
pub struct Batch {
    tables: Tables,
    ops: Vec<[u64; 4]>,
    reduces: bool,
}

impl Batch {
    /// Nothing yet, for these tables.
    #[must_use]
    pub const fn new(tables: Tables) -> Self {
        Self {
            tables,
            ops: Vec::new(),
            reduces: false,
        }
    }

    /// Maps contiguous frames where others are mapped.
    ///
    /// # Errors
    /// As [`Batch::map`].
    pub fn replace(&mut self, va: u64, gpa: u64, len: u64, flags: u64) -> SysResult<()> {
        self.reduces = true;
        self.push(PageOpKind::Map, va, len, gpa, flags)
    }

    /// Maps contiguous frames.
    ///
    /// # Errors
    /// ENOMEM when there are no page-table frames left.
    pub fn map(&mut self, va: u64, gpa: u64, len: u64, flags: u64) -> SysResult<()> {
        self.push(PageOpKind::Map, va, len, gpa, flags)
    }

    /// Removes what is mapped.
    ///
    /// # Errors
    /// As [`Batch::map`].
    pub fn unmap(&mut self, va: u64, len: u64) -> SysResult<()> {
        self.reduces = true;
        self.push(PageOpKind::Unmap, va, len, 0, 0)
    }

    /// Changes flags of what is mapped.
    ///
    /// # Errors
    /// As [`Batch::map`].
    pub fn protect(&mut self, va: u64, len: u64, flags: u64) -> SysResult<()> {
        self.reduces = true;
        self.push(PageOpKind::Protect, va, len, 0, flags)
    }

    fn push(&mut self, kind: PageOpKind, va: u64, len: u64, gpa: u64, flags: u64) -> SysResult<()> {
        if self.ops.len() == MAX_OPS - 1 {
            self.run()?;
        }
        self.ops.push([va | kind as u64, len, gpa, flags]);
        Ok(())
    }

    /// Carries out what was collected.
    ///
    /// # Errors
    /// ENOMEM when there are no page-table frames left.
    pub fn run(&mut self) -> SysResult<()> {
        if self.ops.is_empty() {
            return Ok(());
        }
        if self.reduces {
            self.ops.push([PageOpKind::Shoot as u64, 0, 0, 0]);
        }
        let block = arch::vcpu_block(arch::vcpu_index());
        for (to, op) in block.ops.iter().zip(&self.ops) {
            for (word, value) in [&to.va_kind, &to.len, &to.gpa, &to.flags].into_iter().zip(op) {
                word.store(*value, Ordering::Relaxed);
            }
        }
        let count = self.ops.len() as i64;
        self.ops.clear();
        self.reduces = false;
        let done = arch::kcall(Kcall::PageOps, count as u64 | u64::from(self.tables.number) << 32);
        if done == count { Ok(()) } else { Err(Errno::ENOMEM) }
    }
}

/// Makes every other vCPU that runs in the address space pass through the kernel.
pub fn barrier(tables: Tables) {
    let mut batch = Batch {
        tables,
        ops: alloc::vec![[PageOpKind::Shoot as u64, 0, 0, 0]],
        reduces: false,
    };
    // A shoot-down alone needs no table frames: it can't fail.
    let _ = batch.run();
}

/// Flag of pages whose frame is not the address space's own.
pub const SHARED: u64 = PTE_SHARED;
/// Write permission, to be taken from or added to flags.
pub const WRITE: u64 = PTE_W;
