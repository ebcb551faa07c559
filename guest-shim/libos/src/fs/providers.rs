//! What files of the libos need to know of the rest of it: time, randomness, the machine, processes.
//!
//! The rest implements [`Providers`] and hands it over once with [`set`]; what it does not implement is
//! answered as on a machine that has it not.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use cloak_abi::kcall::REPORT_DATA;
use spin::Once;

use super::{FdTable, FsContext};
use crate::errno::{Errno, SysResult};
use crate::mem::pages::PageCache;

/// Memory of the machine, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All.
    pub total: u64,
    /// Unused.
    pub free: u64,
    /// In pages of files that the host has, too.
    pub cached: u64,
    /// In pages of files that are only here.
    pub in_memory_files: u64,
    /// What the libos made its small objects from.
    pub slabs: u64,
    /// Of it, what is in use.
    pub objects: u64,
    /// Page tables.
    pub tables: u64,
    /// What was taken for page tables, and is kept for them.
    pub kept_for_tables: u64,
}

/// One memory area, for `/proc/PID/maps`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// PROT_* bits.
    pub protection: u32,
    /// MAP_SHARED.
    pub shared: bool,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Device and inode of the file, or zeros.
    pub file: (u64, u64),
    /// Path of the file, or `[stack]` and the like, or nothing.
    pub name: Vec<u8>,
    /// What of it is where.
    pub usage: Usage,
}

/// Where an area's bytes are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// In memory, the process's alone.
    pub private: u64,
    /// In memory, the process's and its relatives' until somebody writes.
    pub shared: u64,
    /// In memory, a file's.
    pub file: u64,
    /// Of all that, this process's part: a page that n processes have counts for an nth. A file's pages count whole.
    pub part: u64,
    /// Not in memory.
    pub left: u64,
}

impl Usage {
    /// In memory.
    #[must_use]
    pub fn resident(&self) -> u64 {
        self.private + self.shared + self.file
    }
}

/// How large a process's memory is, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// In memory.
    pub resident: u64,
    /// The most that was in memory since the program started.
    pub most: u64,
    /// In memory, of files that are elsewhere.
    pub file: u64,
    /// In memory, of files that are nowhere else, and of shared memory.
    pub memory_file: u64,
    /// Private and writable, in memory or not, without the stack.
    pub data: u64,
    /// The first thread's stack, in memory or not.
    pub stack: u64,
}

impl Sizes {
    /// In memory, no file's.
    #[must_use]
    pub fn anonymous(&self) -> u64 {
        self.resident.saturating_sub(self.file + self.memory_file)
    }
}

impl core::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            private: sum.private + one.private,
            shared: sum.shared + one.shared,
            file: sum.file + one.file,
            part: sum.part + one.part,
            left: sum.left + one.left,
        })
    }
}

/// What is known of a process, or of one thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Thread number; the process's number for a process.
    pub tid: i32,
    /// Process number.
    pub pid: i32,
    /// Parent process.
    pub ppid: i32,
    /// Process group.
    pub group: i32,
    /// Session.
    pub session: i32,
    /// Name, at most 15 bytes.
    pub comm: Vec<u8>,
    /// State as `/proc` shows it: `R`, `S`, `D`, `Z`, `T`.
    pub state: char,
    /// Number of threads.
    pub threads: u32,
    /// Time in the program, nanoseconds.
    pub user_ns: u64,
    /// Time in calls, nanoseconds.
    pub system_ns: u64,
    /// Start, nanoseconds after boot.
    pub start_ns: u64,
    /// Address space, bytes.
    pub virtual_bytes: u64,
    /// Resident, bytes.
    pub resident_bytes: u64,
    /// Real, effective, saved, file-system user.
    pub uid: [u32; 4],
    /// Real, effective, saved, file-system group.
    pub gid: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Path of the program.
    pub exe: Vec<u8>,
    /// Pending (thread, process), blocked, ignored, caught signals.
    pub signals: [u64; 5],
    /// Priority as `nice` counts it.
    pub nice: i32,
    /// First address of the program's code, end of it, and of the stack.
    pub code: [u64; 3],
}

impl Default for Task {
    fn default() -> Self {
        Self {
            tid: 1,
            pid: 1,
            ppid: 0,
            group: 1,
            session: 1,
            comm: b"main".to_vec(),
            state: 'R',
            threads: 1,
            user_ns: 0,
            system_ns: 0,
            start_ns: 0,
            virtual_bytes: 0,
            resident_bytes: 0,
            uid: [0; 4],
            gid: [0; 4],
            groups: Vec::new(),
            exe: Vec::new(),
            signals: [0; 5],
            nice: 0,
            code: [0; 3],
        }
    }
}

