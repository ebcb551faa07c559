//! The table of system calls: number, name, how complete, what is missing, who serves it.
//!
//! Each area lists its own calls ([`Entry`] slices); [`TABLE`] joins them at compile time. A call that no
//! area lists gives ENOSYS. `docs/syscalls.md` is generated from this table.

use crate::errno::{Errno, SysResult};

/// Highest number the table holds plus one.
pub const COUNT: usize = 480;

/// How complete a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// All that programs use, as Linux does it.
    Full,
    /// Some of it; the note says what is missing.
    Partial,
    /// Answered with an error as by a Linux that lacks it; the note says why.
    Refused,
}

/// Arguments of a system call, as the program passed them.
#[derive(Debug, Clone, Copy)]
pub struct Args(pub [u64; 6]);

impl Args {
    /// Argument `n` as a 64-bit number or address.
    #[must_use]
    pub const fn u64(&self, n: usize) -> u64 {
        self.0[n]
    }
    /// Argument `n` as a size.
    #[must_use]
    pub const fn usize(&self, n: usize) -> usize {
        self.0[n] as usize
    }
    /// Argument `n` as an `int`.
    #[must_use]
    pub const fn i32(&self, n: usize) -> i32 {
        self.0[n] as i32
    }
    /// Argument `n` as an `unsigned int`.
    #[must_use]
    pub const fn u32(&self, n: usize) -> u32 {
        self.0[n] as u32
    }
    /// Argument `n` as a `long`.
    #[must_use]
    pub const fn i64(&self, n: usize) -> i64 {
        self.0[n] as i64
    }
    /// Argument `n` as a place in a file, or the size of one.
    ///
    /// # Errors
    /// EINVAL when it is negative.
    pub fn offset(&self, n: usize) -> SysResult<u64> {
        u64::try_from(self.i64(n)).map_err(|_| Errno::EINVAL)
    }
}

/// Serves one call.
pub type Handler = fn(&Args) -> SysResult;

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Number (`arch/x86/entry/syscalls/syscall_64.tbl`).
    pub number: usize,
    /// Name.
    pub name: &'static str,
    /// Shapes of the arguments for `--trace`: one letter each (`i` int, `u` unsigned, `x` hexadecimal,
    /// `p` path, `f` descriptor, `s` size).
    pub shapes: &'static str,
    /// How complete.
    pub status: Status,
    /// What is missing, or why refused.
    pub note: &'static str,
    /// Who serves it.
    pub handler: Handler,
}

/// A complete call.
#[must_use]
pub const fn full(number: usize, name: &'static str, shapes: &'static str, handler: Handler) -> Entry {
    Entry {
        number,
        name,
        shapes,
        status: Status::Full,
        note: "",
        handler,
    }
}

/// A call that lacks something.
#[must_use]
pub const fn partial(
    number: usize,
    name: &'static str,
    shapes: &'static str,
    note: &'static str,
    handler: Handler,
) -> Entry {
    Entry {
        number,
        name,
        shapes,
        status: Status::Partial,
        note,
        handler,
    }
}

/// A call that is answered with an error.
#[must_use]
pub const fn refused(number: usize, name: &'static str, note: &'static str, handler: Handler) -> Entry {
    Entry {
        number,
        name,
        shapes: "",
        status: Status::Refused,
        note,
        handler,
    }
}

/// ENOSYS: for refusals that look like an older kernel.
///
/// # Errors
/// Always ENOSYS.
pub fn enosys(_: &Args) -> SysResult {
    Err(Errno::ENOSYS)
}

/// EPERM: for refusals that look like missing privilege.
///
/// # Errors
/// Always EPERM.
pub fn eperm(_: &Args) -> SysResult {
    Err(Errno::EPERM)
}

const AREAS: &[&[Entry]] = &[
    crate::fs::SYSCALLS,
    crate::fs::pipe::SYSCALLS,
    crate::fs::eventfd::SYSCALLS,
    crate::fs::inotify::SYSCALLS,
    crate::fs::timerfd::SYSCALLS,
    crate::fs::signalfd::SYSCALLS,
    crate::fs::poll::SYSCALLS,
    crate::fs::epoll::SYSCALLS,
    crate::net::SYSCALLS,
    crate::sched::time_calls::SYSCALLS,
    #[cfg(feature = "bare")]
    crate::ipc::SYSCALLS,
    #[cfg(feature = "bare")]
    crate::mem::SYSCALLS,
    #[cfg(feature = "bare")]
    crate::process::SYSCALLS,
    #[cfg(feature = "bare")]
    crate::process::THREAD_SYSCALLS,
    #[cfg(feature = "bare")]
    crate::process::CLONE_SYSCALLS,
    #[cfg(feature = "bare")]
    crate::process::EXEC_SYSCALLS,
    #[cfg(feature = "bare")]
    crate::process::WAIT_SYSCALLS,
    #[cfg(feature = "bare")]
    crate::process::GROUP_SYSCALLS,
    #[cfg(feature = "bare")]
    crate::process::PIDFD_SYSCALLS,
    #[cfg(feature = "bare")]
    crate::process::POLICY_SYSCALLS,
    #[cfg(feature = "bare")]
    crate::signal::calls::SYSCALLS,
    #[cfg(feature = "bare")]
    crate::signal::timer_calls::SYSCALLS,
];

/// The table, by number.
pub static TABLE: [Option<Entry>; COUNT] = {
    let mut table = [None; COUNT];
    let mut area = 0;
    while area < AREAS.len() {
        let mut i = 0;
        while i < AREAS[area].len() {
            let entry = AREAS[area][i];
            assert!(table[entry.number].is_none(), "two handlers for one system call");
            table[entry.number] = Some(entry);
            i += 1;
        }
        area += 1;
    }
    table
};

#[cfg(feature = "bare")]
mod enter {
    use core::sync::atomic::{AtomicU64, Ordering};

    use super::{Args, TABLE};
    use crate::arch::Frame;
    use crate::errno::Errno;
    use crate::{patch, sched, trace};

    /// Calls served, for `--stats`.
    pub static CALLS: AtomicU64 = AtomicU64::new(0);
    /// Calls that came by a trap, for `--stats`.
    pub static TRAPPED: AtomicU64 = AtomicU64::new(0);

    /// A system call of the program.
    pub fn enter(frame: &mut Frame, trapped: bool) {
        CALLS.fetch_add(1, Ordering::Relaxed);
        sched::set_frame(frame);
        if trapped {
            TRAPPED.fetch_add(1, Ordering::Relaxed);
            patch::visit(frame.regs.rip);
        }
        let regs = &frame.regs;
        let number = regs.rax;
        let args = Args([regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9]);
        let entry = usize::try_from(number)
            .ok()
            .and_then(|n| TABLE.get(n))
            .and_then(Option::as_ref);
        let result = entry.map_or(Err(Errno::ENOSYS), |e| (e.handler)(&args));
        let value = result.unwrap_or_else(Errno::to_rax);
        if trace::ENABLED.load(Ordering::Relaxed) {
            trace::call(entry, number, &args, value);
        }
        frame.regs.rax = value;
    }
}

#[cfg(feature = "bare")]
pub use enter::{CALLS, TRAPPED, enter};
