//! The address space of a process: areas, page faults, and the changes that programs ask for.
//!
//! | file | concept |
//! |---|---|
//! | this | mapping, unmapping, rights, the heap |
//! | `fault` | page faults |
//! | `evict` | pages that leave guest memory and come back |
//! | `cow` | copies of an address space, copy-on-write, its end |
//! | `place` | where mappings go |
//! | `sizes` | how large it is |

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::AtomicUsize;

use cloak_abi::layout::{LARGE, PAGE, is_user_range};
use spin::Mutex;

use super::area::{Area, Areas, Backing, Protection};
use super::frames;
use super::pages::PageCache;
use super::tables::{self, Batch, Tables};
use crate::errno::{Errno, SysResult};
use crate::fs::OpenFile;
use crate::fs::file::Mapping;
use crate::patch::Sites;
use crate::sched::{Guard, Lock};

mod cow;
mod evict;
mod fault;
mod place;
mod sizes;

/// What an access wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// Why a page fault can't be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is mapped there (SEGV_MAPERR).
    NotMapped,
    /// The rights do not allow it (SEGV_ACCERR).
    Access,
    /// The file ends before it, or can't be read (SIGBUS).
    Bus,
}

/// An address space.
#[derive(Debug)]
pub struct Space {
    /// Its page tables.
    pub tables: Tables,
    /// System-call sites patched in it.
    pub sites: Arc<Sites>,
    inner: Lock<Inner>,
    /// Processes that use it (more than one between `vfork` and `execve`).
    users: AtomicUsize,
}

/// What the lock guards.
#[derive(Debug)]
pub struct Inner {
    /// Its page tables.
    pub tables: Tables,
    sites: Arc<Sites>,
    /// The areas.
    pub areas: Areas,
    /// Whether frames may be mapped by other address spaces too.
    copied: bool,
    /// Pages that were copied when written after a `fork`, here and in relatives since the last `execve`: a few, which
    /// the next `fork` copies at once.
    hot: Arc<Mutex<BTreeSet<u64>>>,
    /// Where its copies leave what the next one can use.
    nest: Arc<Mutex<cow::Nest>>,
    /// The same of the address space that this one was copied from.
    home: Weak<Mutex<cow::Nest>>,
    /// The vCPU on which the fault that is being served happened.
    faulted_on: usize,
    /// Where to look next for pages that leave.
    hand: u64,
    /// Faults for which none is looked for.
    pause: u32,
    brk_start: u64,
    brk: u64,
    /// Page faults served.
    pub faults: u64,
}

/// What to map.
#[derive(Debug)]
pub struct Request {
    /// Wanted address, or 0.
    pub hint: u64,
    /// Bytes, a multiple of the page size.
    pub len: u64,
    /// Rights.
    pub protection: Protection,
    /// Where exactly.
    pub place: Place,
    /// `MAP_SHARED`.
    pub shared: bool,
    /// File and offset; none: zeros.
    pub file: Option<(Arc<OpenFile>, u64)>,
    /// Fill at once (`MAP_POPULATE`).
    pub populate: bool,
    /// Shown in `/proc/self/maps`.
    pub name: &'static str,
}

/// How an address is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At the hint if that is free, else anywhere.
    Anywhere,
    /// In the low 2 GiB.
    Low,
    /// At the hint, replacing what is there.
    Fixed,
    /// At the hint, or EEXIST.
    FixedFree,
}

/// The running thread's address space.
#[must_use]
pub fn current() -> &'static Space {
    crate::sched::current().space()
}

