//! What files and their events need to know of processes, memory and signals: the libos's own answers.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::{Process, family, title};
use crate::arch;
use crate::errno::{Errno, SysResult};
use crate::fs::jobs::Job;
use crate::fs::providers::{Area, Memory, Providers, Sizes, Task};
use crate::fs::signals::{SignalInfo, Signals};
use crate::fs::{FdTable, FsContext, file::Stat};
use crate::mem::area::Backing;
use crate::mem::pages::PageCache;
use crate::mem::{file_frames, frames, heap, pages, tables};
use crate::sched::time_calls::{self, CpuClock};
use crate::sched::{self, clock};
use crate::signal::pending::{Info, code};
use crate::signal::{self, number};

/// The whole libos, for its files.
#[derive(Debug)]
pub struct Libos;

static LIBOS: Libos = Libos;

/// Makes the answers available.
pub fn install() {
    crate::fs::providers::set(&LIBOS);
    crate::fs::signals::install(&LIBOS);
    time_calls::CPU_TIME.call_once(|| cpu_time);
    crate::net::unix::names::install(&crate::net::unix::paths::NameSpace);
}

fn process(pid: i32) -> Option<Arc<Process>> {
    super::find(pid)
}

fn cpu_time(clock: CpuClock) -> Option<u64> {
    let thread = sched::current();
    match clock {
        CpuClock::Thread(0) => Some(ns(thread.cpu_time())),
        CpuClock::Thread(tid) => thread.process.thread(tid).map(|t| ns(t.cpu_time())),
        CpuClock::Process => Some(used_ns(&thread.process)),
    }
}

/// Processor time that the threads of a process have used, nanoseconds.
pub fn used_ns(process: &Process) -> u64 {
    ns(process.cpu_time())
}

fn ns(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000 / u128::from(arch::ticks_per_second())) as u64
}

/// The process, if its first thread is there still: what /proc tells of the memory of one that ended is empty, and by
/// that `ps` knows it.
fn with_memory(pid: i32) -> Option<Arc<Process>> {
    process(pid).filter(|p| p.thread(pid).is_some())
}

/// A process whose first thread has ended, or all of them.
fn without_leader(process: &Process) -> Option<Task> {
    let remains = process.family.remains();
    let name = match &remains {
        Some(remains) => remains.name,
        None => *process.threads().first()?.name.lock(),
    };
    let credentials = process.credentials.lock().clone();
    Some(Task {
        tid: process.pid,
        pid: process.pid,
        ppid: process.family.parent(),
        group: process.family.group(),
        session: process.family.session(),
        comm: name.split(|&b| b == 0).next().unwrap_or_default().to_vec(),
        state: 'Z',
        threads: process.threads().len().max(1) as u32,
        user_ns: ns(remains.map_or(0, |r| r.usage.ticks)),
        start_ns: process.family.started.load(Ordering::Relaxed),
        uid: credentials.uid,
        gid: credentials.gid,
        groups: credentials.groups,
        ..Task::default()
    })
}

impl Providers for Libos {
    fn now(&self) -> [i64; 2] {
        let now = clock::realtime();
        [(now / 1_000_000_000) as i64, (now % 1_000_000_000) as i64]
    }

    fn uptime_ns(&self) -> u64 {
        clock::boottime()
    }

    fn random(&self, bytes: &mut [u8]) -> SysResult<()> {
        crate::random::fill(bytes);
        Ok(())
    }

