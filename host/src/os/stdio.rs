//! The inherited standard streams.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::paths::magic_path;
use super::sys;
use super::table::{Entry, Kind};

/// Major number of the memory devices (`/dev/null`, `/dev/zero`), which never make anybody wait.
const MEMORY_DEVICES: u32 = 1;
/// The device that makes a new terminal each time it is opened, `/dev/ptmx`: major and minor number.
const PTMX: (u32, u32) = (5, 2);

/// Finds out how a stream can be used without changing it for those we share it with.
///
/// # Errors
/// `EBADF` when it is not open.
pub fn stream(file: OwnedFd) -> Result<Entry, Errno> {
    let stat = sys::fstat(file.as_fd())?;
    let kind = match stat.mode() & libc::S_IFMT {
        libc::S_IFREG | libc::S_IFBLK => Kind::Regular,
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFIFO => Kind::SharedPipe,
        libc::S_IFSOCK => Kind::SharedSocket,
        libc::S_IFCHR => return device(file, stat.special_device()),
        _ => Kind::SharedDevice,
    };
    let mut entry = Entry::new(file, kind);
    entry.device = stat.device();
    Ok(entry)
}

fn device(file: OwnedFd, number: u64) -> Result<Entry, Errno> {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    if major == MEMORY_DEVICES {
        return Ok(Entry::new(file, Kind::Stream));
    }
    if !rustix::termios::isatty(&file) {
        return Ok(Entry::new(file, Kind::SharedDevice));
    }
    let own = if (major, minor) == PTMX || is_master(&file) {
        None
    } else {
        reopen(&file)
    };
    let mut entry = match own {
        Some(own) => Entry::new(own, Kind::Stream),
        None => Entry::new(file, Kind::SharedDevice),
    };
    entry.terminal = true;
    Ok(entry)
}

/// The master side of a pseudo-terminal has a number in the range of terminals, but can't be opened again.
fn is_master(file: &OwnedFd) -> bool {
    let Ok(path) = rustix::fs::readlink(magic_path(file.as_fd()), Vec::new()) else {
        return true;
    };
    path.to_bytes().ends_with(b"ptmx")
}

/// The same terminal as an open file of our own, which may be non-blocking. None when we may not open it
/// (a terminal of another user), which is as well.
fn reopen(file: &OwnedFd) -> Option<OwnedFd> {
    let access = rustix::fs::fcntl_getfl(file).ok()? & OFlags::RWMODE;
    let flags = access | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let own = rustix::fs::open(magic_path(file.as_fd()), flags, Mode::empty()).ok()?;
    debug_assert_ne!(own.as_raw_fd(), file.as_raw_fd());
    Some(own)
}
