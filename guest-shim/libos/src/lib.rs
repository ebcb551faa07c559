//! The shim's CPL 3 part: Linux for one context.
//!
//! The libos lies in its own slot of each address space of the context, next to the program. It owns the
//! context's frames, threads and files; the kernel below only changes page tables and passes traps up.
//!
//! | module | concept |
//! |---|---|
//! | [`arch`] | entry and exit, thread switch, vector state, kernel calls, copying to and from the program |
//! | [`host`] | requests to the OS service through the shared ring |
//! | [`sched`] | threads on vCPUs, parking, wait queues, timers, futexes |
//! | [`mem`] | heap, frames, memory areas, page faults |
//! | [`process`] | processes, program loading, the vDSO |
//! | [`signal`] | signals |
//! | [`fs`] | files, directories, mounts, descriptors, pipes, events |
//! | [`net`] | sockets |
//! | [`ipc`] | System V shared memory |
//! | [`identity`], [`stated`] | what the context is, and what its manifest says |
//! | [`keys`] | the keys that follow from that |
//! | `attest` | reports about the machine |
//! | [`syscall`] | the table of system calls |
//! | `patch`, `x86` | turning SYSCALL sites into jumps |
//!
//! Locks: a [`spin::Mutex`] is never held across something that parks, nor across a copy to or from
//! the program's memory (which may fault and park).
#![cfg_attr(feature = "bare", no_std)]

extern crate alloc;
// Tests can take its protections away, one at a time.
#[cfg(test)]
extern crate cloak_volumes_weakened as cloak_volumes;

pub mod arch;
#[cfg(feature = "bare")]
pub mod attest;
#[cfg(feature = "bare")]
pub mod boot;
pub mod errno;
pub mod fs;
pub mod host;
pub mod identity;
pub mod ipc;
pub mod keys;
pub mod mem;
pub mod net;
#[cfg(feature = "bare")]
pub mod patch;
pub mod process;
#[cfg(feature = "bare")]
pub mod quote;
pub mod random;
pub mod sched;
pub mod signal;
pub mod stated;
pub mod syscall;
#[cfg(test)]
pub mod testing;
#[cfg(feature = "bare")]
pub mod trace;
pub mod user;
pub mod x86;
