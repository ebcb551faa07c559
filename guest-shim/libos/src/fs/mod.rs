//! Files, directories, mounts, descriptors.

mod context;
pub mod fd;
pub mod file;
pub mod readiness;

pub use context::FsContext;
pub use fd::{FdTable, OpenFile};
pub use file::File;

use crate::syscall::Entry;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[];
