//! State of the service's own process.

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::{check_int, check_long};

/// Ignores a signal.
pub fn ignore_signal(signal: i32) -> Result<(), Errno> {
    // SAFETY: SIG_IGN installs no handler.
    if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(super::last_errno());
    }
    Ok(())
}

/// Unblocks every signal of this thread.
pub fn unblock_signals() -> Result<(), Errno> {
    // SAFETY: the set is initialised by sigemptyset before it is used.
    check_int(unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    })?;
    Ok(())
}

/// Closes every descriptor from `first`.
pub fn close_from(first: i32) -> Result<(), Errno> {
    // SAFETY: called before the service owns any descriptor in that range.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) })?;
    Ok(())
}

/// Owns a descriptor that was handed over by number.
///
/// # Errors
/// `EBADF` when there is none.
pub fn inherited(fd: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: F_SETFD on a number that may not be open gives EBADF and touches nothing else.
    check_int(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the number is open, and start-up takes each number once, before anything else opens files.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
