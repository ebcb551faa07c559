//! Page faults: bringing in what is not there, and rights that come later.

use alloc::sync::Arc;
use alloc::vec::{IntoIter, Vec};
use core::iter::Peekable;

use cloak_abi::layout::{LARGE, PAGE, is_user_range};

use super::{Access, Fault, Inner};
use crate::errno::SysResult;
use crate::fs::OpenFile;
use crate::mem::area::{Backing, Protection};
use crate::mem::pages::PageCache;
use crate::mem::tables::{self, Batch, Leaf};
use crate::mem::{file_frames, frames, swap};
use crate::user::Buf;

/// Pages mapped around a fault in anonymous memory to begin with.
const AROUND: u64 = 16 * PAGE;
/// The same in files that processes share, of what is there: entries only.
const SHARED_AROUND: u64 = 128 * PAGE;
/// Most bytes of zeros that are mapped at once where others have to leave for them.
const LIMITED: u64 = 32 * PAGE;
/// Bytes read around a fault in a file mapping.
const FILE_AROUND: u64 = 64 * PAGE;
/// Most bytes of a file that are mapped before they are touched, where that takes no reading.
const AHEAD: u64 = 4096 * PAGE;
/// The same where it takes a copy of each page. What loaders map so they write at once.
const AHEAD_COPIED: u64 = 16 * PAGE;
/// Bytes of heap that get no large page.
const HEAP_LITTLE: u64 = 64 * PAGE;
/// Most bytes of zeros that are mapped before they are touched.
pub(super) const AHEAD_ZERO: u64 = 4 * PAGE;
/// The same where a loader puts them.
const AHEAD_LOADED: u64 = 16 * PAGE;

