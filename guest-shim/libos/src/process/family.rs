//! All processes: who is whose parent, which group and session they are in, and what is left of those that ended.
//!
//! One lock guards the shape of the tree. A process is in it from its birth until its parent has waited for it (or
//! does not care to).

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use spin::Mutex;

use super::{FIRST_PID, Process, Status};
use crate::arch;
use crate::errno::{Errno, SysResult};
use crate::sched::{WaitQueue, clock};
use crate::signal::number::{SIGCHLD, SIGCONT, SIGHUP};
use crate::signal::pending::Info;
use crate::signal::{IGNORED, send_process};

/// Most processes at a time (each has an address space).
pub const MAX_PROCESSES: usize = 4000;

/// `SA_NOCLDSTOP`.
const SA_NOCLDSTOP: u64 = 1;
/// `SA_NOCLDWAIT`.
const SA_NOCLDWAIT: u64 = 2;

/// What a process has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time, ticks.
    pub ticks: u64,
    /// Page faults.
    pub faults: u64,
    /// Most resident memory, KiB.
    pub peak: u64,
}

impl Usage {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            ticks: self.ticks + other.ticks,
            faults: self.faults + other.faults,
            peak: self.peak.max(other.peak),
        }
    }
}

/// A change of a child that its parent has not yet been told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// Stopped by this signal.
    Stopped(u8),
    /// Goes on.
    Continued,
}

/// What remains of a process that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    /// How it ended.
    pub status: Status,
    /// What it and those of its children that it waited for used.
    pub usage: Usage,
    /// Its last name.
    pub name: [u8; 16],
}

/// A process's place in the order in which processes are killed for want of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OomScore {
    /// -1000 to 1000.
    pub value: i32,
    /// The least that a process without privileges may set.
    least: i32,
}

impl OomScore {
    /// Sets it.
    ///
    /// # Errors
    /// EACCES.
    pub fn set(&mut self, value: i32, privileged: bool) -> SysResult<()> {
        if privileged {
            self.least = value;
        } else if value < self.least {
            return Err(Errno::EACCES);
        }
        self.value = value;
        Ok(())
    }
}

/// A process's place among the others.
#[derive(Debug, Default)]
pub struct Family {
    parent: AtomicI32,
    group: AtomicI32,
    session: AtomicI32,
    /// What its parent gets when it ends; 0: nothing.
    pub exit_signal: AtomicU32,
    /// It has run `execve`.
    pub executed: AtomicBool,
    /// `PR_SET_CHILD_SUBREAPER`.
    pub subreaper: AtomicBool,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: AtomicBool,
    /// `PR_SET_DUMPABLE` with 0.
    pub undumpable: AtomicBool,
    /// Whom to kill first for want of memory.
    pub oom_score_adj: Mutex<OomScore>,
    /// `PR_SET_KEEPCAPS`: told back; capabilities are not kept apart from user 0.
    pub keeps_capabilities: AtomicBool,
    /// `PR_SET_THP_DISABLE`: told back.
    pub huge_pages_off: AtomicBool,
    /// `PR_MCE_KILL`: 0 as configured, 1 late, 2 early; told back.
    pub memory_errors: AtomicU32,
    /// `PR_SET_PDEATHSIG`.
    pub death_signal: AtomicU32,
    /// When it was made, nanoseconds since boot.
    pub started: AtomicU64,
    /// Woken when a child changes.
    pub children_changed: WaitQueue,
    /// Woken when it has ended.
    pub ended: WaitQueue,
    /// Woken when it has memory of its own, or none.
    pub released: WaitQueue,
    /// Whether its parent's memory is not its own any more (`vfork`).
    pub is_released: AtomicBool,
    /// Stopped by a signal.
    pub stopped: AtomicBool,
    pub(super) report: Mutex<Option<Report>>,
    /// What the program that ends now says.
    pub(super) status: Mutex<Option<Status>>,
    /// What its children used that it waited for.
    pub(super) children: Mutex<Usage>,
    remains: Mutex<Option<Remains>>,
}

static TREE: Mutex<BTreeMap<i32, Arc<Process>>> = Mutex::new(BTreeMap::new());

impl Family {
    /// The first process's; there is no clock yet to say when it was made.
    #[must_use]
    pub fn first() -> Self {
        let family = Self::default();
        family.group.store(FIRST_PID, Ordering::Relaxed);
        family.session.store(FIRST_PID, Ordering::Relaxed);
        family
    }

