//! Signals: what is pending, what is blocked, what each does.
//!
//! | file | concept |
//! |---|---|
//! | `pending` | queues of signals, per thread and per process |
//! | `frame` | what a handler finds on the program's stack, and the way back |
//! | `interval`, `timer_calls` | timers that send signals |
//! | `deliver` | what happens before a thread goes on |
//! | `restart` | interrupted calls that go on where they were |
//! | `calls` | the system calls |

pub mod interval;
pub mod pending;
pub mod restart;

#[cfg(feature = "bare")]
pub mod calls;
#[cfg(feature = "bare")]
mod deliver;
#[cfg(feature = "bare")]
mod frame;
#[cfg(feature = "bare")]
pub mod timer_calls;

#[cfg(feature = "bare")]
pub use deliver::*;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;

use pending::Pending;

#[allow(missing_docs)]
pub mod number {
    //! Signal numbers (x86-64).
    pub const SIGHUP: u32 = 1;
    pub const SIGINT: u32 = 2;
    pub const SIGQUIT: u32 = 3;
    pub const SIGILL: u32 = 4;
    pub const SIGTRAP: u32 = 5;
    pub const SIGABRT: u32 = 6;
    pub const SIGBUS: u32 = 7;
    pub const SIGFPE: u32 = 8;
    pub const SIGKILL: u32 = 9;
    pub const SIGSEGV: u32 = 11;
    pub const SIGPIPE: u32 = 13;
    pub const SIGALRM: u32 = 14;
    pub const SIGXCPU: u32 = 24;
    pub const SIGVTALRM: u32 = 26;
    pub const SIGPROF: u32 = 27;
    pub const SIGCHLD: u32 = 17;
    pub const SIGCONT: u32 = 18;
    pub const SIGSTOP: u32 = 19;
    pub const SIGTSTP: u32 = 20;
    pub const SIGTTIN: u32 = 21;
    pub const SIGTTOU: u32 = 22;
    pub const SIGURG: u32 = 23;
    pub const SIGSYS: u32 = 31;
    pub const SIGWINCH: u32 = 28;
}

/// Signals that can't be blocked or handled.
pub const UNBLOCKABLE: u64 = bit(number::SIGKILL) | bit(number::SIGSTOP);

/// Bit of signal `n` (1..=64) in a set.
#[must_use]
pub const fn bit(n: u32) -> u64 {
    1 << (n - 1)
}

/// `SIG_IGN`.
pub const IGNORED: u64 = 1;

/// What a signal does (`struct sigaction` as the kernel takes it).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Action {
    /// 0 default, 1 ignore, else the handler's address.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// `SA_RESTORER`'s function.
    pub restorer: u64,
    /// Blocked while the handler runs.
    pub mask: u64,
}

/// What a signal does when nobody handles it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default_ {
    /// The process ends.
    Terminate,
    /// Nothing.
    Ignore,
    /// The process stops.
    Stop,
    /// The process goes on.
    Continue,
}

/// Default action of a signal (`signal(7)`).
#[must_use]
pub const fn default_action(signal: u32) -> Default_ {
    match signal {
        number::SIGCHLD | number::SIGURG | number::SIGWINCH => Default_::Ignore,
        number::SIGCONT => Default_::Continue,
        number::SIGSTOP | number::SIGTSTP | number::SIGTTIN | number::SIGTTOU => Default_::Stop,
        _ => Default_::Terminate,
    }
}

/// Signal state of a process.
#[derive(Debug)]
pub struct ProcessSignals {
    /// Pending for any thread.
    pub pending: Pending,
    /// Actions, by number - 1.
    pub actions: Mutex<[Action; 64]>,
    /// Timers that send signals.
    #[cfg(feature = "bare")]
    pub timers: timer_calls::Timers,
}

impl Default for ProcessSignals {
    fn default() -> Self {
        Self {
            pending: Pending::default(),
            actions: Mutex::new([Action::default(); 64]),
            #[cfg(feature = "bare")]
            timers: timer_calls::Timers::default(),
        }
    }
}

impl ProcessSignals {
    /// Ignores a set of signals, as far as that may be.
    pub fn ignore(&self, set: u64) {
        for (n, action) in (1..).zip(self.actions.lock().iter_mut()) {
            if set & !UNBLOCKABLE & bit(n) != 0 {
                action.handler = IGNORED;
            }
        }
    }

    /// What `signal` does.
    pub fn action(&self, signal: u32) -> Action {
        self.actions.lock()[signal as usize - 1]
    }

    /// Whether `signal` would do nothing.
    pub fn ignores(&self, signal: u32) -> bool {
        match self.action(signal).handler {
            0 => matches!(default_action(signal), Default_::Ignore | Default_::Continue),
            IGNORED => true,
            _ => false,
        }
    }
}

/// Alternate signal stack (`stack_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AltStack {
    /// Lowest address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// `SS_DISABLE`, `SS_AUTODISARM`.
    pub flags: u32,
}

impl Default for AltStack {
    fn default() -> Self {
        Self {
            base: 0,
            size: 0,
            flags: 2,
        }
    }
}

/// Signal state of a thread.
#[derive(Debug, Default)]
pub struct ThreadSignals {
    /// Pending for this thread.
    pub pending: Pending,
    /// Blocked.
    pub mask: AtomicU64,
    /// Mask to put back after a call that changed it for its own time (`sigsuspend`, `ppoll`).
    pub saved_mask: Mutex<Option<u64>>,
    /// Alternate stack.
    pub alt_stack: Mutex<AltStack>,
    /// Signals for which `sigtimedwait` waits.
    pub awaited: AtomicU64,
    /// What is left of the call that was interrupted last.
    pub rest: Mutex<Option<restart::Rest>>,
    /// All registers must be restored at the next exit from the libos.
    pub full_restore: AtomicBool,
}

impl ThreadSignals {
    /// Blocks a set of signals, as far as that may be.
    pub fn block(&self, set: u64) {
        self.mask.store(set & !UNBLOCKABLE, Ordering::Relaxed);
    }

    /// Whether a signal is to be looked at: pending and not blocked, or awaited.
    pub fn wants(&self, process: &ProcessSignals) -> bool {
        let pending = self.pending.bits() | process.pending.bits();
        let blocked = self.mask.load(Ordering::Relaxed) & !self.awaited.load(Ordering::Relaxed);
        pending & !blocked != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_ignores_and_blocks_is_taken_over_but_for_what_nobody_can() {
        let process = ProcessSignals::default();
        process.ignore(bit(number::SIGHUP) | bit(64) | UNBLOCKABLE);
        let ignored: Vec<u32> = (1..=64)
            .filter(|&n| process.action(n).handler == IGNORED)
            .collect();
        assert_eq!(ignored, [number::SIGHUP, 64]);
        assert!(process.ignores(number::SIGHUP) && !process.ignores(number::SIGINT));
        let thread = ThreadSignals::default();
        thread.block(u64::MAX);
        assert_eq!(thread.mask.load(Ordering::Relaxed), !UNBLOCKABLE);
    }
}