impl Space {
    /// Takes the lock.
    pub fn lock(&self) -> Guard<'_, Inner> {
        self.inner.lock()
    }

    /// Serves a page fault.
    ///
    /// # Errors
    /// Why it can't be: the thread gets a signal.
    pub fn fault(&self, address: u64, access: Access) -> Result<(), Fault> {
        let vcpu = crate::arch::vcpu_index();
        let mut inner = self.inner.lock();
        inner.faulted_on = vcpu;
        inner.fault(address, access)
    }

    /// What identifies the word at `address` if it is in shared memory: its guest-physical address.
    pub fn shared_key(&self, address: u64) -> Option<u64> {
        self.tables
            .look(address)
            .0
            .filter(tables::Leaf::is_shared)
            .map(|leaf| leaf.gpa + address % PAGE)
    }

    /// Maps; gives the address.
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub fn map(&self, request: Request) -> SysResult {
        self.inner.lock().map(request)
    }

    /// Unmaps.
    ///
    /// # Errors
    /// EINVAL for a range that can't be the program's; ENOMEM.
    pub fn unmap(&self, start: u64, len: u64) -> SysResult<()> {
        self.inner.lock().unmap(start, len)
    }
}

impl Inner {
    /// Maps; gives the address.
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub fn map(&mut self, request: Request) -> SysResult {
        let start = self.place(&request)?;
        let end = start + request.len;
        let backing = match &request.file {
            None if request.shared => Backing::Pages(Arc::new(PageCache::default()), 0, None),
            None => Backing::Anonymous,
            Some((file, offset)) => match file.file.map(request.shared)? {
                Mapping::Pages(pages) if request.shared => Backing::Pages(pages, *offset, Some(file.clone())),
                Mapping::Pages(pages) => {
                    pages.set_copied();
                    Backing::File(file.clone(), *offset)
                }
                Mapping::Read => Backing::File(file.clone(), *offset),
                Mapping::Zero if request.shared => Backing::Pages(Arc::new(PageCache::default()), 0, None),
                Mapping::Zero => Backing::Anonymous,
            },
        };
        if request.place == Place::Fixed && !self.areas.is_free(start, end) {
            self.unmap(start, request.len)?;
        }
        let shared = matches!(backing, Backing::Pages(..));
        let area = Area {
            shared,
            backing,
            name: request.name,
            ..Area::anonymous(end, request.protection)
        };
        self.areas.insert(start, area);
        if request.populate && !request.protection.is_empty() {
            self.populate(start, end);
        } else if request.place == Place::Fixed {
            self.map_ahead(start);
        } else if request.len <= fault::AHEAD_ZERO && request.file.is_none() && !request.shared {
            self.map_zeros_ahead(start, end);
        }
        Ok(start)
    }

    /// Unmaps.
    ///
    /// # Errors
    /// EINVAL for a range that can't be the program's; ENOMEM.
    pub fn unmap(&mut self, start: u64, len: u64) -> SysResult<()> {
        if start & (PAGE - 1) != 0 || len == 0 {
            return Err(Errno::EINVAL);
        }
        let len = len.checked_next_multiple_of(PAGE).ok_or(Errno::EINVAL)?;
        let end = start
            .checked_add(len)
            .filter(|&e| e <= 1 << 47)
            .ok_or(Errno::EINVAL)?;
        let removed = self.areas.remove(start, end);
        self.drop_pages(removed.iter().map(|(s, a)| (*s, a.end)))?;
        // The last users of shared pages may write them back now.
        for (start, area) in removed {
            if area.protection.contains(Protection::EXECUTE) {
                self.sites.forget(start, area.end);
            }
            if let Backing::Pages(pages, _, Some(file)) = &area.backing {
                let _ = file.file.sync_pages(pages, 0, u64::MAX);
            }
        }
        Ok(())
    }

