//! Memory system calls.

use cloak_abi::layout::PAGE;

use super::area::{Backing, Protection};
use super::space::{self, Place, Request};
use crate::errno::{Errno, SysResult};
use crate::fs::{self};
use crate::process::{Process, limits};
use crate::syscall::{Args, Entry, enosys, full, partial, refused};
use crate::user;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(9, "mmap", "xxxxix", mmap),
    full(10, "mprotect", "xxx", mprotect),
    full(11, "munmap", "xx", munmap),
    full(12, "brk", "x", brk),
    full(25, "mremap", "xxxxx", mremap),
    full(26, "msync", "xxx", msync),
    full(27, "mincore", "xxx", mincore),
    partial(
        28,
        "madvise",
        "xxi",
        "advice that would only tune Linux's own reclaim is accepted and ignored",
        madvise,
    ),
    partial(
        149,
        "mlock",
        "xx",
        "accepted: guest memory is not swapped by the guest",
        range_ok,
    ),
    partial(150, "munlock", "xx", "accepted", range_ok),
    partial(151, "mlockall", "i", "accepted", accept),
    partial(152, "munlockall", "", "accepted", accept),
    partial(325, "mlock2", "xxi", "accepted", range_ok),
    refused(216, "remap_file_pages", "deprecated; programs map again", enosys),
    partial(237, "mbind", "xxixix", "one memory node: accepted", accept),
    partial(238, "set_mempolicy", "ixx", "one memory node: accepted", accept),
    partial(
        239,
        "get_mempolicy",
        "xxxxi",
        "one memory node: the default policy",
        get_mempolicy,
    ),
    partial(
        324,
        "membarrier",
        "iii",
        "the private expedited and global commands",
        membarrier,
    ),
    refused(329, "pkey_mprotect", "no protection keys", enosys),
    refused(330, "pkey_alloc", "no protection keys", pkey_alloc),
    refused(331, "pkey_free", "no protection keys", enosys),
];

const MAP_SHARED: u32 = 1;
const MAP_TYPE: u32 = 0xf;
const MAP_FIXED: u32 = 0x10;
const MAP_ANONYMOUS: u32 = 0x20;
const MAP_32BIT: u32 = 0x40;
const MAP_POPULATE: u32 = 0x8000;
/// Has no effect on Linux.
const MAP_DENYWRITE: u32 = 0x800;
const MAP_STACK: u32 = 0x2_0000;
const MAP_FIXED_NOREPLACE: u32 = 0x10_0000;

fn accept(_: &Args) -> SysResult {
    Ok(0)
}

fn pages(len: u64) -> SysResult {
    len.checked_next_multiple_of(PAGE).ok_or(Errno::ENOMEM)
}

fn range(start: u64, len: u64) -> SysResult<(u64, u64)> {
    if !start.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let end = start.checked_add(pages(len)?).ok_or(Errno::ENOMEM)?;
    if end > 1 << 47 {
        Err(Errno::ENOMEM)
    } else {
        Ok((start, end))
    }
}

fn range_ok(a: &Args) -> SysResult {
    let start = a.u64(0) & !(PAGE - 1);
    let (s, e) = range(start, a.u64(1).saturating_add(a.u64(0) - start))?;
    if space::current().lock().areas.covers(s, e) {
        Ok(0)
    } else {
        Err(Errno::ENOMEM)
    }
}

fn protection(bits: u64) -> Protection {
    Protection::from_bits_truncate(bits as u8)
}

