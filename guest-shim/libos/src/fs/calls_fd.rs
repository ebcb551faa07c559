//! System calls on descriptors: `dup`, `fcntl`, `ioctl`, `flock`.

use super::fd::{O_APPEND, O_CLOEXEC, O_NONBLOCK, O_PATH};
use super::flags::{O_ASYNC, O_DIRECT, O_LARGEFILE, O_NOATIME, is_dir};
use super::{fd, locks};
use crate::errno::{Errno, SysResult};
use crate::process::Process;
use crate::syscall::{Args, Entry, full, partial};
use crate::user;

/// Calls served here.
pub const SYSCALLS: &[Entry] = &[
    partial(
        16,
        "ioctl",
        "fxx",
        "terminals by an allow-list; FS_IOC_* give ENOTTY",
        ioctl,
    ),
    full(32, "dup", "f", dup),
    full(33, "dup2", "ff", dup2),
    partial(
        72,
        "fcntl",
        "fix",
        "no leases, no SIGIO; of directory notification only its end",
        fcntl,
    ),
    partial(73, "flock", "fx", "LOCK_MAND is refused", flock),
    full(292, "dup3", "ffx", dup3),
];

fn dup(args: &Args) -> SysResult {
    let files = &Process::current().files;
    files.insert(files.get(args.i32(0))?, false, 0).map(|n| n as u64)
}

fn dup_to(from: i32, to: i32, close_on_exec: bool) -> SysResult {
    let process = Process::current();
    let open = process.files.get(from)?;
    let old = process.files.get(to).ok();
    process.files.replace(to, open, close_on_exec)?;
    if let Some(old) = old {
        locks::closed(&process, &old);
    }
    Ok(to as u64)
}

fn dup2(args: &Args) -> SysResult {
    let (from, to) = (args.i32(0), args.i32(1));
    if from == to {
        return fd::get(from).map(|_| to as u64);
    }
    dup_to(from, to, false)
}

fn dup3(args: &Args) -> SysResult {
    let (from, to, flags) = (args.i32(0), args.i32(1), args.u32(2));
    if from == to || flags & !O_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    dup_to(from, to, flags != 0)
}

const F_DUPFD: u32 = 0;
const F_GETFD: u32 = 1;
const F_SETFD: u32 = 2;
const F_GETFL: u32 = 3;
const F_SETFL: u32 = 4;
const F_GETLK: u32 = 5;
const F_SETLK: u32 = 6;
const F_SETLKW: u32 = 7;
const F_SETOWN: u32 = 8;
const F_GETOWN: u32 = 9;
const F_SETSIG: u32 = 10;
const F_GETSIG: u32 = 11;
const F_OFD_GETLK: u32 = 36;
const F_OFD_SETLK: u32 = 37;
const F_OFD_SETLKW: u32 = 38;
const F_GETLEASE: u32 = 1025;
const F_NOTIFY: u32 = 1026;
const DN_MULTISHOT: u32 = 1 << 31;
const F_DUPFD_CLOEXEC: u32 = 1030;
const F_UNLCK: u64 = 2;

/// Flags that F_SETFL can change.
const SETTABLE: u32 = O_APPEND | O_NONBLOCK | O_ASYNC | O_DIRECT | O_NOATIME;

fn fcntl(args: &Args) -> SysResult {
    let (number, command, argument) = (args.i32(0), args.u32(1), args.u64(2));
    let process = Process::current();
    let entry = process.files.entry(number)?;
    let open = &entry.open;
    if open.flags() & O_PATH != 0
        && !matches!(command, F_DUPFD | F_DUPFD_CLOEXEC | F_GETFD | F_SETFD | F_GETFL)
    {
        return Err(Errno::EBADF);
    }
    match command {
        F_DUPFD | F_DUPFD_CLOEXEC => {
            let least = usize::try_from(argument as i32).map_err(|_| Errno::EINVAL)?;
            if least >= process.files.limits().0 {
                return Err(Errno::EINVAL);
            }
            process
                .files
                .insert(entry.open, command == F_DUPFD_CLOEXEC, least)
                .map(|n| n as u64)
        }
        F_GETFD => Ok(u64::from(entry.close_on_exec)),
        F_SETFD => process
            .files
            .set_close_on_exec(number, argument & 1 != 0)
            .map(|()| 0),
        // 64-bit Linux opens everything with O_LARGEFILE.
        F_GETFL if open.flags() & O_PATH != 0 => Ok(u64::from(open.flags())),
        F_GETFL => Ok(u64::from(open.flags() | O_LARGEFILE)),
        F_SETFL => {
            open.set_flags(SETTABLE, argument as u32);
            Ok(0)
        }
        F_GETLK | F_OFD_GETLK => locks::query(&process, open, argument, command == F_OFD_GETLK),
        F_SETLK | F_SETLKW => locks::set(&process, open, argument, false, command == F_SETLKW),
        F_OFD_SETLK | F_OFD_SETLKW => locks::set(&process, open, argument, true, command == F_OFD_SETLKW),
        // Nobody is signalled: SIGIO is not there, so there is nothing to remember.
        F_SETOWN | F_SETSIG | F_GETOWN | F_GETSIG => Ok(0),
        F_GETLEASE => Ok(F_UNLCK),
        // Without any event it ends a notification; there never was one.
        F_NOTIFY if argument as u32 & !DN_MULTISHOT == 0 => Ok(0),
        _ => open.file.fcntl(open, command, argument),
    }
}

fn flock(args: &Args) -> SysResult {
    locks::flock(&*fd::get(args.i32(0))?, args.u32(1))
}

const FIONBIO: u32 = 0x5421;
const FIONCLEX: u32 = 0x5450;
const FIOCLEX: u32 = 0x5451;
const FIOASYNC: u32 = 0x5452;
const FIONREAD: u32 = 0x541b;
const FIOQSIZE: u32 = 0x5460;

fn ioctl(args: &Args) -> SysResult {
    let (number, request, argument) = (args.i32(0), args.u32(1), args.u64(2));
    let process = Process::current();
    let open = process.files.get(number)?;
    if open.flags() & O_PATH != 0 {
        return Err(Errno::EBADF);
    }
    match request {
        FIOCLEX => process.files.set_close_on_exec(number, true).map(|()| 0),
        FIONCLEX => process.files.set_close_on_exec(number, false).map(|()| 0),
        FIONBIO | FIOASYNC => {
            let on = user::read::<i32>(argument)? != 0;
            let flag = if request == FIONBIO { O_NONBLOCK } else { O_ASYNC };
            open.set_flags(flag, if on { flag } else { 0 });
            Ok(0)
        }
        FIONREAD | FIOQSIZE => match open.file.ioctl(&open, request, argument) {
            Err(Errno::ENOTTY) => file_size(&open, request, argument),
            result => result,
        },
        _ => open.file.ioctl(&open, request, argument),
    }
}

/// FIONREAD and FIOQSIZE of a regular file.
fn file_size(open: &super::OpenFile, request: u32, argument: u64) -> SysResult {
    let stat = open.file.stat()?;
    if stat.mode & super::flags::S_IFMT != super::flags::S_IFREG && !is_dir(stat.mode) {
        return Err(Errno::ENOTTY);
    }
    if request == FIOQSIZE {
        user::write(argument, &stat.size)?;
        return Ok(0);
    }
    if is_dir(stat.mode) {
        return Err(Errno::ENOTTY);
    }
    let position = open.position.with(|p| *p);
    let left = (stat.size as u64).saturating_sub(position);
    user::write(argument, &i32::try_from(left).unwrap_or(i32::MAX))?;
    Ok(0)
}
