//! Regular files and block devices of the host.
//!
//! The position is kept here, so that a read is one request for a read at an offset; the data goes between
//! the request's buffer and the program without a stop. Three exceptions use the host's position: appending
//! (atomic with respect to other writers only there), standard streams (other programs of the host share
//! it) and SEEK_DATA and SEEK_HOLE, which only the host can answer.

use alloc::sync::Arc;
use core::any::Any;

use cloak_abi::hostop::HostOp;
use cloak_abi::layout::PAGE;
use spin::Mutex;

use super::OpenFile;
use super::file::{File, Mapping, Stat};
use super::flags::{O_APPEND, SEEK_CUR, SEEK_DATA, SEEK_END, SEEK_HOLE, SEEK_SET};
use super::hostfd::HostFd;
use super::hostops;
use super::lengths::{self, Change, Length};
use super::node::Node;
use super::open_cache::{self, Opened};
use super::read_cache::{self, Content, Source};
use super::shared_pages::{self, SharedPages};
use crate::arch;
use crate::errno::{Errno, SysResult};
use crate::host::{CAPACITY, Request};
use crate::mem::pages::{Frame, PageCache};
use crate::user::Buf;

/// Whose position reads and writes go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The open file's, kept in the guest.
    Guest,
    /// The host's: a standard stream.
    Host,
}

/// An open regular file.
pub struct HostFile {
    fd: Arc<HostFd>,
    position: Position,
    /// Opened with O_APPEND: the host moves each write to the end.
    appends: bool,
    writable: bool,
    key: shared_pages::Key,
    /// Set from the first shared mapping on: keeps its pages.
    shared: Mutex<Option<Arc<SharedPages>>>,
    /// What was read, if it is on a read-only mount.
    content: Option<Arc<Content>>,
    /// Its attributes, and until when they are believed, if it is on a read-only mount.
    seen: Option<(Stat, u64)>,
    /// The node that it is the content of: a file of an overlay's lower layer.
    node: Option<Arc<dyn Node>>,
    /// What is known of its length, if it is on an exclusive volume.
    length: Option<Arc<Length>>,
}

impl HostFile {
    /// A file that was opened with `flags` and had these attributes.
    #[must_use]
    pub fn new(fd: HostFd, stat: &Stat, flags: u32, position: Position) -> Self {
        Self::over(Arc::new(fd), stat, flags, position)
    }

    fn over(fd: Arc<HostFd>, stat: &Stat, flags: u32, position: Position) -> Self {
        Self {
            fd,
            position,
            appends: flags & O_APPEND != 0,
            writable: flags & 3 != 0,
            key: (stat.dev, stat.ino),
            shared: Mutex::new(None),
            content: None,
            seen: None,
            node: None,
            length: None,
        }
    }

    /// The same, on a volume whose files nobody outside changes.
    #[must_use]
    pub fn exclusive(mut self) -> Self {
        self.length = Some(lengths::of(self.key));
        self
    }

    fn length(&self) -> SysResult<u64> {
        let ask = || hostops::fstat(&self.fd).map(|stat| stat.size as u64);
        match &self.length {
            Some(length) => length.get_or(ask),
            None => ask(),
        }
    }

    /// As [`lengths::changing`].
    fn changing(&self) -> Change {
        let own = self.length.clone().map(Length::begin);
        own.unwrap_or_else(|| lengths::changing(self.key))
    }

    /// A file of a mount that nobody inside can write: its content is cached.
    #[must_use]
    pub fn read_only(opened: Opened, flags: u32) -> Self {
        let Opened { fd, stat, until } = opened;
        fd.set_unnoticed(true);
        let mut file = Self::over(fd, &stat, flags, Position::Guest);
        if Opened::has_content(&stat) {
            file.content = Some(read_cache::content(file.key, &stat, until));
            file.seen = Some((stat, until));
        }
        file
    }

    /// The same, as the content of `node`, which knows its attributes.
    #[must_use]
    pub fn of(mut self, node: Arc<dyn Node>) -> Self {
        self.node = Some(node);
        self
    }

    /// It is locked on the host: its close ends that, which others wait for.
    pub fn locked(&self) {
        self.fd.set_unnoticed(false);
        open_cache::forget(&self.fd);
    }

