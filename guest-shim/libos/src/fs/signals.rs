//! What files need from signals: SIGPIPE and the like, temporary masks, and pending signals for `signalfd`.
//!
//! Signals lie above files, so their side is a trait that the signal code installs at boot ([`install`]).
//! Without it (under test) nothing is ever pending and masks are ignored.

use spin::Once;

use super::jobs::Job;
use crate::errno::{Errno, SysResult};
use crate::sched::WaitQueue;
use crate::user;

const SIGPIPE: u32 = 13;

/// `struct signalfd_siginfo`, 128 bytes.
pub type SignalInfo = [u8; 128];

/// The signal code's side. All are about the thread that calls.
pub trait Signals: Sync {
    /// A signal for the caller.
    fn raise(&self, signal: u32);
    /// Replaces the caller's mask until [`Signals::restore_mask`] (`set_user_sigmask`).
    fn set_mask(&self, mask: u64);
    /// Puts the mask back: now, or, when the call was `interrupted`, once the signal's frame is built.
    fn restore_mask(&self, interrupted: bool);
    /// Whether a signal of `set` is pending for the caller or its process (bit `n - 1` for signal `n`).
    fn pending(&self, set: u64) -> bool;
    /// Takes one.
    fn take(&self, set: u64) -> Option<SignalInfo>;
    /// The caller's place among the jobs of the terminal.
    fn job(&self) -> Job;
    /// Whether there is such a group in the session.
    fn group_is_of(&self, group: i32, session: i32) -> bool;
    /// Whether the signal does nothing to the caller: ignored or blocked.
    fn does_nothing(&self, signal: u32) -> bool;
    /// A signal of the terminal for every process of a group.
    fn raise_in_group(&self, group: i32, signal: u32);
    /// A signal of the terminal for one process.
    fn raise_in_process(&self, pid: i32, signal: u32);
    /// Whether the caller leads its session.
    fn leads_session(&self) -> bool;
    /// Whether nobody in the group's session, but outside of the group, is the parent of one of it.
    fn is_orphaned(&self, group: i32) -> bool;
}

static SIGNALS: Once<&'static dyn Signals> = Once::new();

/// Woken whenever a signal that somebody blocks becomes pending anywhere in the context.
pub static ARRIVALS: WaitQueue = WaitQueue::new();

/// Installs the signal code's side.
pub fn install(signals: &'static dyn Signals) {
    SIGNALS.call_once(|| signals);
}

/// A signal became pending: descriptors of `signalfd` look again.
pub fn arrived() {
    ARRIVALS.wake_all(super::file::ready::IN);
}

/// Something was written to a pipe or socket that nobody reads: raises SIGPIPE and gives EPIPE.
#[must_use]
pub fn broken_pipe() -> Errno {
    raise(SIGPIPE);
    Errno::EPIPE
}

/// A signal for the caller, about what it just asked for.
pub fn raise(signal: u32) {
    if let Some(signals) = SIGNALS.get() {
        signals.raise(signal);
    }
}

/// Whether a signal of `set` is pending for the caller.
#[must_use]
pub fn pending(set: u64) -> bool {
    SIGNALS.get().is_some_and(|s| s.pending(set))
}

/// Takes a pending signal of `set`.
#[must_use]
pub fn take(set: u64) -> Option<SignalInfo> {
    SIGNALS.get().and_then(|s| s.take(set))
}

/// The caller's place among the jobs of the terminal.
#[must_use]
pub fn job() -> Job {
    let alone = Job {
        group: 1,
        session: 1,
        first: 1,
    };
    SIGNALS.get().map_or(alone, |s| s.job())
}

/// Whether there is such a group in the session.
#[must_use]
pub fn group_is_of(group: i32, session: i32) -> bool {
    SIGNALS.get().is_some_and(|s| s.group_is_of(group, session))
}

/// Whether the signal does nothing to the caller.
#[must_use]
pub fn does_nothing(signal: u32) -> bool {
    SIGNALS.get().is_none_or(|s| s.does_nothing(signal))
}

/// A signal of the terminal for every process of a group.
pub fn raise_in_group(group: i32, signal: u32) {
    if let Some(signals) = SIGNALS.get() {
        signals.raise_in_group(group, signal);
    }
}

/// A signal of the terminal for one process.
pub fn raise_in_process(pid: i32, signal: u32) {
    if let Some(signals) = SIGNALS.get() {
        signals.raise_in_process(pid, signal);
    }
}

/// Whether the caller leads its session.
#[must_use]
pub fn leads_session() -> bool {
    SIGNALS.get().is_some_and(|s| s.leads_session())
}

/// Whether nobody in the group's session, but outside of the group, is the parent of one of it.
#[must_use]
pub fn is_orphaned(group: i32) -> bool {
    SIGNALS.get().is_some_and(|s| s.is_orphaned(group))
}

/// SIGKILL and SIGSTOP can't be blocked or taken.
const UNBLOCKABLE: u64 = 1 << 8 | 1 << 18;

/// Reads a `sigset_t` of `size` bytes.
///
/// # Errors
/// EINVAL for a wrong size, EFAULT.
pub fn read_set(address: u64, size: usize) -> SysResult<u64> {
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    user::read::<u64>(address).map(|set| set & !UNBLOCKABLE)
}

/// Runs `call` with the signal mask at `address` (0: as it is).
///
/// # Errors
/// EINVAL, EFAULT, and those of `call`.
pub fn with_mask<T>(address: u64, size: usize, call: impl FnOnce() -> SysResult<T>) -> SysResult<T> {
    if address == 0 {
        return call();
    }
    let set = read_set(address, size)?;
    let Some(signals) = SIGNALS.get() else {
        return call();
    };
    signals.set_mask(set);
    let result = call();
    let restarts = [
        Errno::EINTR,
        Errno::ERESTARTNOHAND,
        Errno::ERESTARTSYS,
        Errno::ERESTART_RESTARTBLOCK,
    ];
    signals.restore_mask(result.as_ref().is_err_and(|e| restarts.contains(e)));
    result
}