    /// That of a process that nobody in here started: of no parent, with a group and a session of its own.
    #[must_use]
    pub fn outside(pid: i32) -> Self {
        let family = Self {
            started: AtomicU64::new(clock::boottime()),
            ..Self::default()
        };
        family.group.store(pid, Ordering::Relaxed);
        family.session.store(pid, Ordering::Relaxed);
        family
    }

    /// A child of `parent`'s, or its sibling.
    #[must_use]
    pub fn child(parent: &Process, sibling: bool, exit_signal: u32) -> Self {
        let from = &parent.family;
        let family = Self {
            started: AtomicU64::new(clock::boottime()),
            ..Self::default()
        };
        let above = if sibling { from.parent() } else { parent.pid };
        family.parent.store(above, Ordering::Relaxed);
        family.group.store(from.group(), Ordering::Relaxed);
        family.session.store(from.session(), Ordering::Relaxed);
        // Who gets a sibling is told of it as of the process itself.
        let told_by = if sibling {
            from.exit_signal.load(Ordering::Relaxed)
        } else {
            exit_signal
        };
        family.exit_signal.store(told_by, Ordering::Relaxed);
        let no_new = from.no_new_privileges.load(Ordering::Relaxed);
        family.no_new_privileges.store(no_new, Ordering::Relaxed);
        let undumpable = from.undumpable.load(Ordering::Relaxed);
        *family.oom_score_adj.lock() = *from.oom_score_adj.lock();
        family.undumpable.store(undumpable, Ordering::Relaxed);
        let huge_pages_off = from.huge_pages_off.load(Ordering::Relaxed);
        family.huge_pages_off.store(huge_pages_off, Ordering::Relaxed);
        let memory_errors = from.memory_errors.load(Ordering::Relaxed);
        family.memory_errors.store(memory_errors, Ordering::Relaxed);
        family
    }

    /// Number of the parent; 0: it is outside.
    pub fn parent(&self) -> i32 {
        self.parent.load(Ordering::Relaxed)
    }

    /// Process group.
    pub fn group(&self) -> i32 {
        self.group.load(Ordering::Relaxed)
    }

    /// Session.
    pub fn session(&self) -> i32 {
        self.session.load(Ordering::Relaxed)
    }

    /// What is left of the process, if it has ended.
    pub fn remains(&self) -> Option<Remains> {
        self.remains.lock().clone()
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.remains.lock().is_some()
    }
}

/// Adds a process.
///
/// # Errors
/// EAGAIN when there are too many.
pub fn add(process: &Arc<Process>) -> SysResult<()> {
    let mut tree = TREE.lock();
    if tree.len() >= MAX_PROCESSES {
        return Err(Errno::EAGAIN);
    }
    tree.insert(process.pid, process.clone());
    Ok(())
}

/// The process of this number, which may have ended.
#[must_use]
pub fn find(pid: i32) -> Option<Arc<Process>> {
    TREE.lock().get(&pid).cloned()
}

/// All processes, in order of their numbers.
#[must_use]
pub fn all() -> Vec<Arc<Process>> {
    TREE.lock().values().cloned().collect()
}

/// Whether a process, group or session has this number.
#[must_use]
pub fn is_used(id: i32) -> bool {
    let tree = TREE.lock();
    tree.contains_key(&id)
        || tree
            .values()
            .any(|p| p.family.group() == id || p.family.session() == id)
}

/// Whether the running process may send signals to `target`.
#[must_use]
pub fn may_signal(target: &Process) -> bool {
    let mine = Process::current().credentials.lock().uid;
    if mine[1] == 0 {
        return true;
    }
    let theirs = target.credentials.lock().uid;
    [mine[0], mine[1]]
        .iter()
        .any(|id| *id == theirs[0] || *id == theirs[2])
}

