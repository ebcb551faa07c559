//! Threads of the libos's own. They belong to a process of the libos's, which nobody sees and which has no memory: any
//! other may end, or run another program, while such a thread has work left.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use spin::Lazy;

use super::{Credentials, Family, Process, clone, end};
use crate::errno::SysResult;
use crate::fs::{FdTable, FsContext};
use crate::sched::Thread;

static OWN: Lazy<Arc<Process>> = Lazy::new(|| {
    Arc::new(Process::new(
        clone::next_id(),
        Arc::new(FdTable::new(1, 1)),
        Arc::new(FsContext::default()),
        Credentials::default(),
        end::NOWHERE.clone(),
        Family::default(),
    ))
});

/// A new thread, not started yet; `entry` begins with [`crate::sched::begin`]. No signal reaches it: a pipe without a reader,
/// for one, is no reason to end.
///
/// # Errors
/// ENOMEM.
pub fn thread(entry: extern "C" fn(u64) -> !) -> SysResult<Arc<Thread>> {
    let thread = Thread::with_entry(OWN.clone(), clone::next_id(), entry)?;
    thread.signals.mask.store(u64::MAX, Ordering::Relaxed);
    Ok(thread)
}
