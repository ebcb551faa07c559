//! `shmget`, `shmat`, `shmdt`, `shmctl`.

use alloc::sync::Arc;

use cloak_abi::layout::PAGE;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Permissions, with};
use crate::errno::{Errno, SysResult};
use crate::fs::OpenFile;
use crate::ipc::segments::{Description, LARGEST, MOST, SEGMENTS, SegmentFile, Segments};
use crate::ipc::table::Caller;
use crate::mem::area::{Backing, Protection};
use crate::mem::space::{self, Place, Request};
use crate::syscall::Args;
use crate::user;

const HUGE: u32 = 0o4000;
const READ_ONLY: u32 = 0o10_000;
const ROUND: u32 = 0o20_000;
const REMAP: u32 = 0o40_000;
const EXECUTE: u32 = 0o100_000;

fn segments<T>(work: impl FnOnce(&mut Segments, &Caller<'_>) -> T) -> T {
    with(|caller| work(&mut SEGMENTS.lock(), caller))
}

pub fn shmget(a: &Args) -> SysResult {
    if a.u32(2) & HUGE != 0 {
        return Err(Errno::EINVAL);
    }
    segments(|all, caller| all.find_or_make(a.i32(0), a.u64(1), a.u32(2), caller)).map(|id| id as u64)
}

pub fn shmat(a: &Args) -> SysResult {
    let flags = a.u32(2);
    let read_only = flags & READ_ONLY != 0;
    let hint = match a.u64(1) {
        address if address % PAGE == 0 => address,
        address if flags & ROUND != 0 => address & !(PAGE - 1),
        _ => return Err(Errno::EINVAL),
    };
    if flags & REMAP != 0 && hint == 0 {
        return Err(Errno::EINVAL);
    }
    let open = segments(|all, caller| all.attach(a.i32(0), read_only, caller))?;
    let mut protection = Protection::READ;
    protection.set(Protection::WRITE, !read_only);
    protection.set(Protection::EXECUTE, flags & EXECUTE != 0);
    let place = match hint {
        0 => Place::Anywhere,
        _ if flags & REMAP != 0 => Place::Fixed,
        _ => Place::FixedFree,
    };
    let len = segment(&open).ok_or(Errno::EINVAL)?.size().next_multiple_of(PAGE);
    let request = Request {
        hint,
        len,
        protection,
        place,
        shared: true,
        file: Some((open, 0)),
        populate: false,
        name: "",
    };
    space::current()
        .map(request)
        .map_err(|e| if e == Errno::EEXIST { Errno::EINVAL } else { e })
}

fn segment(open: &OpenFile) -> Option<&SegmentFile> {
    open.file.as_any().downcast_ref()
}

pub fn shmdt(a: &Args) -> SysResult {
    let address = a.u64(0);
    if !address.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let open = {
        let mut space = space::current().lock();
        let open = match space
            .areas
            .find(address)
            .map(|(start, area)| (start, &area.backing))
        {
            Some((start, Backing::Pages(_, offset, Some(open)))) if *offset == address - start => {
                open.clone()
            }
            _ => return Err(Errno::EINVAL),
        };
        let size = segment(&open).ok_or(Errno::EINVAL)?.size();
        // What is left of it: the program may have unmapped parts, or changed their rights.
        for (start, end) in space.areas.within(address, address.saturating_add(size)) {
            let of_it = space.areas.find(start).is_some_and(|(first, area)| {
                matches!(&area.backing, Backing::Pages(_, offset, Some(file))
                    if Arc::ptr_eq(file, &open) && offset + (start - first) == start - address)
            });
            if of_it {
                space.unmap(start, end - start)?;
            }
        }
        open
    };
    let file = open.file.clone();
    // It counts as attached while it is held.
    drop(open);
    if let Some(file) = file.as_any().downcast_ref::<SegmentFile>() {
        segments(|all, caller| all.detached(file, caller));
    }
    Ok(0)
}

/// `struct shmid64_ds` (`include/uapi/asm-generic/shmbuf.h`, `ipcbuf.h`).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SegmentStat {
    permissions: Permissions,
    size: u64,
    times: [i64; 3],
    creator: i32,
    last: i32,
    attached: u64,
    more_unused: [u64; 2],
}

const _: () = assert!(size_of::<SegmentStat>() == 112);

impl From<Description> for SegmentStat {
    fn from(about: Description) -> Self {
        Self {
            permissions: about.about.into(),
            size: about.size,
            times: about.times,
            creator: about.processes[0],
            last: about.processes[1],
            attached: about.attached,
            ..Self::default()
        }
    }
}

pub fn shmctl(a: &Args) -> SysResult {
    let (id, address) = (a.i32(0), a.u64(2));
    match a.u32(1) {
        0 => segments(|all, caller| all.remove(id, caller)).map(|()| 0),
        1 => {
            let Permissions { uid, gid, mode, .. } = user::read::<SegmentStat>(address)?.permissions;
            segments(|all, caller| all.change(id, (uid, gid), mode, caller)).map(|()| 0)
        }
        2 => stat(id, false, address).map(|_| 0),
        3 => {
            // `struct shminfo`: most bytes, fewest, most segments, most for a process, most pages in all.
            let info = [LARGEST, 1, MOST as u64, MOST as u64, LARGEST / PAGE, 0, 0, 0, 0];
            user::write(address, &info)?;
            Ok(SEGMENTS.lock().table().highest())
        }
        11 | 12 => segments(|all, caller| all.may_lock(id, caller)).map(|()| 0),
        command @ (13 | 15) => {
            let id = SEGMENTS.lock().table().at(id)?;
            stat(id, command == 15, address)
        }
        14 => {
            // `struct shm_info`: segments, pages in all, resident, swapped, attempts, successes.
            let (count, pages) = SEGMENTS.lock().all().fold((0u64, 0), |(n, pages), about| {
                (n + 1, pages + about.size.div_ceil(PAGE))
            });
            user::write(address, &[count, pages, 0, 0, 0, 0])?;
            Ok(SEGMENTS.lock().table().highest())
        }
        _ => Err(Errno::EINVAL),
    }
}

fn stat(id: i32, any: bool, address: u64) -> SysResult {
    let about = segments(|all, caller| all.describe(id, any, caller))?;
    user::write(address, &SegmentStat::from(about))?;
    Ok(id as u64)
}
