//! Sockets.

use crate::syscall::Entry;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[];
