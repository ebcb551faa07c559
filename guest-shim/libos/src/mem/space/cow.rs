//! Copies of an address space, copy-on-write, and its end.
//!
//! `fork` copies page tables, not pages: one kernel call does it and takes the write permission of private
//! pages away on both sides. A frame that several address spaces map has its other owners counted
//! ([`frames::is_shared`]). The first write to such a page copies it; the last owner just gets its permission back.
//! A copy that ends leaves its tables to the next one ([`Former`]).

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use cloak_abi::layout::{LARGE, PAGE};

use super::{Inner, Space, push_run};
use crate::arch;
use crate::errno::SysResult;
use crate::mem::area::{Areas, Protection};
use crate::mem::tables::{self, Batch, Leaf, Tables};
use crate::mem::{file_frames, frames};
use crate::patch::Sites;
use crate::sched::Lock;

/// Bytes around a page that is written in which pages get their permission back, too.
const AROUND: u64 = 8 * PAGE;
/// Most pages that are copied in advance.
const HOT_MAX: usize = 64;

impl Space {
    fn with(tables: Tables, areas: Areas, sites: Sites, brk: (u64, u64)) -> Arc<Self> {
        let sites = Arc::new(sites);
        Arc::new(Self {
            tables,
            sites: sites.clone(),
            inner: Lock::new(Inner {
                tables,
                sites,
                areas,
                copied: false,
                hot: Arc::default(),
                nest: Arc::default(),
                home: Weak::new(),
                faulted_on: 0,
                hand: 0,
                pause: 0,
                brk_start: brk.0,
                brk: brk.1,
                faults: 0,
            }),
            users: AtomicUsize::new(1),
        })
    }

    /// The one that the first vCPU starts in.
    #[must_use]
    pub fn first() -> Arc<Self> {
        Self::with(Tables::first(), Areas::default(), Sites::default(), (0, 0))
    }

    /// An empty one.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn empty() -> SysResult<Arc<Self>> {
        file_frames::begin();
        let tables = tables::make()?;
        Ok(Self::with(tables, Areas::default(), Sites::default(), (0, 0)))
    }

    /// A copy, as `fork` makes it. `alone`: the caller is the only thread that runs in this address space.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn copy(&self, alone: bool) -> SysResult<Arc<Self>> {
        file_frames::begin();
        let _still = crate::patch::hold();
        let mut inner = self.inner.lock();
        let (tables, areas) = inner.copy(alone)?;
        let brk = inner.brk_range();
        let copy = Self::with(tables, areas, self.sites.duplicate(), brk);
        {
            let mut other = copy.inner.lock();
            other.copied = true;
            other.hot = inner.hot.clone();
            other.home = Arc::downgrade(&inner.nest);
        }
        Ok(copy)
    }

    /// Another process uses it.
    pub fn share(self: &Arc<Self>) -> Arc<Self> {
        self.users.fetch_add(1, Ordering::Relaxed);
        self.clone()
    }

    /// Whether one process alone uses it.
    #[must_use]
    pub fn is_sole(&self) -> bool {
        self.users.load(Ordering::SeqCst) == 1
    }

    /// A process does not use it any more. With the last one its memory goes. No thread may come back to it.
    pub fn leave(&self) {
        if self.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.inner.lock().end();
        }
    }
}

