//! Opening and closing, directories, sizes, locks, copies.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::filesystems;
use super::flow;
use super::paths::{self, Resolve};
use super::readiness;
use super::request::{Answer, Call, Refusal, Reply, Scratch};
use super::sys::{self, Stat};
use super::table::{Entry, Kind, kind_of};

/// Open flags that a guest may use; Linux ignores unknown ones, openat2 does not.
const OPEN_FLAGS: u32 = (libc::O_ACCMODE
    | libc::O_CREAT
    | libc::O_EXCL
    | libc::O_TRUNC
    | libc::O_APPEND
    | libc::O_DSYNC
    | libc::O_SYNC
    | libc::O_DIRECT
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_NOATIME
    | libc::O_PATH
    | libc::O_TMPFILE) as u32;
/// Those that mean something together with `O_PATH`.
const PATH_FLAGS: u32 = (libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW) as u32;

fn open_flags(asked: u32) -> OFlags {
    if asked & libc::O_PATH as u32 != 0 {
        return OFlags::from_bits_retain(asked & PATH_FLAGS);
    }
    // A terminal must not become this process's own, and opening a FIFO or a device must not wait.
    OFlags::from_bits_retain(asked & OPEN_FLAGS) | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::LARGEFILE
}

fn creates(flags: OFlags) -> bool {
    flags.contains(OFlags::CREATE) || flags.contains(OFlags::TMPFILE)
}

fn changes(flags: OFlags) -> bool {
    let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
    !flags.contains(OFlags::PATH) && (writes || creates(flags))
}

/// [`cloak_abi::hostop::HostOp::Open`]
pub fn open(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let dir = call.file(0)?;
    call.may_be_remote(&dir)?;
    if call.len(3)? == 0 {
        return open_itself(call, &dir);
    }
    let path = paths::take(&call.buffer(), 0, call.len(3)?, &mut scratch.path)?;
    let flags = open_flags(call.word(1));
    // openat2 refuses a mode where none is used.
    let mode = if creates(flags) {
        Mode::from_raw_mode(call.word(2) & 0o7777)
    } else {
        Mode::empty()
    };
    let how = Resolve::parse(call, 4)?;
    let file = if dir.read_only && changes(flags) {
        open_special(call, &dir, path, flags, how)?
    } else {
        paths::open(call, dir.as_fd(), path, flags, mode, how)?
    };
    given_out(call, &dir, file, flags)
}

fn given_out(call: &Call<'_>, dir: &Entry, file: OwnedFd, flags: OFlags) -> Reply {
    let stat = sys::fstat(file.as_fd())?;
    let entry = opened(dir, file, flags, &stat)?;
    let fd = call.shared.table.insert(entry)?;
    call.buffer().write(stat.bytes());
    Ok(Answer::with(fd as usize, u64::from(stat.mode())))
}

/// Opens what a descriptor stands for: the container of a volume, which is a mount's root and a file.
fn open_itself(call: &Call<'_>, place: &Entry) -> Reply {
    let flags = open_flags(call.word(1));
    if flags.intersects(OFlags::PATH | OFlags::CREATE | OFlags::TMPFILE | OFlags::TRUNC) {
        return Err(Errno::INVAL.into());
    }
    if place.read_only && changes(flags) {
        return Err(Errno::ROFS.into());
    }
    if sys::fstat(place.as_fd())?.mode() & libc::S_IFMT != libc::S_IFREG {
        return Err(Errno::NOENT.into());
    }
    let path = paths::magic_path(place.as_fd());
    let file = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?;
    given_out(call, place, file, flags)
}

/// Opens for writing on a mount that must not change: allowed for pipes, devices and sockets, which are
/// only reached through it, as Linux allows it on a read-only mount.
fn open_special(
    call: &Call<'_>,
    dir: &Entry,
    path: &std::ffi::CStr,
    flags: OFlags,
    how: Resolve,
) -> Result<OwnedFd, Refusal> {
    if flags.contains(OFlags::TMPFILE) {
        return Err(Errno::ROFS.into());
    }
    let last = flags & OFlags::NOFOLLOW;
    let place = match paths::open(call, dir.as_fd(), path, OFlags::PATH | last, Mode::empty(), how) {
        Err(Refusal::Errno(Errno::NOENT)) if creates(flags) => return Err(Errno::ROFS.into()),
        other => other?,
    };
    if flags.contains(OFlags::CREATE | OFlags::EXCL) {
        return Err(Errno::EXIST.into());
    }
    match sys::fstat(place.as_fd())?.mode() & libc::S_IFMT {
        libc::S_IFREG => Err(Errno::ROFS.into()),
        libc::S_IFDIR => Err(Errno::ISDIR.into()),
        libc::S_IFLNK => Err(Errno::LOOP.into()),
        // Reopening the very object that was looked at: nobody can put a file in its place meanwhile.
        _ => {
            let flags = flags - (OFlags::CREATE | OFlags::TRUNC | OFlags::EXCL | OFlags::NOFOLLOW);
            Ok(rustix::fs::open(
                paths::magic_path(place.as_fd()),
                flags | OFlags::CLOEXEC,
                Mode::empty(),
            )?)
        }
    }
}

fn opened(dir: &Entry, file: OwnedFd, flags: OFlags, stat: &Stat) -> Result<Entry, Errno> {
    let kind = if flags.contains(OFlags::PATH) {
        Kind::Location
    } else {
        kind_of(stat)
    };
    let device = stat.device();
    let remote = if device == dir.device {
        dir.remote
    } else {
        filesystems::check_crossing(file.as_fd())?
    };
    let mut entry = Entry::new(file, kind);
    entry.terminal = kind == Kind::Stream && rustix::termios::isatty(&entry);
    entry.synchronous = flags.intersects(OFlags::DSYNC | OFlags::SYNC | OFlags::DIRECT);
    entry.read_only = dir.read_only;
    entry.device = device;
    entry.remote = remote;
    Ok(entry)
}

