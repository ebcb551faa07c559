//! Devices, and opening special files of the file systems in the guest.

use alloc::sync::Arc;
use core::any::Any;

use cloak_abi::hostop::HostOp;

use super::attributes::{make_dev, split_dev};
use super::file::{File, Mapping, Stat};
use super::flags::{S_IFBLK, S_IFCHR, S_IFMT};
use super::hostfd::HostFd;
use super::hoststream::HostStream;
use super::{OpenFile, jobs, providers, pty, signals};
use crate::errno::{Errno, SysResult};
use crate::host;
use crate::user::Buf;

/// Memory devices, by their minor numbers under major 1 (`Documentation/admin-guide/devices.txt`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    Null,
    Zero,
    Full,
    Random,
}

/// `/dev/null` and its like.
#[derive(Debug)]
struct MemoryDevice {
    kind: Memory,
    rdev: u64,
}

/// Major number of the memory devices.
pub const MEMORY_MAJOR: u32 = 1;
/// `/dev/tty`.
pub const TTY: u64 = make_dev(5, 0);

/// `/dev/ptmx`.
pub const PTMX: u64 = make_dev(5, 2);

/// Opens a special file.
///
/// # Errors
/// ENXIO for one that nothing stands behind.
pub fn open(mode: u32, rdev: u64) -> SysResult<Arc<dyn File>> {
    match mode & S_IFMT {
        S_IFCHR => device(rdev),
        S_IFBLK => Err(Errno::ENXIO),
        _ => Err(Errno::ENXIO),
    }
}

fn device(rdev: u64) -> SysResult<Arc<dyn File>> {
    if rdev == TTY {
        return pty::controlling(0).unwrap_or_else(terminal);
    }
    if rdev == PTMX {
        return pty::open_master();
    }
    let kind = match split_dev(rdev) {
        (MEMORY_MAJOR, 3) => Memory::Null,
        (MEMORY_MAJOR, 5) => Memory::Zero,
        (MEMORY_MAJOR, 7) => Memory::Full,
        (MEMORY_MAJOR, 8 | 9) => Memory::Random,
        _ => return Err(Errno::ENXIO),
    };
    Ok(Arc::new(MemoryDevice { kind, rdev }))
}

/// The controlling terminal: the one behind a standard stream.
fn terminal() -> SysResult<Arc<dyn File>> {
    if !jobs::controls(signals::job()) {
        return Err(Errno::ENXIO); // a session without one
    }
    let number = host_terminal().ok_or(Errno::ENXIO)?;
    let fd = HostFd::adopt(host::call(HostOp::Dup, [u64::from(number), 0, 0, 0, 0, 0])?)?;
    Ok(Arc::new(HostStream::new(fd)))
}

/// The standard stream that is the controlling terminal of Cloak's session on the host.
pub(super) fn host_terminal() -> Option<u32> {
    let is_terminal = |number: &u32| {
        let mut request = host::Request::new();
        // TIOCGPGRP: only a controlling terminal knows it.
        request
            .call(HostOp::Ioctl, [u64::from(*number), 0x540f, 0, 4, 0, 0])
            .ok()
            .is_ok()
    };
    (0..3).find(is_terminal)
}

/// Fills with randomness, a part at a time.
fn fill_random(to: &mut Buf) -> SysResult<usize> {
    let mut part = [0; 256];
    let mut done = 0;
    while !to.is_empty() {
        let len = to.len().min(part.len());
        let step = providers::get()
            .random(&mut part[..len])
            .and_then(|()| to.put(&part[..len]));
        match step {
            Ok(n) => done += n,
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
    }
    Ok(done)
}

impl File for MemoryDevice {
    fn read(&self, _file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        self.read_at(0, to)
    }

    fn write(&self, _file: &OpenFile, from: &mut Buf) -> SysResult<usize> {
        self.write_at(0, from)
    }

    fn read_at(&self, _offset: u64, to: &mut Buf) -> SysResult<usize> {
        match self.kind {
            Memory::Null => Ok(0),
            Memory::Zero | Memory::Full => to.put_zeros(to.len()),
            Memory::Random => fill_random(to),
        }
    }

    fn write_at(&self, _offset: u64, from: &mut Buf) -> SysResult<usize> {
        // What is written to the random devices is not needed: the randomness is the CPU's.
        if self.kind == Memory::Full {
            Err(Errno::ENOSPC)
        } else {
            Ok(from.len())
        }
    }

    fn stat(&self) -> SysResult<Stat> {
        Ok(Stat {
            mode: S_IFCHR | 0o666,
            rdev: self.rdev,
            nlink: 1,
            blksize: 4096,
            ..Stat::default()
        })
    }

    fn seek(&self, file: &OpenFile, _offset: i64, _whence: u32) -> SysResult<u64> {
        file.position.with(|position| *position = 0);
        Ok(0)
    }

    fn map(&self, _shared: bool) -> SysResult<Mapping> {
        if self.kind == Memory::Zero {
            Ok(Mapping::Zero)
        } else {
            Err(Errno::ENODEV)
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
