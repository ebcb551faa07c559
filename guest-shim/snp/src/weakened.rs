//! What stands between the hypervisor and the guest, by name, so that a test can take one away and see its attack work.
//!
//! Only unit tests can. In every other build [`without`] is a constant.

/// A protection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Protection {
    /// A page that PVALIDATE finds accepted ends the guest.
    Unchanged = 1,
    /// The guest accepts a block of memory once: `cloak_measured::accepted` is asked before, by whoever accepts.
    #[cfg(test)]
    Once = 2,
    /// A page that can't be accepted ends the guest.
    Accepted = 4,
    /// An answer has the tag of the processor's key.
    Tag = 16,
    /// An answer is the one to this message.
    Number = 32,
    /// A channel whose message got no answer is closed, and its number spent.
    Closed = 64,
    /// The page of secrets is cleared.
    Cleared = 128,
    /// The reason of a #VC is what its instruction does.
    Founded = 256,
    /// Only the context's own ports go to the hypervisor.
    Ports = 512,
    /// CPUID is answered from the table.
    Table = 1024,
}

/// Whether it was taken away.
#[cfg(not(test))]
#[must_use]
pub const fn without(_: Protection) -> bool {
    false
}

#[cfg(test)]
pub use taken::{with, without};

#[cfg(test)]
mod taken {
    use std::cell::Cell;

    use super::Protection;

    std::thread_local!(static TAKEN: Cell<u16> = const { Cell::new(0) });

    /// Whether it was taken away, in this thread.
    #[must_use]
    pub fn without(protection: Protection) -> bool {
        TAKEN.get() & protection as u16 != 0
    }

    /// Runs `f` without it.
    pub fn with<R>(protection: Protection, f: impl FnOnce() -> R) -> R {
        let before = TAKEN.get();
        TAKEN.set(before | protection as u16);
        let result = f();
        TAKEN.set(before);
        result
    }
}
