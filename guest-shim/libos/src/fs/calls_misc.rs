//! `memfd_create`, and calls on files that are refused.

use alloc::sync::Arc;

use spin::Lazy;

use super::tmpfs::{self, Tmpfs};
use crate::errno::{Errno, SysResult};
use crate::process::Process;
use crate::syscall::{Args, Entry, enosys, eperm, partial, refused};
use crate::user;

/// Calls served here.
pub const SYSCALLS: &[Entry] = &[
    refused(155, "pivot_root", "the name space is set up at boot", eperm),
    refused(167, "swapon", "memory is the VM's", eperm),
    refused(168, "swapoff", "memory is the VM's", eperm),
    refused(179, "quotactl", "no quotas", eperm),
    refused(300, "fanotify_init", "no change notification", enosys),
    refused(303, "name_to_handle_at", "files have no handles", eopnotsupp),
    refused(304, "open_by_handle_at", "files have no handles", eperm),
    partial(319, "memfd_create", "px", "huge pages are refused", memfd_create),
    refused(428, "open_tree", "the name space is set up at boot", enosys),
    refused(429, "move_mount", "the name space is set up at boot", enosys),
    refused(430, "fsopen", "the name space is set up at boot", enosys),
    refused(442, "mount_setattr", "the name space is set up at boot", enosys),
];

/// Bytes that all memory files of the context may take: frames are the real limit.
const LIMIT: u64 = 1 << 50;
static MEMORY_FILES: Lazy<Arc<Tmpfs>> = Lazy::new(|| Tmpfs::new(LIMIT, 0o700));

const MFD_CLOEXEC: u32 = 1;
const MFD_ALLOW_SEALING: u32 = 2;
const MFD_NOEXEC_SEAL: u32 = 8;
const MFD_EXEC: u32 = 16;
/// Longest name: NAME_MAX less `memfd:`.
const NAME_MAX: usize = 249;

fn memfd_create(args: &Args) -> SysResult {
    let flags = args.u32(1);
    if flags & !(MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | MFD_EXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    let name = user::read_string(args.u64(0), NAME_MAX).map_err(|e| {
        if e == Errno::ENAMETOOLONG {
            Errno::EINVAL
        } else {
            e
        }
    })?;
    let no_exec = flags & MFD_NOEXEC_SEAL != 0;
    let mode = if no_exec { 0o666 } else { 0o777 };
    let open = tmpfs::memfd(
        &MEMORY_FILES,
        &name,
        mode,
        no_exec || flags & MFD_ALLOW_SEALING != 0,
    )?;
    let number = Process::current()
        .files
        .insert(open, flags & MFD_CLOEXEC != 0, 0)?;
    Ok(number as u64)
}

fn eopnotsupp(_: &Args) -> SysResult {
    Err(Errno::EOPNOTSUPP)
}
