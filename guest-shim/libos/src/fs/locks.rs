//! File locks: POSIX record locks, open-file-description locks and `flock`.
//!
//! Among the processes of the context they are decided here. A lock on a host file is also taken on the
//! host, as a lock of the open file, so that other programs of the host keep out; two processes of the
//! context that share an open file don't meet there, which is why the table here decides first.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicU64, Ordering};

use cloak_abi::hostop::HostOp;
use hashbrown::HashMap;
use spin::{Lazy, Mutex};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::file::Stat;
use super::hostfile::{HostFile, seek_from};
use super::{File, OpenFile};
use crate::errno::{Errno, SysResult};
use crate::host::Request;
use crate::process::Process;
use crate::sched::WaitQueue;
use crate::user;

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

/// Who holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// A process: POSIX locks.
    Process(i32),
    /// An open file, by its address.
    Open(usize),
}

/// A lock on the bytes `[start, end)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    owner: Owner,
    write: bool,
    start: u64,
    end: u64,
}

type Key = (u64, u64);

static RECORDS: Lazy<Mutex<HashMap<Key, Vec<Held>>>> = Lazy::new(|| Mutex::new(HashMap::new()));
static WHOLE: Lazy<Mutex<HashMap<Key, Vec<Held>>>> = Lazy::new(|| Mutex::new(HashMap::new()));
static CHANGED: WaitQueue = WaitQueue::new();
/// Changes so far: a waiter looks whether there were any since its attempt.
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// Some lock went, or became smaller.
fn changed() {
    CHANGES.fetch_add(1, Ordering::SeqCst);
    CHANGED.wake_all(0);
}

/// The open file through which the record locks of processes on one host file are held there.
///
/// To the host each open file is an owner of its own, but all that a process opens is one owner: taken through two
/// descriptors, a process's own locks would be in each other's way. So one of them holds all, for as long as there are any.
struct Agent {
    file: Arc<dyn File>,
    readable: bool,
    writable: bool,
}

impl Agent {
    fn can_hold(&self, kind: i16) -> bool {
        match kind {
            F_RDLCK => self.readable,
            F_WRLCK => self.writable,
            _ => true,
        }
    }
}

static AGENTS: Lazy<Mutex<HashMap<Key, Agent>>> = Lazy::new(|| Mutex::new(HashMap::new()));

/// How long a waiter sleeps before it asks the host again, as the host does not report unlocking: ticks.
fn host_interval() -> u64 {
    crate::arch::ticks_per_second() / 100
}

fn key(stat: &Stat) -> Key {
    (stat.dev, stat.ino)
}

/// The lock in the way of `wanted`.
fn conflict(held: &[Held], wanted: &Held) -> Option<Held> {
    let meets = |h: &&Held| h.start < wanted.end && wanted.start < h.end;
    held.iter()
        .filter(|h| h.owner != wanted.owner && (h.write || wanted.write))
        .find(meets)
        .copied()
}

