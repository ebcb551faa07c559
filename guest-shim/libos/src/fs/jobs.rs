//! Job control on the host's terminal: which process group of the guest has it.
//!
//! The host knows one group, Cloak's own. Which of the guest's groups has the terminal while that one has it is known
//! here: `tcsetpgrp` never leaves the guest but to make sure that Cloak's group has the terminal. The terminal is that
//! of the first process's session.

use core::sync::atomic::{AtomicI32, Ordering};

use super::signals;
use crate::errno::{Errno, SysResult};

/// A background program reads.
pub const SIGTTIN: u32 = 21;
/// A background program changes the terminal.
pub const SIGTTOU: u32 = 22;

/// The caller's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Process group.
    pub group: i32,
    /// Session.
    pub session: i32,
    /// The session that the terminal belongs to, and the group that has it first.
    pub first: i32,
}

/// Group that was given the terminal last; 0: nobody has asked yet.
static GIVEN: AtomicI32 = AtomicI32::new(0);

/// The group that has the terminal, if that is not the first one.
#[must_use]
pub fn given() -> Option<i32> {
    Some(GIVEN.load(Ordering::Relaxed)).filter(|&group| group != 0)
}

/// The group that has the terminal.
#[must_use]
pub fn foreground(job: Job) -> i32 {
    given().unwrap_or(job.first)
}

/// Whether the terminal is the caller's controlling terminal.
#[must_use]
pub fn controls(job: Job) -> bool {
    job.session == job.first
}

/// Whether the caller's session has the host's terminal.
#[must_use]
pub fn has_terminal(job: Job) -> bool {
    controls(job) && super::special::host_terminal().is_some()
}

/// Whether the caller's group is in the background of its controlling terminal.
#[must_use]
pub fn in_background(job: Job) -> bool {
    controls(job) && job.group != foreground(job)
}

/// `tcsetpgrp`, once the host has let Cloak's group have the terminal.
///
/// # Errors
/// ENOTTY in another session, EINVAL for no number of a group, EPERM for a group of another session.
pub fn give(job: Job, group: i32) -> SysResult<()> {
    if !controls(job) {
        return Err(Errno::ENOTTY);
    }
    if group <= 0 {
        return Err(Errno::EINVAL);
    }
    if !signals::group_is_of(group, job.session) {
        return Err(Errno::EPERM);
    }
    GIVEN.store(if group == job.first { 0 } else { group }, Ordering::Relaxed);
    Ok(())
}

/// What Linux does to a background program that reads or changes its terminal: its group is signalled and the call
/// starts again, or, where the signal does nothing to the caller, `otherwise` holds.
///
/// # Errors
/// ERESTARTSYS once signalled; what `otherwise` says.
pub fn keep_out(signal: u32, otherwise: SysResult<()>) -> SysResult<()> {
    let job = signals::job();
    if !in_background(job) {
        return Ok(());
    }
    if signals::does_nothing(signal) {
        return otherwise;
    }
    signals::raise_in_group(job.group, signal);
    Err(Errno::ERESTARTSYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_group_has_the_terminal_until_it_is_given_away() {
        let job = |group, session| Job {
            group,
            session,
            first: 2,
        };
        assert_eq!((foreground(job(2, 2)), in_background(job(2, 2))), (2, false));
        assert!(in_background(job(5, 2)) && !in_background(job(5, 5)));
        assert_eq!(give(job(5, 5), 5), Err(Errno::ENOTTY));
        assert_eq!(give(job(2, 2), -1), Err(Errno::EINVAL));
        // Under test there are no groups to give it to.
        assert_eq!(give(job(2, 2), 7), Err(Errno::EPERM));
        assert_eq!(given(), None);
    }
}