impl Inner {
    fn copy(&mut self, alone: bool) -> SysResult<(Tables, Areas)> {
        let source = self.tables;
        self.copied = true;
        let hot = self.own_hot_pages();
        // Where another thread could write meanwhile, pages are copied when they can't be written any more.
        let at_once = alone && tables::are_own();
        let former = self.nest.lock().leave();
        let (former, frames) = former.map_or((None, BTreeMap::new()), |f| (Some(f.tables), f.frames));
        let own = copies(if at_once { &hot } else { &[] }, frames);
        let entries: Vec<(u64, u64)> = own.iter().map(|p| (p.page, p.gpa | p.flags)).collect();
        let copy = tables::copy(source, former, &entries)
            .inspect_err(|_| own.iter().for_each(|p| frames::release_run(p.gpa, 1)))?;
        let mut areas = Areas::default();
        let mut batch = Batch::new(copy);
        let mut failed = None;
        for (start, area) in self.areas.iter() {
            if area.dont_fork || area.wipe_on_fork {
                for (first, last) in source.present(start, area.end) {
                    failed = failed.or(batch.unmap(first, last - first, last - first).err());
                }
            } else {
                for (gpa, pages) in private_runs(source, start, area.end) {
                    frames::share_run(gpa, pages);
                }
            }
            if !area.dont_fork {
                let mut area = area.clone();
                if area.wipe_on_fork {
                    area.pins.clear();
                    area.left.clear();
                }
                areas.insert(start, area);
            }
        }
        // Those have a frame on each side.
        own.iter().for_each(|p| frames::release_run(p.source, 1));
        if failed.is_none() && !at_once {
            failed = self.copy_hot_pages(&mut batch, &hot).err();
        }
        match failed.or(batch.run().err()) {
            None => Ok((copy, areas)),
            Some(error) => {
                for (start, area) in areas.iter().filter(|(_, a)| !a.wipe_on_fork) {
                    for (gpa, pages) in private_runs(copy, start, area.end) {
                        frames::release_run(gpa, pages);
                    }
                }
                tables::release(copy);
                Err(error)
            }
        }
    }

    /// Those of the pages often written after a `fork` that are this address space's alone, in order.
    fn own_hot_pages(&self) -> Vec<Hot> {
        let pages: Vec<u64> = self.hot.lock().iter().copied().collect();
        if tables::are_own() {
            self.split_around(&pages);
        }
        let own = |page: u64| self.hot_page(page).filter(|(_, leaf)| !leaf.large);
        pages.into_iter().filter_map(own).map(|(hot, _)| hot).collect()
    }

    /// A page that can be copied at once, with what maps it.
    fn hot_page(&self, page: u64) -> Option<(Hot, Leaf)> {
        let (_, area) = self.areas.find(page)?;
        let leaf = self.tables.look(page).0?;
        let usable = !area.dont_fork
            && !area.wipe_on_fork
            && area.protection.contains(Protection::WRITE)
            && !leaf.is_shared()
            && !frames::is_shared(leaf.gpa);
        let hot = Hot {
            page,
            source: leaf.gpa,
            flags: tables::flags(area.protection),
        };
        usable.then_some((hot, leaf))
    }

    /// Large pages that hold some of these become small ones: else each copy would split its own at the first write.
    fn split_around(&self, pages: &[u64]) {
        let mut batch = Batch::new(self.tables);
        for (hot, _) in pages
            .iter()
            .filter_map(|&page| self.hot_page(page))
            .filter(|(_, leaf)| leaf.large)
        {
            // Without a table for it the page is copied when it is written.
            let _ = batch.protect(hot.page, PAGE, hot.flags);
        }
        let _ = batch.run();
    }

    /// The copy gets frames of its own for these pages, and this side its write permission back: both will write
    /// them soon.
    fn copy_hot_pages(&self, copy: &mut Batch, hot: &[Hot]) -> SysResult<()> {
        let mut back = Batch::new(self.tables);
        let copied = copies(hot, BTreeMap::new());
        for page in &copied {
            copy.replace(page.page, page.gpa, PAGE, page.flags, true)?;
            back.raise(page.page, PAGE, page.flags)?;
        }
        copy.run()?;
        copied.iter().for_each(|p| frames::release_run(p.source, 1));
        back.run()
    }