/// `setpgid`.
///
/// # Errors
/// As `setpgid(2)`.
pub fn set_group(caller: &Process, pid: i32, group: i32) -> SysResult<()> {
    if group < 0 {
        return Err(Errno::EINVAL);
    }
    let tree = TREE.lock();
    let pid = if pid == 0 { caller.pid } else { pid };
    let group = if group == 0 { pid } else { group };
    let target = tree.get(&pid).ok_or(Errno::ESRCH)?;
    if pid != caller.pid {
        if target.family.parent() != caller.pid {
            return Err(Errno::ESRCH);
        }
        if target.family.session() != caller.family.session() {
            return Err(Errno::EPERM);
        }
        if target.family.executed.load(Ordering::Relaxed) {
            return Err(Errno::EACCES);
        }
    }
    let session = target.family.session();
    if session == pid {
        return Err(Errno::EPERM); // a session's leader
    }
    let exists = |p: &Arc<Process>| p.family.group() == group && p.family.session() == session;
    if group != pid && !tree.values().any(exists) {
        return Err(Errno::EPERM);
    }
    target.family.group.store(group, Ordering::Relaxed);
    Ok(())
}

/// `setsid`.
///
/// # Errors
/// EPERM for the leader of a group.
pub fn set_session(caller: &Process) -> SysResult<()> {
    let tree = TREE.lock();
    if tree.values().any(|p| p.family.group() == caller.pid) {
        return Err(Errno::EPERM);
    }
    caller.family.group.store(caller.pid, Ordering::Relaxed);
    caller.family.session.store(caller.pid, Ordering::Relaxed);
    Ok(())
}

/// Who takes over the children of `ended`: its nearest ancestor that wants to, else the first process.
fn reaper(tree: &BTreeMap<i32, Arc<Process>>, ended: &Process) -> i32 {
    let mut at = ended.family.parent();
    while let Some(process) = tree.get(&at) {
        if process.family.subreaper.load(Ordering::Relaxed) && !process.is_exiting() {
            return at;
        }
        at = process.family.parent();
    }
    FIRST_PID
}

/// Whether nobody in the group's session, but outside of the group, is the parent of one of it: nobody is left who
/// could let it go on (POSIX, "orphaned process group").
#[must_use]
pub fn is_orphaned(group: i32) -> bool {
    let tree = TREE.lock();
    is_orphaned_in(&tree, group, None)
}

fn is_orphaned_in(tree: &BTreeMap<i32, Arc<Process>>, group: i32, without: Option<i32>) -> bool {
    tree.values()
        .filter(|p| p.family.group() == group && !p.family.has_ended() && Some(p.pid) != without)
        .all(|p| {
            let parent = tree.get(&p.family.parent());
            parent.is_none_or(|parent| {
                parent.family.group() == group || parent.family.session() != p.family.session()
            })
        })
}

/// Groups with stopped processes that `ended` was the last to be able to let go on: its own, and its children's.
fn orphaned_by(tree: &BTreeMap<i32, Arc<Process>>, ended: &Process) -> Vec<i32> {
    let mut groups = alloc::vec![ended.family.group()];
    let children = tree.values().filter(|p| p.family.parent() == ended.pid);
    groups.extend(
        children
            .filter(|p| p.family.session() == ended.family.session())
            .map(|p| p.family.group()),
    );
    groups.sort_unstable();
    groups.dedup();
    groups.retain(|group| {
        let members = || {
            tree.values()
                .filter(|p| p.family.group() == *group && p.pid != ended.pid && !p.family.has_ended())
        };
        members().any(|p| p.is_stopped()) && !is_orphaned_in(tree, *group, None)
    });
    groups
}

