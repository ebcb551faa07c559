//! Names in directories: made, removed, moved, linked, read.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use super::paths::{self, Last, Leaf, Resolve};
use super::request::{Call, Refusal, Reply, Scratch};
use super::sys;
use super::table::Entry;

/// Opens the directory of the name that `path` ends in, to change it. As with Linux, a mount that must not change is
/// told after a directory that is not there.
fn leaf<'p>(call: &Call<'_>, dir: &'p Entry, path: &'p CStr) -> Result<Leaf<'p>, Refusal> {
    call.may_be_remote(dir)?;
    let leaf = paths::leaf(call, dir.as_fd(), path)?;
    dir.writable()?;
    Ok(leaf)
}

/// The same for a name that is to be made: that it is taken is told before that the mount must not change.
fn new_leaf<'p>(call: &Call<'_>, dir: &'p Entry, path: &'p CStr) -> Result<Leaf<'p>, Refusal> {
    call.may_be_remote(dir)?;
    let leaf = paths::leaf(call, dir.as_fd(), path)?;
    if dir.read_only && rustix::fs::statat(&leaf, leaf.name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        return Err(Errno::EXIST.into());
    }
    dir.writable()?;
    Ok(leaf)
}

/// [`cloak_abi::hostop::HostOp::MkDir`]
pub fn mkdir(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let dir = call.file(0)?;
    let path = paths::take(&call.buffer(), 0, call.len(3)?, &mut scratch.path)?;
    let leaf = new_leaf(call, &dir, path)?;
    rustix::fs::mkdirat(&leaf, leaf.name, Mode::from_raw_mode(call.word(1) & 0o7777))?;
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::Unlink`]
pub fn unlink(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let dir = call.file(0)?;
    let path = paths::take(&call.buffer(), 0, call.len(3)?, &mut scratch.path)?;
    let leaf = leaf(call, &dir, path)?;
    let flags = AtFlags::from_bits_retain(call.word(1)) & AtFlags::REMOVEDIR;
    rustix::fs::unlinkat(&leaf, leaf.name, flags)?;
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::Rename`]
pub fn rename(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let (from, to) = (call.file(0)?, call.file(2)?);
    let len = call.len(1)?;
    let old = paths::take(&call.buffer(), 0, len, &mut scratch.path)?;
    let new = paths::take(&call.buffer(), len, call.len(3)?, &mut scratch.other)?;
    let (old, new) = (leaf(call, &from, old)?, leaf(call, &to, new)?);
    let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
    let flags = RenameFlags::from_bits_retain(call.word(4));
    if !known.contains(flags) {
        return Err(Errno::INVAL.into());
    }
    rustix::fs::renameat_with(&old, old.name, &new, new.name, flags)?;
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::Link`]
pub fn link(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let (from, to) = (call.file(0)?, call.file(2)?);
    let len = call.len(1)?;
    let new = paths::take(&call.buffer(), len, call.len(3)?, &mut scratch.other)?;
    let new = new_leaf(call, &to, new)?;
    // A link to a file of a read-only mount would make it writable.
    from.writable()?;
    call.may_be_remote(&from)?;
    let follows = call.word(4) & libc::AT_SYMLINK_FOLLOW as u32 != 0;
    if len > 0 && !follows {
        let old = paths::take(&call.buffer(), 0, len, &mut scratch.path)?;
        let old = paths::leaf(call, from.as_fd(), old)?;
        rustix::fs::linkat(&old, old.name, &new, new.name, AtFlags::empty())?;
        return Ok(().into());
    }
    // The descriptor itself (a file without a name yet), or what a link leads to within the directory.
    let place = if len == 0 {
        None
    } else {
        let old = paths::take(&call.buffer(), 0, len, &mut scratch.path)?;
        Some(paths::object(
            call,
            from.as_fd(),
            old,
            Last::Follow,
            Resolve::Rooted,
        )?)
    };
    let old = paths::magic_path(place.as_ref().map_or(from.as_fd(), AsFd::as_fd));
    rustix::fs::linkat(CWD, old, &new, new.name, AtFlags::SYMLINK_FOLLOW)?;
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::SymLink`]
pub fn symlink(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let dir = call.file(0)?;
    let len = call.len(1)?;
    let target = paths::take(&call.buffer(), 0, len, &mut scratch.other)?;
    let path = paths::take(&call.buffer(), len, call.len(3)?, &mut scratch.path)?;
    let leaf = new_leaf(call, &dir, path)?;
    rustix::fs::symlinkat(target, &leaf, leaf.name)?;
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::MkNod`]: files, pipes and sockets. Device nodes are the host's to make: one
/// on a shared volume would open the host's devices.
pub fn mknod(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let dir = call.file(0)?;
    let path = paths::take(&call.buffer(), 0, call.len(3)?, &mut scratch.path)?;
    let kind = match call.word(1) & libc::S_IFMT {
        0 | libc::S_IFREG => FileType::RegularFile,
        libc::S_IFIFO => FileType::Fifo,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR | libc::S_IFBLK => return Err(Errno::PERM.into()),
        _ => return Err(Errno::INVAL.into()),
    };
    let leaf = new_leaf(call, &dir, path)?;
    rustix::fs::mknodat(
        &leaf,
        leaf.name,
        kind,
        Mode::from_raw_mode(call.word(1) & 0o7777),
        0,
    )?;
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::ReadLink`]
pub fn readlink(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let dir = call.file(0)?;
    call.may_be_remote(&dir)?;
    let len = call.len(1)?;
    let how = Resolve::parse(call, 4)?;
    let target = if len == 0 {
        read_target(dir.as_fd(), scratch)?
    } else {
        let path = paths::take(&call.buffer(), 0, len, &mut scratch.path)?;
        let place = paths::object(call, dir.as_fd(), path, Last::Itself, how)?;
        if sys::fstat(place.as_fd())?.mode() & libc::S_IFMT != libc::S_IFLNK {
            return Err(Errno::INVAL.into());
        }
        read_target(place.as_fd(), scratch)?
    };
    let len = target.len();
    call.buffer().write(&target);
    scratch.bytes = target;
    Ok(len.into())
}

/// The target of a link that is open as a place, in the scratch buffer.
fn read_target(fd: std::os::fd::BorrowedFd<'_>, scratch: &mut Scratch) -> Result<Vec<u8>, Errno> {
    let reuse = std::mem::take(&mut scratch.bytes);
    Ok(rustix::fs::readlinkat(fd, c"", reuse)?.into_bytes())
}