    fn attester(&self) -> Option<&'static str> {
        crate::attest::provider()
    }

    fn platform(&self) -> &'static str {
        crate::attest::machine()
    }

    fn report(&self, data: &[u8; cloak_abi::kcall::REPORT_DATA]) -> SysResult<(Vec<u8>, Vec<u8>)> {
        crate::attest::evidence(data)
    }

    fn cpus(&self) -> usize {
        arch::boot().vcpus as usize
    }

    fn memory(&self) -> Memory {
        let (used, total) = frames::usage();
        let heap = heap::usage();
        let (in_use, kept) = tables::usage();
        Memory {
            total: total * 4096,
            free: (total - used) * 4096,
            cached: (crate::fs::read_cache::used() as u64) + file_frames::kept() * 4096,
            in_memory_files: pages::frames_in_use() * 4096,
            slabs: heap.slabs as u64,
            objects: heap.small as u64,
            tables: in_use * 4096,
            kept_for_tables: kept * 4096,
        }
    }

    fn unmap_pages(&self, pages: &Arc<PageCache>, first: u64, last: u64, and_copies: bool) {
        for process in family::all() {
            // Failures leave pages mapped that are nobody's; there is no one to tell.
            let _ = process
                .space()
                .lock()
                .forget_pages(pages, first, last, and_copies);
        }
    }

    fn host_name(&self) -> Vec<u8> {
        super::host_name()
    }

    fn processes(&self) -> Vec<i32> {
        super::all().iter().map(|p| p.pid).collect()
    }

    fn current(&self) -> (i32, i32) {
        let thread = sched::current();
        (thread.process.pid, thread.tid())
    }

    fn threads(&self, pid: i32) -> Vec<i32> {
        process(pid)
            .map(|p| p.threads().iter().map(|t| t.tid()).collect())
            .unwrap_or_default()
    }

    fn task(&self, pid: i32, tid: i32) -> Option<Task> {
        let process = process(pid)?;
        let thread = match process.thread(tid) {
            Some(thread) => thread,
            None if pid == tid => return without_leader(&process),
            None => return None,
        };
        let name = *thread.name.lock();
        let credentials = process.credentials.lock().clone();
        let image = process.image.lock().clone();
        let actions = *process.signals.actions.lock();
        let (virtual_bytes, resident_bytes) = {
            let space = process.space();
            let space = space.lock();
            (space.areas.total(), space.tables.held().0)
        };
        let set = |wanted: fn(u64) -> bool| {
            actions
                .iter()
                .enumerate()
                .filter(|(_, a)| wanted(a.handler))
                .fold(0, |bits, (i, _)| bits | 1u64 << i)
        };
        Some(Task {
            tid,
            pid,
            ppid: process.family.parent(),
            group: process.family.group(),
            session: process.family.session(),
            comm: name.split(|&b| b == 0).next().unwrap_or_default().to_vec(),
            state: match (process.is_stopped(), thread.is_on_cpu()) {
                (true, _) => 'T',
                (_, true) => 'R',
                _ => 'S',
            },
            threads: process.threads().len() as u32,
            user_ns: ns(thread.cpu_time()),
            system_ns: 0,
            start_ns: process.family.started.load(Ordering::Relaxed),
            virtual_bytes,
            resident_bytes,
            uid: credentials.uid,
            gid: credentials.gid,
            groups: credentials.groups,
            exe: image.path.clone(),
            signals: [
                thread.signals.pending.bits(),
                process.signals.pending.bits(),
                thread.signals.mask.load(Ordering::Relaxed),
                set(|h| h == 1),
                set(|h| h > 1),
            ],
            nice: thread.nice.load(Ordering::Relaxed) as i32,
            code: [0, 0, image.stack_start],
        })
    }

    fn sizes(&self, pid: i32) -> Sizes {
        with_memory(pid).map_or_else(Sizes::default, |process| process.space().lock().sizes())
    }

    fn areas(&self, pid: i32, usage: bool) -> Vec<Area> {
        let Some(process) = with_memory(pid) else {
            return Vec::new();
        };
        let (list, brk) = {
            let space = process.space();
            let space = space.lock();
            let copy = |(start, area): (u64, &crate::mem::area::Area)| {
                let (file, offset) = match &area.backing {
                    Backing::File(file, offset) => (Some(file.clone()), *offset),
                    Backing::Pages(_, offset, file) => (file.clone(), *offset),
                    Backing::Anonymous => (None, 0),
                };
                let usage = usage.then(|| space.usage(start, area));
                (
                    start,
                    area.end,
                    area.protection,
                    area.shared,
                    file,
                    offset,
                    area.name,
                    usage,
                )
            };
            (
                space.areas.iter().map(copy).collect::<Vec<_>>(),
                space.brk_range(),
            )
        };
        list.into_iter()
            .map(|(start, end, protection, shared, file, offset, name, usage)| {
                let stat = file
                    .as_ref()
                    .and_then(|f| f.file.stat().ok())
                    .unwrap_or(Stat::default());
                let path = file.as_ref().map(|f| f.path.lock().clone());
                // The heap's last large page is mapped whole; the program is shown what it asked for.
                let end = if name == "[heap]" {
                    end.min(brk.1.next_multiple_of(4096)).max(start)
                } else {
                    end
                };
                Area {
                    start,
                    end,
                    protection: u32::from(protection.bits()),
                    shared,
                    offset,
                    file: (stat.dev, stat.ino),
                    name: path.unwrap_or_else(|| name.as_bytes().to_vec()),
                    usage: usage.unwrap_or_default(),
                }
            })
            .collect()
    }

    fn command_line(&self, pid: i32) -> Vec<u8> {
        let Some(process) = with_memory(pid) else {
            return Vec::new();
        };
        let image = process.image.lock().clone();
        let (arguments, environment) = (image.command_line.len(), image.environment.len());
        // As the program left them: one that gives itself a title writes it there.
        let now = process
            .space()
            .lock()
            .peek(image.arguments_at, arguments + environment);
        match now {
            Some(bytes) => title::of(&bytes, arguments).to_vec(),
            // Not in memory, or not mapped any more.
            None => image.command_line.clone(),
        }
    }

    fn environment(&self, pid: i32) -> Vec<u8> {
        with_memory(pid)
            .map(|p| p.image.lock().environment.clone())
            .unwrap_or_default()
    }

    fn auxiliary_vector(&self, pid: i32) -> Vec<u8> {
        with_memory(pid)
            .map(|p| p.image.lock().auxv.clone())
            .unwrap_or_default()
    }

    fn set_comm(&self, pid: i32, tid: i32, name: &[u8]) {
        if let Some(thread) = process(pid).and_then(|p| p.thread(tid)) {
            let mut new = [0; 16];
            let len = name.len().min(15);
            new[..len].copy_from_slice(&name[..len]);
            *thread.name.lock() = new;
        }
    }

    fn oom_score_adj(&self, pid: i32) -> i32 {
        process(pid).map_or(0, |p| p.family.oom_score_adj.lock().value)
    }

    fn set_oom_score_adj(&self, pid: i32, value: i32) -> SysResult<()> {
        let target = process(pid).ok_or(Errno::ESRCH)?;
        let privileged = Process::current().credentials.lock().uid[1] == 0;
        target.family.oom_score_adj.lock().set(value, privileged)
    }

    fn limits(&self, pid: i32) -> [[u64; 2]; 16] {
        let Some(process) = process(pid) else {
            return [[u64::MAX; 2]; 16];
        };
        let mut all = *process.limits.0.lock();
        let (soft, hard) = process.files.limits();
        all[super::limits::NOFILE] = [soft as u64, hard as u64];
        all
    }

    fn files(&self, pid: i32) -> Option<Arc<FdTable>> {
        process(pid).map(|p| p.files.clone())
    }

    fn fs(&self, pid: i32) -> Option<Arc<FsContext>> {
        process(pid).map(|p| p.fs.clone())
    }
}

