//! What kind of file system a file is on.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::sys;

/// Magic numbers (statfs(2)) of file systems that answer over a network or from another process.
const REMOTE: [u64; 11] = [
    0x6969,      // NFS
    0x517b,      // SMB
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x6573_5546, // FUSE
    0x0102_1997, // 9P
    0x00c3_6400, // Ceph
    0x5346_414f, // AFS
    0x7375_7245, // Coda
    0x7461_636f, // OCFS2
    0x0187,      // autofs
];

/// procfs.
const PROC: u64 = 0x9fa0;

/// Whether a file is on a remote file system.
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_remote(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(REMOTE.contains(&sys::fstatfs(fd)?.magic()))
}

/// The same for a file on another file system than its directory.
///
/// The host's procfs is refused: through it a guest could reach into the memory of every process of the
/// same user, the monitor and this one among them. The libos has its own.
///
/// # Errors
/// `EACCES` for procfs.
pub fn check_crossing(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let magic = sys::fstatfs(fd)?.magic();
    if magic == PROC {
        Err(Errno::ACCESS)
    } else {
        Ok(REMOTE.contains(&magic))
    }
}
