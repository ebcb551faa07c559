//! What stands between the OS side and what is given out, by name, so that a test can take one away and see its attack work.
//!
//! Only unit tests can, and the package `cloak-volumes-weakened`, which the unit tests of other crates use in this one's
//! place. In every other build [`without`] is a constant.

/// A protection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Protection {
    /// What is opened has the tag it was sealed with, and a measured block the hash that its tree has.
    Seal = 1,
    /// A root that the anchor knows to be older is refused.
    Anchor = 2,
    /// After a write or flush that failed, changes are refused.
    Poison = 4,
}

/// Whether it was taken away.
#[cfg(not(any(test, weakened)))]
#[must_use]
pub const fn without(_: Protection) -> bool {
    false
}

#[cfg(any(test, weakened))]
pub use taken::{take_away, with, without};

#[cfg(any(test, weakened))]
mod taken {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Protection;

    static PROCESS: AtomicU8 = AtomicU8::new(0);
    std::thread_local!(static THREAD: Cell<u8> = const { Cell::new(0) });

    /// Whether it was taken away, from this thread or the process.
    #[must_use]
    pub fn without(protection: Protection) -> bool {
        (THREAD.get() | PROCESS.load(Ordering::Relaxed)) & protection as u8 != 0
    }

    /// Takes it away from the process, for good.
    pub fn take_away(protection: Protection) {
        PROCESS.fetch_or(protection as u8, Ordering::Relaxed);
    }

    /// Runs `f` without it in this thread.
    pub fn with<R>(protection: Protection, f: impl FnOnce() -> R) -> R {
        let before = THREAD.get();
        THREAD.set(before | protection as u8);
        let result = f();
        THREAD.set(before);
        result
    }
}
