//! System V inter-process communication: shared memory segments, semaphore sets, message queues.
//!
//! | file | concept |
//! |---|---|
//! | [`table`] | objects with keys, numbers, owners and rights |
//! | [`segments`] | shared memory: who is attached |
//! | [`semaphores`] | sets of semaphores: operations that are done whole or not, and undone at a process's end |
//! | [`queues`] | message queues |
//! | `calls` | the system calls |
//!
//! A segment is a file in guest memory that each `shmat` maps, so `fork`, `munmap` and the end of a process need no
//! code here: who is attached is who holds the file open.

pub mod queues;
pub mod segments;
pub mod semaphores;
pub mod table;

#[cfg(feature = "bare")]
mod calls;

#[cfg(feature = "bare")]
pub use calls::SYSCALLS;
