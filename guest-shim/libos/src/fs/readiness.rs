//! Readiness of host files: the OS service reports changes by token, edge-triggered.
//!
//! A [`HostReadiness`] remembers what was reported. Before an operation that may give EAGAIN the reader
//! takes a [`HostReadiness::snapshot`]; if the operation says that nothing is there, the bits are cleared
//! unless a newer report came in between.

use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use spin::{Lazy, Mutex};

use crate::sched::WaitQueue;

static WATCHED: Lazy<Mutex<HashMap<u32, Weak<HostReadiness>>>> = Lazy::new(|| Mutex::new(HashMap::new()));
static NEXT: AtomicU64 = AtomicU64::new(1);

/// What the OS side has reported of one host file.
#[derive(Debug)]
pub struct HostReadiness {
    /// Reports so far in the upper half, ready bits in the lower.
    state: AtomicU64,
    /// Woken at every report.
    pub queue: WaitQueue,
    /// Under which the OS service reports.
    pub token: u32,
}

impl HostReadiness {
    /// Registers a new token. Everything counts as ready until an operation says otherwise.
    #[must_use]
    pub fn register(initial: u32) -> Arc<Self> {
        let token = NEXT.fetch_add(1, Ordering::Relaxed) as u32;
        let this = Arc::new(Self {
            state: AtomicU64::new(u64::from(initial)),
            queue: WaitQueue::new(),
            token,
        });
        WATCHED.lock().insert(token, Arc::downgrade(&this));
        this
    }

    /// Ready bits.
    #[must_use]
    pub fn ready(&self) -> u32 {
        self.state.load(Ordering::SeqCst) as u32
    }

    /// State to give to [`HostReadiness::clear`].
    #[must_use]
    pub fn snapshot(&self) -> u64 {
        self.state.load(Ordering::SeqCst)
    }

    /// Nothing is there for `bits`: forget them, unless something was reported since `snapshot`.
    pub fn clear(&self, snapshot: u64, bits: u32) {
        let new = snapshot & !u64::from(bits);
        // A failure means a newer report: keep it.
        let _ = self
            .state
            .compare_exchange(snapshot, new, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// A report: `bits` became ready.
    pub fn report(&self, bits: u32) {
        let update = |old: u64| Some(((old >> 32).wrapping_add(1) << 32) | u64::from(old as u32 | bits));
        // `update` never gives None.
        let _ = self
            .state
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, update);
        self.queue.wake_all(bits);
    }
}

impl Drop for HostReadiness {
    fn drop(&mut self) {
        WATCHED.lock().remove(&self.token);
    }
}

/// The OS service reported `bits` for `token`. Unknown tokens are late reports for closed files, or lies.
pub fn event(token: u32, bits: u32) {
    let watched = WATCHED.lock().get(&token).and_then(Weak::upgrade);
    if let Some(readiness) = watched {
        readiness.report(bits);
    }
}

/// Reports were lost: everything may be ready.
pub fn all_ready() {
    let all: alloc::vec::Vec<_> = WATCHED.lock().values().filter_map(Weak::upgrade).collect();
    for readiness in all {
        readiness.report(super::file::ready::IN | super::file::ready::OUT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_between_snapshot_and_clear_is_kept() {
        let r = HostReadiness::register(0);
        event(r.token, 1);
        assert_eq!(r.ready(), 1);
        let snapshot = r.snapshot();
        event(r.token, 1);
        r.clear(snapshot, 1);
        assert_eq!(r.ready(), 1);
        r.clear(r.snapshot(), 1);
        assert_eq!(r.ready(), 0);
    }
}
