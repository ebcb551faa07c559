//! Host operations on files, one function each: arguments laid out as `abi::hostop` says, answers checked.

use alloc::vec;
use alloc::vec::Vec;

use cloak_abi::hostop::{HostOp, PATH_MAX};
use zerocopy::{FromBytes, IntoBytes};

use super::attributes::{self, StatFs, Statx};
use super::file::Stat;
use super::flags::AT_SYMLINK_NOFOLLOW;
use super::hostfd::HostFd;
use crate::errno::{Errno, SysResult};
use crate::host::{self, CAPACITY, Request};

/// Largest extended attribute, and largest list of their names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_MAX: usize = 65536;
const _: () = assert!(XATTR_MAX <= CAPACITY, "fits a slot's buffer");

/// A name below a host directory.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// Number of the directory.
    pub dir: u64,
    /// Relative path; empty: the directory itself, for operations that know that.
    pub path: &'a [u8],
    /// `abi::hostop::resolve` bits.
    pub how: u64,
}

impl<'a> At<'a> {
    /// What a descriptor stands for itself.
    #[must_use]
    pub const fn itself(number: u64) -> At<'static> {
        At {
            dir: number,
            path: b"",
            how: 0,
        }
    }

    fn request(&self) -> SysResult<Request> {
        let mut request = Request::new();
        self.put(&mut request, 0)?;
        Ok(request)
    }

    fn put(&self, request: &mut Request, at: usize) -> SysResult<()> {
        if self.path.len() > PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        request.put(at, self.path);
        Ok(())
    }

    const fn len(&self) -> u64 {
        self.path.len() as u64
    }
}

fn stat_in(request: &Request) -> SysResult<Stat> {
    let stat = Stat::read_from_bytes(&request.get_array::<144>(0)).map_err(|_| Errno::EIO)?;
    attributes::check(stat)
}

fn zero(result: u64) -> SysResult<()> {
    if result == 0 { Ok(()) } else { Err(Errno::EIO) }
}

/// Opens; gives the descriptor and its attributes.
///
/// # Errors
/// Those of openat2(2); EIO for an answer that can't be true.
pub fn open(at: At<'_>, flags: u32, mode: u32) -> SysResult<(HostFd, Stat)> {
    let mut request = at.request()?;
    let args = [at.dir, u64::from(flags), u64::from(mode), at.len(), at.how, 0];
    let answer = request.call(HostOp::Open, args);
    let fd = HostFd::adopt(answer.ok()?)?;
    let stat = stat_in(&request)?;
    if answer.extra != u64::from(stat.mode) {
        return Err(Errno::EIO);
    }
    Ok((fd, stat))
}

/// Attributes of an open file.
///
/// # Errors
/// Those of fstat(2).
pub fn fstat(fd: &HostFd) -> SysResult<Stat> {
    let mut request = Request::new();
    zero(request.call(HostOp::FStat, [fd.number(), 0, 0, 0, 0, 0]).ok()?)?;
    stat_in(&request)
}

/// Extended attributes of a path.
///
/// # Errors
/// Those of statx(2).
pub fn statx(at: At<'_>, flags: u32, mask: u32) -> SysResult<Statx> {
    let mut request = at.request()?;
    let args = [at.dir, u64::from(flags), u64::from(mask), at.len(), at.how, 0];
    zero(request.call(HostOp::StatX, args).ok()?)?;
    let statx = Statx::read_from_bytes(&request.get_array::<256>(0)).map_err(|_| Errno::EIO)?;
    attributes::check_statx(statx)
}

/// Target of a symbolic link.
///
/// # Errors
/// Those of readlink(2).
pub fn read_link(at: At<'_>) -> SysResult<Vec<u8>> {
    let mut request = at.request()?;
    let len = request
        .call(HostOp::ReadLink, [at.dir, at.len(), 0, 0, at.how, 0])
        .len(PATH_MAX + 1)?;
    let mut target = vec![0; len];
    request.get(0, &mut target);
    Ok(target)
}

/// `access`.
///
/// # Errors
/// Those of faccessat2(2).
pub fn access(at: At<'_>, mode: u32, flags: u32) -> SysResult<()> {
    let args = [at.dir, u64::from(mode), u64::from(flags), at.len(), at.how, 0];
    zero(at.request()?.call(HostOp::Access, args).ok()?)
}

/// `mkdir`.
///
/// # Errors
/// Those of mkdirat(2).
pub fn make_dir(at: At<'_>, mode: u32) -> SysResult<()> {
    zero(
        at.request()?
            .call(HostOp::MkDir, [at.dir, u64::from(mode), 0, at.len(), 0, 0])
            .ok()?,
    )
}

/// `mknod`.
///
/// # Errors
/// Those of mknodat(2).
pub fn make_node(at: At<'_>, mode: u32, device: u64) -> SysResult<()> {
    zero(
        at.request()?
            .call(HostOp::MkNod, [at.dir, u64::from(mode), device, at.len(), 0, 0])
            .ok()?,
    )
}

/// `unlink` and `rmdir`, by AT_REMOVEDIR in `flags`.
///
/// # Errors
/// Those of unlinkat(2).
pub fn unlink(at: At<'_>, flags: u32) -> SysResult<()> {
    zero(
        at.request()?
            .call(HostOp::Unlink, [at.dir, u64::from(flags), 0, at.len(), 0, 0])
            .ok()?,
    )
}

fn two_paths(op: HostOp, from: At<'_>, to: At<'_>, flags: u32) -> SysResult<()> {
    let mut request = from.request()?;
    to.put(&mut request, from.path.len())?;
    let args = [from.dir, from.len(), to.dir, to.len(), u64::from(flags), 0];
    zero(request.call(op, args).ok()?)
}