    /// Frees everything.
    fn end(&mut self) {
        let areas = core::mem::take(&mut self.areas);
        let tables = self.tables;
        let former = self.nest.lock().close();
        former.into_iter().for_each(Former::release);
        let home = self.home.upgrade().filter(|_| tables::are_own());
        let kept = home.as_ref().map(|_| self.hot_frames(&areas)).unwrap_or_default();
        let freed: Vec<_> = areas
            .iter()
            .flat_map(|(start, area)| private_runs(tables, start, area.end))
            .collect();
        // Nobody runs in it: a vCPU that still has it loaded does not use what it maps.
        if tables.number() == 0 {
            // The first vCPU's own stays; what it maps goes.
            let mut batch = Batch::new(tables);
            for (start, area) in areas.iter() {
                for (first, last) in tables.present(start, area.end) {
                    // Unmapping needs no table but where it cuts a large page, which whole areas don't.
                    let _ = batch.unmap(first, last - first, last - first);
                }
            }
            let _ = batch.run();
        } else if home.is_none() {
            tables::release(tables);
        }
        // Those stay with the tables.
        kept.values().for_each(|&gpa| frames::share_run(gpa, 1));
        freed
            .into_iter()
            .for_each(|(gpa, pages)| frames::release_run(gpa, pages));
        if let Some(home) = home {
            // What else they map is others' from now on, and seen by nobody: they are made anew before they are loaded
            // again.
            let refused = home.lock().come(Former { tables, frames: kept });
            if let Some(former) = refused {
                former.release();
            }
        }
        for (_, area) in areas.iter() {
            if let super::Backing::Pages(pages, _, Some(file)) = &area.backing {
                let _ = file.file.sync_pages(pages, 0, u64::MAX);
            }
        }
    }

    /// The frames of pages often written after a `fork`, where they are this address space's alone.
    fn hot_frames(&self, areas: &Areas) -> BTreeMap<u64, u64> {
        let hot = self.hot.lock();
        let frame = |&page: &u64| {
            areas.find(page)?;
            let leaf = self.tables.look(page).0?;
            let own = !leaf.large && !leaf.is_shared() && !frames::is_shared(leaf.gpa);
            own.then_some((page, leaf.gpa))
        };
        hot.iter().filter_map(frame).collect()
    }

    /// The private page at `page` was written but may not be: it gets a frame of its own, or its permission back.
    /// So do its neighbours.
    pub(super) fn make_writable(&mut self, page: u64) -> SysResult<()> {
        let Some((start, area)) = self.areas.find(page) else {
            return Ok(());
        };
        let (end, flags) = (area.end, tables::flags(area.protection));
        let mut batch = Batch::new(self.tables);
        let chunk = page & !(LARGE - 1);
        if let (Some(leaf), _) = self.tables.look(chunk)
            && leaf.large
            && chunk >= start
            && chunk + LARGE <= end
            && !frames::is_any_shared(leaf.gpa, LARGE / PAGE)
        {
            batch.raise(chunk, LARGE, flags)?;
            return batch.run();
        }
        {
            let mut hot = self.hot.lock();
            if hot.len() < HOT_MAX {
                hot.insert(page);
            }
        }
        let low = (page & !(AROUND - 1)).max(start);
        let high = ((page & !(AROUND - 1)) + AROUND).min(end);
        let mut old = Vec::new();
        for (first, last, own) in self.owned_runs(low, high) {
            if own {
                batch.raise(first, last - first, flags)?;
            } else if (first..last).contains(&page) {
                // The fault itself made its vCPU forget this page.
                let forgotten =
                    self.faulted_on == arch::vcpu_index() && !crate::sched::is_loaded_elsewhere(self.tables);
                self.replace(&mut batch, page, page + PAGE, flags, &mut old, forgotten)?;
            }
        }
        batch.run()?;
        for (gpa, pages) in old {
            frames::release_run(gpa, pages);
        }
        Ok(())
    }

    /// Maps copies instead of the frames of `[first, last)`, which join `old`.
    fn replace(
        &self,
        batch: &mut Batch,
        first: u64,
        last: u64,
        flags: u64,
        old: &mut Vec<(u64, u64)>,
        forgotten: bool,
    ) -> SysResult<()> {
        let mut va = first;
        while va < last {
            let whole = ((last - va) / PAGE) as usize;
            let (gpa, pages) = match frames::take_run_dirty(whole) {
                Ok(gpa) => (gpa, whole as u64),
                Err(_) => (frames::take_run_dirty(1)?, 1),
            };
            for i in 0..pages {
                let Some(leaf) = self.tables.look(va + i * PAGE).0 else {
                    continue;
                };
                copy_page(gpa + i * PAGE, leaf.gpa);
                push_run(old, leaf.gpa, 1);
            }
            batch.replace(va, gpa, pages * PAGE, flags, forgotten)?;
            va += pages * PAGE;
        }
        Ok(())
    }

