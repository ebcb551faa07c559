//! Files, directories, mounts, descriptors.

pub mod anon;
mod context;
pub mod epoll;
pub mod eventfd;
pub mod fd;
pub mod file;
pub mod hostfd;
pub mod hostlink;
pub mod pipe;
pub mod poll;
pub mod readiness;
pub mod signalfd;
pub mod signals;
pub mod timerfd;

pub use context::FsContext;
pub use fd::{FdTable, OpenFile};
pub use file::File;

use crate::syscall::Entry;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[];