fn mmap(a: &Args) -> SysResult {
    let flags = a.u32(3);
    let shared = matches!(flags & MAP_TYPE, MAP_SHARED | 3);
    if flags & MAP_TYPE == 0 || flags & MAP_TYPE > 3 {
        return Err(Errno::EINVAL);
    }
    if a.u64(1) == 0 || !a.u64(5).is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let len = pages(a.u64(1))?;
    a.u64(5).checked_add(len).ok_or(Errno::EOVERFLOW)?;
    let protection = protection(a.u64(2));
    let file = if flags & MAP_ANONYMOUS != 0 {
        None
    } else {
        let open = fs::fd::get(a.i32(4))?;
        if !open.readable() || shared && protection.contains(Protection::WRITE) && !open.writable() {
            return Err(Errno::EACCES);
        }
        Some((open, a.u64(5)))
    };
    let place = if flags & MAP_FIXED_NOREPLACE != 0 {
        Place::FixedFree
    } else if flags & MAP_FIXED != 0 {
        Place::Fixed
    } else if flags & MAP_32BIT != 0 {
        Place::Low
    } else {
        Place::Anywhere
    };
    let populate = flags & MAP_POPULATE != 0;
    // What is replaced makes room.
    let replaced = if place == Place::Fixed {
        (a.u64(0), len)
    } else {
        (0, 0)
    };
    check_limit(len, replaced)?;
    let at = space::current().map(Request {
        hint: a.u64(0),
        len,
        protection,
        place,
        shared,
        file,
        populate,
        name: "",
    })?;
    // Loaders say so of what they will map other parts over.
    if place == Place::Anywhere && flags & (MAP_ANONYMOUS | MAP_DENYWRITE) == 0 {
        space::current().lock().map_file_ahead(at);
    }
    if flags & MAP_STACK != 0 {
        let areas = &mut space::current().lock().areas;
        areas.change(at, at + len, |area| area.small_pages = true);
    }
    Ok(at)
}

fn mprotect(a: &Args) -> SysResult {
    let (start, end) = range(a.u64(0), a.u64(1))?;
    if a.u64(2) & !0x0300_000f != 0 {
        return Err(Errno::EINVAL);
    }
    if start == end {
        return Ok(0);
    }
    let protection = protection(a.u64(2));
    let mut space = space::current().lock();
    // A read-only descriptor's shared mapping never becomes writable.
    for (s, _) in space.areas.within(start, end) {
        if let Some((_, area)) = space.areas.find(s)
            && let Backing::Pages(_, _, Some(file)) = &area.backing
            && area.shared
            && protection.contains(Protection::WRITE)
            && !file.writable()
        {
            return Err(Errno::EACCES);
        }
    }
    space.protect(start, end, protection).map(|()| 0)
}

fn munmap(a: &Args) -> SysResult {
    let (start, end) = range(a.u64(0), a.u64(1)).map_err(|_| Errno::EINVAL)?;
    if start == end {
        return Err(Errno::EINVAL);
    }
    space::current().unmap(start, end - start).map(|()| 0)
}

fn brk(a: &Args) -> SysResult {
    let now = space::current().lock().brk_range().1;
    if check_limit(a.u64(0).saturating_sub(now), (0, 0)).is_err() {
        return Ok(now);
    }
    Ok(space::current().lock().set_brk(a.u64(0)))
}

/// `RLIMIT_AS`: whether the address space may grow by `more` bytes that replace what is in a range of some length.
fn check_limit(more: u64, (start, len): (u64, u64)) -> SysResult<()> {
    let limit = Process::current().limits.soft(limits::ADDRESS_SPACE);
    if limit == limits::INFINITY || more == 0 {
        return Ok(());
    }
    let space = space::current().lock();
    let replaced = space.areas.within(start, start.saturating_add(len));
    let replaced: u64 = replaced.iter().map(|(low, high)| high - low).sum();
    if space.areas.total().saturating_add(more).saturating_sub(replaced) > limit {
        Err(Errno::ENOMEM)
    } else {
        Ok(())
    }
}