    /// The mapped parts of `[low, high)`, and whether their frames are this address space's alone. A part of
    /// shared mappings is left out.
    pub(super) fn owned_runs(&self, low: u64, high: u64) -> Vec<(u64, u64, bool)> {
        let mut out: Vec<(u64, u64, bool)> = Vec::new();
        let mut va = low;
        while va < high {
            let (leaf, next) = self.tables.look(va);
            let next = next.min(high);
            let Some(leaf) = leaf.filter(|l| !l.is_shared()) else {
                va = next;
                continue;
            };
            let mut push = |first: u64, last: u64, own: bool| match out.last_mut() {
                Some((_, end, was)) if *end == first && *was == own => *end = last,
                _ => out.push((first, last, own)),
            };
            if frames::is_any_shared(leaf.gpa, (next - va) / PAGE) {
                for i in 0..(next - va) / PAGE {
                    let at = va + i * PAGE;
                    push(at, at + PAGE, !frames::is_shared(leaf.gpa + i * PAGE));
                }
            } else {
                push(va, next, true);
            }
            va = next;
        }
        out
    }

    /// What the program has at `address`; nothing where not all of it is mapped and in memory.
    #[must_use]
    pub fn peek(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = alloc::vec![0; len];
        let mut done = 0;
        while done < len {
            let va = address + done as u64;
            let here = (PAGE - va % PAGE).min((len - done) as u64) as usize;
            let leaf = self.tables.look(va).0?;
            let at = frames::window(leaf.gpa) + va % PAGE;
            // SAFETY: the window maps the frame, which stays mapped here while the lock is held; the bytes are our own.
            unsafe { arch::copy_own(bytes[done..].as_mut_ptr(), at as *const u8, here) };
            done += here;
        }
        Some(bytes)
    }

    /// Makes sure that the mapped, private page at `page` is this address space's alone: it is to be written
    /// through the window.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn own(&mut self, page: u64) -> SysResult<()> {
        let page = page & !(PAGE - 1);
        let (Some(leaf), _) = self.tables.look(page) else {
            return Ok(());
        };
        if leaf.is_shared() || !frames::is_shared(leaf.gpa) {
            return Ok(());
        }
        let flags = leaf.flags & cloak_abi::kcall::PTE_ALLOWED;
        let mut batch = Batch::new(self.tables);
        let mut old = Vec::new();
        self.replace(&mut batch, page, page + PAGE, flags, &mut old, false)?;
        batch.run()?;
        for (gpa, pages) in old {
            frames::release_run(gpa, pages);
        }
        Ok(())
    }

    /// Writes zeros to what is mapped of `[first, last)`, private, through the window (no fault, whatever the
    /// rights say). Pages that others have too are unmapped instead.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn wipe(&mut self, first: u64, last: u64) -> SysResult<()> {
        let mut va = first;
        while va < last {
            let (leaf, next) = self.tables.look(va);
            let next = next.min(last);
            if let Some(leaf) = leaf.filter(|l| !l.is_shared()) {
                let page = va & !(PAGE - 1);
                let pages = (next - page).div_ceil(PAGE);
                if frames::is_any_shared(leaf.gpa, pages) {
                    self.wipe_shared(va, next)?;
                } else {
                    let at = frames::window(leaf.gpa) + va % PAGE;
                    // SAFETY: the frames are this address space's alone; the window maps them.
                    unsafe { core::ptr::write_bytes(at as *mut u8, 0, (next - va) as usize) };
                }
            }
            va = next;
        }
        Ok(())
    }

    fn wipe_shared(&mut self, first: u64, last: u64) -> SysResult<()> {
        let mut va = first;
        while va < last {
            let page = va & !(PAGE - 1);
            let next = (page + PAGE).min(last);
            let anonymous = self
                .areas
                .find(page)
                .is_some_and(|(_, a)| matches!(a.backing, super::Backing::Anonymous));
            if anonymous && va == page && next == page + PAGE {
                self.drop_pages(core::iter::once((page, next)))?;
            } else {
                self.own(page)?;
                if let Some(leaf) = self.tables.look(page).0 {
                    let at = frames::window(leaf.gpa) + va % PAGE;
                    // SAFETY: as in `wipe`: the frame is this address space's alone now.
                    unsafe { core::ptr::write_bytes(at as *mut u8, 0, (next - va) as usize) };
                }
            }
            va = next;
        }
        Ok(())
    }
}

