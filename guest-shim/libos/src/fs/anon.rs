//! Files without a name: what pipes, events, timers, epoll sets and sockets have in common.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use super::file::Stat;
use super::{File, OpenFile, fd};
use crate::errno::SysResult;
use crate::process::Process;
use crate::user;

/// `S_IFIFO`.
pub const S_IFIFO: u32 = 0o010_000;
/// `S_IFSOCK`.
pub const S_IFSOCK: u32 = 0o140_000;
/// `FIONREAD`.
pub const FIONREAD: u32 = 0x541b;

/// Device number under which such files show.
const DEVICE: u64 = 0x0d;

static NEXT_INODE: AtomicU64 = AtomicU64::new(1);

/// A fresh inode number.
#[must_use]
pub fn next_inode() -> u64 {
    NEXT_INODE.fetch_add(1, Ordering::Relaxed)
}

/// Attributes of such a file; `mode` with its type.
#[must_use]
pub fn stat(mode: u32, inode: u64) -> Stat {
    let process = Process::current();
    let (uid, gid) = {
        let credentials = process.credentials.lock();
        (credentials.uid[1], credentials.gid[1])
    };
    Stat {
        dev: DEVICE,
        ino: inode,
        nlink: 1,
        mode,
        uid,
        gid,
        blksize: 4096,
        ..Stat::default()
    }
}

/// Gives `file` a descriptor. `flags`: access mode and status flags, and `O_CLOEXEC` for the descriptor.
///
/// # Errors
/// EMFILE.
pub fn install(file: Arc<dyn File>, flags: u32, path: Vec<u8>) -> SysResult {
    let open = OpenFile::new(file, flags, path);
    let number = Process::current()
        .files
        .insert(open, flags & fd::O_CLOEXEC != 0, 0)?;
    Ok(number as u64)
}

/// Installs two files and writes their descriptors to the program's `int[2]` at `address`. On failure
/// neither stays.
///
/// # Errors
/// EMFILE, EFAULT.
pub fn install_pair(address: u64, first: (Arc<OpenFile>, bool), second: (Arc<OpenFile>, bool)) -> SysResult {
    let files = &Process::current().files;
    let a = files.insert(first.0, first.1, 0)?;
    let result = files
        .insert(second.0, second.1, 0)
        .and_then(|b| user::write(address, &[a, b]).inspect_err(|_| drop(files.remove(b))));
    if let Err(error) = result {
        drop(files.remove(a));
        return Err(error);
    }
    Ok(0)
}

/// A name such as `pipe:[17]`.
#[must_use]
pub fn numbered(kind: &str, inode: u64) -> Vec<u8> {
    alloc::format!("{kind}:[{inode}]").into_bytes()
}