/// Replaces what the owner holds in the range by `wanted`, or by nothing.
fn replace(held: &mut Vec<Held>, wanted: &Held, unlock: bool) {
    let mut next = Vec::with_capacity(held.len() + 2);
    for lock in held.drain(..) {
        if lock.owner != wanted.owner || lock.end <= wanted.start || wanted.end <= lock.start {
            next.push(lock);
            continue;
        }
        if lock.start < wanted.start {
            next.push(Held {
                end: wanted.start,
                ..lock
            });
        }
        if wanted.end < lock.end {
            next.push(Held {
                start: wanted.end,
                ..lock
            });
        }
    }
    if !unlock {
        next.push(*wanted);
    }
    *held = next;
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

/// The descriptor on which the host holds locks. A file of an overlay is the context's own: its locks are, too.
fn host_number(file: &dyn File) -> Option<u32> {
    file.host_fd().filter(|_| file.node().is_none())
}

/// The host learns of a lock on it.
fn note(file: &dyn File) {
    if let Some(file) = file.as_any().downcast_ref::<HostFile>() {
        file.locked();
    }
}

/// The file through which `lock` is taken on the host.
fn holder(open: &OpenFile, key: Key, lock: &Held, kind: i16) -> Arc<dyn File> {
    if matches!(lock.owner, Owner::Open(_)) || host_number(&*open.file).is_none() {
        return open.file.clone();
    }
    let replaced = {
        let mut agents = AGENTS.lock();
        if let Some(agent) = agents.get(&key).filter(|agent| agent.can_hold(kind)) {
            return agent.file.clone();
        }
        let agent = Agent {
            file: open.file.clone(),
            readable: open.readable(),
            writable: open.writable(),
        };
        agents.insert(key, agent)
    };
    // One that can't hold this lock hands over what it holds.
    if let Some(old) = replaced {
        let _ = on_host(&*old.file, &WHOLE_FILE, F_UNLCK, true);
        take_again(&*open.file, key, &WHOLE_FILE);
    }
    open.file.clone()
}

/// Every byte; the owner does not matter to the host.
const WHOLE_FILE: Held = Held {
    owner: Owner::Process(0),
    write: false,
    start: 0,
    end: u64::MAX,
};

/// Takes on the host what processes still hold in the range of `freed`: unlocking for one of them unlocked for all.
fn take_again(file: &dyn File, key: Key, freed: &Held) {
    let left: Vec<Held> = RECORDS
        .lock()
        .get(&key)
        .into_iter()
        .flatten()
        .filter(|h| matches!(h.owner, Owner::Process(_)) && h.start < freed.end && freed.start < h.end)
        .copied()
        .collect();
    for lock in left {
        // One that another program of the host was quick to take is lost to it, as after any unlocking.
        let _ = on_host(file, &lock, if lock.write { F_WRLCK } else { F_RDLCK }, true);
    }
}

/// Lets the agent of a file go on which no process holds a lock any more.
fn dismiss_agent(key: Key) {
    let used = RECORDS
        .lock()
        .get(&key)
        .is_some_and(|held| held.iter().any(|h| matches!(h.owner, Owner::Process(_))));
    if !used {
        let gone = AGENTS.lock().remove(&key);
        drop(gone); // outside the lock: it may close a descriptor
    }
}

/// Asks the host about or for a lock.
fn on_host(file: &dyn File, lock: &Held, kind: i16, set: bool) -> SysResult<Flock> {
    let Some(fd) = host_number(file) else {
        return Ok(Flock {
            kind: F_UNLCK,
            ..Flock::default()
        });
    };
    note(file);
    let len = if lock.end == u64::MAX {
        0
    } else {
        (lock.end - lock.start) as i64
    };
    let ask = Flock {
        kind,
        start: lock.start as i64,
        len,
        ..Flock::default()
    };
    let mut request = Request::new();
    request.put(0, ask.as_bytes());
    request
        .call(HostOp::Lock, [u64::from(fd), u64::from(set), 0, 0, 0, 0])
        .ok()?;
    Flock::read_from_bytes(&request.get_array::<32>(0)).map_err(|_| Errno::EIO)
}

/// `/proc/locks`.
#[must_use]
pub fn listing() -> String {
    let mut text = String::new();
    let mut number = 0;
    for (table, whole) in [(&RECORDS, false), (&WHOLE, true)] {
        for (&(dev, ino), held) in &*table.lock() {
            for lock in held {
                number += 1;
                let (kind, pid) = match lock.owner {
                    _ if whole => ("FLOCK ", -1),
                    Owner::Process(pid) => ("POSIX ", pid),
                    Owner::Open(_) => ("OFDLCK", -1),
                };
                let access = if lock.write { "WRITE" } else { "READ" };
                let (major, minor) = (dev >> 8 & 0xfff, dev & 0xff | dev >> 12 & 0xf_ff00);
                let _ = write!(
                    text,
                    "{number}: {kind} ADVISORY  {access} {pid} {major:02x}:{minor:02x}:{ino}"
                );
                let _ = match lock.end {
                    u64::MAX => writeln!(text, " {} EOF", lock.start),
                    end => writeln!(text, " {} {}", lock.start, end - 1),
                };
            }
        }
    }
    text
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
            kind: if found.write { F_WRLCK } else { F_RDLCK },
            start: found.start as i64,
            len: if found.end == u64::MAX {
                0
            } else {
                (found.end - found.start) as i64
            },
            pid: if let Owner::Process(pid) = found.owner {
                pid
            } else {
                -1
            },
            ..Flock::default()
        };
    } else {
        // The agent's locks are the process's own.
        let agent = AGENTS.lock().get(&key(&stat)).map(|agent| agent.file.clone());
        let asks = agent.filter(|_| !by_open).unwrap_or_else(|| open.file.clone());
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

/// The owner holds what it held `before`; what others did meanwhile stays.
fn restore(key: Key, owner: Owner, before: Vec<Held>) {
    let mut records = RECORDS.lock();
    let held = records.entry(key).or_default();
    held.retain(|h| h.owner != owner);
    held.extend(before.into_iter().filter(|h| h.owner == owner));
    if held.is_empty() {
        records.remove(&key);
    }
    drop(records);
    changed();
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
    let wanted = Held {
        owner,
        write: kind == LOCK_EX,
        start: 0,
        end: u64::MAX,
    };
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

fn forget(table: &Mutex<HashMap<Key, Vec<Held>>>, owner: Owner) -> bool {
    let mut table = table.lock();
    let mut any = false;
    table.retain(|_, held| {
        let before = held.len();
        held.retain(|h| h.owner != owner);
        any |= held.len() != before;
        !held.is_empty()
    });
    any
}

/// A process closed a descriptor: as POSIX has it, its record locks on that file go, whatever other
/// descriptors it has.
pub fn closed(process: &Process, open: &Arc<OpenFile>) {
    if RECORDS.lock().is_empty() {
        return;
    }
    let Ok(stat) = open.file.stat() else { return };
    let owner = Owner::Process(process.pid);
    let all = Held {
        owner,
        write: false,
        start: 0,
        end: u64::MAX,
    };
    let holds = RECORDS
        .lock()
        .get(&key(&stat))
        .is_some_and(|held| held.iter().any(|h| h.owner == owner));
    if holds {
        // What the host says does not matter: its lock goes with the open file.
        let _ = try_set(open, key(&stat), &all, F_UNLCK);
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
    for key in keys {
        let agent = AGENTS.lock().get(&key).map(|agent| agent.file.clone());
        if let Some(file) = agent {
            let _ = on_host(&*file, &WHOLE_FILE, F_UNLCK, true);
            take_again(&*file, key, &WHOLE_FILE);
        }
        dismiss_agent(key);
    }
    changed();
}

/// Files with locks.
#[cfg(test)]
pub(crate) fn kept() -> usize {
    RECORDS.lock().len() + WHOLE.lock().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(owner: i32, write: bool, start: u64, end: u64) -> Held {
        Held {
            owner: Owner::Process(owner),
            write,
            start,
            end,
        }
    }

    #[test]
    fn unlocking_the_middle_splits_a_lock() {
        let mut all = alloc::vec![held(1, true, 0, 100)];
        replace(&mut all, &held(1, false, 40, 60), true);
        assert_eq!(all, [held(1, true, 0, 40), held(1, true, 60, 100)]);
        assert_eq!(conflict(&all, &held(2, false, 40, 60)), None);
        assert_eq!(
            conflict(&all, &held(2, false, 40, 61)),
            Some(held(1, true, 60, 100))
        );
    }

    /// A waiter parks: it sees the signal, and the change that lets it go on.
    #[test]
    fn a_wait_for_a_lock_ends_by_a_signal_or_a_change() {
        let thread = crate::sched::current();
        thread.signal.store(true, Ordering::SeqCst);
        assert_eq!(acquire(true, || Err(Errno::EAGAIN)), Err(Errno::ERESTARTSYS));
        thread.signal.store(false, Ordering::SeqCst);
        let mut attempts = 0;
        let begun = std::time::Instant::now();
        let result = acquire(true, || {
            attempts += 1;
            if begun.elapsed().as_millis() < 50 {
                Err(Errno::EAGAIN)
            } else {
                Ok(0)
            }
        });
        assert_eq!(result, Ok(0));
        assert!(attempts < 100, "{attempts} attempts: it does not rest");
    }

    #[test]
    fn a_lock_that_the_host_refused_leaves_those_of_others() {
        let key = (u64::MAX, 1);
        RECORDS
            .lock()
            .insert(key, alloc::vec![held(71, true, 0, 10), held(72, true, 20, 30)]);
        restore(key, Owner::Process(71), alloc::vec![held(71, false, 0, 5)]);
        assert_eq!(
            RECORDS.lock().get(&key),
            Some(&alloc::vec![held(72, true, 20, 30), held(71, false, 0, 5)])
        );
        restore(key, Owner::Process(71), Vec::new());
        restore(key, Owner::Process(72), Vec::new());
        assert_eq!(RECORDS.lock().get(&key), None);
    }

    #[test]
    fn readers_share_and_an_owner_never_meets_itself() {
        let all = alloc::vec![held(1, false, 0, 10)];
        assert_eq!(conflict(&all, &held(2, false, 0, 10)), None);
        assert_eq!(conflict(&all, &held(1, true, 0, 10)), None);
        assert!(conflict(&all, &held(2, true, 9, 10)).is_some());
    }
}
