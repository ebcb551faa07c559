//! Reading and changing the page tables of an address space: reads go straight to the tables, which the window
//! maps. Changes do too where the context has its VM to itself; else they are batched into kernel calls.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use cloak_abi::boot::ContextBlock;
use cloak_abi::kcall::{
    ALL_SPACES, Kcall, KcallError, MAX_SPACES, PTE_A, PTE_ADDR, PTE_D, PTE_NX, PTE_P, PTE_PS, PTE_SHARED,
    PTE_U, PTE_W, PageOpKind,
};
use cloak_abi::layout::{LARGE, PAGE};
use cloak_abi::vcpu::MAX_OPS;
use cloak_pagetables::frames::{Memory, Owned, Pool};
use cloak_pagetables::tables::{Editor, Op, with_more};
use spin::Mutex;

use super::area::Protection;
use super::frames::{self, window};
use super::held;
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
    unsafe { core::ptr::read_volatile(at as *const u64) & !arch::boot().private() }
}

/// The page tables of one address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tables {
    number: u32,
    /// How often they have been made the copy of something else.
    turn: u32,
    root: u64,
}

impl Tables {
    /// Those that the first vCPU starts on.
    #[must_use]
    pub fn first() -> Self {
        Self {
            number: 0,
            turn: 0,
            root: arch::boot().root,
        }
    }

    /// Bytes that it has in memory, and had at most.
    #[must_use]
    pub fn held(self) -> (u64, u64) {
        held::by(self.number)
    }

    /// Number of the address space.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.number
    }

    /// What the kernel and the vCPUs know it by: its number, and which turn of the tables it is. A vCPU that loaded
    /// them at an earlier turn has to load them again.
    #[must_use]
    pub fn tag(self) -> u64 {
        u64::from(self.number) | u64::from(self.turn) << 32
    }

    /// Whether `tag` is that of these tables, at any turn.
    #[must_use]
    pub fn is_tagged(self, tag: u64) -> bool {
        tag as u32 == self.number
    }

    /// This vCPU continues in the address space.
    pub fn load(self) {
        if arch::switch_space(self.tag(), self.root | arch::boot().private()) < 0 {
            arch::panic_exit("an address space that the kernel does not know");
        }
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
    lingering: Vec<Tables>,
}

static NUMBERS: Mutex<Numbers> = Mutex::new(Numbers {
    next: 1,
    free: Vec::new(),
    lingering: Vec::new(),
});

/// Makes an empty address space.
///
/// # Errors
/// ENOMEM when there are no tables or numbers left.
pub fn make() -> SysResult<Tables> {
    begin(None)
}

/// Whether the libos edits the tables itself.
#[must_use]
pub fn are_own() -> bool {
    OWN.is_own()
}

/// Makes a copy of an address space, as [`Editor::mirror`] does, in tables that a former copy has left where there
/// are some. When this returns, no vCPU has a right that `source` lost.
///
/// # Errors
/// ENOMEM when there are no tables or numbers left; the former copy's are gone.
pub fn copy(source: Tables, former: Option<Tables>, own: &[(u64, u64)]) -> SysResult<Tables> {
    if !OWN.is_own() {
        return begin(Some(source)); // the kernel shoots down
    }
    let mut copy = match former {
        Some(former) => former,
        None => begin(None)?,
    };
    copy.turn = copy.turn.wrapping_add(1);
    held::begin(copy.number, held::by(source.number).0);
    let mut reduced = false;
    let made = OWN.edit(copy.root, |editor| {
        with_tables(editor, |editor| editor.mirror(source.root, own, &mut reduced))
    });
    if reduced {
        barrier(source);
    }
    match made {
        Ok(()) => Ok(copy),
        Err(error) => {
            release(copy);
            Err(error)
        }
    }
}

/// An empty address space, or, where the kernel edits tables, a copy of `source`.
fn begin(source: Option<Tables>) -> SysResult<Tables> {
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
    let root = match source {
        _ if OWN.is_own() => OWN.make(),
        None => by_kernel(arch::kcall(Kcall::SpaceNew, u64::from(number))),
        Some(source) => by_kernel(arch::kcall2(
            Kcall::SpaceCopy,
            u64::from(number),
            u64::from(source.number),
        )),
    };
    match root {
        Ok(root) => {
            held::begin(number, source.map_or(0, |source| held::by(source.number).0));
            Ok(Tables {
                number,
                turn: 0,
                root,
            })
        }
        Err(error) => {
            NUMBERS.lock().free.push(number);
            Err(error)
        }
    }
}

fn by_kernel(result: i64) -> SysResult {
    u64::try_from(result).map_err(|_| Errno::ENOMEM)
}

/// The address space is not used any more.
pub fn release(tables: Tables) {
    if !free(tables) {
        NUMBERS.lock().lingering.push(tables);
    }
}

