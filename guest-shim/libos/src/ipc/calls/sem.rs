//! `semget`, `semop`, `semtimedop`, `semctl`.

use alloc::vec::Vec;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Permissions, with};
use crate::errno::{Errno, SysResult};
use crate::ipc::semaphores::{
    HIGHEST, MOST, MOST_IN_SET, MOST_OPERATIONS, Operation, SEMAPHORES, Semaphore, Semaphores, Set,
};
use crate::ipc::table::{Caller, Object, READ};
use crate::sched::{self, time_calls};
use crate::syscall::Args;
use crate::user;

fn semaphores<T>(work: impl FnOnce(&mut Semaphores, &Caller<'_>) -> T) -> T {
    with(|caller| work(&mut SEMAPHORES.lock(), caller))
}

pub fn semget(a: &Args) -> SysResult {
    semaphores(|all, caller| all.find_or_make(a.i32(0), a.i32(1), a.u32(2), caller)).map(|id| id as u64)
}

pub fn semop(a: &Args) -> SysResult {
    operate(a, u64::MAX)
}

pub fn semtimedop(a: &Args) -> SysResult {
    let deadline = match a.u64(3) {
        0 => u64::MAX,
        timeout => time_calls::timeout_at(timeout)?,
    };
    operate(a, deadline)
}

/// The operations, or EAGAIN at the deadline (ticks). A signal ends it, and it is never restarted.
fn operate(a: &Args, deadline: u64) -> SysResult {
    let (id, count) = (a.i32(0), a.usize(2));
    if count == 0 {
        return Err(Errno::EINVAL);
    }
    if count > MOST_OPERATIONS {
        return Err(Errno::E2BIG);
    }
    let operations: Vec<Operation> = user::read_array(a.u64(1), count)?;
    let queue = semaphores(|all, caller| all.begin(id, &operations, caller))?;
    let tid = sched::current().tid();
    let attempt = || semaphores(|all, caller| all.operate(id, &operations, tid, caller));
    let result = queue.wait(deadline, attempt);
    match result {
        Ok(()) if operations.iter().any(|o| o.change != 0) => queue.wake_all(0),
        Ok(()) => {}
        Err(_) => SEMAPHORES.lock().give_up(id, tid),
    }
    match result {
        Err(Errno::ETIMEDOUT) => Err(Errno::EAGAIN),
        other => other.map(|()| 0),
    }
}

/// `struct semid64_ds` (`arch/x86/include/uapi/asm/sembuf.h`).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SetStat {
    permissions: Permissions,
    operated: i64,
    unused: u64,
    changed: i64,
    more_unused: u64,
    count: u64,
    last_unused: [u64; 2],
}

const _: () = assert!(size_of::<SetStat>() == 104);

impl From<&Set> for SetStat {
    fn from(set: &Set) -> Self {
        let [operated, changed] = set.times();
        Self {
            permissions: (*set.about()).into(),
            operated,
            changed,
            count: set.semaphores().len() as u64,
            ..Self::default()
        }
    }
}

pub fn semctl(a: &Args) -> SysResult {
    let (id, number, argument) = (a.i32(0), a.i32(1), a.u64(3));
    match a.u32(2) {
        0 => semaphores(|all, caller| all.remove(id, caller)).map(|queue| {
            queue.wake_all(0);
            0
        }),
        1 => {
            let Permissions { uid, gid, mode, .. } = user::read::<SetStat>(argument)?.permissions;
            semaphores(|all, caller| all.change(id, (uid, gid), mode, caller)).map(|()| 0)
        }
        2 => stat(id, READ, argument).map(|_| 0),
        command @ (3 | 19) => {
            // `struct seminfo`: map, sets, semaphores, undo structures, semaphores of a set, operations of a call, undo
            // entries of a process, size of one, highest value, highest to undo. `SEM_INFO`: sets and semaphores now.
            let all = SEMAPHORES.lock();
            let (most, in_set) = (MOST as i32, MOST_IN_SET as i32);
            let (mut size, mut highest_undo) = (20, HIGHEST);
            if command == 19 {
                size = all.0.all().count() as i32;
                highest_undo = all.0.all().map(|set| set.semaphores().len() as i32).sum();
            }
            let operations = MOST_OPERATIONS as i32;
            let place = all.0.highest();
            drop(all);
            let whole = most.saturating_mul(in_set);
            let info = [
                whole,
                most,
                whole,
                whole,
                in_set,
                operations,
                operations,
                size,
                HIGHEST,
                highest_undo,
            ];
            user::write(argument, &info)?;
            Ok(place)
        }
        11 => look(id, |set| set.semaphore(number).map(|s| s.pid as u64)),
        12 => look(id, |set| set.semaphore(number).map(|s| u64::from(s.value))),
        13 => {
            let values = look(id, |set| {
                let value = |s: &Semaphore| s.value;
                Ok(set.semaphores().iter().map(value).collect::<Vec<u16>>())
            })?;
            user::write(argument, values.as_slice()).map(|()| 0)
        }
        14 => look(id, |set| {
            set.semaphore(number).map(|_| set.waiting(number, false))
        }),
        15 => look(id, |set| set.semaphore(number).map(|_| set.waiting(number, true))),
        16 => {
            let value = u16::try_from(argument as i32).map_err(|_| Errno::ERANGE)?;
            set(id, number, &[value])
        }
        17 => {
            let count = look(id, |set| Ok(set.semaphores().len()))?;
            let values: Vec<u16> = user::read_array(argument, count)?;
            set(id, 0, &values)
        }
        command @ (18 | 20) => {
            let id = SEMAPHORES.lock().0.at(id)?;
            stat(id, if command == 20 { 0 } else { READ }, argument)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// What `look` sees in a set that the caller may read.
fn look<T>(id: i32, look: impl FnOnce(&Set) -> SysResult<T>) -> SysResult<T> {
    semaphores(|all, caller| look(all.0.find_for(id, READ, caller.who)?))
}

fn set(id: i32, first: i32, values: &[u16]) -> SysResult {
    let queue = semaphores(|all, caller| all.set(id, first, values, caller))?;
    queue.wake_all(0);
    Ok(0)
}

fn stat(id: i32, want: u32, address: u64) -> SysResult {
    let about: SetStat =
        semaphores(|all, caller| all.0.find_for(id, want, caller.who).map(|set| (&*set).into()))?;
    user::write(address, &about)?;
    Ok(id as u64)
}
