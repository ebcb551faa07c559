//! Processes that signals stop and let go on.

use core::sync::atomic::Ordering;

use super::family::{self, Report};
use super::{FIRST_PID, Process};
use crate::sched::{self, park};
use crate::signal::{bit, number};

impl Process {
    /// Whether a signal has stopped it.
    pub fn is_stopped(&self) -> bool {
        self.family.stopped.load(Ordering::SeqCst)
    }

    /// A stop signal does its work.
    pub fn stop(&self, signal: u8) {
        if self.family.stopped.swap(true, Ordering::SeqCst) {
            return;
        }
        family::changed(self, Report::Stopped(signal));
        self.notify_others();
    }

    /// SIGCONT was sent.
    pub fn go_on(&self) {
        if self.family.stopped.swap(false, Ordering::SeqCst) {
            family::changed(self, Report::Continued);
            self.threads().iter().for_each(|t| t.unpark());
        }
    }

    /// Whether it is the one whose stop the host is told of, as it is the host's child.
    pub fn stops_outside(&self) -> bool {
        self.pid == FIRST_PID
    }
}

/// The running thread's process is stopped: waits until it goes on or is killed.
pub fn wait() {
    let thread = sched::current();
    let process = &thread.process;
    let killed = || {
        let pending = thread.signals.pending.bits() | process.signals.pending.bits();
        process.ends(thread) || pending & bit(number::SIGKILL) != 0
    };
    while process.is_stopped() && !killed() {
        park(u64::MAX);
    }
}