    /// Removes what is mapped in the ranges and frees the frames.
    fn drop_pages(&mut self, ranges: impl Iterator<Item = (u64, u64)>) -> SysResult<()> {
        let mut batch = Batch::new(self.tables);
        let mut freed = Vec::new();
        for (start, end) in ranges {
            let mut first = None;
            let mut last = start;
            let mut held = 0;
            let mut va = start;
            while va < end {
                let (leaf, next) = self.tables.look(va);
                let next = next.min(end);
                if let Some(leaf) = leaf {
                    first = first.or(Some(va));
                    last = next;
                    held += next - va;
                    if !leaf.is_shared() {
                        push_run(&mut freed, leaf.gpa, (next - va) / PAGE);
                    }
                }
                va = next;
            }
            if let Some(first) = first {
                // A range whose tables go altogether is cheaper to remove whole.
                let whole = |a: u64, b: u64| a >= start && b <= end;
                let low = if whole(first & !(LARGE - 1), first) {
                    first & !(LARGE - 1)
                } else {
                    first
                };
                let high = last.next_multiple_of(LARGE);
                let high = if whole(last, high) { high } else { last };
                batch.unmap(low, high - low, held)?;
            }
        }
        batch.run()?;
        for (gpa, pages) in freed {
            frames::release_run(gpa, pages);
        }
        Ok(())
    }

    /// `mprotect`.
    ///
    /// # Errors
    /// ENOMEM for holes.
    pub fn protect(&mut self, start: u64, end: u64, protection: Protection) -> SysResult<()> {
        let mut batch = Batch::new(self.tables);
        let parts: Vec<(u64, u64, Protection, bool)> = self
            .areas
            .within(start, end)
            .into_iter()
            .filter_map(|(s, e)| self.areas.find(s).map(|(_, a)| (s, e, a.protection, a.shared)))
            .collect();
        for &(s, e, old, shared) in &parts {
            if old == protection {
                continue;
            }
            let mut flags = tables::flags(protection);
            if shared {
                // Writable pages of shared files become writable when written (so that they are known as dirty).
                flags = (flags | tables::SHARED) & !tables::WRITE;
            }
            if !shared && self.copied && protection.contains(Protection::WRITE) {
                // What others have too stays without write permission until it is written.
                for (first, last, own) in self.owned_runs(s, e) {
                    let right = if own { tables::WRITE } else { 0 };
                    batch.protect(first, last - first, flags & !tables::WRITE | right)?;
                }
                continue;
            }
            for (first, last) in self.tables.present(s, e) {
                batch.protect(first, last - first, flags)?;
            }
        }
        batch.run()?;
        self.areas.change(start, end, |a| a.protection = protection);
        if self.areas.covers(start, end) {
            Ok(())
        } else {
            Err(Errno::ENOMEM)
        }
    }

    /// Drops the content of `[start, end)`: zeros, or the file again, at the next touch.
    ///
    /// # Errors
    /// ENOMEM for holes.
    pub fn discard(&mut self, start: u64, end: u64) -> SysResult<()> {
        for (s, e) in self.areas.within(start, end) {
            let Some((_, area)) = self.areas.find(s) else {
                continue;
            };
            let anonymous = matches!(area.backing, Backing::Anonymous);
            let writable = area.protection.contains(Protection::WRITE);
            if !area.left.is_empty() {
                self.areas.change(s, e, |a| a.left.clear());
            }
            // Clearing half a megabyte costs less than leaving for the kernel and faulting it in again.
            if anonymous && writable && e - s <= LARGE / 4 {
                self.wipe(s, e)?;
            } else {
                self.drop_pages(core::iter::once((s, e)))?;
                self.areas.change(s, e, |a| drop(core::mem::take(&mut a.pins)));
            }
        }
        if self.areas.covers(start, end) {
            Ok(())
        } else {
            Err(Errno::ENOMEM)
        }
    }