/// The rest of the libos as its files see it. Nothing here may park.
pub trait Providers: Send + Sync {
    /// Seconds and nanoseconds since 1970.
    fn now(&self) -> [i64; 2] {
        [0, 0]
    }
    /// Nanoseconds since boot.
    fn uptime_ns(&self) -> u64 {
        0
    }
    /// Fills with randomness fit for keys.
    ///
    /// # Errors
    /// EIO when there is none.
    fn random(&self, bytes: &mut [u8]) -> SysResult<()> {
        let _ = bytes;
        Err(Errno::EIO)
    }
    /// Name of what makes reports about the machine, as Linux names it; none where nothing does.
    fn attester(&self) -> Option<&'static str> {
        None
    }
    /// What this runs on, as evidence calls it; `plain` where nothing is measured.
    fn platform(&self) -> &'static str {
        "plain"
    }
    /// A report over these bytes, and the certificates to it, which are the host's word.
    ///
    /// # Errors
    /// ENXIO when there is no attester, EIO when it does not answer as it must.
    fn report(&self, data: &[u8; REPORT_DATA]) -> SysResult<(Vec<u8>, Vec<u8>)> {
        let _ = data;
        Err(Errno::ENXIO)
    }
    /// Number of CPUs.
    fn cpus(&self) -> usize {
        1
    }
    /// Ticks of the time-stamp counter in a second.
    fn tsc_hz(&self) -> u64 {
        crate::arch::ticks_per_second()
    }
    /// Memory of the machine.
    fn memory(&self) -> Memory {
        Memory {
            total: 1 << 30,
            free: 1 << 29,
            ..Memory::default()
        }
    }
    /// Host name.
    fn host_name(&self) -> Vec<u8> {
        b"cloak".to_vec()
    }
    /// Numbers of the processes.
    fn processes(&self) -> Vec<i32> {
        alloc::vec![crate::process::Process::current().pid]
    }
    /// Number of the process and the thread that asks.
    fn current(&self) -> (i32, i32) {
        let pid = crate::process::Process::current().pid;
        (pid, pid)
    }
    /// Numbers of a process's threads.
    fn threads(&self, pid: i32) -> Vec<i32> {
        alloc::vec![pid]
    }
    /// Number of threads of all processes.
    fn all_threads(&self) -> usize {
        self.processes().iter().map(|&pid| self.threads(pid).len()).sum()
    }
    /// A process (`tid` = `pid`) or one of its threads.
    fn task(&self, pid: i32, tid: i32) -> Option<Task> {
        (pid == tid && self.processes().contains(&pid)).then(|| Task {
            tid,
            pid,
            ..Task::default()
        })
    }
    /// How large a process's memory is.
    fn sizes(&self, pid: i32) -> Sizes {
        let _ = pid;
        Sizes::default()
    }
    /// Memory areas of a process, in order.
    fn areas(&self, pid: i32, usage: bool) -> Vec<Area> {
        let _ = (pid, usage);
        Vec::new()
    }
    /// Pages `[first, last)` are the file's no more: whoever has them mapped loses them, with copies that private
    /// mappings have made if those should go, too. May park.
    fn unmap_pages(&self, pages: &Arc<PageCache>, first: u64, last: u64, and_copies: bool) {
        let _ = (pages, first, last, and_copies);
    }
    /// Arguments, each with a NUL.
    fn command_line(&self, pid: i32) -> Vec<u8> {
        let _ = pid;
        Vec::new()
    }
    /// Environment at the start, each with a NUL.
    fn environment(&self, pid: i32) -> Vec<u8> {
        let _ = pid;
        Vec::new()
    }
    /// The auxiliary vector as it was given to the program.
    fn auxiliary_vector(&self, pid: i32) -> Vec<u8> {
        let _ = pid;
        Vec::new()
    }
    /// Sets the name of a thread.
    fn set_comm(&self, pid: i32, tid: i32, name: &[u8]) {
        let _ = (pid, tid, name);
    }
    /// A process's place in the order in which processes are killed for want of memory.
    fn oom_score_adj(&self, pid: i32) -> i32 {
        let _ = pid;
        0
    }
    /// Sets it.
    ///
    /// # Errors
    /// EACCES for less than a privileged process has set; ESRCH.
    fn set_oom_score_adj(&self, pid: i32, value: i32) -> SysResult<()> {
        let _ = (pid, value);
        Err(Errno::ESRCH)
    }
    /// Soft and hard limit of each `RLIMIT_*`; `u64::MAX`: unlimited.
    fn limits(&self, pid: i32) -> [[u64; 2]; 16] {
        let _ = pid;
        let mut limits = [[u64::MAX; 2]; 16];
        limits[3] = [8 << 20, u64::MAX];
        limits[7] = [1024, 4096];
        limits
    }
    /// Descriptors of a process.
    fn files(&self, pid: i32) -> Option<Arc<FdTable>> {
        let process = crate::process::Process::current();
        (process.pid == pid).then(|| process.files.clone())
    }
    /// Working directory and root of a process.
    fn fs(&self, pid: i32) -> Option<Arc<FsContext>> {
        let process = crate::process::Process::current();
        (process.pid == pid).then(|| process.fs.clone())
    }
    /// Text of `/proc/version`.
    fn version(&self) -> String {
        String::from("Linux version 6.1.0-cloak (cloak) #1 SMP PREEMPT_DYNAMIC")
    }
}

struct Nothing;
impl Providers for Nothing {}

static PROVIDERS: Once<&'static dyn Providers> = Once::new();

/// Hands over the rest of the libos; the first call counts.
pub fn set(providers: &'static dyn Providers) {
    PROVIDERS.call_once(|| providers);
}

/// The rest of the libos.
#[must_use]
pub fn get() -> &'static dyn Providers {
    PROVIDERS.get().copied().unwrap_or(&Nothing)
}