/// A signal for the running thread, as from the kernel.
fn raise(signal: u32) {
    let thread = sched::current();
    let info = Info::user(
        signal,
        code::SI_USER,
        thread.process.pid,
        thread.process.credentials.lock().uid[0],
    );
    signal::send_thread(thread, info);
}

impl Signals for Libos {
    fn raise(&self, signal: u32) {
        raise(signal);
    }

    fn set_mask(&self, mask: u64) {
        signal::calls::with_mask(mask);
    }

    fn restore_mask(&self, interrupted: bool) {
        // After an interruption the mask comes back when the handler's frame has been built.
        if !interrupted {
            signal::calls::restore_mask();
        }
    }

    fn pending(&self, set: u64) -> bool {
        let thread = sched::current();
        (thread.signals.pending.bits() | thread.process.signals.pending.bits()) & set != 0
    }

    fn take(&self, set: u64) -> Option<SignalInfo> {
        let thread = sched::current();
        let info = thread
            .signals
            .pending
            .take(set)
            .or_else(|| thread.process.signals.pending.take(set))?;
        Some(signalfd_info(&info))
    }

    fn job(&self) -> Job {
        let family = &sched::current().process.family;
        Job {
            group: family.group(),
            session: family.session(),
            first: super::FIRST_PID,
        }
    }

    fn group_is_of(&self, group: i32, session: i32) -> bool {
        let of_it = |p: &Arc<Process>| p.family.group() == group && p.family.session() == session;
        super::all().iter().any(of_it)
    }

    fn does_nothing(&self, signal: u32) -> bool {
        let thread = sched::current();
        let blocked = thread.signals.mask.load(Ordering::Relaxed) & signal::bit(signal) != 0;
        blocked || thread.process.signals.action(signal).handler == signal::IGNORED
    }

    fn raise_in_group(&self, group: i32, signal: u32) {
        signal::send_group(group, signal);
    }

    fn raise_in_process(&self, pid: i32, signal: u32) {
        if let Some(process) = process(pid) {
            signal::send_process(&process, Info::user(signal, code::SI_KERNEL, 0, 0));
        }
    }

    fn leads_session(&self) -> bool {
        let process = &sched::current().process;
        process.family.session() == process.pid
    }

    fn is_orphaned(&self, group: i32) -> bool {
        family::is_orphaned(group)
    }
}

/// `struct signalfd_siginfo` of a signal.
fn signalfd_info(info: &Info) -> SignalInfo {
    let mut out = [0; 128];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &info.signal.to_le_bytes());
    put(4, &info.errno.to_le_bytes());
    put(8, &info.code.to_le_bytes());
    put(12, &info.fields[0].to_le_bytes()); // pid, uid
    if info.signal == number::SIGCHLD {
        put(40, &(info.fields[1] as u32).to_le_bytes()); // status
        return out;
    }
    put(44, &(info.fields[1] as u32).to_le_bytes()); // value as int
    put(48, &info.fields[1].to_le_bytes()); // value as pointer
    out
}
