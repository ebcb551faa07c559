//! The address space of a process: areas, page faults, and the changes that programs ask for.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use cloak_abi::layout::{LARGE, LIBOS_BASE, LIBOS_END, PAGE, USER_END, USER_MIN, is_user_range};

use super::area::{Area, Areas, Backing, Protection};
use super::frames;
use super::pages::PageCache;
use super::tables::{self, Batch};
use crate::errno::{Errno, SysResult};
use crate::fs::OpenFile;
use crate::fs::file::Mapping;
use crate::sched::{Guard, Lock};
use crate::user::Buf;

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

/// Where automatic placement looks first: above the libos's slot.
const AUTO: (u64, u64) = (LIBOS_END, 0x7fff_e000_0000);
/// And then: below it.
const AUTO_LOW: (u64, u64) = (0x1_0000_0000, LIBOS_BASE);
/// `MAP_32BIT`.
const AUTO_32: (u64, u64) = (0x4000_0000, 0x8000_0000);
/// Pages mapped around a fault in anonymous memory to begin with.
const AROUND: u64 = 16 * PAGE;
/// Bytes read around a fault in a file mapping.
const FILE_AROUND: u64 = 64 * PAGE;

/// An address space.
#[derive(Debug, Default)]
pub struct Space {
    inner: Lock<Inner>,
}

