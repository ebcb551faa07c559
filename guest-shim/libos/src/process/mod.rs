//! Processes: what the threads of a program share, how a program is loaded, how it ends.

mod credentials;

#[cfg(feature = "bare")]
mod calls;
pub mod elf;
#[cfg(feature = "bare")]
mod end;
#[cfg(feature = "bare")]
mod limits;
#[cfg(feature = "bare")]
mod load;
#[cfg(feature = "bare")]
mod policy;
#[cfg(feature = "bare")]
pub mod providers;
#[cfg(feature = "bare")]
mod threads;
#[cfg(feature = "bare")]
pub mod vdso;

pub use credentials::Credentials;
#[cfg(feature = "bare")]
pub use {
    calls::{SYSCALLS, host_name, set_host_name},
    end::*,
    limits::Limits,
    load::*,
    policy::SYSCALLS as POLICY_SYSCALLS,
    threads::SYSCALLS as THREAD_SYSCALLS,
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
    /// Memory.
    #[cfg(feature = "bare")]
    pub space: Space,
    /// Signals.
    #[cfg(feature = "bare")]
    pub signals: ProcessSignals,
    /// Resource limits.
    #[cfg(feature = "bare")]
    pub limits: Limits,
    /// The program that runs.
    #[cfg(feature = "bare")]
    pub image: Mutex<ImageInfo>,
    #[cfg(feature = "bare")]
    threads: Mutex<BTreeMap<i32, Arc<Thread>>>,
    /// Ticks that its ended threads used.
    #[cfg(feature = "bare")]
    ended_ticks: core::sync::atomic::AtomicU64,
    #[cfg(feature = "bare")]
    exiting: core::sync::atomic::AtomicBool,
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
    /// A process without threads and memory.
    #[must_use]
    pub fn new(pid: i32, files: FdTable, fs: FsContext, credentials: Credentials) -> Arc<Self> {
        Arc::new(Self {
            pid,
            files: Arc::new(files),
            fs: Arc::new(fs),
            credentials: Mutex::new(credentials),
            space: Space::default(),
            signals: ProcessSignals::default(),
            limits: Limits::default(),
            image: Mutex::new(ImageInfo::default()),
            threads: Mutex::new(BTreeMap::new()),
            ended_ticks: core::sync::atomic::AtomicU64::new(0),
            exiting: core::sync::atomic::AtomicBool::new(false),
        })
    }

    /// Its threads.
    pub fn threads(&self) -> Vec<Arc<Thread>> {
        self.threads.lock().values().cloned().collect()
    }

    /// Adds a thread. The process owns it until [`Self::remove_thread`]: a thread that is parked and that only a
    /// signal can wake (`pause`) has no other owner.
    pub fn add_thread(&self, thread: &Arc<Thread>) {
        self.threads.lock().insert(thread.tid, thread.clone());
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
}
