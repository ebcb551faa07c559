//! `open`: from a place to an open file.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use cloak_abi::hostop::HostOp;

use super::attributes::STATX_BASIC;
use super::calls_change;
use super::file::{File, Stat};
use super::flags::*;
use super::host_fifos;
use super::hostdir::HostDir;
use super::hostfd::HostFd;
use super::hostfile::{HostFile, Position};
use super::hostops;
use super::hoststream::HostStream;
use super::inotify::{self, event};
use super::node::{self, New, Node};
use super::open_cache::{self, Asked, Fresh, Sharing};
use super::pathfile::PathFile;
use super::walk::{self, HostPlace, Last, Links, NodePlace, Place, Start};
use super::{OpenFile, lengths, mount, path, shared_pages};
use crate::errno::{Errno, SysResult};
use crate::host::Request;
use crate::process::Process;

/// Flags that mean something to the host.
const HOST_FLAGS: u32 =
    O_ACCMODE | O_CREAT | O_EXCL | O_TRUNC | O_APPEND | O_SYNC | O_TMPFILE | O_NOFOLLOW | O_NOATIME | O_PATH;
/// Flags that are looked at together with O_PATH.
const PATH_FLAGS: u32 = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
/// Flags that F_GETFL never shows.
const CREATION_FLAGS: u32 = O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC;

/// Opens `path` relative to `dirfd`.
///
/// # Errors
/// Those of openat(2).
pub fn open_at(dirfd: i32, path: &[u8], flags: u32, mode: u32) -> SysResult<Arc<OpenFile>> {
    let flags = flags & !inotify::UNNOTICED;
    let umask = Process::current().fs.umask.load(Ordering::Relaxed);
    open_from(&Start::of(dirfd, path)?, path, flags, mode & 0o7777 & !umask)
}

/// Opens `path` from a start that is known; the mode as it is.
///
/// # Errors
/// Those of openat(2).
pub fn open_from(start: &Start, path: &[u8], flags: u32, mode: u32) -> SysResult<Arc<OpenFile>> {
    let flags = if flags & O_PATH != 0 {
        flags & PATH_FLAGS
    } else {
        flags
    };
    let creates = flags & O_CREAT != 0;
    if creates && path::must_be_directory(path) {
        walk::directory_from(start, path::last_component(path).0)?;
        return Err(Errno::EISDIR);
    }
    if flags & O_TMPFILE == O_TMPFILE && flags & O_ACCMODE == 0 {
        return Err(Errno::EINVAL);
    }
    let last = if creates && flags & O_EXCL != 0 {
        Last::Name
    } else if flags & O_NOFOLLOW != 0 {
        Last::Itself
    } else {
        Last::Follow
    };
    walk::with_start(start, path, last, Links::Reported, |place| {
        let missing = creates && inotify::watched() && is_missing(place);
        let open = match place {
            Place::Host(place) => open_host(place, flags, mode),
            Place::Node(place) => open_node(place, flags, mode),
        }?;
        if inotify::watched() {
            tell(&open, flags, missing);
        }
        Ok(open)
    })
}

fn is_missing(place: &Place) -> bool {
    match place {
        Place::Host(place) => hostops::statx(place.at(), AT_SYMLINK_NOFOLLOW, STATX_BASIC).is_err(),
        Place::Node(place) => place.node.is_none() && place.open.is_none(),
    }
}

/// Tells who watches what was opened, or its directory.
fn tell(open: &OpenFile, flags: u32, made: bool) {
    if flags & (O_PATH | inotify::UNNOTICED) != 0 || flags & O_TMPFILE == O_TMPFILE {
        return;
    }
    let path = open.path.lock().clone();
    if made {
        inotify::made(&path, false);
    }
    if flags & O_TRUNC != 0 && !made {
        inotify::happened(&path, event::MODIFY);
    }
    inotify::happened(&path, event::OPEN);
}

/// Opens a file for the libos itself: as root of the name space sees it, for reading.
///
/// # Errors
/// Those of open(2).
pub fn open_kernel(path: &[u8]) -> SysResult<Arc<OpenFile>> {
    open_from(&Start::root(), path, 0, 0)
}