/// `rename`.
///
/// # Errors
/// Those of renameat2(2).
pub fn rename(from: At<'_>, to: At<'_>, flags: u32) -> SysResult<()> {
    two_paths(HostOp::Rename, from, to, flags)
}

/// `link`.
///
/// # Errors
/// Those of linkat(2).
pub fn link(from: At<'_>, to: At<'_>, flags: u32) -> SysResult<()> {
    two_paths(HostOp::Link, from, to, flags)
}

/// `symlink`.
///
/// # Errors
/// Those of symlinkat(2).
pub fn symlink(target: &[u8], at: At<'_>) -> SysResult<()> {
    if target.len() > PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut request = Request::new();
    request.put(0, target);
    at.put(&mut request, target.len())?;
    zero(
        request
            .call(HostOp::SymLink, [at.dir, target.len() as u64, 0, at.len(), 0, 0])
            .ok()?,
    )
}

const fn no_follow(follow: bool) -> u64 {
    if follow { 0 } else { AT_SYMLINK_NOFOLLOW as u64 }
}

/// `chmod`.
///
/// # Errors
/// Those of fchmodat2(2).
pub fn change_mode(at: At<'_>, mode: u32, follow: bool) -> SysResult<()> {
    let args = [at.dir, u64::from(mode), no_follow(follow), at.len(), 0, 0];
    zero(at.request()?.call(HostOp::ChMod, args).ok()?)
}

/// `chown`.
///
/// # Errors
/// Those of fchownat(2).
pub fn change_owner(at: At<'_>, uid: u32, gid: u32, follow: bool) -> SysResult<()> {
    let args = [
        at.dir,
        u64::from(uid),
        u64::from(gid),
        at.len(),
        no_follow(follow),
        0,
    ];
    zero(at.request()?.call(HostOp::ChOwn, args).ok()?)
}

/// `utimensat`; the times as there, UTIME_NOW and UTIME_OMIT included.
///
/// # Errors
/// Those of utimensat(2).
pub fn change_times(at: At<'_>, times: [[i64; 2]; 2], follow: bool) -> SysResult<()> {
    let mut request = Request::new();
    request.put(0, times.as_bytes());
    at.put(&mut request, 32)?;
    zero(
        request
            .call(HostOp::UTimes, [at.dir, 0, no_follow(follow), at.len(), 0, 0])
            .ok()?,
    )
}

/// `statfs` of an open file.
///
/// # Errors
/// Those of fstatfs(2).
pub fn statfs(fd: u64) -> SysResult<StatFs> {
    let mut request = Request::new();
    zero(request.call(HostOp::StatFs, [fd, 0, 0, 0, 0, 0]).ok()?)?;
    StatFs::read_from_bytes(&request.get_array::<120>(0)).map_err(|_| Errno::EIO)
}

/// An operation on a descriptor whose only answer is whether it worked.
///
/// # Errors
/// What the host reports; EIO for a positive answer.
pub fn plain(op: HostOp, fd: &HostFd, a: u64, b: u64, c: u64) -> SysResult<()> {
    zero(host::call(op, [fd.number(), a, b, c, 0, 0])?)
}

/// `getxattr`: at most `size` bytes (0: just its length, and no value).
///
/// # Errors
/// Those of getxattr(2).
pub fn xattr(at: At<'_>, name: &[u8], size: usize, follow: bool) -> SysResult<(usize, Vec<u8>)> {
    let mut request = Request::new();
    request.put(0, name);
    at.put(&mut request, name.len())?;
    let args = [
        at.dir,
        name.len() as u64,
        size.min(XATTR_MAX) as u64,
        at.len(),
        u64::from(!follow),
        0,
    ];
    let answer = request.call(HostOp::GetXattr, args);
    bytes_or_length(&request, answer, size)
}

/// `listxattr`, as [`xattr`].
///
/// # Errors
/// Those of listxattr(2).
pub fn xattrs(at: At<'_>, size: usize, follow: bool) -> SysResult<(usize, Vec<u8>)> {
    let mut request = at.request()?;
    let args = [
        at.dir,
        0,
        size.min(XATTR_MAX) as u64,
        at.len(),
        u64::from(!follow),
        0,
    ];
    let answer = request.call(HostOp::ListXattr, args);
    bytes_or_length(&request, answer, size)
}

fn bytes_or_length(request: &Request, answer: host::Answer, size: usize) -> SysResult<(usize, Vec<u8>)> {
    if size == 0 {
        return Ok((answer.len(XATTR_MAX)?, Vec::new()));
    }
    let mut value = vec![0; answer.len(size.min(XATTR_MAX))?];
    request.get(0, &mut value);
    Ok((value.len(), value))
}

/// `setxattr`.
///
/// # Errors
/// Those of setxattr(2).
pub fn set_xattr(at: At<'_>, name: &[u8], value: &[u8], flags: u32, follow: bool) -> SysResult<()> {
    let mut request = Request::new();
    request.put(0, name);
    at.put(&mut request, name.len())?;
    if value.len() > XATTR_MAX {
        return Err(Errno::E2BIG);
    }
    request.put(name.len() + at.path.len(), value);
    let args = [
        at.dir,
        name.len() as u64,
        value.len() as u64,
        at.len(),
        u64::from(!follow),
        u64::from(flags),
    ];
    zero(request.call(HostOp::SetXattr, args).ok()?)
}

/// `removexattr`.
///
/// # Errors
/// Those of removexattr(2).
pub fn remove_xattr(at: At<'_>, name: &[u8], follow: bool) -> SysResult<()> {
    let mut request = Request::new();
    request.put(0, name);
    at.put(&mut request, name.len())?;
    let args = [at.dir, name.len() as u64, 0, at.len(), u64::from(!follow), 0];
    zero(request.call(HostOp::RemoveXattr, args).ok()?)
}
