//! File calls that read or write the shared region, and structures that are passed on as they are.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::{check, check_int, check_long};
use crate::os::region::Buffer;

/// A Linux structure of `WORDS` times 8 bytes that is passed on without being understood, save for a
/// field or two.
#[derive(Debug, Clone, Copy)]
pub struct Record<const WORDS: usize>([u64; WORDS]);

impl<const WORDS: usize> Record<WORDS> {
    /// All zero.
    pub const ZERO: Self = Self([0; WORDS]);

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn at<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes()[offset..offset + N]);
        field
    }
}

/// `struct stat` of x86-64.
pub type Stat = Record<18>;
/// `struct statx`.
pub type Statx = Record<32>;
/// `struct statfs` of x86-64.
pub type StatFs = Record<15>;
/// `struct sysinfo` of x86-64.
pub type SysInfo = Record<14>;

impl Stat {
    /// `st_dev`.
    pub fn device(&self) -> u64 {
        u64::from_ne_bytes(self.at(0))
    }
    /// `st_mode`.
    pub fn mode(&self) -> u32 {
        u32::from_ne_bytes(self.at(24))
    }
    /// `st_rdev`.
    pub fn special_device(&self) -> u64 {
        u64::from_ne_bytes(self.at(40))
    }
    /// `st_size`.
    pub fn size(&self) -> u64 {
        u64::from_ne_bytes(self.at(48))
    }
}

impl Statx {
    /// `stx_mode`.
    pub fn mode(&self) -> u16 {
        u16::from_ne_bytes(self.at(28))
    }
}

impl StatFs {
    /// `f_type`.
    pub fn magic(&self) -> u64 {
        u64::from_ne_bytes(self.at(0))
    }
}

impl SysInfo {
    /// `loads[0]`: load average of one minute, times 65536.
    pub fn load(&self) -> u64 {
        u64::from_ne_bytes(self.at(8))
    }
}

/// read(2).
pub fn read(fd: BorrowedFd<'_>, out: &Buffer<'_>) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most len bytes to the buffer, which lives through the call.
    check(unsafe { libc::read(fd.as_raw_fd(), out.as_ptr().cast(), out.len()) })
}

/// write(2).
pub fn write(fd: BorrowedFd<'_>, data: &Buffer<'_>) -> Result<usize, Errno> {
    // SAFETY: the kernel reads at most len bytes of the buffer, which lives through the call.
    check(unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) })
}

/// pread(2).
pub fn pread(fd: BorrowedFd<'_>, out: &Buffer<'_>, offset: i64) -> Result<usize, Errno> {
    // SAFETY: as for read.
    check(unsafe { libc::pread64(fd.as_raw_fd(), out.as_ptr().cast(), out.len(), offset) })
}

/// pwrite(2).
pub fn pwrite(fd: BorrowedFd<'_>, data: &Buffer<'_>, offset: i64) -> Result<usize, Errno> {
    // SAFETY: as for write.
    check(unsafe { libc::pwrite64(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), offset) })
}

/// sync_file_range(2), to begin only: what was written is on its way to the disk, and nothing is waited for or known of it.
pub fn begin_write_out(fd: BorrowedFd<'_>, offset: i64, len: i64) -> Result<(), Errno> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) } as isize)
        .map(|_| ())
}

/// preadv2(2) with `RWF_NOWAIT`; offset -1 is the file's position.
pub fn read_nowait(fd: BorrowedFd<'_>, out: &Buffer<'_>, offset: i64) -> Result<usize, Errno> {
    let part = libc::iovec {
        iov_base: out.as_ptr().cast(),
        iov_len: out.len(),
    };
    // SAFETY: one iovec, over a buffer that lives through the call.
    check(unsafe { libc::preadv2(fd.as_raw_fd(), &raw const part, 1, offset, libc::RWF_NOWAIT) })
}

/// pwritev2(2) with `RWF_NOWAIT` at the file's position.
pub fn write_nowait(fd: BorrowedFd<'_>, data: &Buffer<'_>) -> Result<usize, Errno> {
    let part = libc::iovec {
        iov_base: data.as_ptr().cast(),
        iov_len: data.len(),
    };
    // SAFETY: one iovec, over a buffer that lives through the call.
    check(unsafe { libc::pwritev2(fd.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) })
}

/// getdents64(2).
pub fn getdents(fd: BorrowedFd<'_>, out: &Buffer<'_>) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most len bytes to the buffer, which lives through the call.
    check_long(unsafe { libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), out.as_ptr(), out.len()) })
}