fn open_host(place: &HostPlace, flags: u32, mode: u32) -> SysResult<Arc<OpenFile>> {
    if let Some(fifo) = host_fifos::open(place, flags) {
        return Ok(OpenFile::new(fifo?, flags & !CREATION_FLAGS, place.path.clone()));
    }
    let directory = if place.must_be_directory { O_DIRECTORY } else { 0 };
    let asked = flags & HOST_FLAGS | directory;
    let opened = |file| OpenFile::new(file, flags & !CREATION_FLAGS, place.path.clone());
    if place.read_only && asked & !O_NOFOLLOW == 0 {
        return open_only_read(place, asked).map(opened);
    }
    let (fd, stat) = match hostops::open(place.at(), asked, mode) {
        // On a read-only mount what exists can be opened with O_CREAT all the same.
        Err(Errno::EROFS) if flags & (O_CREAT | O_EXCL | O_TRUNC | O_ACCMODE) == O_CREAT => {
            hostops::open(place.at(), asked & !O_CREAT, 0)
                .map_err(|e| if e == Errno::ENOENT { Errno::EROFS } else { e })?
        }
        result => result?,
    };
    let truncates = flags & O_TRUNC != 0 && stat.mode & S_IFMT == S_IFREG;
    if truncates {
        let key = (stat.dev, stat.ino);
        if let Some(pages) = shared_pages::find(key) {
            pages.resize(0);
        }
        // What was known of its length is not so any more.
        drop(lengths::changing(key));
    }
    let file = match stat.mode & S_IFMT {
        S_IFREG if flags & O_PATH == 0 && mount::is_exclusive(&place.path) => {
            Arc::new(HostFile::new(fd, &stat, flags, Position::Guest).exclusive())
        }
        _ => host_file(fd, &stat, flags),
    };
    let open = opened(file);
    if truncates {
        calls_change::ends_at(&open, 0);
    }
    Ok(open)
}

/// Opens for reading what nobody inside can write: the content of such a file is cached, and so is that it is open.
fn open_only_read(place: &HostPlace, flags: u32) -> SysResult<Arc<dyn File>> {
    let asked = Asked {
        dir: &place.dir,
        path: &place.name,
        how: place.how,
        flags,
    };
    let fresh = open_cache::known(&asked, Sharing::One).map(Fresh::Kept);
    Ok(match fresh.map_or_else(|| open_cache::open(&asked), Ok)? {
        Fresh::Kept(opened) => Arc::new(HostFile::read_only(opened, flags)),
        Fresh::Own { fd, stat, .. } => host_file(fd, &stat, flags),
    })
}

fn host_file(fd: HostFd, stat: &Stat, flags: u32) -> Arc<dyn File> {
    if flags & O_PATH != 0 {
        return Arc::new(PathFile::Host(fd));
    }
    match stat.mode & S_IFMT {
        S_IFDIR => Arc::new(HostDir::new(fd)),
        S_IFREG | S_IFBLK => Arc::new(HostFile::new(fd, stat, flags, Position::Guest)),
        _ => Arc::new(HostStream::new(fd)),
    }
}

/// The standard streams that the monitor handed to the OS service under a ticket.
///
/// # Errors
/// What the host says of them; EIO for descriptors that can't have been given out.
pub fn handed_streams(ticket: u64) -> SysResult<[Arc<OpenFile>; 3]> {
    let mut request = Request::new();
    request.call(HostOp::Streams, [ticket, 0, 0, 0, 0, 0]).ok()?;
    let bytes: [[u8; 4]; 3] = [0, 4, 8].map(|at| request.get_array(at));
    drop(request);
    // All are taken before one of them is used, so that none that came twice is.
    let [input, output, errors] = bytes.map(|bytes| HostFd::adopt(u64::from(u32::from_le_bytes(bytes))));
    let handed = |number, fd: HostFd| hostops::fstat(&fd).map(|stat| stream(number, fd, &stat));
    let (input, output, errors) = (input?, output?, errors?);
    Ok([handed(0, input)?, handed(1, output)?, handed(2, errors)?])
}

/// Standard stream `number` of this mode.
#[must_use]
pub fn standard_stream(number: u32, mode: u32) -> Arc<OpenFile> {
    let fd = HostFd::standard(number);
    let stat = hostops::fstat(&fd).unwrap_or(Stat {
        mode,
        ..Stat::default()
    });
    stream(number, fd, &stat)
}

fn stream(number: u32, fd: HostFd, stat: &Stat) -> Arc<OpenFile> {
    let access = match stat.mode & S_IFMT {
        S_IFCHR | S_IFSOCK => O_RDWR,
        _ if number == 0 => 0,
        _ => O_WRONLY,
    };
    let (file, name): (Arc<dyn File>, &[u8]) = match stat.mode & S_IFMT {
        S_IFDIR => (Arc::new(HostDir::new(fd)), b"/dev/fd"),
        S_IFREG | S_IFBLK => (
            Arc::new(HostFile::new(fd, stat, access, Position::Host)),
            b"/dev/stdio",
        ),
        S_IFIFO => (Arc::new(HostStream::new(fd)), b"pipe:"),
        S_IFSOCK => (Arc::new(HostStream::new(fd)), b"socket:"),
        _ => (Arc::new(HostStream::new(fd)), b"/dev/tty"),
    };
    let mut path: Vec<u8> = name.to_vec();
    if path.ends_with(b":") {
        path.extend_from_slice(alloc::format!("[{}]", stat.ino).as_bytes());
    }
    OpenFile::new(file, access, path)
}

