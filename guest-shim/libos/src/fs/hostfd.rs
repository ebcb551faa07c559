//! Host descriptors: numbers that the OS service gave out and that the libos holds.
//!
//! The service chooses the numbers, so it may lie: give out one that is in use already, which would make
//! two files of the guest one. [`HostFd::adopt`] is the only way to a [`HostFd`], and it refuses those.

use core::sync::atomic::{AtomicBool, Ordering};

use cloak_abi::hostop::{HostOp, ROOT_FD};
use hashbrown::HashSet;
use spin::{Lazy, Mutex};

use crate::errno::{Errno, SysResult};
use crate::host::{self, Request};
#[cfg(test)]
use crate::testing::weaken::{Protection, without};

static HELD: Lazy<Mutex<HashSet<u32>>> = Lazy::new(|| Mutex::new((0..3).collect()));

/// How many are held, the standard streams among them.
#[must_use]
pub fn count() -> usize {
    HELD.lock().len()
}

/// The numbers that are held.
#[cfg(test)]
pub(crate) fn held() -> alloc::vec::Vec<u32> {
    HELD.lock().iter().copied().collect()
}

/// A host descriptor, closed at its drop.
#[derive(Debug)]
pub struct HostFd {
    number: u32,
    /// Nobody can tell when it is closed, so its drop does not wait for that.
    unnoticed: AtomicBool,
}

impl HostFd {
    const fn with(number: u32) -> Self {
        Self {
            number,
            unnoticed: AtomicBool::new(false),
        }
    }

    /// Whether anybody can tell when it is closed: not for a file that is only read and has no lock.
    pub fn set_unnoticed(&self, unnoticed: bool) {
        self.unnoticed.store(unnoticed, Ordering::Relaxed);
    }

    /// Takes over a descriptor that the service has given out.
    ///
    /// # Errors
    /// EIO when it is none that can have been given out.
    pub fn adopt(number: u64) -> SysResult<Self> {
        let number = u32::try_from(number)
            .ok()
            .filter(|&n| n < ROOT_FD)
            .ok_or(Errno::EIO)?;
        let fresh = HELD.lock().insert(number);
        #[cfg(test)]
        let fresh = fresh || without(Protection::Adoption);
        if fresh {
            Ok(Self::with(number))
        } else {
            Err(Errno::EIO)
        }
    }

    /// One of the standard streams, which are there from the start. They are never closed on the host: its
    /// side may still have something to say there.
    #[must_use]
    pub const fn standard(number: u32) -> Self {
        assert!(number < 3, "a standard stream");
        Self::with(number)
    }

    /// The number, as an argument of a request.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number as u64
    }
}

impl Drop for HostFd {
    fn drop(&mut self) {
        if self.number < 3 {
            return;
        }
        // First forget it: from the close on, the service may rightly give the number out again.
        HELD.lock().remove(&self.number);
        // Nobody is left who could be told of an error.
        let args = [u64::from(self.number), 0, 0, 0, 0, 0];
        if self.unnoticed.load(Ordering::Relaxed) {
            Request::new().send(HostOp::Close, args);
        } else {
            let _ = host::call(HostOp::Close, args);
        }
    }
}
