//! The OS service: executes the host calls of one VM, in a process of its own.
//!
//! It is on the OS side: the guest checks every answer and trusts none. In turn the service trusts no
//! request: every number, length and index is checked here, and a path never leaves its mount.
//!
//! ```text
//!   monitor ---- spawn: descriptors, command line ----> entry
//!                                                         |
//!   guest <=== shared region: queues, slots, events ==> server ---- ops ---- files, paths, names, streams,
//!                 doorbell, wake eventfds                 |                  attributes, xattrs, sockets,
//!                                                      workers               messages, ioctl, machine
//! ```
//!
//! | module | what |
//! |---|---|
//! | `spawn`, `handover`, `entry` | start of the process, from both sides |
//! | `handed` | further standard streams, from the monitor |
//! | `protocol`, `server`, `spin`, `workers` | the ring, sleeping and waking |
//! | `region`, `sys` | the unsafe islands: shared memory, system calls on raw bytes |
//! | `flow` | streams that run ahead of the guest |
//! | `request`, `table`, `paths` | what a request is, which files there are, how paths resolve |
//! | the others | the operations, by area |
#![deny(unsafe_code)]

mod attributes;
mod entry;
mod error;
mod files;
mod filesystems;
mod flow;
#[cfg(fuzzing)]
pub mod fuzz;
pub mod handed;
mod handover;
mod ioctl;
mod machine;
mod messages;
mod names;
mod ops;
mod paths;
pub mod protocol;
mod readiness;
pub mod region;
mod request;
mod server;
mod share;
mod sockets;
mod sockopts;
mod spawn;
mod spin;
mod stdio;
mod streams;
pub(crate) mod sys;
mod table;
mod terminal;
mod unix;
mod workers;
mod xattrs;

pub use entry::main_if_service;
pub use error::OsError;
pub use spawn::{Access, Ended, OsService, Root, SpawnConfig, spawn};
