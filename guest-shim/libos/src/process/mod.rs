//! Processes: what the threads of a program share, how it comes to be and ends.
//!
//! | file | concept |
//! |---|---|
//! | this | a process |
//! | `family` | all processes: parents, children, groups, sessions, zombies |
//! | `clone` | new processes and threads |
//! | `exec`, `load`, `elf`, `vdso` | another program in a process |
//! | `outside` | processes that the owner starts beside the program's own |
//! | `end`, `wait`, `stop`, `pidfd` | its end and its stops, and who learns of them |
//! | `threads`, `groups`, `calls`, `limits` | the other system calls |
//! | `providers` | what files and signals ask about processes |

mod credentials;

#[cfg(feature = "bare")]
mod calls;
#[cfg(feature = "bare")]
mod clone;
pub mod elf;
#[cfg(feature = "bare")]
mod end;
#[cfg(feature = "bare")]
mod exec;
#[cfg(feature = "bare")]
mod family;
#[cfg(feature = "bare")]
mod groups;
#[cfg(feature = "bare")]
pub mod limits;
#[cfg(feature = "bare")]
mod load;
#[cfg(feature = "bare")]
pub mod outside;
#[cfg(feature = "bare")]
pub mod own;
#[cfg(feature = "bare")]
mod pidfd;
#[cfg(feature = "bare")]
mod policy;
#[cfg(feature = "bare")]
pub mod providers;
#[cfg(feature = "bare")]
mod stop;
#[cfg(feature = "bare")]
mod threads;
#[cfg(any(feature = "bare", test))]
mod title;
#[cfg(feature = "bare")]
pub mod vdso;
#[cfg(feature = "bare")]
mod wait;

pub use credentials::Credentials;
#[cfg(feature = "bare")]
pub use {
    calls::{SYSCALLS, host_name, set_host_name},
    clone::{SYSCALLS as CLONE_SYSCALLS, next_id},
    end::*,
    exec::SYSCALLS as EXEC_SYSCALLS,
    family::{Family, all, find, may_signal},
    groups::SYSCALLS as GROUP_SYSCALLS,
    limits::Limits,
    load::*,
    pidfd::SYSCALLS as PIDFD_SYSCALLS,
    policy::SYSCALLS as POLICY_SYSCALLS,
    stop::wait as stop_wait,
    threads::SYSCALLS as THREAD_SYSCALLS,
    wait::SYSCALLS as WAIT_SYSCALLS,
};

use alloc::sync::Arc;
#[cfg(feature = "bare")]
use alloc::{collections::BTreeMap, vec::Vec};

use spin::Mutex;

use crate::fs::{FdTable, FsContext};
#[cfg(feature = "bare")]
use crate::{mem::space::Space, sched::Thread, signal::ProcessSignals};

/// The first process's number. Not 1: programs treat that specially.
#[cfg(feature = "bare")]
pub const FIRST_PID: i32 = 2;

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Open descriptors.
    pub files: Arc<FdTable>,
    /// Working directory, root and file-creation mask.
    pub fs: Arc<FsContext>,
    /// Identity.
    pub credentials: Mutex<Credentials>,
    #[cfg(feature = "bare")]
    space: Mutex<Arc<Space>>,
    /// The most bytes that it had in memory in an address space that it has no more.
    #[cfg(feature = "bare")]
    left_behind: core::sync::atomic::AtomicU64,
    /// Signals.
    #[cfg(feature = "bare")]
    pub signals: ProcessSignals,
    /// Resource limits.
    #[cfg(feature = "bare")]
    pub limits: Limits,
    /// The program that runs.
    #[cfg(feature = "bare")]
    pub image: Mutex<Arc<ImageInfo>>,
    #[cfg(feature = "bare")]
    threads: Mutex<BTreeMap<i32, Arc<Thread>>>,
    /// Parent, group, session, and what becomes known of its end.
    #[cfg(feature = "bare")]
    pub family: Family,
    /// Ticks that its ended threads used.
    #[cfg(feature = "bare")]
    ended_ticks: core::sync::atomic::AtomicU64,
    #[cfg(feature = "bare")]
    exiting: core::sync::atomic::AtomicBool,
    /// The thread that runs `execve` and lets no other live, or 0.
    #[cfg(feature = "bare")]
    sole: core::sync::atomic::AtomicI32,
    /// Woken when a thread ends.
    #[cfg(feature = "bare")]
    thread_ended: crate::sched::WaitQueue,
}

impl Process {
    /// The process of the thread that runs this.
    #[must_use]
    pub fn current() -> Arc<Self> {
        crate::sched::current().process.clone()
    }