/// Permission bits that opening with these flags needs.
#[must_use]
pub const fn wanted(flags: u32) -> u32 {
    let access = match flags & O_ACCMODE {
        0 => MAY_READ,
        1 => MAY_WRITE,
        _ => MAY_READ | MAY_WRITE,
    };
    if flags & O_TRUNC != 0 {
        access | MAY_WRITE
    } else {
        access
    }
}

fn open_node(place: &NodePlace, flags: u32, mode: u32) -> SysResult<Arc<OpenFile>> {
    if let Some(open) = &place.open {
        return reopen(open, flags);
    }
    if flags & O_TMPFILE == O_TMPFILE {
        let directory = place.node()?;
        node::permit_entries(&directory.stat()?, &node::credentials())?;
        if place.read_only {
            return Err(Errno::EROFS);
        }
        let node = directory.create_unnamed(S_IFREG | mode)?;
        return open_file(&node, flags, place.path.clone());
    }
    let Some(node) = &place.node else {
        return create(place, flags, mode);
    };
    if flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL {
        return Err(Errno::EEXIST);
    }
    let stat = place.node()?.stat()?;
    if flags & O_PATH != 0 {
        if flags & O_DIRECTORY != 0 && !is_dir(stat.mode) {
            return Err(Errno::ENOTDIR);
        }
        return Ok(OpenFile::new(
            Arc::new(PathFile::Node(node.clone())),
            flags,
            place.path.clone(),
        ));
    }
    permit_open(&stat, place.read_only, flags)?;
    let truncates = flags & O_TRUNC != 0 && stat.mode & S_IFMT == S_IFREG;
    if truncates {
        node.truncate(0)?;
    }
    let open = open_file(node, flags, place.path.clone())?;
    if truncates {
        calls_change::ends_at(&open, 0);
    }
    Ok(open)
}

fn permit_open(stat: &Stat, read_only: bool, flags: u32) -> SysResult<()> {
    let writes = wanted(flags) & MAY_WRITE != 0;
    match stat.mode & S_IFMT {
        S_IFLNK => return Err(Errno::ELOOP),
        S_IFDIR if writes || flags & O_CREAT != 0 => return Err(Errno::EISDIR),
        S_IFDIR => {}
        _ if flags & O_DIRECTORY != 0 => return Err(Errno::ENOTDIR),
        S_IFREG if writes && read_only => return Err(Errno::EROFS),
        _ => {}
    }
    node::permit(stat, &node::credentials(), wanted(flags))
}

fn create(place: &NodePlace, flags: u32, mode: u32) -> SysResult<Arc<OpenFile>> {
    if flags & O_CREAT == 0 {
        return Err(Errno::ENOENT);
    }
    if place.must_be_directory {
        return Err(Errno::EISDIR);
    }
    let parent = place.parent()?;
    node::permit_entries(&parent.stat()?, &node::credentials())?;
    match parent.create(&place.name, New::Node(S_IFREG, 0), mode) {
        Ok(node) => open_file(&node, flags, place.path.clone()),
        // Another thread was faster.
        Err(Errno::EEXIST) if flags & O_EXCL == 0 => {
            open_file(&parent.lookup(&place.name)?, flags, place.path.clone())
        }
        Err(e) => Err(e),
    }
}

fn open_file(node: &Arc<dyn Node>, flags: u32, path: Vec<u8>) -> SysResult<Arc<OpenFile>> {
    let file = node.clone().open(flags)?;
    Ok(OpenFile::new(file, flags & !CREATION_FLAGS, path))
}

/// Opens what `/proc/self/fd/N` leads to once more.
fn reopen(open: &Arc<OpenFile>, flags: u32) -> SysResult<Arc<OpenFile>> {
    let path = open.path.lock().clone();
    if flags & O_PATH != 0 {
        return Ok(OpenFile::new(open.file.clone(), flags, path));
    }
    if let Some(node) = open.file.node() {
        permit_open(&node.stat()?, false, flags)?;
        if flags & O_TRUNC != 0 {
            node.truncate(0)?;
            calls_change::ends_at(open, 0);
        }
        return open_file(node, flags, path);
    }
    let file = open.file.as_any();
    if file.is::<HostFile>() || file.is::<HostDir>() || file.is::<PathFile>() {
        let standard = open.file.host_fd().is_some_and(|n| n < 3);
        if !standard {
            return open_from(&Start::root(), &path, flags & !(O_CREAT | O_EXCL), 0);
        }
    }
    Ok(OpenFile::new(open.file.clone(), flags & !CREATION_FLAGS, path))
}
