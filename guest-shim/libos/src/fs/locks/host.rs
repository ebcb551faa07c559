//! What of the locks is taken on the host, so that other programs there keep out.

use alloc::sync::Arc;
use alloc::vec::Vec;

use cloak_abi::hostop::HostOp;
use hashbrown::HashMap;
use spin::{Lazy, Mutex};
use zerocopy::{FromBytes, IntoBytes};

use super::table::{Held, Key, Owner, RECORDS};
use super::{F_RDLCK, F_UNLCK, F_WRLCK, Flock};
use crate::errno::{Errno, SysResult};
use crate::fs::hostfile::HostFile;
use crate::fs::{File, OpenFile};
use crate::host::Request;

/// The open file through which the record locks of processes on one host file are held there.
///
/// To the host each open file is an owner of its own, but all that a process opens is one owner: taken through two
/// descriptors, a process's own locks would be in each other's way. So one of them holds all, for as long as there are any.
struct Agent {
    file: Arc<dyn File>,
    readable: bool,
    writable: bool,
}

impl Agent {
    fn can_hold(&self, kind: i16) -> bool {
        match kind {
            F_RDLCK => self.readable,
            F_WRLCK => self.writable,
            _ => true,
        }
    }
}

static AGENTS: Lazy<Mutex<HashMap<Key, Agent>>> = Lazy::new(|| Mutex::new(HashMap::new()));

/// The descriptor on which the host holds locks. A file of an overlay is the context's own: its locks are, too.
pub(super) fn host_number(file: &dyn File) -> Option<u32> {
    file.host_fd().filter(|_| file.node().is_none())
}

/// The host learns of a lock on it.
pub(super) fn note(file: &dyn File) {
    if let Some(file) = file.as_any().downcast_ref::<HostFile>() {
        file.locked();
    }
}

/// The file through which `lock` is taken on the host.
pub(super) fn holder(open: &OpenFile, key: Key, lock: &Held, kind: i16) -> Arc<dyn File> {
    if matches!(lock.owner, Owner::Open(_)) || host_number(&*open.file).is_none() {
        return open.file.clone();
    }
    let replaced = {
        let mut agents = AGENTS.lock();
        if let Some(agent) = agents.get(&key).filter(|agent| agent.can_hold(kind)) {
            return agent.file.clone();
        }
        let agent = Agent {
            file: open.file.clone(),
            readable: open.readable(),
            writable: open.writable(),
        };
        agents.insert(key, agent)
    };
    // One that can't hold this lock hands over what it holds.
    if let Some(old) = replaced {
        release(&*old.file);
        take_again(&*open.file, key, &Held::whole(lock.owner, false));
    }
    open.file.clone()
}

/// Takes on the host what processes still hold in the range of `freed`: unlocking for one of them unlocked for all.
pub(super) fn take_again(file: &dyn File, key: Key, freed: &Held) {
    let left: Vec<Held> = RECORDS
        .lock()
        .get(&key)
        .into_iter()
        .flatten()
        .filter(|h| matches!(h.owner, Owner::Process(_)) && h.meets(freed))
        .copied()
        .collect();
    for lock in left {
        // One that another program of the host was quick to take is lost to it, as after any unlocking.
        let _ = on_host(file, &lock, lock.kind(), true);
    }
}

/// The agent of a file, if processes hold locks on it.
pub(super) fn agent(key: Key) -> Option<Arc<dyn File>> {
    AGENTS.lock().get(&key).map(|agent| agent.file.clone())
}

/// Ends all that is held on the host through this open file.
fn release(file: &dyn File) {
    // The host refuses nobody to unlock; what else it may say, its lock goes with the open file.
    let _ = on_host(file, &Held::whole(Owner::Process(0), false), F_UNLCK, true);
}

/// A process that held locks on the file has ended: the host keeps those of the others.
pub(super) fn process_ended(key: Key) {
    if let Some(file) = agent(key) {
        release(&*file);
        take_again(&*file, key, &Held::whole(Owner::Process(0), false));
    }
    dismiss_agent(key);
}

/// Lets the agent of a file go on which no process holds a lock any more.
pub(super) fn dismiss_agent(key: Key) {
    let used = RECORDS
        .lock()
        .get(&key)
        .is_some_and(|held| held.iter().any(|h| matches!(h.owner, Owner::Process(_))));
    if !used {
        let gone = AGENTS.lock().remove(&key);
        drop(gone); // outside the lock: it may close a descriptor
    }
}

/// Asks the host about or for a lock.
pub(super) fn on_host(file: &dyn File, lock: &Held, kind: i16, set: bool) -> SysResult<Flock> {
    let Some(fd) = host_number(file) else {
        return Ok(Flock {
            kind: F_UNLCK,
            ..Flock::default()
        });
    };
    note(file);
    let ask = Flock {
        kind,
        start: lock.start as i64,
        len: lock.len(),
        ..Flock::default()
    };
    let mut request = Request::new();
    request.put(0, ask.as_bytes());
    request
        .call(HostOp::Lock, [u64::from(fd), u64::from(set), 0, 0, 0, 0])
        .ok()?;
    Flock::read_from_bytes(&request.get_array::<32>(0)).map_err(|_| Errno::EIO)
}