/// A page that both sides of a `fork` will write.
#[derive(Debug, Clone, Copy)]
struct Hot {
    page: u64,
    source: u64,
    flags: u64,
}

/// Its copy.
#[derive(Debug, Clone, Copy)]
struct Copied {
    page: u64,
    source: u64,
    flags: u64,
    gpa: u64,
}

/// Copies these pages to `frames`, by page, and to fresh ones; what is left of the former is freed. Pages for which there
/// is no memory are left out: their first write copies.
fn copies(hot: &[Hot], mut frames: BTreeMap<u64, u64>) -> Vec<Copied> {
    let mut copied = Vec::new();
    for &Hot { page, source, flags } in hot {
        let Some(gpa) = frames.remove(&page).or_else(|| frames::take_run_dirty(1).ok()) else {
            break;
        };
        copy_page(gpa, source);
        copied.push(Copied {
            page,
            source,
            flags,
            gpa,
        });
    }
    frames.values().for_each(|&gpa| frames::release_run(gpa, 1));
    copied
}

/// What an ended copy of an address space leaves for the next one: its tables, which are nearly what the next one's will
/// be, so that little of them has to be written and, on hosts that shadow page tables, learnt again; and the frames of
/// pages that both sides write.
#[derive(Debug)]
pub(super) struct Former {
    tables: Tables,
    /// By page.
    frames: BTreeMap<u64, u64>,
}

impl Former {
    fn release(self) {
        tables::release(self.tables);
        self.frames.values().for_each(|&gpa| frames::release_run(gpa, 1));
    }
}

/// Most former copies that are kept for one address space.
const FORMER_MAX: usize = 4;

/// Where copies of an address space leave them, until it ends itself.
#[derive(Debug, Default)]
pub(super) struct Nest {
    former: Vec<Former>,
    is_closed: bool,
}

impl Nest {
    /// One is left there. Given back where there is no room.
    fn come(&mut self, former: Former) -> Option<Former> {
        if self.is_closed || self.former.len() == FORMER_MAX {
            return Some(former);
        }
        self.former.push(former);
        None
    }

    /// The last one that was left.
    fn leave(&mut self) -> Option<Former> {
        self.former.pop()
    }

    /// Nobody can leave one any more.
    fn close(&mut self) -> Vec<Former> {
        self.is_closed = true;
        core::mem::take(&mut self.former)
    }
}

/// Copies a frame that nobody writes meanwhile to one that is the caller's alone.
pub(super) fn copy_page(to: u64, from: u64) {
    // SAFETY: the window maps both; see above.
    unsafe {
        arch::copy_own(
            frames::window(to) as *mut u8,
            frames::window(from) as *const u8,
            PAGE as usize,
        );
    }
}

/// Frames of private pages in `[start, end)`, in runs.
fn private_runs(tables: Tables, start: u64, end: u64) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    let mut va = start;
    while va < end {
        let (leaf, next) = tables.look(va);
        let next = next.min(end);
        if let Some(leaf) = leaf.filter(|l| !l.is_shared()) {
            push_run(&mut runs, leaf.gpa, (next - va) / PAGE);
        }
        va = next;
    }
    runs
}
