//! Calls that go on where they were, when a signal interrupted them for nothing.
//!
//! A call with a relative timeout can't simply be made again with the same arguments: it would start its time anew. It
//! leaves what is left to do here and gives ERESTART_RESTARTBLOCK; when no handler ran, the thread goes on with
//! `restart_syscall` (219), as on Linux.

use alloc::boxed::Box;

use crate::errno::{Errno, SysResult};

/// What is left to do of a call.
pub struct Rest(Box<dyn FnOnce() -> SysResult + Send>);

impl core::fmt::Debug for Rest {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Rest").finish_non_exhaustive()
    }
}

impl Rest {
    /// Goes on.
    ///
    /// # Errors
    /// Those of the call.
    pub fn go_on(self) -> SysResult {
        (self.0)()
    }
}

/// The running thread's call was interrupted; `rest` is what is left of it. Gives the error to leave with.
pub fn later(rest: impl FnOnce() -> SysResult + Send + 'static) -> Errno {
    let rest = Rest(Box::new(rest));
    #[cfg(feature = "bare")]
    crate::sched::current().signals.rest.lock().replace(rest);
    // Threads under test have no signals; what they are told is all that can be looked at.
    #[cfg(not(feature = "bare"))]
    drop(rest);
    Errno::ERESTART_RESTARTBLOCK
}
