//! System V inter-process communication: shared memory segments.
//!
//! | file | concept |
//! |---|---|
//! | [`segments`] | the segments of the context: keys, numbers, rights, who is attached |
//! | `calls` | the system calls |
//!
//! A segment is a file in guest memory that each `shmat` maps, so `fork`, `munmap` and the end of a process need no
//! code here: who is attached is who holds the file open.

pub mod segments;

#[cfg(feature = "bare")]
mod calls;

#[cfg(feature = "bare")]
pub use calls::SYSCALLS;
