//! Write-back: what programs changed and never synced is durable some seconds later, as on Linux's own file systems.
//!
//! | changed by | committed |
//! |---|---|
//! | calls | [`AGE`] after the first change that no commit has |
//! | shared mappings | every [`MAPPED_AGE`] while there are any: their writes are seen by comparing pages only |
//!
//! One thread of the libos's own does it, and sleeps while there is nothing to do. It commits as `sync` does, so a crash
//! leaves the state before or after; an error is told as errors of volumes are, and to whoever syncs next.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{MOUNTED, Protected};
use crate::sched::clock;

/// Nanoseconds, as for ext4's own commits.
const AGE: u64 = 5_000_000_000;
/// Nanoseconds, as Linux's flusher lets pages be dirty.
const MAPPED_AGE: u64 = 30_000_000_000;

/// When the next round is due, in ticks.
struct Due(AtomicU64);

const NEVER: u64 = u64::MAX;
static CALLS: Due = Due(AtomicU64::new(NEVER));
static MAPPINGS: Due = Due(AtomicU64::new(NEVER));

impl Due {
    /// There is something to do, after `age` if nothing was before.
    fn begin(&self, age: u64) {
        if self.0.load(Ordering::Relaxed) == NEVER
            && self
                .0
                .compare_exchange(
                    NEVER,
                    clock::deadline_in(age),
                    Ordering::SeqCst,
                    Ordering::Relaxed,
                )
                .is_ok()
        {
            wake();
        }
    }

    /// Whether it is time. What changes from here on begins anew.
    fn take(&self, now: u64) -> bool {
        self.0.load(Ordering::SeqCst) <= now && self.0.swap(NEVER, Ordering::SeqCst) <= now
    }
}

/// A call has changed a volume.
pub(super) fn changed() {
    CALLS.begin(AGE);
}

/// A page can be written by a shared mapping.
pub(super) fn mapped() {
    MAPPINGS.begin(MAPPED_AGE);
}

/// What is due at `now`.
pub fn round(now: u64) {
    let (calls, mappings) = (CALLS.take(now), MAPPINGS.take(now));
    if calls || mappings {
        let all = MOUNTED.lock().clone();
        for volume in all.iter().filter(|volume| !volume.read_only) {
            write_back(volume, mappings);
        }
    }
}

/// An error has been told; whoever syncs gets it, too, as changes are refused from then on.
fn write_back(volume: &Protected, mappings: bool) {
    let _ = if mappings {
        volume.sync()
    } else {
        volume.with(|state| state.volume.sync_all())
    };
    if mappings && volume.has_mapped_writes() {
        mapped();
    }
}

/// When a round is due next.
pub fn next() -> u64 {
    let due = |due: &Due| due.0.load(Ordering::SeqCst);
    due(&CALLS).min(due(&MAPPINGS))
}

#[cfg(feature = "bare")]
mod thread {
    use alloc::sync::Arc;

    use spin::Once;

    use super::{next, round};
    use crate::arch;
    use crate::errno::SysResult;
    use crate::process::own;
    use crate::sched::{self, Thread};

    static THREAD: Once<Arc<Thread>> = Once::new();

    /// Starts it, if it does not run yet.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn start() -> SysResult<()> {
        if THREAD.get().is_none() {
            // Volumes are mounted by one thread, so nobody else starts one meanwhile.
            let thread = own::thread(run)?;
            THREAD.call_once(|| thread).start();
        }
        Ok(())
    }

    pub fn wake() {
        if let Some(thread) = THREAD.get() {
            thread.unpark();
        }
    }

    extern "C" fn run(_: u64) -> ! {
        sched::begin();
        loop {
            let now = arch::ticks();
            if now < next() {
                sched::park(next());
            } else {
                round(now);
            }
        }
    }
}

#[cfg(feature = "bare")]
pub(super) use thread::start;
#[cfg(feature = "bare")]
use thread::wake;

/// Under test rounds are made by hand.
#[cfg(not(feature = "bare"))]
fn wake() {}