/// The process has ended and has given up everything else: its children get another parent, its own learns of it.
pub fn ended(process: &Process, remains: Remains) {
    let (heir, inherited, deaths, parent, forgotten, orphans) = {
        let mut tree = TREE.lock();
        let orphans = orphaned_by(&tree, process);
        let heir = reaper(&tree, process);
        let (mut deaths, mut inherited) = (Vec::new(), Vec::new());
        for child in tree.values().filter(|p| p.family.parent() == process.pid) {
            child.family.parent.store(heir, Ordering::Relaxed);
            // Whatever signal its first parent wanted: an heir waits for it as for its own.
            child.family.exit_signal.store(SIGCHLD, Ordering::Relaxed);
            if child.family.has_ended() {
                inherited.push(child.clone());
            }
            let signal = child.family.death_signal.load(Ordering::Relaxed);
            if signal != 0 {
                deaths.push((child.clone(), signal));
            }
        }
        let heir = tree.get(&heir).cloned().filter(|_| !inherited.is_empty());
        let parent = tree.get(&process.family.parent()).cloned();
        *process.family.remains.lock() = Some(remains.clone());
        let orphans: Vec<i32> = orphans
            .into_iter()
            .filter(|group| is_orphaned_in(&tree, *group, Some(process.pid)))
            .collect();
        let forgotten = parent
            .as_ref()
            .is_none_or(|p| p.pid != process.pid && ignores_children(p, process));
        if forgotten {
            tree.remove(&process.pid);
        }
        (heir, inherited, deaths, parent, forgotten, orphans)
    };
    for group in orphans {
        crate::signal::send_group(group, SIGHUP);
        crate::signal::send_group(group, SIGCONT);
    }
    let _ = forgotten;
    process.family.ended.wake_all(crate::fs::file::ready::IN);
    for (child, signal) in deaths {
        send_process(&child, sender(process, signal));
    }
    if let Some(heir) = heir {
        for child in inherited {
            if let Some(remains) = child.family.remains() {
                let (code, status) = remains.status.code();
                tell(&heir, &child, SIGCHLD, code, status);
            }
        }
        reap_unwanted(&heir);
        heir.family.children_changed.wake_all(0);
    }
    if let Some(parent) = parent {
        let signal = process.family.exit_signal.load(Ordering::Relaxed);
        if signal != 0 {
            let (code, status) = remains.status.code();
            tell(&parent, process, signal, code, status);
        }
        parent.family.children_changed.wake_all(0);
    }
}

/// Whether `parent` wants to know nothing of the end of `child`.
fn ignores_children(parent: &Process, child: &Process) -> bool {
    let action = parent.signals.action(SIGCHLD);
    child.family.exit_signal.load(Ordering::Relaxed) == SIGCHLD
        && (action.handler == IGNORED || action.flags & SA_NOCLDWAIT != 0)
}

/// Forgets ended children that came to a parent which does not wait.
fn reap_unwanted(parent: &Process) {
    TREE.lock().retain(|_, p| {
        p.family.parent() != parent.pid || !p.family.has_ended() || !ignores_children(parent, p)
    });
}

fn sender(process: &Process, signal: u32) -> Info {
    let uid = process.credentials.lock().uid[0];
    Info::user(signal, crate::signal::pending::code::SI_USER, process.pid, uid)
}

/// Tells `parent` about a change of `child` by a signal. `code`: `CLD_*`.
fn tell(parent: &Process, child: &Process, signal: u32, code: i32, status: u64) {
    let used = child.family.remains().map_or(0, |r| r.usage.ticks);
    let mut info = sender(child, signal);
    info.code = code;
    info.fields[1] = status;
    info.fields[2] = used / (arch::ticks_per_second() / 100).max(1);
    send_process(parent, info);
}

/// A child stopped or goes on: its parent may wait for that.
pub fn changed(process: &Process, report: Report) {
    *process.family.report.lock() = Some(report);
    let Some(parent) = find(process.family.parent()) else {
        return;
    };
    if parent.signals.action(SIGCHLD).flags & SA_NOCLDSTOP == 0 {
        let (code, status) = match report {
            Report::Stopped(signal) => (5, u64::from(signal)),
            Report::Continued => (6, u64::from(crate::signal::number::SIGCONT)),
        };
        tell(&parent, process, SIGCHLD, code, status);
    }
    parent.family.children_changed.wake_all(0);
}

/// Looks at the children of `parent`, in order: `look` gives what it wants of one, and whether the child is to be
/// forgotten. Gives that, and whether there was any child for which `look` was asked and did not say `None`.
pub fn children<T>(parent: &Process, mut look: impl FnMut(&Arc<Process>) -> Look<T>) -> (Option<T>, bool) {
    let mut tree = TREE.lock();
    let mut any = false;
    let mut found = None;
    for child in tree.values().filter(|p| p.family.parent() == parent.pid) {
        match look(child) {
            Look::Other => {}
            Look::Nothing => any = true,
            Look::Found(value, forget) => {
                any = true;
                found = Some((value, forget.then_some(child.pid)));
                break;
            }
        }
    }
    match found {
        Some((value, forget)) => {
            if let Some(pid) = forget {
                tree.remove(&pid);
            }
            (Some(value), any)
        }
        None => (None, any),
    }
}

/// What was found of a child.
#[derive(Debug)]
pub enum Look<T> {
    /// It is not one that is asked for.
    Other,
    /// It is, but nothing has happened to it.
    Nothing,
    /// Something has; whether the child is to be forgotten.
    Found(T, bool),
}