fn free(tables: Tables) -> bool {
    if OWN.is_own() {
        // A vCPU must not find its root table changed.
        if crate::sched::has_root(tables) {
            return false;
        }
        OWN.edit(tables.root, |editor| editor.end());
    } else if arch::kcall(Kcall::SpaceFree, u64::from(tables.number)) != 0 {
        return false;
    } else {
        crate::sched::space_freed(tables);
    }
    NUMBERS.lock().free.push(tables.number);
    true
}

/// Tries again to free what was still loaded on some vCPU.
fn retry() {
    if NUMBERS.lock().lingering.is_empty() {
        return;
    }
    let lingering = core::mem::take(&mut NUMBERS.lock().lingering);
    for tables in lingering {
        release(tables);
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
    /// Bytes for which there are entries afterwards and were none before, and the other way round.
    more: u64,
    less: u64,
}

impl Batch {
    /// Nothing yet, for these tables.
    #[must_use]
    pub const fn new(tables: Tables) -> Self {
        Self {
            tables,
            ops: Vec::new(),
            reduces: false,
            more: 0,
            less: 0,
        }
    }

    /// Maps contiguous frames where others are mapped. `forgotten`: no vCPU knows of those any more.
    ///
    /// # Errors
    /// As [`Batch::map`].
    pub fn replace(&mut self, va: u64, gpa: u64, len: u64, flags: u64, forgotten: bool) -> SysResult<()> {
        self.push(PageOpKind::Map, va, len, gpa, flags)?;
        self.reduces |= !forgotten;
        Ok(())
    }

    /// Maps contiguous frames where nothing is mapped.
    ///
    /// # Errors
    /// ENOMEM when there are no page-table frames left.
    pub fn map(&mut self, va: u64, gpa: u64, len: u64, flags: u64) -> SysResult<()> {
        self.push(PageOpKind::Map, va, len, gpa, flags)?;
        self.more += len;
        Ok(())
    }

    /// Removes what is mapped, which is `held` bytes of the range.
    ///
    /// # Errors
    /// As [`Batch::map`].
    pub fn unmap(&mut self, va: u64, len: u64, held: u64) -> SysResult<()> {
        self.push(PageOpKind::Unmap, va, len, 0, 0)?;
        self.reduces = true;
        self.less += held;
        Ok(())
    }

    /// Changes flags of what is mapped.
    ///
    /// # Errors
    /// As [`Batch::map`].
    pub fn protect(&mut self, va: u64, len: u64, flags: u64) -> SysResult<()> {
        self.push(PageOpKind::Protect, va, len, 0, flags)?;
        self.reduces = true;
        Ok(())
    }

    /// Gives more rights to what is mapped: nobody has to forget anything.
    ///
    /// # Errors
    /// As [`Batch::map`].
    pub fn raise(&mut self, va: u64, len: u64, flags: u64) -> SysResult<()> {
        self.push(PageOpKind::Protect, va, len, 0, flags)
    }

    /// Where there is no room for another one, those before it are carried out: what is noted of this one is noted after it.
    fn push(&mut self, kind: PageOpKind, va: u64, len: u64, gpa: u64, flags: u64) -> SysResult<()> {
        if self.ops.len() == MAX_OPS - 1 {
            self.run()?;
        }
        self.ops.push([va | kind as u64, len, gpa, flags]);
        Ok(())
    }

    /// Carries out what was collected, and lets every vCPU forget the rights that it took away.
    ///
    /// # Errors
    /// ENOMEM when there are no page-table frames left.
    pub fn run(&mut self) -> SysResult<()> {
        if self.ops.is_empty() {
            return Ok(());
        }
        let reduces = core::mem::take(&mut self.reduces);
        let ops = core::mem::take(&mut self.ops);
        let (more, less) = (core::mem::take(&mut self.more), core::mem::take(&mut self.less));
        if OWN.is_own() {
            OWN.apply(self.tables.root, &ops)?;
            if reduces {
                barrier(self.tables);
            }
            held::change(self.tables.number, more, less);
            return Ok(());
        }
        let shoot = [PageOpKind::Shoot as u64, 0, 0, 0];
        let all = ops.iter().chain(reduces.then_some(&shoot));
        let block = arch::vcpu_block(arch::vcpu_index());
        let mut count = 0;
        for (to, op) in block.ops.iter().zip(all) {
            for (word, value) in [&to.va_kind, &to.len, &to.gpa, &to.flags].into_iter().zip(op) {
                word.store(*value, Ordering::Relaxed);
            }
            count += 1;
        }
        let done = arch::kcall(Kcall::PageOps, count | u64::from(self.tables.number) << 32);
        if done == count as i64 {
            held::change(self.tables.number, more, less);
            Ok(())
        } else {
            Err(Errno::ENOMEM)
        }
    }
}

/// Makes every vCPU that has the address space loaded pass through the kernel and forget its translations.
pub fn barrier(tables: Tables) {
    // Whoever loads it after this look finds the tables as they are now: the number is told before the load.
    fence(Ordering::SeqCst);
    if !OWN.is_own() || crate::sched::is_loaded_elsewhere(tables) {
        arch::kcall(Kcall::Shoot, tables.tag());
    } else if crate::sched::is_loaded_here(tables) {
        arch::kcall(Kcall::Flush, 0);
    }
}

/// The context's tables where it edits them itself: it has the VM to itself, so no other context's frames
/// could be mapped, and code at CPL 3 runs at full speed on hosts that interpret CPL 0.
struct OwnTables {
    pool: Mutex<Option<Pool>>,
}

static OWN: OwnTables = OwnTables {
    pool: Mutex::new(None),
};

impl OwnTables {
    fn is_own(&self) -> bool {
        arch::boot().own_tables != 0
    }

    fn apply(&self, root: u64, ops: &[[u64; 4]]) -> SysResult<()> {
        let owned = Owned::of(arch::boot());
        self.edit(root, |editor| {
            for [va_kind, len, gpa, flags] in ops {
                // Checked all the same: a slip of ours must not become a mapping of the shim's own memory.
                let op = Op::check(*va_kind, *len, *gpa, *flags, &owned).map_err(|_| Errno::EINVAL)?;
                with_tables(editor, |editor| editor.apply(&op))?;
            }
            Ok(())
        })
    }

    fn edit<R>(&self, root: u64, work: impl FnOnce(&mut Editor<'_, Window>) -> R) -> R {
        let boot = arch::boot();
        let mut pool = self.pool.lock();
        work(&mut Editor {
            root,
            memory: &mut Window,
            pool: pool.get_or_insert_with(|| first_pool(boot)),
        })
    }

    /// A new, empty address space. Gives its root.
    fn make(&self) -> SysResult<u64> {
        // The root's place is not known before the pool has given it.
        self.edit(0, |editor| {
            with_tables(editor, |editor| {
                editor.root = editor.pool.take(editor.memory)?;
                editor.begin(arch::boot().root);
                Ok(editor.root)
            })
        })
    }
}

/// Frames that became page tables after the start.
static ADDED: AtomicU64 = AtomicU64::new(0);

/// Page tables in use, and frames of the context that are or were tables and are kept for it. None where the kernel has
/// the tables.
#[must_use]
pub fn usage() -> (u64, u64) {
    if !OWN.is_own() {
        return (0, 0);
    }
    let boot = arch::boot();
    let added = ADDED.load(Ordering::Relaxed);
    let all = (boot.table_pool_end - boot.table_pool_next) / PAGE + added;
    (all - OWN.edit(0, |editor| editor.pool.free(editor.memory)), added)
}

/// What the start left of the tables set aside. Memory that the kernel accepted is not zero.
fn first_pool(boot: &ContextBlock) -> Pool {
    let (next, end) = (boot.table_pool_next, boot.table_pool_end);
    if frames::must_accept() {
        // SAFETY: the context's own frames, in which no table is yet, mapped in the window.
        unsafe { core::ptr::write_bytes(window(next) as *mut u8, 0, (end - next) as usize) };
    }
    Pool::new(next, end)
}

/// Frames that become page tables at a time, when those that were set aside at the start are used up.
const MORE_TABLES: u64 = 64;

/// Work that takes page tables, with frames of the context where those that were set aside are used up.
fn with_tables<R>(
    editor: &mut Editor<'_, Window>,
    work: impl FnMut(&mut Editor<'_, Window>) -> Result<R, KcallError>,
) -> SysResult<R> {
    let forget = || {
        arch::kcall(Kcall::Shoot, ALL_SPACES);
    };
    let more = || {
        let first = super::frames::take_own_run(MORE_TABLES as usize)?;
        ADDED.fetch_add(MORE_TABLES, Ordering::Relaxed);
        Some((first, MORE_TABLES))
    };
    with_more(editor, forget, more, work).map_err(|_| Errno::ENOMEM)
}

/// Guest-physical memory through the libos's window. Entries that are present have the bit of private memory in the tables,
/// where there is one, and nowhere else: the editor knows nothing of it.
struct Window;

impl Memory for Window {
    fn read(&self, gpa: u64) -> u64 {
        // SAFETY: the editor passes addresses inside tables, which the window maps.
        unsafe { core::ptr::read_volatile(window(gpa) as *const u64) & !arch::boot().private() }
    }

    fn write(&mut self, gpa: u64, value: u64) {
        let private = if value & PTE_P != 0 {
            arch::boot().private()
        } else {
            0
        };
        let value = value | private;
        // SAFETY: as above; the pool's lock is held.
        unsafe { core::ptr::write_volatile(window(gpa) as *mut u64, value) }
    }

    fn fill(&mut self, gpa: u64, first: u64, step: u64, count: u64) {
        for i in 0..count {
            self.write(gpa + 8 * i, first.wrapping_add(step.wrapping_mul(i)));
        }
    }
}

/// Flag of pages whose frame is not the address space's own.
pub const SHARED: u64 = PTE_SHARED;
/// Write permission, to be taken from or added to flags.
pub const WRITE: u64 = PTE_W;
