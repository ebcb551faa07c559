//! Memory of the context: heap, frames, files in frames, the program's address space.

pub mod area;
pub mod extents;
pub mod held;
pub mod pages;
pub mod swap;

use core::sync::atomic::{AtomicBool, Ordering};

#[cfg(feature = "bare")]
mod calls;
#[cfg(feature = "bare")]
pub use calls::SYSCALLS;
#[cfg(feature = "bare")]
pub mod file_frames;
#[cfg(feature = "bare")]
pub mod frames;
#[cfg(feature = "bare")]
pub mod heap;
#[cfg(feature = "bare")]
pub mod space;
#[cfg(feature = "bare")]
pub mod tables;

static SCARCE: AtomicBool = AtomicBool::new(false);

/// Whether programs took so much, and have the libos keep so much for them, that it should begin nothing more.
#[must_use]
pub fn is_scarce() -> bool {
    SCARCE.load(Ordering::Relaxed)
}

/// The libos has used up half of what programs leave it, or has more again.
#[cfg(feature = "bare")]
fn set_scarce(scarce: bool) {
    SCARCE.store(scarce, Ordering::Relaxed);
}