    /// Drops what is mapped of pages `[first, last)` of a file that gave them up: from shared mappings, and from
    /// private ones with what was copied there if `and_copies`.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn forget_pages(
        &mut self,
        pages: &Arc<PageCache>,
        first: u64,
        last: u64,
        and_copies: bool,
    ) -> SysResult<()> {
        let is_same = |of: &Arc<PageCache>| Arc::ptr_eq(of, pages);
        let mut gone = Vec::new();
        for (start, area) in self.areas.iter() {
            let offset = match &area.backing {
                Backing::Pages(of, offset, _) if is_same(of) => offset,
                Backing::File(file, offset)
                    if and_copies && file.file.mapped_pages().as_ref().is_some_and(is_same) =>
                {
                    offset
                }
                _ => continue,
            };
            let at = |page: u64| {
                let bytes = page.saturating_mul(PAGE).saturating_sub(*offset);
                start.saturating_add(bytes).min(area.end)
            };
            gone.push((at(first), at(last)));
        }
        gone.retain(|(low, high)| low < high);
        self.drop_pages(gone.iter().copied())?;
        for (low, high) in gone {
            self.areas
                .change(low, high, |area| drop(core::mem::take(&mut area.pins)));
        }
        Ok(())
    }

    /// Moves what is mapped in `[from, from + len)` to `to`, which is free.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn move_range(&mut self, from: u64, len: u64, to: u64) -> SysResult<()> {
        let areas = self.areas.remove(from, from + len);
        let mut batch = Batch::new(self.tables);
        let (mut va, mut held) = (from, 0);
        while va < from + len {
            let (leaf, next) = self.tables.look(va);
            let next = next.min(from + len);
            if let Some(leaf) = leaf {
                held += next - va;
                batch.map(
                    to + (va - from),
                    leaf.gpa,
                    next - va,
                    leaf.flags & cloak_abi::kcall::PTE_ALLOWED,
                )?;
            }
            va = next;
        }
        batch.unmap(from, len, held)?;
        batch.run()?;
        for (start, mut area) in areas {
            let shift = |va: u64| va - from + to;
            area.end = shift(area.end);
            area.pins = core::mem::take(&mut area.pins)
                .into_iter()
                .map(|(va, f)| (shift(va), f))
                .collect::<BTreeMap<_, _>>();
            area.left = core::mem::take(&mut area.left)
                .into_iter()
                .map(|(va, left)| (shift(va), left))
                .collect();
            area.ahead = (0, 0);
            self.areas.insert(shift(start), area);
        }
        Ok(())
    }

    /// Sets where the heap starts (page aligned, nothing above it for a while).
    pub fn init_brk(&mut self, start: u64) {
        // At a large boundary: the heap grows into one large page after the other.
        self.brk_start = start.next_multiple_of(LARGE);
        self.brk = self.brk_start;
    }

    /// `brk`: gives the end of the heap, moved when that was possible.
    pub fn set_brk(&mut self, wanted: u64) -> u64 {
        if wanted < self.brk_start || wanted == self.brk {
            return self.brk;
        }
        let mapped = |brk: u64| brk.next_multiple_of(LARGE);
        let (old, new) = (mapped(self.brk), mapped(wanted));
        if new > old {
            if !is_user_range(old, new - old) || !self.areas.is_free(old, new) {
                return self.brk;
            }
            let area = Area {
                name: "[heap]",
                ..Area::anonymous(new, Protection::READ | Protection::WRITE)
            };
            self.areas.insert(old, area);
        } else if wanted < self.brk {
            // What grows again must be zero.
            if new < old && self.unmap(new, old - new).is_err() {
                return self.brk;
            }
            if self.wipe(wanted, new).is_err() {
                return self.brk;
            }
        }
        self.brk = wanted;
        wanted
    }

    /// Start and end of the heap.
    #[must_use]
    pub fn brk_range(&self) -> (u64, u64) {
        (self.brk_start, self.brk)
    }
}

/// Adds frames to a list of runs, joining with the last where they touch.
fn push_run(runs: &mut Vec<(u64, u64)>, gpa: u64, pages: u64) {
    match runs.last_mut() {
        Some((last, count)) if *last + *count * PAGE == gpa => *count += pages,
        _ => runs.push((gpa, pages)),
    }
}
