//! Page tables of an address space: the only code that writes them.
//!
//! The libos names addresses, frames and flags; this module checks all three and never maps a frame that
//! is not the context's, never touches the libos slot or the upper half, and never sets a flag outside
//! [`PTE_ALLOWED`]. An entry that is zero maps nothing; an entry without [`PTE_P`] but with an address
//! keeps its frame for later (a page without access rights).

use cloak_abi::kcall::{
    KcallError, PTE_A, PTE_ADDR, PTE_ALLOWED, PTE_D, PTE_P, PTE_PS, PTE_U, PTE_W, PageOpKind, copied,
};
use cloak_abi::layout::{KERNEL_PHYS_VA, KERNEL_VA, LARGE, LIBOS_SLOT, PAGE, is_user_range};

use crate::frames::{Memory, Owned, Pool};

/// Flags of entries that point to a table: rights are decided by the last level.
const TABLE: u64 = PTE_P | PTE_W | PTE_U | PTE_A;
/// Entries of a root table that are the same in every address space: the libos, the kernel's window on
/// memory, the kernel. The tables below them never change.
const COMMON: [u64; 3] = [
    LIBOS_SLOT as u64,
    KERNEL_PHYS_VA >> 39 & 511,
    KERNEL_VA >> 39 & 511,
];
/// Entries of a root table that belong to the program, but for the libos's.
const PROGRAM: u64 = 256;

/// One checked operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    kind: PageOpKind,
    va: u64,
    len: u64,
    gpa: u64,
    flags: u64,
}

impl Op {
    /// Checks what the libos asks for.
    ///
    /// # Errors
    /// Which of the arguments is not acceptable.
    pub fn check(va_kind: u64, len: u64, gpa: u64, flags: u64, owned: &Owned) -> Result<Self, KcallError> {
        let kind = match va_kind & 0xfff {
            0 => PageOpKind::Map,
            1 => PageOpKind::Unmap,
            2 => PageOpKind::Protect,
            3 => PageOpKind::Shoot,
            4 => PageOpKind::Clean,
            _ => return Err(KcallError::Invalid),
        };
        let va = va_kind & !0xfff;
        if kind == PageOpKind::Shoot {
            return Ok(Self {
                kind,
                va: 0,
                len: 0,
                gpa: 0,
                flags: 0,
            });
        }
        if (len | gpa) & (PAGE - 1) != 0 || flags & !PTE_ALLOWED != 0 {
            return Err(KcallError::Invalid);
        }
        if !is_user_range(va, len) {
            return Err(KcallError::Address);
        }
        if kind == PageOpKind::Map && !owned.contains(gpa, len) {
            return Err(KcallError::Frame);
        }
        Ok(Self {
            kind,
            va,
            len,
            gpa,
            flags,
        })
    }

    /// Whether this asks for a shoot-down.
    #[must_use]
    pub fn is_shoot(&self) -> bool {
        self.kind == PageOpKind::Shoot
    }
}

/// Carries out operations on the address space whose root table is at `root`.
#[derive(Debug)]
pub struct Editor<'a, M> {
    /// Guest-physical address of the root table.
    pub root: u64,
    /// Guest-physical memory.
    pub memory: &'a mut M,
    /// Where new tables come from.
    pub pool: &'a mut Pool,
}