    /// A process for tests.
    #[cfg(not(feature = "bare"))]
    #[must_use]
    pub fn for_tests() -> Arc<Self> {
        Arc::new(Self {
            pid: 1,
            files: Arc::new(FdTable::new(1024, 4096)),
            fs: Arc::new(FsContext::default()),
            credentials: Mutex::new(Credentials::default()),
        })
    }
}

#[cfg(feature = "bare")]
impl Process {
    /// A process without threads.
    #[must_use]
    pub fn new(
        pid: i32,
        files: Arc<FdTable>,
        fs: Arc<FsContext>,
        credentials: Credentials,
        space: Arc<Space>,
        family: Family,
    ) -> Self {
        Self {
            pid,
            files,
            fs,
            credentials: Mutex::new(credentials),
            space: Mutex::new(space),
            left_behind: core::sync::atomic::AtomicU64::new(0),
            signals: ProcessSignals::default(),
            limits: Limits::default(),
            image: Mutex::default(),
            threads: Mutex::new(BTreeMap::new()),
            family,
            ended_ticks: core::sync::atomic::AtomicU64::new(0),
            exiting: core::sync::atomic::AtomicBool::new(false),
            sole: core::sync::atomic::AtomicI32::new(0),
            thread_ended: crate::sched::WaitQueue::new(),
        }
    }

    /// Its memory.
    pub fn space(&self) -> Arc<Space> {
        self.space.lock().clone()
    }

    /// Gives it other memory; gives the old.
    fn replace_space(&self, space: Arc<Space>) -> Arc<Space> {
        let old = core::mem::replace(&mut *self.space.lock(), space);
        self.left_behind
            .fetch_max(old.tables.held().1, core::sync::atomic::Ordering::Relaxed);
        old
    }

    /// The most memory that it has had at a time, under any program, KiB.
    #[must_use]
    pub fn most_resident(&self) -> u64 {
        let before = self.left_behind.load(core::sync::atomic::Ordering::Relaxed);
        self.space().tables.held().1.max(before) / 1024
    }

    /// Its threads.
    pub fn threads(&self) -> Vec<Arc<Thread>> {
        self.threads.lock().values().cloned().collect()
    }

    /// Adds a thread. The process owns it until [`Self::remove_thread`]: a thread that is parked and that only a
    /// signal can wake (`pause`) has no other owner.
    pub fn add_thread(&self, thread: &Arc<Thread>) {
        self.threads.lock().insert(thread.tid(), thread.clone());
    }

    /// Removes a thread; gives how many are left.
    pub fn remove_thread(&self, tid: i32) -> usize {
        let mut threads = self.threads.lock();
        let gone = threads.remove(&tid);
        let left = threads.len();
        if let Some(thread) = &gone {
            // Under the lock, so that nobody sees the time of neither.
            let used = thread.cpu_time();
            self.ended_ticks
                .fetch_add(used, core::sync::atomic::Ordering::Relaxed);
        }
        drop(threads);
        drop(gone); // outside the lock: it may be the last owner
        left
    }

    /// CPU time that its threads have used, those that ended included, in ticks.
    pub fn cpu_time(&self) -> u64 {
        let threads = self.threads.lock();
        let running: u64 = threads.values().map(|t| t.cpu_time()).sum();
        running + self.ended_ticks.load(core::sync::atomic::Ordering::Relaxed)
    }

    /// The thread with this number.
    pub fn thread(&self, tid: i32) -> Option<Arc<Thread>> {
        self.threads.lock().get(&tid).cloned()
    }

    /// Whether it is ending.
    pub fn is_exiting(&self) -> bool {
        self.exiting.load(core::sync::atomic::Ordering::Relaxed)
    }

    /// Whether `thread` is to end: with the process, or because another thread runs `execve`.
    pub fn ends(&self, thread: &Thread) -> bool {
        let sole = self.sole.load(core::sync::atomic::Ordering::Relaxed);
        self.is_exiting() || sole != 0 && sole != thread.tid()
    }

    /// Lets each thread look at its state now.
    pub fn notify_others(&self) {
        let me = core::ptr::from_ref(crate::sched::current());
        for thread in self
            .threads()
            .iter()
            .filter(|t| !core::ptr::eq(Arc::as_ptr(t), me))
        {
            crate::signal::notify(thread);
        }
    }
}

/// The first process, once it exists.
#[cfg(feature = "bare")]
pub fn initial() -> Option<Arc<Process>> {
    INITIAL.lock().clone()
}

#[cfg(feature = "bare")]
static INITIAL: Mutex<Option<Arc<Process>>> = Mutex::new(None);

/// Makes `process` the first one: what signals from outside go to.
#[cfg(feature = "bare")]
pub fn set_initial(process: &Arc<Process>) {
    *INITIAL.lock() = Some(process.clone());
    // The table is empty: there is room.
    let _ = family::add(process);
}
