//! `msgget`, `msgsnd`, `msgrcv`, `msgctl`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Permissions, with};
use crate::errno::{Errno, SysResult};
use crate::ipc::queues::{
    CAPACITY, COPY, Description, EXCEPT, LARGEST, MOST, Message, QUEUES, Queue, Queues, Wanted,
};
use crate::ipc::table::{Caller, NO_WAIT, READ};
use crate::syscall::Args;
use crate::user;

fn queues<T>(work: impl FnOnce(&mut Queues, &Caller<'_>) -> T) -> T {
    with(|caller| work(&mut QUEUES.lock(), caller))
}

/// Begun anew after a signal only if no handler ran.
fn restart(error: Errno) -> Errno {
    if error == Errno::EINTR {
        Errno::ERESTARTNOHAND
    } else {
        error
    }
}

pub fn msgget(a: &Args) -> SysResult {
    queues(|all, caller| all.find_or_make(a.i32(0), a.u32(1), caller)).map(|id| id as u64)
}

pub fn msgsnd(a: &Args) -> SysResult {
    let (id, address, len, flags) = (a.i32(0), a.u64(1), a.usize(2), a.u32(3));
    let kind: i64 = user::read(address)?;
    if len > LARGEST || kind < 1 {
        return Err(Errno::EINVAL);
    }
    let mut text = alloc::vec![0; len];
    user::copy_in(&mut text, address.checked_add(8).ok_or(Errno::EFAULT)?)?;
    let mut message = Some(Message { kind, text });
    let waiting = queues(|all, caller| all.begin(id, true, caller))?;
    let attempt = || queues(|all, caller| all.send(id, &mut message, flags, caller));
    waiting.senders.wait(u64::MAX, attempt).map_err(restart)?;
    waiting.receivers.wake_all(0);
    Ok(0)
}

pub fn msgrcv(a: &Args) -> SysResult {
    let (id, address) = (a.i32(0), a.u64(1));
    let wanted = Wanted {
        size: a.usize(2),
        kind: a.u64(3) as i64,
        flags: a.u32(4),
    };
    if wanted.size > isize::MAX as usize {
        return Err(Errno::EINVAL);
    }
    if wanted.flags & COPY != 0 && wanted.flags & (EXCEPT | NO_WAIT) != NO_WAIT {
        return Err(Errno::EINVAL);
    }
    let waiting = queues(|all, caller| all.begin(id, false, caller))?;
    let attempt = || queues(|all, caller| all.receive(id, &wanted, caller));
    let message = waiting.receivers.wait(u64::MAX, attempt).map_err(restart)?;
    waiting.senders.wake_all(0);
    user::write(address, &message.kind)?;
    user::copy_out(address.checked_add(8).ok_or(Errno::EFAULT)?, &message.text)?;
    Ok(message.text.len() as u64)
}

/// `struct msqid64_ds` (`include/uapi/asm-generic/msgbuf.h`).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct QueueStat {
    permissions: Permissions,
    times: [i64; 3],
    bytes: u64,
    messages: u64,
    capacity: u64,
    processes: [i32; 2],
    unused: [u64; 2],
}

const _: () = assert!(size_of::<QueueStat>() == 120);

impl From<Description> for QueueStat {
    fn from(queue: Description) -> Self {
        Self {
            permissions: queue.about.into(),
            times: queue.times,
            bytes: queue.bytes,
            messages: queue.messages,
            capacity: queue.capacity,
            processes: queue.processes,
            unused: [0; 2],
        }
    }
}

pub fn msgctl(a: &Args) -> SysResult {
    let (id, address) = (a.i32(0), a.u64(2));
    match a.u32(1) {
        0 => {
            queues(|all, caller| all.remove(id, caller))?.wake();
            Ok(0)
        }
        1 => {
            let new: QueueStat = user::read(address)?;
            let Permissions { uid, gid, mode, .. } = new.permissions;
            queues(|all, caller| all.change(id, (uid, gid), mode, new.capacity, caller))?.wake();
            Ok(0)
        }
        2 => stat(id, READ, address).map(|_| 0),
        command @ (3 | 12) => {
            let all = QUEUES.lock();
            let (place, count) = (all.0.highest(), all.0.all().count());
            let describe = |sum: [u64; 2], queue: &Queue| {
                let about = queue.describe();
                [sum[0] + about.messages, sum[1] + about.bytes]
            };
            let [messages, bytes] = all.0.all().fold([0; 2], describe);
            drop(all);
            // `struct msginfo`: pool (KiB), map, bytes of a message, of a queue, queues, segment size, headers, segments
            // (16 bits and padding). `MSG_INFO`: queues, messages and bytes now.
            let capacity = CAPACITY as i32;
            let mut info = [
                MOST as i32 * (capacity / 1024),
                capacity,
                LARGEST as i32,
                capacity,
                MOST as i32,
                16,
                capacity,
                0xffff,
            ];
            if command == 12 {
                info[0] = count as i32;
                info[1] = messages as i32;
                info[6] = bytes as i32;
            }
            user::write(address, &info)?;
            Ok(place)
        }
        command @ (11 | 13) => {
            let id = QUEUES.lock().0.at(id)?;
            stat(id, if command == 13 { 0 } else { READ }, address)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn stat(id: i32, want: u32, address: u64) -> SysResult {
    let about = queues(|all, caller| all.0.find_for(id, want, caller.who).map(|q| q.describe()))?;
    user::write(address, &QueueStat::from(about))?;
    Ok(id as u64)
}