/// What the lock guards.
#[derive(Debug, Default)]
pub struct Inner {
    /// The areas.
    pub areas: Areas,
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

/// The current process's address space.
#[must_use]
pub fn current() -> &'static Space {
    &crate::sched::current().process.space
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
        self.inner.lock().fault(address, access)
    }

    /// What identifies the word at `address` if it is in shared memory: its guest-physical address.
    pub fn shared_key(&self, address: u64) -> Option<u64> {
        tables::look(address)
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
    fn fault(&mut self, address: u64, access: Access) -> Result<(), Fault> {
        let page = address & !(PAGE - 1);
        if !is_user_range(page, PAGE) {
            return Err(Fault::NotMapped);
        }
        let (start, area) = self.areas.find(page).ok_or(Fault::NotMapped)?;
        let wanted = match access {
            Access::Read => Protection::READ,
            Access::Write => Protection::WRITE,
            Access::Execute => Protection::EXECUTE,
        };
        // As on x86, whatever is mapped with any right can be read.
        let allowed =
            area.protection.contains(wanted) || access == Access::Read && !area.protection.is_empty();
        if !allowed {
            return Err(Fault::Access);
        }
        self.faults += 1;
        if let (Some(leaf), _) = tables::look(page) {
            if leaf.allows(access == Access::Write, access == Access::Execute) {
                return Ok(()); // another vCPU was faster, or an old translation
            }
            return self.upgrade(page, leaf.is_shared()).map_err(|_| Fault::Bus);
        }
        let backing = area.backing.clone();
        let (end, protection) = (area.end, area.protection);
        match backing {
            Backing::Anonymous => self
                .fill_anonymous(page, start, end, protection)
                .map_err(|_| Fault::Bus),
            Backing::File(file, offset) => self.fill_file(page, (start, end), protection, &file, offset),
            Backing::Pages(pages, offset, file) => self.fill_shared(
                page,
                (start, end),
                protection,
                access,
                &pages,
                offset,
                file.as_ref(),
            ),
        }
    }

    /// The page is there but its entry has too few rights.
    fn upgrade(&mut self, page: u64, shared: bool) -> SysResult<()> {
        let Some((start, area)) = self.areas.find(page) else {
            return Ok(());
        };
        if let Backing::Pages(pages, offset, _) = &area.backing {
            // From now on the page may be written at any time: it has to be written back each time.
            pages.mark_dirty((offset + (page - start)) / PAGE);
        }
        let mut flags = tables::flags(area.protection);
        if shared {
            flags |= tables::SHARED;
        }
        let mut batch = Batch::default();
        batch.protect(page, PAGE, flags)?;
        batch.run()
    }

    fn fill_anonymous(&mut self, page: u64, start: u64, end: u64, protection: Protection) -> SysResult<()> {
        let flags = tables::flags(protection);
        let mut batch = Batch::default();
        let chunk = page & !(LARGE - 1);
        if chunk >= start
            && chunk + LARGE <= end
            && tables::range_is_empty(chunk)
            && let Ok(gpa) = frames::take_run(512)
        {
            batch.map(chunk, gpa, LARGE, flags)?;
            return batch.run();
        }
        // A program that goes through memory in order gets four times as much each time.
        let ahead = self.areas.find(page).map_or((0, 0), |(_, a)| a.ahead);
        let window = if ahead.0 == page {
            (ahead.1 * 4).min(LARGE)
        } else {
            AROUND
        };
        let low = if ahead.0 == page {
            page
        } else {
            page & !(AROUND - 1)
        };
        let (low, high) = (low.max(start), (low + window).min(end));
        for (first, last) in holes(low, high) {
            map_zero(&mut batch, first, last, flags)?;
        }
        if let Some((_, area)) = self.areas.find_mut(page) {
            area.ahead = (high, window);
        }
        batch.run()
    }

    fn fill_file(
        &mut self,
        page: u64,
        (start, end): (u64, u64),
        protection: Protection,
        file: &Arc<OpenFile>,
        offset: u64,
    ) -> Result<(), Fault> {
        let flags = tables::flags(protection);
        let low = (page & !(FILE_AROUND - 1)).max(start);
        let high = ((page & !(FILE_AROUND - 1)) + FILE_AROUND).min(end);
        let mut batch = Batch::default();
        let mut served = false;
        for (first, last) in holes(low, high) {
            let len = (last - first) as usize;
            let gpa = frames::take_run_dirty(len / PAGE as usize).map_err(|_| Fault::Bus)?;
            let mut buf = Buf::own_raw(frames::window(gpa), len);
            let got = read_fully(file, offset + (first - start), &mut buf);
            let whole = (got as u64).next_multiple_of(PAGE) as usize;
            // Own frames: writing zeros can't fault.
            let _ = Buf::own_raw(frames::window(gpa) + got as u64, whole - got).put_zeros(PAGE as usize);
            if whole < len {
                frames::give_run(gpa + whole as u64, (len - whole) / PAGE as usize);
            }
            if whole > 0 {
                batch
                    .map(first, gpa, whole as u64, flags)
                    .map_err(|_| Fault::Bus)?;
            }
            served |= (first..first + whole as u64).contains(&page);
        }
        batch.run().map_err(|_| Fault::Bus)?;
        if served { Ok(()) } else { Err(Fault::Bus) }
    }

    #[allow(clippy::too_many_arguments)]
    fn fill_shared(
        &mut self,
        page: u64,
        (start, end): (u64, u64),
        protection: Protection,
        access: Access,
        pages: &Arc<PageCache>,
        offset: u64,
        file: Option<&Arc<OpenFile>>,
    ) -> Result<(), Fault> {
        let number = |va: u64| (offset + (va - start)) / PAGE;
        let write = access == Access::Write;
        let wanted = match file {
            Some(file) => file.file.shared_page(pages, number(page)),
            None => pages.get_or_zero(number(page)),
        }
        .map_err(|_| Fault::Bus)?;
        if write {
            pages.mark_dirty(number(page));
        }
        let writable = protection.contains(Protection::WRITE);
        let mut batch = Batch::default();
        let low = (page & !(AROUND - 1)).max(start);
        let high = ((page & !(AROUND - 1)) + AROUND).min(end);
        let mut pins = Vec::new();
        for (first, last) in holes(low, high) {
            for va in (first..last).step_by(PAGE as usize) {
                let frame = if va == page {
                    Some(wanted.clone())
                } else {
                    pages.get(number(va))
                };
                let Some(frame) = frame else { continue };
                // A first write to a file's page must be seen: it has to be written back.
                let seen = !pages.is_tracked() || pages.is_dirty(number(va));
                let mut flags = tables::flags(protection) | tables::SHARED;
                if !writable || !seen {
                    flags &= !tables::WRITE;
                }
                batch.map(va, frame.gpa(), PAGE, flags).map_err(|_| Fault::Bus)?;
                pins.push((va, frame));
            }
        }
        batch.run().map_err(|_| Fault::Bus)?;
        if let Some((_, area)) = self.areas.find_mut(page) {
            area.pins.extend(pins);
        }
        Ok(())
    }

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
                Mapping::Pages(_) | Mapping::Read => Backing::File(file.clone(), *offset),
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
        }
        Ok(start)
    }

    /// Brings in what is not there yet. Failures show at the access.
    pub fn populate(&mut self, start: u64, end: u64) {
        let mut va = start;
        while va < end {
            let (leaf, next) = tables::look(va);
            if leaf.is_none() {
                let write = self
                    .areas
                    .find(va)
                    .is_some_and(|(_, a)| a.protection.contains(Protection::WRITE));
                if self
                    .fault(va, if write { Access::Write } else { Access::Read })
                    .is_err()
                {
                    return;
                }
                va = tables::look(va).1;
            } else {
                va = next;
            }
        }
    }

    fn place(&self, request: &Request) -> SysResult {
        if request.len == 0 || request.len > USER_END {
            return Err(if request.len == 0 {
                Errno::EINVAL
            } else {
                Errno::ENOMEM
            });
        }
        let hint = request.hint;
        let fits = is_user_range(hint, request.len);
        match request.place {
            Place::Fixed if hint & (PAGE - 1) != 0 => return Err(Errno::EINVAL),
            Place::Fixed if hint < USER_MIN => return Err(Errno::EPERM),
            Place::Fixed => return if fits { Ok(hint) } else { Err(Errno::ENOMEM) },
            Place::FixedFree if hint & (PAGE - 1) != 0 => return Err(Errno::EINVAL),
            Place::FixedFree if !fits => return Err(Errno::ENOMEM),
            Place::FixedFree if self.areas.is_free(hint, hint + request.len) => return Ok(hint),
            Place::FixedFree => return Err(Errno::EEXIST),
            Place::Anywhere | Place::Low => {}
        }
        let rounded = hint & !(PAGE - 1);
        if rounded != 0
            && is_user_range(rounded, request.len)
            && self.areas.is_free(rounded, rounded + request.len)
        {
            return Ok(rounded);
        }
        let ranges: &[(u64, u64)] = if request.place == Place::Low {
            &[AUTO_32]
        } else {
            &[AUTO, AUTO_LOW]
        };
        // What is large starts a large page, so that its chunks can be large pages.
        let align = if request.len >= LARGE { LARGE } else { PAGE };
        ranges
            .iter()
            .find_map(|&(low, high)| self.areas.free_range(low, high, request.len, align))
            .ok_or(Errno::ENOMEM)
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
                crate::patch::forget(start, area.end);
            }
            if let Backing::Pages(pages, _, Some(file)) = &area.backing {
                let _ = file.file.sync_pages(pages, 0, u64::MAX);
            }
        }
        Ok(())
    }

    /// Removes what is mapped in the ranges and frees the frames.
    fn drop_pages(&mut self, ranges: impl Iterator<Item = (u64, u64)>) -> SysResult<()> {
        let mut batch = Batch::default();
        let mut freed = Vec::new();
        for (start, end) in ranges {
            let mut first = None;
            let mut last = start;
            let mut va = start;
            while va < end {
                let (leaf, next) = tables::look(va);
                let next = next.min(end);
                if let Some(leaf) = leaf {
                    first = first.or(Some(va));
                    last = next;
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
                batch.unmap(low, high - low)?;
            }
        }
        batch.run()?;
        for (gpa, pages) in freed {
            frames::give_run(gpa, pages as usize);
        }
        Ok(())
    }

    /// `mprotect`.
    ///
    /// # Errors
    /// ENOMEM for holes.
    pub fn protect(&mut self, start: u64, end: u64, protection: Protection) -> SysResult<()> {
        let mut batch = Batch::default();
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
            for (first, last) in present(s, e) {
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
            // Clearing half a megabyte costs less than leaving for the kernel and faulting it in again.
            if anonymous && writable && e - s <= LARGE / 4 {
                for (first, last) in present(s, e) {
                    clear(first, last);
                }
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

    /// Moves what is mapped in `[from, from + len)` to `to`, which is free.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn move_range(&mut self, from: u64, len: u64, to: u64) -> SysResult<()> {
        let areas = self.areas.remove(from, from + len);
        let mut batch = Batch::default();
        let mut va = from;
        while va < from + len {
            let (leaf, next) = tables::look(va);
            let next = next.min(from + len);
            if let Some(leaf) = leaf {
                batch.map(
                    to + (va - from),
                    leaf.gpa,
                    next - va,
                    leaf.flags & cloak_abi::kcall::PTE_ALLOWED,
                )?;
            }
            va = next;
        }
        batch.unmap(from, len)?;
        batch.run()?;
        for (start, mut area) in areas {
            let shift = |va: u64| va - from + to;
            area.end = shift(area.end);
            area.pins = core::mem::take(&mut area.pins)
                .into_iter()
                .map(|(va, f)| (shift(va), f))
                .collect::<BTreeMap<_, _>>();
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
            for (first, last) in present(wanted.next_multiple_of(PAGE), new) {
                clear(first, last);
            }
            let edge = wanted.next_multiple_of(PAGE);
            if edge > wanted && tables::look(wanted).0.is_some() {
                clear(wanted, edge);
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

    /// Frees everything (at `exit` and `execve`).
    ///
    /// # Errors
    /// ENOMEM when the kernel refuses, which it does not for unmapping.
    pub fn clear(&mut self) -> SysResult<()> {
        let all: Vec<(u64, u64)> = self.areas.iter().map(|(s, a)| (s, a.end)).collect();
        all.into_iter().try_for_each(|(s, e)| self.unmap(s, e - s))
    }
}

/// Whether the page at `va` is in memory.
#[must_use]
pub fn is_present(va: u64) -> bool {
    tables::look(va).0.is_some()
}

/// Reads until the buffer is full or the file ends; gives the bytes.
fn read_fully(file: &OpenFile, offset: u64, buf: &mut Buf) -> usize {
    let mut got = 0;
    while !buf.is_empty() {
        match file.file.read_direct(offset + got as u64, buf) {
            Ok(0) | Err(_) => break,
            Ok(n) => got += n,
        }
    }
    got
}

/// Maps zero frames on `[first, last)`, in as few runs as there are.
fn map_zero(batch: &mut Batch, first: u64, last: u64, flags: u64) -> SysResult<()> {
    let mut va = first;
    let mut want = ((last - first) / PAGE).min(512);
    while va < last {
        want = want.min((last - va) / PAGE);
        match frames::take_run(want as usize) {
            Ok(gpa) => {
                batch.map(va, gpa, want * PAGE, flags)?;
                va += want * PAGE;
            }
            Err(e) if want == 1 => return Err(e),
            Err(_) => want /= 2,
        }
    }
    Ok(())
}

/// Adds frames to a list of runs, joining with the last where they touch.
fn push_run(runs: &mut Vec<(u64, u64)>, gpa: u64, pages: u64) {
    match runs.last_mut() {
        Some((last, count)) if *last + *count * PAGE == gpa => *count += pages,
        _ => runs.push((gpa, pages)),
    }
}

/// The parts of `[low, high)` where nothing is mapped, none longer than a large page.
fn holes(low: u64, high: u64) -> Vec<(u64, u64)> {
    ranges(low, high, false)
}

/// The parts of `[low, high)` where something is mapped.
fn present(low: u64, high: u64) -> Vec<(u64, u64)> {
    ranges(low, high, true)
}

fn ranges(low: u64, high: u64, mapped: bool) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    let mut va = low;
    while va < high {
        let (leaf, next) = tables::look(va);
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

/// Writes zeros to the mapped, own pages of a range, through the window (no fault, whatever the rights say).
pub fn clear(first: u64, last: u64) {
    let mut va = first;
    while va < last {
        let (leaf, next) = tables::look(va);
        let next = next.min(last);
        if let Some(leaf) = leaf {
            let at = frames::window(leaf.gpa) + va % PAGE;
            // SAFETY: the frame is this address space's; the window maps it.
            unsafe { core::ptr::write_bytes(at as *mut u8, 0, (next - va) as usize) };
        }
        va = next;
    }
}