fn mremap(a: &Args) -> SysResult {
    const MAYMOVE: u64 = 1;
    const FIXED: u64 = 2;
    const DONTUNMAP: u64 = 4;
    let (old, flags, target) = (a.u64(0), a.u64(3), a.u64(4));
    let (old_len, new_len) = (
        pages(a.u64(1)).map_err(|_| Errno::EINVAL)?,
        pages(a.u64(2)).map_err(|_| Errno::EINVAL)?,
    );
    let (fixed, keeps) = (flags & FIXED != 0, flags & DONTUNMAP != 0);
    if flags & !7 != 0
        || (fixed || keeps) && flags & MAYMOVE == 0
        || keeps && old_len != new_len
        || !old.is_multiple_of(PAGE)
        || new_len == 0
    {
        return Err(Errno::EINVAL);
    }
    let more = if keeps {
        new_len
    } else {
        new_len.saturating_sub(old_len)
    };
    check_limit(more, (0, 0))?;
    let mut space = space::current().lock();
    let (area_start, area) = space.areas.find(old).ok_or(Errno::EFAULT)?;
    let (area_end, shared) = (area.end, area.shared);
    // What is mapped here, from `old` on.
    let model = area.more(old - area_start, area_end);
    if old_len == 0 && !shared {
        return Err(Errno::EINVAL);
    }
    if old.checked_add(old_len).is_none_or(|e| e > area_end) {
        return Err(Errno::EFAULT);
    }
    if !fixed && !keeps {
        if new_len <= old_len && old_len != 0 {
            if new_len < old_len {
                space.unmap(old + new_len, old_len - new_len)?;
            }
            return Ok(old);
        }
        let grown_end = old.checked_add(new_len).ok_or(Errno::ENOMEM)?;
        let in_place = old_len != 0
            && old + old_len == area_end
            && cloak_abi::layout::is_user_range(old, new_len)
            && space.areas.is_free(area_end, grown_end);
        if in_place {
            space.areas.insert(area_end, model.more(old_len, grown_end));
            return Ok(old);
        }
        if flags & MAYMOVE == 0 {
            return Err(Errno::ENOMEM);
        }
    }
    let overlaps = target < old + old_len && old < target.saturating_add(new_len);
    if fixed && (overlaps || !target.is_multiple_of(PAGE)) {
        return Err(Errno::EINVAL);
    }
    let moved = old_len.min(new_len);
    // Reserve, then fill the front with what moves and the rest with more of the same.
    let request = Request {
        // Without FIXED, DONTUNMAP takes the address as a wish.
        hint: if fixed || keeps { target & !(PAGE - 1) } else { 0 },
        len: new_len,
        // No rights, so that no zeros are brought in where something else goes.
        protection: Protection::empty(),
        place: if fixed { Place::Fixed } else { Place::Anywhere },
        shared: false,
        file: None,
        populate: false,
        name: "",
    };
    let to = space.map(request)?;
    space.areas.remove(to, to + new_len);
    if moved > 0 {
        space.move_range(old, moved, to)?;
    }
    if keeps {
        space.areas.insert(old, model.more(0, old + old_len));
    }
    if new_len > moved {
        space.areas.insert(to + moved, model.more(moved, to + new_len));
    }
    if old_len > moved {
        space.unmap(old + moved, old_len - moved)?;
    }
    Ok(to)
}

fn msync(a: &Args) -> SysResult {
    let (start, end) = range(a.u64(0), a.u64(1))?;
    let flags = a.u32(2);
    if flags & !7 != 0 || flags & 5 == 5 {
        return Err(Errno::EINVAL);
    }
    let mut work = alloc::vec::Vec::new();
    let covered = {
        let space = space::current().lock();
        for (s, e) in space.areas.within(start, end) {
            if let Some((first, area)) = space.areas.find(s)
                && let Backing::Pages(pages, offset, Some(file)) = &area.backing
            {
                let page = |va: u64| (offset + (va - first)) / PAGE;
                work.push((file.clone(), pages.clone(), page(s), page(e)));
            }
        }
        space.areas.covers(start, end)
    };
    for (file, pages, first, last) in work {
        file.file.sync_pages(&pages, first, last)?;
        if flags & 4 != 0 {
            file.file.sync(true)?;
        }
    }
    if covered { Ok(0) } else { Err(Errno::ENOMEM) }
}

fn mincore(a: &Args) -> SysResult {
    let (start, end) = range(a.u64(0), a.u64(1))?;
    let present: alloc::vec::Vec<u8> = {
        let space = space::current().lock();
        if !space.areas.covers(start, end) {
            return Err(Errno::ENOMEM);
        }
        (start..end)
            .step_by(PAGE as usize)
            .map(|va| u8::from(space.tables.look(va).0.is_some()))
            .collect()
    };
    user::copy_out(a.u64(2), &present).map(|()| 0)
}