/// [`cloak_abi::hostop::HostOp::Close`]
pub fn close(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    if entry.remote || entry.lingers.load(Ordering::Relaxed) {
        call.may_take_long()?;
    }
    drop(entry);
    let entry: Arc<Entry> = call.shared.table.remove(call.arg(0))?;
    if !flow::close(call.shared, &entry) {
        readiness::forget(&call.shared.readiness, &entry);
    }
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::GetDents`]
pub fn getdents(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    call.may_be_remote(&entry)?;
    let out = call.data(1)?;
    if call.arg(2) == 1 {
        rustix::fs::seek(&*entry, SeekFrom::Start(0))?;
    }
    Ok(sys::getdents(entry.as_fd(), &out)?.into())
}

/// [`cloak_abi::hostop::HostOp::Truncate`]
pub fn truncate(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    call.may_be_remote(&entry)?;
    let len = u64::try_from(call.offset(1)?).map_err(|_| Errno::INVAL)?;
    rustix::fs::ftruncate(&*entry, len)?;
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::Sync`]
pub fn sync(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    call.may_take_long()?;
    match call.arg(1) {
        0 => rustix::fs::fsync(&*entry)?,
        1 => rustix::fs::fdatasync(&*entry)?,
        2 => rustix::fs::syncfs(&*entry)?,
        3 => sys::begin_write_out(entry.as_fd(), call.offset(2)?, call.offset(3)?)?,
        _ => return Err(Errno::INVAL.into()),
    }
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::Allocate`]
pub fn allocate(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    call.may_take_long()?;
    let mode = FallocateFlags::from_bits_retain(call.word(1));
    rustix::fs::fallocate(&*entry, mode, call.arg(2), call.arg(3))?;
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::Flock`]
pub fn flock(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    call.may_be_remote(&entry)?;
    let operation = match call.int(1) & !libc::LOCK_NB {
        libc::LOCK_SH => FlockOperation::NonBlockingLockShared,
        libc::LOCK_EX => FlockOperation::NonBlockingLockExclusive,
        libc::LOCK_UN => FlockOperation::NonBlockingUnlock,
        _ => return Err(Errno::INVAL.into()),
    };
    rustix::fs::flock(&*entry, operation)?;
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::Lock`]
pub fn lock(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    call.may_be_remote(&entry)?;
    let set = match call.arg(1) {
        0 => false,
        1 => true,
        _ => return Err(Errno::INVAL.into()),
    };
    let bytes: [u8; 32] = call.buffer().array(0)?;
    let mut words = [0u64; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().map_err(|_| Errno::INVAL)?);
    }
    // The last word is `l_pid`, which the kernel wants to be zero, and padding.
    words[3] = 0;
    sys::ofd_lock(entry.as_fd(), set, &mut words)?;
    for (at, word) in words.iter().enumerate() {
        call.buffer().part(at * 8, 8)?.write(&word.to_ne_bytes());
    }
    Ok(().into())
}

/// Most bytes copied by one request: a worker is not to be away for long.
const COPY_MOST: u64 = 64 << 20;
/// Most bytes sent from a file to a stream by one request, on the ring's thread.
const SEND_MOST: u64 = 256 << 10;

/// [`cloak_abi::hostop::HostOp::CopyRange`]
pub fn copy_range(call: &Call<'_>) -> Reply {
    let (from, to) = (call.file(0)?, call.file(2)?);
    let (use_in, use_out) = (call.arg(5) & 1 == 0, call.arg(5) & 2 == 0);
    let (mut at_in, mut at_out) = (call.arg(1), call.arg(3));
    let at_in = use_in.then_some(&mut at_in);
    if matches!(to.kind, Kind::Socket | Kind::Stream) {
        call.may_be_remote(&from)?;
        let len = usize::try_from(call.arg(4).min(SEND_MOST)).map_err(|_| Errno::INVAL)?;
        return Ok(rustix::fs::sendfile(&*to, &*from, at_in, len)?.into());
    }
    if to.kind != Kind::Regular {
        return Err(Errno::INVAL.into());
    }
    call.may_take_long()?;
    let len = usize::try_from(call.arg(4).min(COPY_MOST)).map_err(|_| Errno::INVAL)?;
    Ok(rustix::fs::copy_file_range(&*from, at_in, &*to, use_out.then_some(&mut at_out), len)?.into())
}

/// [`cloak_abi::hostop::HostOp::Seek`]
pub fn seek(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    call.may_be_remote(&entry)?;
    let offset = call.arg(1);
    let to = match call.int(2) {
        libc::SEEK_SET => SeekFrom::Start(offset),
        libc::SEEK_CUR => SeekFrom::Current(offset as i64),
        libc::SEEK_END => SeekFrom::End(offset as i64),
        libc::SEEK_DATA => SeekFrom::Data(offset),
        libc::SEEK_HOLE => SeekFrom::Hole(offset),
        _ => return Err(Errno::INVAL.into()),
    };
    let position = rustix::fs::seek(&*entry, to)?;
    Ok(usize::try_from(position).map_err(|_| Errno::OVERFLOW)?.into())
}

/// [`cloak_abi::hostop::HostOp::Dup`]
pub fn dup(call: &Call<'_>) -> Reply {
    let copy = call.file(0)?.duplicate()?;
    Ok(call.shared.table.insert(copy)?.into())
}
