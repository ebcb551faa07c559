//! What a descriptor can refer to.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::OpenFile;
use super::hostlink::Doubt;
use super::node::Node;
use crate::errno::{Errno, SysResult};
use crate::mem::pages::{Frame, PageCache};
use crate::sched::WaitQueue;
use crate::user::Buf;

/// Linux's `struct stat` (x86-64).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    pub nlink: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub pad: u32,
    pub rdev: u64,
    pub size: i64,
    pub blksize: i64,
    pub blocks: i64,
    pub atime: [i64; 2],
    pub mtime: [i64; 2],
    pub ctime: [i64; 2],
    pub unused: [i64; 3],
}

/// Readiness bits, as in `epoll_ctl`.
#[allow(missing_docs)]
pub mod ready {
    pub const IN: u32 = 1;
    pub const PRI: u32 = 2;
    pub const OUT: u32 = 4;
    pub const ERR: u32 = 8;
    pub const HUP: u32 = 0x10;
    pub const RDNORM: u32 = 0x40;
    pub const WRNORM: u32 = 0x100;
    pub const RDHUP: u32 = 0x2000;
}

/// What a mapping of the file is made from.
pub enum Mapping {
    /// Pages that all mappings and all reads and writes share (memory files, shared mappings of host files).
    Pages(Arc<PageCache>),
    /// Content is read with [`File::read_at`] when first touched (private mappings of host files).
    Read,
    /// Zeros (`/dev/zero`).
    Zero,
}

/// An object behind a descriptor. Methods may park, but not while a spin lock is held.
///
/// Blocking is the caller's business where it can be: `read` and `write` of something that has to wait
/// give EAGAIN when `file.nonblocking()`, else wait on [`File::wait_queue`] and give EINTR when a signal comes first.
pub trait File: Send + Sync {
    /// Reads at the file's position, or from the stream.
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        let _ = (file, to);
        Err(Errno::EINVAL)
    }
    /// Writes at the file's position, or to the stream.
    fn write(&self, file: &OpenFile, from: &mut Buf) -> SysResult<usize> {
        let _ = (file, from);
        Err(Errno::EINVAL)
    }
    /// Reads at an offset.
    fn read_at(&self, offset: u64, to: &mut Buf) -> SysResult<usize> {
        let _ = (offset, to);
        Err(Errno::ESPIPE)
    }
    /// What tells this state of the file from any other (device, inode, size, times), if it can't be changed from
    /// inside: its pages may be kept.
    fn unchanging(&self) -> Option<[u64; 7]> {
        None
    }
    /// [`File::read_at`] for pages of a private mapping, which are not kept a second time.
    fn read_direct(&self, offset: u64, to: &mut Buf) -> SysResult<usize> {
        self.read_at(offset, to)
    }
    /// Writes at an offset.
    fn write_at(&self, offset: u64, from: &mut Buf) -> SysResult<usize> {
        let _ = (offset, from);
        Err(Errno::ESPIPE)
    }
    /// Attributes.
    fn stat(&self) -> SysResult<Stat>;
    /// What is ready now ([`ready`] bits). Files are always ready.
    fn poll(&self) -> u32 {
        ready::IN | ready::OUT | ready::RDNORM | ready::WRNORM
    }
    /// Woken when [`File::poll`] may have changed; `None`: it never does.
    fn wait_queue(&self) -> Option<&WaitQueue> {
        None
    }
    /// Called before somebody waits on [`File::wait_queue`]; may park. Host files have reports begin here.
    fn prepare_wait(&self) -> SysResult<()> {
        Ok(())
    }
    /// Adds what the host must be asked about before [`File::poll`] can be believed as to `events`.
    fn doubts(&self, file: &OpenFile, events: u32, doubts: &mut Vec<Doubt>) {
        let _ = (file, events, doubts);
    }
    /// `lseek`.
    fn seek(&self, file: &OpenFile, offset: i64, whence: u32) -> SysResult<u64> {
        let _ = (file, offset, whence);
        Err(Errno::ESPIPE)
    }
    /// `ioctl`; `argument` is the program's.
    fn ioctl(&self, file: &OpenFile, request: u32, argument: u64) -> SysResult {
        let _ = (file, request, argument);
        Err(Errno::ENOTTY)
    }
    /// `ftruncate`.
    fn truncate(&self, size: u64) -> SysResult<()> {
        let _ = size;
        Err(Errno::EINVAL)
    }
    /// `fsync` (and `fdatasync` with `data_only`).
    fn sync(&self, data_only: bool) -> SysResult<()> {
        let _ = data_only;
        Err(Errno::EINVAL)
    }
    /// `fallocate`.
    fn allocate(&self, mode: u32, offset: u64, len: u64) -> SysResult<()> {
        let _ = (mode, offset, len);
        Err(Errno::ENODEV)
    }
    /// `getdents64`: fills records from the file's position.
    fn read_dir(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        let _ = (file, to);
        Err(Errno::ENOTDIR)
    }
    /// What `mmap` maps.
    fn map(&self, shared: bool) -> SysResult<Mapping> {
        let _ = shared;
        Err(Errno::ENODEV)
    }
    /// The pages that mappings of the file share, if there may be any.
    fn mapped_pages(&self) -> Option<Arc<PageCache>> {
        None
    }
    /// Page `page` of a shared mapping, brought in if it is not there. The default is for memory files.
    fn shared_page(&self, pages: &Arc<PageCache>, page: u64) -> SysResult<Frame> {
        pages.get_or_zero(page)
    }
    /// Writes back what shared mappings have written in pages `[first, last)`. The default is for memory files.
    fn sync_pages(&self, pages: &Arc<PageCache>, first: u64, last: u64) -> SysResult<()> {
        let _ = (pages, first, last);
        Ok(())
    }
    /// Commands of `fcntl` that only certain kinds know (F_SETPIPE_SZ, F_GETPIPE_SZ, F_ADD_SEALS, F_GET_SEALS).
    fn fcntl(&self, file: &OpenFile, command: u32, argument: u64) -> SysResult {
        let _ = (file, command, argument);
        Err(Errno::EINVAL)
    }
    /// The node of an in-guest file system, if it is of one.
    fn node(&self) -> Option<&Arc<dyn Node>> {
        None
    }
    /// Host descriptor, if there is one behind it.
    fn host_fd(&self) -> Option<u32> {
        None
    }
    /// The last descriptor of an open file was closed (before the drop).
    fn closed(&self, file: &OpenFile) {
        let _ = file;
    }
    /// For calls that need one certain kind (sockets, epoll, timers...).
    fn as_any(&self) -> &dyn Any;
}