    fn transfer_in(&self, op: HostOp, mut offset: u64, to: &mut Buf) -> SysResult<usize> {
        let mut request = Request::new();
        let mut done = 0;
        while !to.is_empty() {
            let want = to.len().min(CAPACITY);
            let answer = request.call(op, [self.fd.number(), want as u64, offset, 0, 0, 0]);
            let step = answer
                .len(want)
                .and_then(|got| Ok((got, request.get_into(0, to, got)?)));
            match step {
                Ok((got, copied)) => {
                    done += copied;
                    offset = offset.saturating_add(copied as u64);
                    if got < want || copied < got {
                        break;
                    }
                }
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn transfer_out(&self, op: HostOp, mut offset: u64, from: &mut Buf) -> SysResult<usize> {
        let mut request = Request::new();
        let pages = shared_pages::find(self.key);
        read_cache::changed(self.key);
        let mut done = 0;
        while !from.is_empty() {
            let want = request.put_from(0, from, from.len().min(CAPACITY));
            let step = want.and_then(|want| {
                let answer = request.call(op, [self.fd.number(), want as u64, offset, 0, 0, 0]);
                Ok((want, answer.len(want)?))
            });
            match step {
                Ok((want, wrote)) => {
                    if let Some(pages) = &pages {
                        pages.written(&request, offset, wrote);
                    }
                    done += wrote;
                    offset = offset.saturating_add(wrote as u64);
                    if wrote < want {
                        break;
                    }
                }
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn append(&self, file: &OpenFile, from: &mut Buf) -> SysResult<usize> {
        file.position.with(|position| {
            if !self.appends {
                // O_APPEND was set later, by fcntl: the host's open file does not know it.
                *position = self.length()?;
                let done = self.write_at(*position, from)?;
                *position += done as u64;
                return Ok(done);
            }
            let pages = shared_pages::find(self.key);
            let change = self.changing();
            let done = self.transfer_out(HostOp::Write, u64::MAX, from)?;
            *position = match change.before() {
                Some(before) => before.saturating_add(done as u64),
                None => hostops::fstat(&self.fd).map_or(*position + done as u64, |s| s.size as u64),
            };
            change.reaches(*position);
            if let Some(pages) = pages {
                pages.reload(position.saturating_sub(done as u64), *position)?;
            }
            Ok(done)
        })
    }

    fn host_seek(&self, offset: i64, whence: u32) -> SysResult<u64> {
        let position = crate::host::call(
            HostOp::Seek,
            [self.fd.number(), offset as u64, u64::from(whence), 0, 0, 0],
        )?;
        if position > i64::MAX as u64 {
            Err(Errno::EIO)
        } else {
            Ok(position)
        }
    }

    /// The pages of its shared mappings, made when there are none yet.
    fn pages(&self) -> SysResult<Arc<SharedPages>> {
        if let Some(pages) = &*self.shared.lock() {
            return Ok(pages.clone());
        }
        let size = hostops::fstat(&self.fd)?.size as u64;
        let pages = shared_pages::get(self.key, &self.fd, self.writable, size);
        *self.shared.lock() = Some(pages.clone());
        Ok(pages)
    }

    /// Writes back what shared mappings changed, when there are any.
    fn settle(&self) -> SysResult<()> {
        match shared_pages::find(self.key) {
            Some(pages) => pages.write_back(0, u64::MAX),
            None => Ok(()),
        }
    }
}

/// The new position of a seek relative to `base`.
///
/// # Errors
/// EINVAL, EOVERFLOW.
pub fn seek_from(base: u64, offset: i64) -> SysResult<u64> {
    let base = i64::try_from(base).map_err(|_| Errno::EOVERFLOW)?;
    let to = base.checked_add(offset).ok_or(Errno::EOVERFLOW)?;
    u64::try_from(to).map_err(|_| Errno::EINVAL)
}

/// A seek in a file that is data from its start to its `length`: the one hole is its end.
///
/// # Errors
/// As [`seek_from`]; ENXIO for data or a hole that would begin past the end; EINVAL for another kind of seek.
pub fn seek_without_holes(file: &OpenFile, length: u64, offset: i64, whence: u32) -> SysResult<u64> {
    let inside = |offset: i64| {
        u64::try_from(offset)
            .ok()
            .filter(|o| *o < length)
            .ok_or(Errno::ENXIO)
    };
    file.position.with(|position| {
        *position = match whence {
            SEEK_SET => seek_from(0, offset)?,
            SEEK_CUR => seek_from(*position, offset)?,
            SEEK_END => seek_from(length, offset)?,
            SEEK_DATA => inside(offset)?,
            SEEK_HOLE => inside(offset).map(|_| length)?,
            _ => return Err(Errno::EINVAL),
        };
        Ok(*position)
    })
}

impl Source for HostFile {
    fn fetch(&self, offset: u64, to: &mut Buf) -> SysResult<usize> {
        self.transfer_in(HostOp::PRead, offset, to)
    }

    fn attributes(&self) -> SysResult<Stat> {
        hostops::fstat(&self.fd)
    }
}

impl File for HostFile {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        if self.position == Position::Host {
            self.settle()?;
            return self.transfer_in(HostOp::Read, 0, to);
        }
        file.position.with(|position| {
            let done = self.read_at(*position, to)?;
            *position += done as u64;
            Ok(done)
        })
    }

    fn write(&self, file: &OpenFile, from: &mut Buf) -> SysResult<usize> {
        if self.position == Position::Host {
            let _change = self.changing();
            return self.transfer_out(HostOp::Write, u64::MAX, from);
        }
        if file.flags() & O_APPEND != 0 {
            return self.append(file, from);
        }
        file.position.with(|position| {
            let done = self.write_at(*position, from)?;
            *position += done as u64;
            Ok(done)
        })
    }

    fn read_at(&self, offset: u64, to: &mut Buf) -> SysResult<usize> {
        if let Some(content) = &self.content {
            return content.read_at(self, offset, to);
        }
        self.read_direct(offset, to)
    }

    fn unchanging(&self) -> Option<[u64; 7]> {
        let [size, modified, nanos, changed, changed_nanos] = self.content.as_ref()?.version();
        let (dev, ino) = self.key;
        Some([dev, ino, size, modified, nanos, changed, changed_nanos])
    }

    fn read_direct(&self, offset: u64, to: &mut Buf) -> SysResult<usize> {
        if let Some(pages) = shared_pages::find(self.key) {
            pages.write_back(offset, offset.saturating_add(to.len() as u64))?;
        }
        self.transfer_in(HostOp::PRead, offset, to)
    }

    fn write_at(&self, offset: u64, from: &mut Buf) -> SysResult<usize> {
        if offset
            .checked_add(from.len() as u64)
            .is_none_or(|end| end > i64::MAX as u64)
        {
            return Err(Errno::EFBIG);
        }
        let change = self.changing();
        let done = self.transfer_out(HostOp::PWrite, offset, from)?;
        change.reaches(offset.saturating_add(done as u64));
        Ok(done)
    }

    fn stat(&self) -> SysResult<Stat> {
        match (&self.node, self.seen) {
            (Some(node), _) => node.stat(),
            (None, Some((stat, until))) if arch::ticks() < until => Ok(stat),
            (None, _) => hostops::fstat(&self.fd),
        }
    }

    fn seek(&self, file: &OpenFile, offset: i64, whence: u32) -> SysResult<u64> {
        if self.position == Position::Host {
            return self.host_seek(offset, whence);
        }
        file.position.with(|position| {
            *position = match whence {
                SEEK_SET => seek_from(0, offset)?,
                SEEK_CUR => seek_from(*position, offset)?,
                SEEK_END => seek_from(self.length()?, offset)?,
                SEEK_DATA | SEEK_HOLE => self.host_seek(offset, whence)?,
                _ => return Err(Errno::EINVAL),
            };
            Ok(*position)
        })
    }

    fn truncate(&self, size: u64) -> SysResult<()> {
        let change = self.changing();
        hostops::plain(HostOp::Truncate, &self.fd, size, 0, 0)?;
        change.is(size);
        read_cache::changed(self.key);
        if let Some(pages) = shared_pages::find(self.key) {
            pages.resize(size);
        }
        Ok(())
    }

    fn sync(&self, data_only: bool) -> SysResult<()> {
        if self.node.is_some() {
            return Ok(()); // nothing of it can have changed
        }
        self.settle()?;
        hostops::plain(HostOp::Sync, &self.fd, u64::from(data_only), 0, 0)
    }

    fn allocate(&self, mode: u32, offset: u64, len: u64) -> SysResult<()> {
        self.settle()?;
        let _change = self.changing();
        hostops::plain(HostOp::Allocate, &self.fd, u64::from(mode), offset, len)?;
        read_cache::changed(self.key);
        if let Some(pages) = shared_pages::find(self.key) {
            pages.resize(hostops::fstat(&self.fd)?.size as u64);
            pages.reload(
                offset,
                if mode & !3 == 0 {
                    offset.saturating_add(len)
                } else {
                    u64::MAX
                },
            )?;
        }
        Ok(())
    }

    fn map(&self, shared: bool) -> SysResult<Mapping> {
        if shared {
            Ok(Mapping::Pages(self.pages()?.cache.clone()))
        } else {
            Ok(Mapping::Read)
        }
    }

    fn mapped_pages(&self) -> Option<Arc<PageCache>> {
        shared_pages::find(self.key).map(|pages| pages.cache.clone())
    }

    fn shared_page(&self, _pages: &Arc<PageCache>, page: u64) -> SysResult<Frame> {
        self.pages()?.page(page)
    }

    fn sync_pages(&self, _pages: &Arc<PageCache>, first: u64, last: u64) -> SysResult<()> {
        let pages = self.shared.lock().clone();
        pages.map_or(Ok(()), |pages| {
            pages.write_back(first.saturating_mul(PAGE), last.saturating_mul(PAGE))
        })
    }

    fn node(&self) -> Option<&Arc<dyn Node>> {
        self.node.as_ref()
    }

    fn host_fd(&self) -> Option<u32> {
        u32::try_from(self.fd.number()).ok()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
