//! File locks: POSIX record locks, open-file-description locks and `flock`.
//!
//! Among the processes of the context they are decided here ([`table`]). A lock on a host file is also taken on the
//! host ([`host`]), as a lock of the open file, so that other programs of the host keep out; two processes of the
//! context that share an open file don't meet there, which is why the table here decides first.

mod host;
mod table;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use cloak_abi::hostop::HostOp;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use self::host::{agent, dismiss_agent, holder, host_number, note, on_host, take_again};
use self::table::{
    CHANGED, CHANGES, Held, Key, Owner, RECORDS, WHOLE, changed, conflict, forget, key, replace, restore,
};
use super::OpenFile;
use super::file::Stat;
use super::hostfile::seek_from;
use crate::errno::{Errno, SysResult};
use crate::process::Process;
use crate::user;

pub use self::table::listing;

/// Linux's `struct flock` (x86-64).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Flock {
    kind: i16,
    whence: i16,
    pad0: i32,
    start: i64,
    len: i64,
    pid: i32,
    pad1: i32,
}

const F_RDLCK: i16 = 0;
const F_WRLCK: i16 = 1;
const F_UNLCK: i16 = 2;

/// How long a waiter sleeps before it asks the host again, as the host does not report unlocking: ticks.
fn host_interval() -> u64 {
    crate::arch::ticks_per_second() / 100
}

/// F_GETLK and F_OFD_GETLK.
///
/// # Errors
/// EINVAL, EFAULT, what the host reports.
pub fn query(process: &Process, open: &Arc<OpenFile>, address: u64, by_open: bool) -> SysResult {
    let mut lock = user::read::<Flock>(address)?;
    if !matches!(lock.kind, F_RDLCK | F_WRLCK) {
        return Err(Errno::EINVAL);
    }
    let stat = open.file.stat()?;
    let wanted = wanted(process, open, &stat, &lock, by_open)?;
    let found = RECORDS
        .lock()
        .get(&key(&stat))
        .and_then(|held| conflict(held, &wanted));
    if let Some(found) = found {
        lock = Flock {
            kind: found.kind(),
            start: found.start as i64,
            len: found.len(),
            pid: if let Owner::Process(pid) = found.owner {
                pid
            } else {
                -1
            },
            ..Flock::default()
        };
    } else {
        // The agent's locks are the process's own.
        let agent = agent(key(&stat)).filter(|_| !by_open);
        let asks = agent.unwrap_or_else(|| open.file.clone());
        let theirs = on_host(&*asks, &wanted, lock.kind, false)?;
        if matches!(theirs.kind, F_RDLCK | F_WRLCK) {
            lock = Flock {
                pid: -1,
                whence: 0,
                pad0: 0,
                pad1: 0,
                ..theirs
            };
        } else {
            lock.kind = F_UNLCK;
        }
    }
    user::write(address, &lock)?;
    Ok(0)
}

/// F_SETLK, F_SETLKW and their OFD forms.
///
/// # Errors
/// EAGAIN when another has it; EBADF, EINVAL, EFAULT; ERESTARTSYS when a signal ended the wait.
pub fn set(process: &Process, open: &Arc<OpenFile>, address: u64, by_open: bool, wait: bool) -> SysResult {
    let lock = user::read::<Flock>(address)?;
    match lock.kind {
        F_RDLCK if !open.readable() => return Err(Errno::EBADF),
        F_WRLCK if !open.writable() => return Err(Errno::EBADF),
        F_RDLCK | F_WRLCK | F_UNLCK => {}
        _ => return Err(Errno::EINVAL),
    }
    let stat = open.file.stat()?;
    let wanted = wanted(process, open, &stat, &lock, by_open)?;
    let key = key(&stat);
    acquire(wait, || try_set(open, key, &wanted, lock.kind))
}

fn range(open: &OpenFile, stat: &Stat, lock: &Flock) -> SysResult<(u64, u64)> {
    let base = match lock.whence {
        0 => 0,
        1 => open.position.with(|p| *p),
        2 => stat.size as u64,
        _ => return Err(Errno::EINVAL),
    };
    let at = seek_from(base, lock.start)?;
    match lock.len {
        0 => Ok((at, u64::MAX)),
        len if len > 0 => Ok((
            at,
            at.checked_add(len as u64)
                .filter(|&e| e <= 1 << 63)
                .ok_or(Errno::EOVERFLOW)?,
        )),
        len => Ok((at.checked_sub(len.unsigned_abs()).ok_or(Errno::EINVAL)?, at)),
    }
}

fn wanted(
    process: &Process,
    open: &Arc<OpenFile>,
    stat: &Stat,
    lock: &Flock,
    by_open: bool,
) -> SysResult<Held> {
    let (start, end) = range(open, stat, lock)?;
    let owner = if by_open {
        if lock.pid != 0 {
            return Err(Errno::EINVAL);
        }
        Owner::Open(Arc::as_ptr(open) as usize)
    } else {
        Owner::Process(process.pid)
    };
    Ok(Held {
        owner,
        write: lock.kind == F_WRLCK,
        start,
        end,
    })
}