impl Inner {
    pub(super) fn fault(&mut self, address: u64, access: Access) -> Result<(), Fault> {
        let page = address & !(PAGE - 1);
        if !is_user_range(page, PAGE) {
            return Err(Fault::NotMapped);
        }
        let (_, area) = self.areas.find(page).ok_or(Fault::NotMapped)?;
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
        if let (Some(leaf), _) = self.tables.look(page) {
            if leaf.allows(access == Access::Write, access == Access::Execute) {
                return Ok(()); // another vCPU was faster, or an old translation
            }
            return self.upgrade(page, &leaf).map_err(|_| Fault::Bus);
        }
        if let Some(back) = self.bring_back(page) {
            return back;
        }
        let Some((start, area)) = self.areas.find(page) else {
            return Err(Fault::NotMapped);
        };
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
    fn upgrade(&mut self, page: u64, leaf: &Leaf) -> SysResult<()> {
        let Some((start, area)) = self.areas.find(page) else {
            return Ok(());
        };
        if !leaf.is_shared() && area.protection.contains(Protection::WRITE) {
            return self.make_writable(page);
        }
        if let Backing::Pages(pages, offset, _) = &area.backing {
            // From now on the page may be written at any time: it has to be written back each time.
            pages.mark_dirty((offset + (page - start)) / PAGE);
        }
        let mut flags = tables::flags(area.protection);
        if leaf.is_shared() {
            flags |= tables::SHARED;
        }
        let mut batch = Batch::new(self.tables);
        batch.protect(page, PAGE, flags)?;
        batch.run()
    }

    fn fill_anonymous(&mut self, page: u64, start: u64, end: u64, protection: Protection) -> SysResult<()> {
        let flags = tables::flags(protection);
        let mut batch = Batch::new(self.tables);
        let chunk = page & !(LARGE - 1);
        // Most programs need little heap: to clear a large page for it costs more than some faults.
        let little_heap = chunk == self.brk_start && self.brk <= chunk + HEAP_LITTLE;
        // Pages leave one by one.
        let limited = swap::is_there();
        let small = limited || little_heap || self.areas.find(page).is_some_and(|(_, area)| area.small_pages);
        if !small
            && chunk >= start
            && chunk + LARGE <= end
            && frames::are_plentiful()
            && self.tables.range_is_empty(chunk)
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
        let window = if limited { window.min(LIMITED) } else { window };
        let (low, high) = (low.max(start), (low + window).min(end));
        let low = if low + window <= page { page } else { low };
        self.make_room(window / PAGE);
        for (first, last) in self.untouched(low, high) {
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
        let low = (page & !(FILE_AROUND - 1)).max(start);
        let high = ((page & !(FILE_AROUND - 1)) + FILE_AROUND).min(end);
        self.fill_file_between(page, (low, high), start, protection, file, offset)
            // A page before it that can't be read is no reason for this one not to be there.
            .or_else(|_| self.fill_file_between(page, (page, page + PAGE), start, protection, file, offset))
    }

    /// Brings in what is missing of `[low, high)`, in which `page` is, of an area from `start` on.
    fn fill_file_between(
        &mut self,
        page: u64,
        (low, high): (u64, u64),
        start: u64,
        protection: Protection,
        file: &Arc<OpenFile>,
        offset: u64,
    ) -> Result<(), Fault> {
        let flags = tables::flags(protection);
        let mut batch = Batch::new(self.tables);
        let mut served = false;
        let version = file.file.unchanging().filter(|_| file_frames::is_wanted());
        for (first, last) in self.tables.holes(low, high) {
            let number = (offset + (first - start)) / PAGE;
            let parts = match &version {
                Some(version) => {
                    let missing = self.map_kept(&mut batch, (first, last), number, version, protection)?;
                    let is_missing = |&(low, high): &(u64, u64)| (low..high).contains(&page);
                    served |= (first..last).contains(&page) && !missing.iter().any(is_missing);
                    missing
                }
                None => alloc::vec![(first, last)],
            };
            for (first, last) in parts {
                let at = offset + (first - start);
                let (gpa, whole) = read_pages(file, at, (last - first) as usize)?;
                if let Some(version) = &version {
                    file_frames::keep(version, at / PAGE, gpa, whole / PAGE);
                    if protection.contains(Protection::WRITE) {
                        // Those are kept as they were read, and this process gets copies.
                        frames::release_run(gpa, whole / PAGE);
                        let range = (first, first + whole);
                        let missing = self.map_kept(&mut batch, range, at / PAGE, version, protection)?;
                        served |= (first..first + whole).contains(&page)
                            && !missing.iter().any(|&(low, high)| (low..high).contains(&page));
                        continue;
                    }
                    self.copied = true;
                }
                if whole > 0 {
                    batch.map(first, gpa, whole, flags).map_err(|_| Fault::Bus)?;
                }
                served |= (first..first + whole).contains(&page);
            }
        }
        batch.run().map_err(|_| Fault::Bus)?;
        if served { Ok(()) } else { Err(Fault::Bus) }
    }

    /// Maps what is kept of `[first, last)`, whose first page is number `number` of the file: the frames themselves,
    /// or copies where the program may write. Gives the ranges that are not there.
    fn map_kept(
        &mut self,
        batch: &mut Batch,
        (first, last): (u64, u64),
        number: u64,
        version: &file_frames::Version,
        protection: Protection,
    ) -> Result<Vec<(u64, u64)>, Fault> {
        let mut kept = file_frames::share(version, number, number + (last - first) / PAGE)
            .into_iter()
            .peekable();
        let missing = self.map_shared(batch, (first, last), number, &mut kept, protection);
        // Those that a failure left.
        kept.for_each(|(_, gpa)| frames::release_run(gpa, 1));
        missing
    }

    /// The same for frames of the file's pages `kept`, which are given by number.
    fn map_shared(
        &mut self,
        batch: &mut Batch,
        (first, last): (u64, u64),
        number: u64,
        kept: &mut Peekable<IntoIter<(u64, u64)>>,
        protection: Protection,
    ) -> Result<Vec<(u64, u64)>, Fault> {
        let flags = tables::flags(protection);
        let mut missing: Vec<(u64, u64)> = Vec::new();
        // Frames that follow each other are mapped by one operation.
        let mut run: Option<(u64, u64, u64)> = None;
        for va in (first..last).step_by(PAGE as usize) {
            let wanted = number + (va - first) / PAGE;
            let Some((_, mut gpa)) = kept.next_if(|&(found, _)| found == wanted) else {
                match missing.last_mut() {
                    Some((_, end)) if *end == va => *end = va + PAGE,
                    _ => missing.push((va, va + PAGE)),
                }
                continue;
            };
            if protection.contains(Protection::WRITE) {
                let Ok(own) = frames::take_run_dirty(1) else {
                    frames::release_run(gpa, 1);
                    return Err(Fault::Bus);
                };
                super::cow::copy_page(own, gpa);
                frames::release_run(gpa, 1);
                gpa = own;
            } else {
                self.copied = true;
            }
            run = match run {
                Some((at, frame, len)) if at + len == va && frame + len == gpa => {
                    Some((at, frame, len + PAGE))
                }
                other => {
                    if let Some((at, frame, len)) = other {
                        batch.map(at, frame, len, flags).map_err(|_| Fault::Bus)?;
                    }
                    Some((va, gpa, PAGE))
                }
            };
        }
        if let Some((at, frame, len)) = run {
            batch.map(at, frame, len, flags).map_err(|_| Fault::Bus)?;
        }
        Ok(missing)
    }

    /// A loader has mapped something at `start`, at a fixed place: what can be mapped there without reading is, and so is
    /// what is left of the mapping that the loader put it over. Both will be touched soon, and a fault costs more than
    /// the entries for a whole library.
    pub(super) fn map_ahead(&mut self, start: u64) {
        let Some((_, area)) = self.areas.find(start) else {
            return;
        };
        match area.backing {
            Backing::Anonymous if area.end - start <= AHEAD_LOADED => self.map_zeros_ahead(start, area.end),
            Backing::File(..) => {
                self.map_file_ahead(start.saturating_sub(PAGE));
                self.map_file_ahead(start);
            }
            _ => {}
        }
    }

    /// Maps what is kept of the file in the area at `va`, if that is one of a file. Not where the kernel edits tables: an
    /// entry costs more there, and a copy of the address space copies each.
    pub fn map_file_ahead(&mut self, va: u64) {
        if !tables::are_own() {
            return;
        }
        let Some((first, area)) = self.areas.find(va) else {
            return;
        };
        let Backing::File(file, offset) = &area.backing else {
            return;
        };
        let (end, protection, file, offset) = (area.end, area.protection, file.clone(), *offset);
        let most = if protection.contains(Protection::WRITE) {
            AHEAD_COPIED
        } else {
            AHEAD
        };
        if protection.is_empty() || end - first > most || !file_frames::is_wanted() {
            return;
        }
        let Some(version) = file.file.unchanging() else {
            return;
        };
        let mut batch = Batch::new(self.tables);
        for (low, high) in self.tables.holes(first, end) {
            let number = (offset + (low - first)) / PAGE;
            // What fails here is brought in by a fault.
            let _ = self.map_kept(&mut batch, (low, high), number, &version, protection);
        }
        let _ = batch.run();
    }

    /// Zeros that will be touched soon.
    pub(super) fn map_zeros_ahead(&mut self, start: u64, end: u64) {
        let writable = self
            .areas
            .find(start)
            .is_some_and(|(_, a)| a.protection.contains(Protection::WRITE));
        if writable && frames::are_plentiful() {
            self.populate(start, end);
        }
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
        let mut batch = Batch::new(self.tables);
        // Where the kernel edits tables an entry costs more.
        let around = match file {
            _ if !tables::are_own() => AROUND,
            None => LARGE,
            Some(_) => SHARED_AROUND,
        };
        let low = (page & !(around - 1)).max(start);
        let high = ((page & !(around - 1)) + around).min(end);
        let mut pins = Vec::new();
        // Memory of no file is filled around a write as private memory is: each process that shares it would take a fault
        // for each page that came after its own last one.
        let fills = write && around == LARGE && frames::are_plentiful();
        for (first, last) in self.tables.holes(low, high) {
            for va in (first..last).step_by(PAGE as usize) {
                let frame = if va == page {
                    Some(wanted.clone())
                } else if fills {
                    pages.get_or_zero(number(va)).ok()
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

    /// Brings in what is not there yet. Failures show at the access.
    pub fn populate(&mut self, start: u64, end: u64) {
        let mut va = start;
        while va < end {
            let (leaf, next) = self.tables.look(va);
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
                va = self.tables.look(va).1;
            } else {
                va = next;
            }
        }
    }
}

/// Fresh frames with the file's bytes from `offset` on, zeros behind its end; gives where they are and how many
/// bytes of whole pages there are.
fn read_pages(file: &OpenFile, offset: u64, len: usize) -> Result<(u64, u64), Fault> {
    let gpa = frames::take_run_dirty(len / PAGE as usize).map_err(|_| Fault::Bus)?;
    let mut buf = Buf::own_raw(frames::window(gpa), len);
    let got = read_fully(file, offset, &mut buf);
    let whole = (got as u64).next_multiple_of(PAGE) as usize;
    // Own frames: writing zeros can't fault.
    let _ = Buf::own_raw(frames::window(gpa) + got as u64, whole - got).put_zeros(PAGE as usize);
    if whole < len {
        frames::give_run(gpa + whole as u64, (len - whole) / PAGE as usize);
    }
    Ok((gpa, whole as u64))
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
