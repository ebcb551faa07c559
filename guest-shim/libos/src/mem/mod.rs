//! Memory of the context: heap, frames, files in frames, the program's address space.

pub mod area;
pub mod extents;
pub mod held;
pub mod pages;
pub mod swap;

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
