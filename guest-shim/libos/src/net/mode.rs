//! Whose network the context sees. Set once, at boot.

use core::sync::atomic::{AtomicU32, Ordering};

/// Whose network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// The host's.
    Host = 0,
    /// None: see [`super::empty`].
    None = 1,
    /// The context's own: see [`super::private`].
    Private = 2,
}

static MODE: AtomicU32 = AtomicU32::new(Mode::Host as u32);

/// Sets it.
pub fn set(mode: Mode) {
    MODE.store(mode as u32, Ordering::Relaxed);
}

/// What was set.
#[must_use]
pub fn get() -> Mode {
    match MODE.load(Ordering::Relaxed) {
        0 => Mode::Host,
        2 => Mode::Private,
        _ => Mode::None,
    }
}