impl<M: Memory> Editor<'_, M> {
    /// Carries out one operation, 2 MiB of address space at a time.
    ///
    /// # Errors
    /// [`KcallError::Tables`]; what came before stays done.
    pub fn apply(&mut self, op: &Op) -> Result<(), KcallError> {
        let end = op.va + op.len;
        let mut va = op.va;
        while va < end {
            let stop = end.min((va | (LARGE - 1)) + 1);
            match op.kind {
                PageOpKind::Map => self.map(va, stop, op.gpa + (va - op.va), op.flags)?,
                PageOpKind::Unmap => self.change(va, stop, |_| 0)?,
                PageOpKind::Protect => {
                    self.change(va, stop, |old| old & (PTE_ADDR | PTE_PS) | op.flags)?;
                }
                PageOpKind::Clean => self.change(va, stop, |old| old & !PTE_D)?,
                PageOpKind::Shoot => {}
            }
            va = stop;
        }
        Ok(())
    }

    /// Maps `[va, stop)`, within one 2 MiB range.
    fn map(&mut self, va: u64, stop: u64, gpa: u64, flags: u64) -> Result<(), KcallError> {
        let directory = self.directory(va)?;
        let old = self.memory.read(directory);
        let whole = stop - va == LARGE && gpa & (LARGE - 1) == 0;
        if whole {
            self.memory.write(directory, gpa | flags | PTE_PS);
            if is_table(old) {
                self.pool.give(self.memory, old & PTE_ADDR);
            }
            return Ok(());
        }
        let table = self.table(directory, old)?;
        self.memory
            .fill(entry(table, va, 12), gpa | flags, PAGE, (stop - va) / PAGE);
        Ok(())
    }

    /// Replaces each entry `e` that maps something in `[va, stop)`, within one 2 MiB range, by `new(e)`.
    fn change(&mut self, va: u64, stop: u64, new: impl Fn(u64) -> u64) -> Result<(), KcallError> {
        let Some(directory) = self.find_directory(va) else {
            return Ok(());
        };
        let old = self.memory.read(directory);
        if old == 0 {
            return Ok(());
        }
        let whole = stop - va == LARGE;
        if !is_table(old) && whole {
            self.memory.write(directory, new(old));
            return Ok(());
        }
        if is_table(old) && whole && new(PTE_ADDR) == 0 {
            self.memory.write(directory, 0);
            self.pool.give(self.memory, old & PTE_ADDR);
            return Ok(());
        }
        let table = self.table(directory, old)?;
        let mut slot = entry(table, va, 12);
        let end = slot + (stop - va) / PAGE * 8;
        while slot < end {
            let old = self.memory.read(slot);
            if old != 0 {
                self.memory.write(slot, new(old));
            }
            slot += 8;
        }
        Ok(())
    }

    /// The last-level table under a directory entry: the one there, a new one, or a large page split.
    fn table(&mut self, directory: u64, old: u64) -> Result<u64, KcallError> {
        if is_table(old) {
            return Ok(old & PTE_ADDR);
        }
        let table = self.pool.take(self.memory)?;
        if old != 0 {
            self.memory.fill(table, old & !PTE_PS, PAGE, 512);
        }
        self.memory.write(directory, table | TABLE);
        Ok(table)
    }

    /// The directory (second-level) entry for `va`, with the tables above it made where they lack.
    fn directory(&mut self, va: u64) -> Result<u64, KcallError> {
        let mut table = self.root;
        for shift in [39, 30] {
            let slot = entry(table, va, shift);
            let mut value = self.memory.read(slot);
            if value == 0 {
                value = self.pool.take(self.memory)? | TABLE;
                self.memory.write(slot, value);
            }
            table = value & PTE_ADDR;
        }
        Ok(entry(table, va, 21))
    }

    /// Makes the root table at `self.root`, all zero, one of an empty address space beside `first`.
    pub fn begin(&mut self, first: u64) {
        for slot in COMMON {
            let value = self.memory.read(first + 8 * slot);
            self.memory.write(self.root + 8 * slot, value);
        }
    }

    /// Maps in the empty address space what `source` maps. Private pages lose their write permission in both.
    ///
    /// # Errors
    /// [`KcallError::Tables`]: a part is there, to be removed by [`Editor::end`].
    pub fn copy(&mut self, source: u64) -> Result<(), KcallError> {
        for i in 0..PROGRAM {
            let upper = self.memory.read(source + 8 * i);
            if upper == 0 || i == LIBOS_SLOT as u64 {
                continue;
            }
            let to = self.child(self.root + 8 * i)?;
            for j in 0..512 {
                let directory = self.memory.read((upper & PTE_ADDR) + 8 * j);
                if directory == 0 {
                    continue;
                }
                let to = self.child(to + 8 * j)?;
                for k in 0..512 {
                    let from = (directory & PTE_ADDR) + 8 * k;
                    let value = self.memory.read(from);
                    if value == 0 {
                        continue;
                    }
                    if is_table(value) {
                        let to = self.child(to + 8 * k)?;
                        (0..512).for_each(|l| self.copy_entry((value & PTE_ADDR) + 8 * l, to + 8 * l));
                    } else {
                        self.copy_entry(from, to + 8 * k);
                    }
                }
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn copy_entry(&mut self, from: u64, to: u64) {
        let value = self.memory.read(from);
        if value == 0 {
            return;
        }
        let shared = copied(value);
        if shared != value {
            self.memory.write(from, shared);
        }
        self.memory.write(to, shared);
    }

    /// As [`Editor::copy`], for an address space that may map something already. What is right in it is not written, so
    /// that a host that shadows page tables need not learn it again. For code at CPL 3: it takes more instructions.
    ///
    /// `own`: addresses of pages, in order, with the entry that they get here; they are pages of their own, and those of
    /// `source` stay as they are. `reduced` is set when `source` lost a permission.
    ///
    /// # Errors
    /// [`KcallError::Tables`]: a part is done; it can be done anew, or all removed by [`Editor::end`].
    pub fn mirror(&mut self, source: u64, own: &[(u64, u64)], reduced: &mut bool) -> Result<(), KcallError> {
        let mut own = own.iter().copied().peekable();
        for i in (0..PROGRAM).filter(|&i| i != LIBOS_SLOT as u64) {
            let upper = self.memory.read(source + 8 * i);
            let Some(to) = self.same(upper, self.root + 8 * i, 2)? else {
                continue;
            };
            for j in 0..512 {
                let directory = self.memory.read((upper & PTE_ADDR) + 8 * j);
                let Some(to) = self.same(directory, to + 8 * j, 1)? else {
                    continue;
                };
                for k in 0..512 {
                    let from = (directory & PTE_ADDR) + 8 * k;
                    let value = self.memory.read(from);
                    let slot = to + 8 * k;
                    if !is_table(value) {
                        if is_table(self.memory.read(slot)) {
                            self.same(0, slot, 0)?;
                        }
                        *reduced |= self.mirror_entry(from, value, slot);
                        continue;
                    }
                    let table = self.same(value, slot, 0)?.unwrap_or_default();
                    let first = i << 39 | j << 30 | k << 21;
                    for l in 0..512 {
                        let va = first + l * PAGE;
                        while own.next_if(|&(page, _)| page < va).is_some() {}
                        if let Some((_, entry)) = own.next_if(|&(page, _)| page == va) {
                            self.replace(table + 8 * l, entry);
                            continue;
                        }
                        let from = (value & PTE_ADDR) + 8 * l;
                        let value = self.memory.read(from);
                        *reduced |= self.mirror_entry(from, value, table + 8 * l);
                    }
                }
            }
        }
        Ok(())
    }

    /// A table under the entry at `slot`, if `source`, the other side's entry, points to one: the one there, or a new
    /// one. What is there is given back if it does not. `levels` of directories are below the table.
    fn same(&mut self, source: u64, slot: u64, levels: u32) -> Result<Option<u64>, KcallError> {
        let value = self.memory.read(slot);
        if source == 0 {
            if value != 0 {
                self.memory.write(slot, 0);
                self.give_below(value, levels);
            }
            return Ok(None);
        }
        if is_table(value) {
            return Ok(Some(value & PTE_ADDR));
        }
        self.child(slot).map(Some)
    }

    /// A new table for the entry at `slot`, which points to none.
    fn child(&mut self, slot: u64) -> Result<u64, KcallError> {
        let table = self.pool.take(self.memory)?;
        self.memory.write(slot, table | TABLE);
        Ok(table)
    }

    /// Makes the entry at `slot` the copy of that at `from`, which is `value`. Gives whether `from` lost a permission.
    #[inline(always)]
    fn mirror_entry(&mut self, from: u64, value: u64, slot: u64) -> bool {
        let shared = copied(value);
        if shared != value {
            self.memory.write(from, shared);
        }
        self.replace(slot, shared);
        shared != value
    }

    #[inline(always)]
    fn replace(&mut self, slot: u64, value: u64) {
        if self.memory.read(slot) != value {
            self.memory.write(slot, value);
        }
    }

    /// Gives back all tables of the address space.
    pub fn end(&mut self) {
        for i in 0..PROGRAM {
            let upper = self.memory.read(self.root + 8 * i);
            if upper == 0 || i == LIBOS_SLOT as u64 {
                continue;
            }
            for j in 0..512 {
                let directory = self.memory.read((upper & PTE_ADDR) + 8 * j);
                if directory == 0 {
                    continue;
                }
                for k in 0..512 {
                    let value = self.memory.read((directory & PTE_ADDR) + 8 * k);
                    if is_table(value) {
                        self.pool.give(self.memory, value & PTE_ADDR);
                    }
                }
                self.pool.give(self.memory, directory & PTE_ADDR);
            }
            self.pool.give(self.memory, upper & PTE_ADDR);
        }
        self.pool.give(self.memory, self.root);
    }

    /// Gives back the table that an entry points to, if it does, and `levels` of tables below it.
    fn give_below(&mut self, entry: u64, levels: u32) {
        if !is_table(entry) {
            return;
        }
        let table = entry & PTE_ADDR;
        if levels > 0 {
            for i in 0..512 {
                let below = self.memory.read(table + 8 * i);
                self.give_below(below, levels - 1);
            }
        }
        self.pool.give(self.memory, table);
    }

    fn find_directory(&self, va: u64) -> Option<u64> {
        let mut table = self.root;
        for shift in [39, 30] {
            let value = self.memory.read(entry(table, va, shift));
            if value == 0 {
                return None;
            }
            table = value & PTE_ADDR;
        }
        Some(entry(table, va, 21))
    }
}

/// Does work that takes page tables, and does it anew when it lacked some. Those that rest come first, which takes that
/// every CPU forgets (`forget`); then frames become tables: `more` gives a first one and how many follow.
///
/// Work that gives back what it had taken when it failed fails again with what rests alone. So that is tried once.
///
/// # Errors
/// Those of `work`; [`KcallError::Tables`] when there is no more.
pub fn with_more<M: Memory, R>(
    editor: &mut Editor<'_, M>,
    forget: impl Fn(),
    mut more: impl FnMut() -> Option<(u64, u64)>,
    mut work: impl FnMut(&mut Editor<'_, M>) -> Result<R, KcallError>,
) -> Result<R, KcallError> {
    let mut has_settled = false;
    loop {
        match work(editor) {
            Err(KcallError::Tables) => {}
            result => return result,
        }
        if editor.pool.is_resting() {
            forget();
            editor.pool.settle(editor.memory);
            if !has_settled {
                has_settled = true;
                continue;
            }
        }
        let (first, count) = more().ok_or(KcallError::Tables)?;
        for i in 0..count {
            editor.pool.give(editor.memory, first + i * PAGE);
        }
        editor.pool.settle(editor.memory);
    }
}

/// Guest-physical address of the entry for `va` in the table at `table`.
fn entry(table: u64, va: u64, shift: u32) -> u64 {
    table + ((va >> shift) & 511) * 8
}

/// Whether a directory entry points to a table (a large page without rights has [`PTE_PS`] still).
fn is_table(value: u64) -> bool {
    value & PTE_PS == 0 && value & PTE_P != 0
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "separation_tests.rs"]
mod separation_tests;
