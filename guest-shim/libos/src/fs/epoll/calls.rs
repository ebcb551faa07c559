//! The system calls of `epoll`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Epoll, flag};
use crate::errno::{Errno, SysResult};
use crate::fs::fd::{self, O_CLOEXEC};
use crate::fs::file::ready;
use crate::fs::{anon, signals};
use crate::sched::time_calls::{timeout_at, timeout_ms};
use crate::syscall::{Args, Entry, full};
use crate::user;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(213, "epoll_create", "i", create),
    full(232, "epoll_wait", "fxii", wait),
    full(233, "epoll_ctl", "fifx", control),
    full(281, "epoll_pwait", "fxiixs", pwait),
    full(291, "epoll_create1", "x", create1),
    full(441, "epoll_pwait2", "fxixxs", pwait2),
];

/// Linux's `struct epoll_event`, which is packed on x86-64.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, packed)]
struct Record {
    events: u32,
    data: u64,
}

fn create(args: &Args) -> SysResult {
    if args.i32(0) <= 0 {
        return Err(Errno::EINVAL);
    }
    install(0)
}

fn create1(args: &Args) -> SysResult {
    if args.u32(0) & !O_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    install(args.u32(0))
}

fn install(flags: u32) -> SysResult {
    anon::install(Epoll::new(), flags | 2, b"anon_inode:[eventpoll]".to_vec())
}

const ADD: i32 = 1;
const DELETE: i32 = 2;
const MODIFY: i32 = 3;

/// What may be asked for together with [`flag::EXCLUSIVE`].
const WITH_EXCLUSIVE: u32 =
    ready::IN | ready::OUT | ready::ERR | ready::HUP | flag::WAKEUP | flag::ET | flag::EXCLUSIVE;

fn control(args: &Args) -> SysResult {
    let (operation, number) = (args.i32(1), args.i32(2));
    let record = match operation {
        DELETE => Record { events: 0, data: 0 },
        _ => user::read::<Record>(args.u64(3))?,
    };
    let set = fd::get(args.i32(0))?;
    let target = fd::get(number)?;
    if target.file.wait_queue().is_none() {
        return Err(Errno::EPERM);
    }
    let epoll = set.file.as_any().downcast_ref::<Epoll>().ok_or(Errno::EINVAL)?;
    if core::ptr::addr_eq(&raw const *set.file, &raw const *target.file) {
        return Err(Errno::EINVAL);
    }
    let (events, data) = (record.events, record.data);
    if events & flag::EXCLUSIVE != 0 {
        let nested = target.file.as_any().is::<Epoll>();
        if operation == MODIFY || nested || events & !WITH_EXCLUSIVE != 0 {
            return Err(Errno::EINVAL);
        }
    }
    match operation {
        ADD => epoll.add(number, &target, events, data)?,
        MODIFY => epoll.modify(number, &target, events, data)?,
        DELETE => epoll.remove(number, &target)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn wait(args: &Args) -> SysResult {
    wait_until(args, ms(args.i32(3)))
}

fn pwait(args: &Args) -> SysResult {
    signals::with_mask(args.u64(4), args.usize(5), || wait_until(args, ms(args.i32(3))))
}

fn pwait2(args: &Args) -> SysResult {
    let deadline = timeout_at(args.u64(3))?;
    signals::with_mask(args.u64(4), args.usize(5), || wait_until(args, deadline))
}

/// 0 (do not wait) needs no look at the clock.
fn ms(timeout: i32) -> u64 {
    if timeout == 0 { 0 } else { timeout_ms(timeout) }
}

fn wait_until(args: &Args, deadline: u64) -> SysResult {
    let (address, most) = (args.u64(1), args.i32(2));
    let most = usize::try_from(most)
        .ok()
        .filter(|&m| m > 0 && m <= i32::MAX as usize / size_of::<Record>());
    let most = most.ok_or(Errno::EINVAL)?;
    let set = fd::get(args.i32(0))?;
    let epoll = set.file.as_any().downcast_ref::<Epoll>().ok_or(Errno::EINVAL)?;
    // Never restarted, as on Linux.
    let events = epoll.wait(most, deadline)?;
    for (i, event) in events.iter().enumerate() {
        let record = Record {
            events: event.bits,
            data: event.data,
        };
        user::write(address + (i * size_of::<Record>()) as u64, &record)?;
    }
    Ok(events.len() as u64)
}
