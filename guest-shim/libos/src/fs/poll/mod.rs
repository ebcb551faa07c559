//! `poll`, `ppoll`, `select` and `pselect6`: waiting for any of some files.
//!
//! A [`Watch`] is one file and what is asked of it. [`wait_any`] looks, asks the host about what is in doubt,
//! registers with all files, looks again, and sleeps.

mod select;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::file::ready;
use super::hostlink::{self, Doubt};
use super::{OpenFile, fd, signals};
use crate::errno::{Errno, SysResult};
use crate::process::Process;
use crate::sched::clock::{self, Timespec};
use crate::sched::time_calls::{timeout_at, timeout_ms};
use crate::sched::{Key, Thread, Waker, current_arc, park};
use crate::signal::restart::later;
use crate::syscall::{Args, Entry, full};
use crate::{arch, user};

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(7, "poll", "xui", poll),
    full(23, "select", "ixxxx", select::select),
    full(270, "pselect6", "ixxxxx", select::pselect6),
    full(271, "ppoll", "xuxxs", ppoll),
];

const NVAL: u32 = 0x20;

/// Linux's `struct pollfd`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct PollFd {
    fd: i32,
    events: u16,
    revents: u16,
}

/// A file and what is asked of it.
#[derive(Debug)]
pub struct Watch {
    /// None: nothing is asked (a negative descriptor).
    pub open: Option<Arc<OpenFile>>,
    /// [`ready`] bits asked for.
    pub events: u32,
    /// Those found.
    pub found: u32,
}

impl Watch {
    fn look(&self) -> u32 {
        self.open
            .as_ref()
            .map_or(0, |open| open.file.poll() & self.events)
    }
}

/// Tells a thread, and remembers that it did: the thread may park for something else meanwhile and so eat
/// the token.
struct Latch {
    fired: AtomicBool,
    thread: Arc<Thread>,
}

impl Waker for Latch {
    fn wake(&self, _ready: u32) {
        self.fired.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// Waits until something is found for one of `watches` or `deadline` (ticks) has passed; gives for how many.
///
/// # Errors
/// EINTR, and those of the OS side.
pub fn wait_any(watches: &mut [Watch], deadline: u64) -> SysResult<usize> {
    take_reports();
    let found = scan(watches)?;
    // Whatever was found, and also for who does not wait: what was not there is seen by further looks only through reports.
    let mut files = watches.iter().filter_map(|w| w.open.as_ref());
    let watched = files.try_for_each(|open| open.file.prepare_wait());
    if found > 0 {
        return Ok(found);
    }
    watched?;
    if expired(deadline) {
        return if hostlink::catch_up()? {
            scan(watches)
        } else {
            Ok(0)
        };
    }
    let latch = Arc::new(Latch {
        fired: AtomicBool::new(false),
        thread: current_arc(),
    });
    let keys: Vec<Option<Key>> = watches.iter().map(|w| register(w, &latch)).collect();
    let result = sleep(watches, &latch, deadline);
    for (watch, key) in watches.iter().zip(keys) {
        let queue = watch.open.as_ref().and_then(|open| open.file.wait_queue());
        if let (Some(queue), Some(key)) = (queue, key) {
            queue.remove(key);
        }
    }
    result
}

fn register(watch: &Watch, latch: &Arc<Latch>) -> Option<Key> {
    Some(watch.open.as_ref()?.file.wait_queue()?.add(latch.clone()))
}

fn sleep(watches: &mut [Watch], latch: &Latch, deadline: u64) -> SysResult<usize> {
    loop {
        latch.fired.store(false, Ordering::SeqCst);
        let found = scan(watches)?;
        if found > 0 || expired(deadline) {
            return Ok(found);
        }
        if crate::sched::current().has_signal() {
            return Err(Errno::EINTR);
        }
        if !latch.fired.load(Ordering::SeqCst) {
            park(deadline);
        }
    }
}

fn expired(deadline: u64) -> bool {
    deadline != u64::MAX && arch::ticks() >= deadline
}

/// Looks at all, asking the host where there is doubt.
fn scan(watches: &mut [Watch]) -> SysResult<usize> {
    let mut doubts: Vec<Doubt> = Vec::new();
    for watch in watches.iter_mut() {
        watch.found = watch.look();
        if let (Some(open), true) = (&watch.open, watch.found != 0) {
            open.file.doubts(open, watch.events, &mut doubts);
        }
    }
    if !doubts.is_empty() {
        hostlink::verify(&doubts)?;
        watches.iter_mut().for_each(|w| w.found = w.look());
    }
    Ok(watches.iter().filter(|w| w.found != 0).count())
}

/// Takes what the OS service has reported so far.
pub(super) fn take_reports() {
    // Under test a thread of the fake service does.
    if cfg!(feature = "bare") {
        crate::host::poll(arch::vcpu_index());
    }
}

fn poll(args: &Args) -> SysResult {
    poll_on(*args, timeout_ms(args.i32(2)))
}

fn poll_on(args: Args, deadline: u64) -> SysResult {
    poll_until(&args, deadline).map_err(|error| match error {
        Errno::EINTR => later(move || poll_on(args, deadline)),
        other => other,
    })
}

fn ppoll(args: &Args) -> SysResult {
    let deadline = timeout_at(args.u64(2))?;
    let result = signals::with_mask(args.u64(3), args.usize(4), || {
        poll_until(args, deadline).map_err(|e| restart(e, Errno::ERESTARTNOHAND))
    });
    if args.u64(2) != 0 {
        // As Linux does; a program that keeps it in read-only memory is not told.
        let _ = user::write(args.u64(2), &Timespec::from_ns(left(deadline)));
    }
    result
}

/// EINTR becomes `restarted`.
fn restart(error: Errno, restarted: Errno) -> Errno {
    if error == Errno::EINTR { restarted } else { error }
}

/// Nanoseconds until `deadline`.
fn left(deadline: u64) -> u64 {
    let ticks = deadline.saturating_sub(arch::ticks());
    let ns = u128::from(ticks) * u128::from(clock::SECOND) / u128::from(arch::ticks_per_second().max(1));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

fn poll_until(args: &Args, deadline: u64) -> SysResult {
    let (address, count) = (args.u64(0), args.u32(1) as usize);
    if count > Process::current().files.limits().0 {
        return Err(Errno::EINVAL);
    }
    let asked: Vec<PollFd> = user::read_array(address, count)?;
    let mut watches: Vec<Watch> = asked.iter().map(watch).collect();
    let invalid = |(a, w): (&PollFd, &Watch)| a.fd >= 0 && w.open.is_none();
    let bad = asked.iter().zip(&watches).filter(|&pair| invalid(pair)).count();
    let found = wait_any(&mut watches, if bad > 0 { 0 } else { deadline })?;
    for (i, (asked, watch)) in asked.iter().zip(&watches).enumerate() {
        let revents = if invalid((asked, watch)) {
            NVAL
        } else {
            watch.found
        };
        user::write(address + (i * size_of::<PollFd>() + 6) as u64, &(revents as u16))?;
    }
    Ok((found + bad) as u64)
}

fn watch(asked: &PollFd) -> Watch {
    let open = if asked.fd < 0 {
        None
    } else {
        fd::get(asked.fd).ok()
    };
    Watch {
        open,
        events: u32::from(asked.events) | ready::ERR | ready::HUP,
        found: 0,
    }
}

#[cfg(test)]
mod tests;