/// Runs `attempt` until it gives something else than EAGAIN.
fn acquire(wait: bool, mut attempt: impl FnMut() -> SysResult) -> SysResult {
    loop {
        let seen = CHANGES.load(Ordering::SeqCst);
        match attempt() {
            Err(Errno::EAGAIN) if wait => {}
            result => return result,
        }
        let deadline = crate::arch::ticks() + host_interval();
        // Woken when a lock of the context goes, and now and then for those of the host.
        let woken = CHANGED.wait(deadline, || {
            (CHANGES.load(Ordering::SeqCst) != seen).then_some(Ok(()))
        });
        if woken == Err(Errno::EINTR) {
            return Err(Errno::ERESTARTSYS);
        }
    }
}

fn try_set(open: &OpenFile, key: Key, wanted: &Held, kind: i16) -> SysResult {
    let before = {
        let mut records = RECORDS.lock();
        let held = records.entry(key).or_default();
        if kind != F_UNLCK && conflict(held, wanted).is_some() {
            return Err(Errno::EAGAIN);
        }
        let before = held.clone();
        replace(held, wanted, kind == F_UNLCK);
        if held.is_empty() {
            records.remove(&key);
        }
        before
    };
    let file = holder(open, key, wanted, kind);
    if let Err(e) = on_host(&*file, wanted, kind, true) {
        restore(key, wanted.owner, before);
        dismiss_agent(key);
        // Linux knows two words for this; POSIX programs expect either.
        return Err(if e == Errno::EACCES { Errno::EAGAIN } else { e });
    }
    if kind == F_UNLCK && matches!(wanted.owner, Owner::Process(_)) {
        take_again(&*file, key, wanted);
        dismiss_agent(key);
    }
    changed();
    Ok(0)
}

const LOCK_SH: u32 = 1;
const LOCK_EX: u32 = 2;
const LOCK_NB: u32 = 4;
const LOCK_UN: u32 = 8;

/// `flock`.
///
/// # Errors
/// EAGAIN when another has it; EINVAL; ERESTARTSYS when a signal ended the wait.
pub fn flock(open: &OpenFile, operation: u32) -> SysResult {
    let kind = operation & !LOCK_NB;
    if !matches!(kind, LOCK_SH | LOCK_EX | LOCK_UN) {
        return Err(Errno::EINVAL);
    }
    let key = key(&open.file.stat()?);
    let owner = Owner::Open(core::ptr::from_ref(open) as usize);
    let wanted = Held::whole(owner, kind == LOCK_EX);
    acquire(operation & LOCK_NB == 0, || {
        {
            let mut whole = WHOLE.lock();
            let held = whole.entry(key).or_default();
            if kind != LOCK_UN && conflict(held, &wanted).is_some() {
                return Err(Errno::EAGAIN);
            }
            replace(held, &wanted, kind == LOCK_UN);
            if held.is_empty() {
                whole.remove(&key);
            }
        }
        if let Some(fd) = host_number(&*open.file) {
            note(&*open.file);
            let args = [u64::from(fd), u64::from(kind), 0, 0, 0, 0];
            if let Err(e) = crate::host::call(HostOp::Flock, args) {
                forget(&WHOLE, owner);
                return Err(e);
            }
        }
        changed();
        Ok(0)
    })
}

/// A process closed a descriptor: as POSIX has it, its record locks on that file go, whatever other
/// descriptors it has.
pub fn closed(process: &Process, open: &Arc<OpenFile>) {
    if RECORDS.lock().is_empty() {
        return;
    }
    let Ok(stat) = open.file.stat() else { return };
    let owner = Owner::Process(process.pid);
    let holds = RECORDS
        .lock()
        .get(&key(&stat))
        .is_some_and(|held| held.iter().any(|h| h.owner == owner));
    if holds {
        // What the host says does not matter: its lock goes with the open file.
        let _ = try_set(open, key(&stat), &Held::whole(owner, false), F_UNLCK);
    }
}

/// An open file went: its locks go. The host's go with its descriptor.
pub fn dropped(open: &OpenFile) {
    let owner = Owner::Open(core::ptr::from_ref(open) as usize);
    let records = !RECORDS.lock().is_empty() && forget(&RECORDS, owner);
    let whole = !WHOLE.lock().is_empty() && forget(&WHOLE, owner);
    if records || whole {
        changed();
    }
}

/// A process ended: its record locks go.
pub fn process_ended(pid: i32) {
    let owner = Owner::Process(pid);
    let keys: Vec<Key> = RECORDS
        .lock()
        .iter()
        .filter(|(_, held)| held.iter().any(|h| h.owner == owner))
        .map(|(key, _)| *key)
        .collect();
    if !forget(&RECORDS, owner) {
        return;
    }
    keys.into_iter().for_each(host::process_ended);
    changed();
}

/// Files with locks.
#[cfg(test)]
pub(crate) fn kept() -> usize {
    RECORDS.lock().len() + WHOLE.lock().len()
}

#[cfg(test)]
mod tests;
