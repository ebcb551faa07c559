//! Terminals and job control.
//!
//! The service is in the program's process group as far as the terminal is concerned, but it ignores
//! SIGTTIN and SIGTTOU: a service that the terminal stops would leave the guest hanging with nobody to say
//! why. Instead, where Linux would have signalled a background program, the answer is `EIO` with the signal
//! in `extra`; the libos then does to the program what the signal does, and asks again if the program
//! ignores it.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::request::Refusal;
use super::table::Entry;

/// Whether another process group has the terminal. Not so for one that is not our controlling terminal.
pub fn in_background(entry: &Entry) -> bool {
    rustix::termios::tcgetpgrp(entry).is_ok_and(|group| group != rustix::process::getpgrp())
}

/// Adds the reason to a read that a terminal refused.
pub fn explain_read(entry: &Entry, errno: Errno) -> Refusal {
    if errno == Errno::IO && entry.terminal && in_background(entry) {
        return Refusal::Signal(errno, libc::SIGTTIN);
    }
    errno.into()
}

/// Whether terminal settings may be changed; `insists` when the program ignores or blocks SIGTTOU.
pub fn may_change(entry: &Entry, insists: bool) -> Result<(), Refusal> {
    if !insists && entry.terminal && in_background(entry) {
        return Err(Refusal::Signal(Errno::IO, libc::SIGTTOU));
    }
    Ok(())
}

/// Whether the terminal may be written to: in the background only without TOSTOP.
pub fn may_write(entry: &Entry, insists: bool) -> Result<(), Refusal> {
    if insists || !in_background(entry) {
        return Ok(());
    }
    let modes = rustix::termios::tcgetattr(entry.as_fd())?.local_modes;
    if modes.contains(rustix::termios::LocalModes::TOSTOP) {
        return Err(Refusal::Signal(Errno::IO, libc::SIGTTOU));
    }
    Ok(())
}