/// fstat(2).
pub fn fstat(fd: BorrowedFd<'_>) -> Result<Stat, Errno> {
    let mut stat = Stat::ZERO;
    // SAFETY: the kernel writes one struct stat, 144 bytes, which is what Stat holds.
    check_long(unsafe { libc::syscall(libc::SYS_fstat, fd.as_raw_fd(), stat.0.as_mut_ptr()) })?;
    Ok(stat)
}

/// statx(2).
pub fn statx(fd: BorrowedFd<'_>, path: &CStr, flags: u32, mask: u32) -> Result<Statx, Errno> {
    let mut statx = Statx::ZERO;
    let out = statx.0.as_mut_ptr();
    // SAFETY: the kernel writes one struct statx, 256 bytes, which is what Statx holds.
    check_long(unsafe { libc::syscall(libc::SYS_statx, fd.as_raw_fd(), path.as_ptr(), flags, mask, out) })?;
    Ok(statx)
}

/// fstatfs(2).
pub fn fstatfs(fd: BorrowedFd<'_>) -> Result<StatFs, Errno> {
    let mut statfs = StatFs::ZERO;
    // SAFETY: the kernel writes one struct statfs, 120 bytes, which is what StatFs holds.
    check_long(unsafe { libc::syscall(libc::SYS_fstatfs, fd.as_raw_fd(), statfs.0.as_mut_ptr()) })?;
    Ok(statfs)
}

/// sysinfo(2).
pub fn sysinfo() -> Result<SysInfo, Errno> {
    let mut info = SysInfo::ZERO;
    // SAFETY: the kernel writes one struct sysinfo, 112 bytes, which is what SysInfo holds.
    check_long(unsafe { libc::syscall(libc::SYS_sysinfo, info.0.as_mut_ptr()) })?;
    Ok(info)
}

/// faccessat2(2).
pub fn access(fd: BorrowedFd<'_>, path: &CStr, mode: u32, flags: u32) -> Result<usize, Errno> {
    // SAFETY: the path is a C string; nothing is written.
    check_long(unsafe { libc::syscall(libc::SYS_faccessat2, fd.as_raw_fd(), path.as_ptr(), mode, flags) })
}

/// Gets (`F_OFD_GETLK`) or sets without waiting (`F_OFD_SETLK`) an open-file-description lock.
/// `lock` is a `struct flock` of x86-64, with `l_pid` zero.
pub fn ofd_lock(fd: BorrowedFd<'_>, set: bool, lock: &mut [u64; 4]) -> Result<usize, Errno> {
    let command = if set { libc::F_OFD_SETLK } else { libc::F_OFD_GETLK };
    // SAFETY: the kernel reads and writes one struct flock, 32 bytes, which is what the array holds.
    check_int(unsafe { libc::fcntl(fd.as_raw_fd(), command, lock.as_mut_ptr()) })
}

/// ioctl(2) whose argument is `argument`. The caller vouches that the kernel touches no more than those
/// bytes for this request: [`crate::os::ioctl`] keeps the list, and this rounds up generously.
pub fn ioctl(fd: BorrowedFd<'_>, request: u32, argument: &mut [u64; 32]) -> Result<usize, Errno> {
    // SAFETY: every request on the list reads and writes at most 256 bytes, none an address.
    check_int(unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::c_ulong::from(request) as _,
            argument.as_mut_ptr(),
        )
    })
}

/// ioctl(2) whose argument is a number.
pub fn ioctl_number(fd: BorrowedFd<'_>, request: u32, number: i32) -> Result<usize, Errno> {
    // SAFETY: no request of the caller's list takes the number for an address.
    check_int(unsafe { libc::ioctl(fd.as_raw_fd(), libc::c_ulong::from(request) as _, number) })
}

/// `SIOCGIFCONF` into `out`; result: bytes written.
pub fn interface_list(fd: BorrowedFd<'_>, out: &Buffer<'_>) -> Result<usize, Errno> {
    #[repr(C)]
    struct IfConf {
        len: libc::c_int,
        records: *mut u8,
    }
    let len = libc::c_int::try_from(out.len()).map_err(|_| Errno::INVAL)?;
    let mut list = IfConf {
        len,
        records: out.as_ptr(),
    };
    // SAFETY: the kernel writes at most len bytes to the buffer, which lives through the call.
    check_int(unsafe { libc::ioctl(fd.as_raw_fd(), 0x8912, &raw mut list) })?;
    usize::try_from(list.len).map_err(|_| Errno::IO)
}
