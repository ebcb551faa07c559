//! Controlling terminals: which session a pair is the terminal of, and who may use it (credentials(7), termios(3)).

use alloc::sync::Arc;

use super::{Pair, SIGCONT, SIGHUP, devpts, pairs};
use crate::errno::{Errno, SysResult};
use crate::fs::file::File;
use crate::fs::jobs::{SIGTTIN, SIGTTOU};
use crate::fs::{jobs, node, signals};

/// What a program is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To read.
    Read,
    /// To write, or to change the terminal.
    Write,
}

/// What Linux does to a background program that reads, writes or changes its terminal: its group is signalled and the
/// call starts again; where the signal does nothing, or nobody could let the group go on, reading fails.
pub fn keep_out(pair: &Pair, access: Access) -> SysResult<()> {
    let job = signals::job();
    {
        let state = pair.state.lock();
        if state.session != job.session || state.foreground == job.group || state.foreground == 0 {
            return Ok(());
        }
    }
    let signal = match access {
        Access::Read => SIGTTIN,
        Access::Write => SIGTTOU,
    };
    match access {
        Access::Read if signals::does_nothing(signal) || signals::is_orphaned(job.group) => Err(Errno::EIO),
        Access::Write if signals::does_nothing(signal) => Ok(()),
        Access::Write if signals::is_orphaned(job.group) => Err(Errno::EIO),
        _ => {
            signals::raise_in_group(job.group, signal);
            Err(Errno::ERESTARTSYS)
        }
    }
}

/// The pair that is the terminal of a session.
fn of_session(session: i32) -> Option<Arc<Pair>> {
    pairs()
        .into_iter()
        .find(|pair| pair.state.lock().session == session)
}

/// The slave that is the caller's controlling terminal, opened once more; `None`: it is not in here.
#[must_use]
pub fn controlling(flags: u32) -> Option<SysResult<Arc<dyn File>>> {
    let pair = of_session(signals::job().session)?;
    Some(devpts::slave(pair.number).and_then(|node| node.open(flags)))
}

/// A leader of a session opens a slave: it becomes the session's terminal, if it has none and it is nobody's.
pub fn acquire_by_open(pair: &Pair) {
    let job = signals::job();
    let leads = signals::leads_session();
    if leads && !jobs::controls(job) && of_session(job.session).is_none() {
        let mut state = pair.state.lock();
        if state.session == 0 {
            (state.session, state.foreground) = (job.session, job.group);
        }
    }
}

/// `TIOCSCTTY`; `steals`: from another session, which only root may.
pub fn acquire(pair: &Arc<Pair>, steals: bool) -> SysResult {
    let job = signals::job();
    let theirs = pair.state.lock().session;
    if theirs == job.session && signals::leads_session() {
        return Ok(0);
    }
    if !signals::leads_session() || of_session(job.session).is_some() || jobs::has_terminal(job) {
        return Err(Errno::EPERM);
    }
    if theirs != 0 && !(steals && node::credentials().uid[1] == 0) {
        return Err(Errno::EPERM);
    }
    let mut state = pair.state.lock();
    (state.session, state.foreground) = (job.session, job.group);
    Ok(0)
}

/// `TIOCNOTTY`: the caller's session gives its terminal up, if the caller leads it.
pub fn give_up(pair: &Pair) -> SysResult {
    let job = signals::job();
    let foreground = {
        let mut state = pair.state.lock();
        if state.session != job.session {
            return Err(Errno::ENOTTY);
        }
        if !signals::leads_session() {
            // Linux takes it from the caller alone; its session has one here.
            return Ok(0);
        }
        state.session = 0;
        core::mem::take(&mut state.foreground)
    };
    pair.raise(foreground, &[SIGHUP, SIGCONT]);
    Ok(0)
}

/// A leader of a session has ended: its terminal hangs up.
pub fn session_ended(session: i32) {
    if let Some(pair) = of_session(session) {
        pair.hang_up_slave();
    }
}

/// `tcsetpgrp`.
pub fn set_foreground(pair: &Pair, group: i32) -> SysResult {
    let job = signals::job();
    if pair.state.lock().session != job.session {
        return Err(Errno::ENOTTY);
    }
    keep_out(pair, Access::Write)?;
    if group <= 0 {
        return Err(Errno::EINVAL);
    }
    if !signals::group_is_of(group, job.session) {
        return Err(Errno::EPERM);
    }
    pair.state.lock().foreground = group;
    Ok(0)
}