fn madvise(a: &Args) -> SysResult {
    const DONTNEED: u32 = 4;
    const REMOVE: u32 = 9;
    const DONTFORK: u32 = 10;
    const DOFORK: u32 = 11;
    const HUGEPAGE: u32 = 14;
    const NOHUGEPAGE: u32 = 15;
    const WIPEONFORK: u32 = 18;
    const KEEPONFORK: u32 = 19;
    const POPULATE_READ: u32 = 22;
    const POPULATE_WRITE: u32 = 23;
    let (start, end) = range(a.u64(0), a.u64(1))?;
    if a.u32(2) == REMOVE {
        return remove(start, end);
    }
    let mut space = space::current().lock();
    match a.u32(2) {
        DONTNEED => space.discard(start, end)?,
        DONTFORK | DOFORK => space
            .areas
            .change(start, end, |area| area.dont_fork = a.u32(2) == DONTFORK),
        WIPEONFORK | KEEPONFORK => {
            let private = |s: u64| {
                let area = space.areas.find(s).map(|(_, a)| a);
                area.is_some_and(|a| matches!(a.backing, Backing::Anonymous))
            };
            if !space.areas.within(start, end).iter().all(|&(s, _)| private(s)) {
                return Err(Errno::EINVAL);
            }
            let wipe = a.u32(2) == WIPEONFORK;
            space.areas.change(start, end, |area| area.wipe_on_fork = wipe);
        }
        HUGEPAGE | NOHUGEPAGE => space
            .areas
            .change(start, end, |area| area.small_pages = a.u32(2) == NOHUGEPAGE),
        POPULATE_READ | POPULATE_WRITE => space.populate(start, end),
        0..=3 | 8 | 12 | 13 | 16 | 17 | 20 | 21 | 25 => {}
        _ => return Err(Errno::EINVAL),
    }
    if space.areas.covers(start, end) {
        Ok(0)
    } else {
        Err(Errno::ENOMEM)
    }
}

/// `MADV_REMOVE`: a hole in the files that are mapped there, shared and writable.
fn remove(start: u64, end: u64) -> SysResult {
    let mut holes = alloc::vec::Vec::new();
    {
        let space = space::current().lock();
        if !space.areas.covers(start, end) {
            return Err(Errno::ENOMEM);
        }
        for (low, high) in space.areas.within(start, end) {
            let (first, area) = space.areas.find(low).ok_or(Errno::ENOMEM)?;
            let (file, offset) = match &area.backing {
                Backing::Pages(_, offset, Some(file)) | Backing::File(file, offset) => (file, offset),
                _ => return Err(Errno::EINVAL),
            };
            if !area.shared || !area.protection.contains(Protection::WRITE) {
                return Err(Errno::EACCES);
            }
            holes.push((file.clone(), offset + (low - first), high - low));
        }
    }
    for (file, offset, len) in holes {
        crate::fs::calls_change::punch(&file, offset, len)?;
    }
    Ok(0)
}

fn get_mempolicy(a: &Args) -> SysResult {
    if a.u64(0) != 0 {
        user::write(a.u64(0), &0u32)?;
    }
    if a.u64(1) != 0 && a.u64(2) >= 1 {
        user::write(a.u64(1), &1u64)?;
    }
    Ok(0)
}

/// A kick makes every vCPU pass through the kernel, which is a full barrier; so does the call itself.
fn membarrier(a: &Args) -> SysResult {
    const SUPPORTED: u64 = 1 | 2 | 4 | 8 | 16 | 32 | 64;
    match a.u32(0) {
        0 => Ok(SUPPORTED),
        1 | 2 | 8 | 32 => {
            super::tables::barrier(space::current().tables);
            Ok(0)
        }
        4 | 16 | 64 => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

fn pkey_alloc(_: &Args) -> SysResult {
    Err(Errno::ENOSPC)
}
