//! Open regular files of `tmpfs`, and `memfd_create`.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::Ordering;

use cloak_abi::layout::PAGE;

use super::{Body, Inode, Meta, Tmpfs};
use crate::errno::{Errno, SysResult};
use crate::fs::OpenFile;
use crate::fs::file::{File, Mapping, Stat};
use crate::fs::flags::*;
use crate::fs::hostfile::seek_from;
use crate::fs::node::{self, Node};
use crate::mem::pages::{Frame, PageCache};
use crate::user::Buf;

pub(super) const F_SEAL_SEAL: u32 = 1;
const F_SEAL_SHRINK: u32 = 2;
const F_SEAL_GROW: u32 = 4;
const F_SEAL_WRITE: u32 = 8;
/// Seals of a file whose length stays.
pub(super) const FIXED_LENGTH: u32 = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW;
const F_SEAL_FUTURE_WRITE: u32 = 0x10;
const F_SEAL_ALL: u32 = 0x1f;
const F_ADD_SEALS: u32 = 1033;
const F_GET_SEALS: u32 = 1034;

const FALLOC_KEEP_SIZE: u32 = 1;
const FALLOC_PUNCH_HOLE: u32 = 2;
const FALLOC_ZERO_RANGE: u32 = 0x10;

/// Largest file.
const SIZE_MAX: u64 = i64::MAX as u64;

impl Inode {
    fn sealed(&self, seals: u32) -> bool {
        self.seals.load(Ordering::Acquire) & seals != 0
    }

    /// Runs `work`, which may add pages to `pages`, with `room` bytes set aside for it.
    fn accounted<T>(
        &self,
        pages: &PageCache,
        room: u64,
        work: impl FnOnce() -> SysResult<T>,
    ) -> SysResult<T> {
        self.fs.charge(room)?;
        self.settle(pages, room, work)
    }

    /// Runs `work` and gives back what it did not use of `room`, which was charged.
    fn settle<T>(&self, pages: &PageCache, room: u64, work: impl FnOnce() -> SysResult<T>) -> SysResult<T> {
        let result = work();
        self.account(pages);
        self.fs.release(room);
        result
    }

    /// Charges the pages that there are, whoever made or freed them: other threads do so at the same time.
    fn account(&self, pages: &PageCache) {
        let mut charged = self.charged.lock();
        let used = pages.used();
        self.fs.correct(*charged, used);
        *charged = used;
    }

    pub(super) fn resize(&self, pages: &PageCache, size: u64) -> SysResult<()> {
        if size > SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        let old = pages.size();
        if size < old && self.sealed(F_SEAL_SHRINK) || size > old && self.sealed(F_SEAL_GROW) {
            return Err(Errno::EPERM);
        }
        pages.resize(size);
        self.account(pages);
        self.touch(true);
        Ok(())
    }
}

/// An open regular file.
pub struct MemoryFile {
    node: Arc<dyn Node>,
    inode: Arc<Inode>,
}

impl MemoryFile {
    /// Opens `inode`.
    #[must_use]
    pub fn new(inode: Arc<Inode>) -> Self {
        Self {
            node: inode.clone(),
            inode,
        }
    }

    /// Opens `inode`, which another file system shows as `node`.
    #[must_use]
    pub fn of(node: Arc<dyn Node>, inode: Arc<Inode>) -> Self {
        Self { node, inode }
    }

    fn pages(&self) -> SysResult<&Arc<PageCache>> {
        match &self.inode.body {
            Body::File(pages) => Ok(pages),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Bytes of pages missing in `[start, end)`.
    fn missing(pages: &PageCache, start: u64, end: u64) -> u64 {
        let span = start / PAGE..end.div_ceil(PAGE);
        span.filter(|&page| pages.get(page).is_none()).count() as u64 * PAGE
    }

    /// Charges the pages that a write needs; shortens the write to what fits.
    fn make_room(&self, pages: &PageCache, offset: u64, from: &mut Buf) -> SysResult<u64> {
        loop {
            let end = offset + from.len() as u64;
            let room = Self::missing(pages, offset, end);
            if self.inode.fs.charge(room).is_ok() {
                return Ok(room);
            }
            let mut left = self.inode.fs.left() / PAGE;
            let full = (offset / PAGE..end.div_ceil(PAGE)).find(|&page| {
                let there = pages.get(page).is_some();
                let fits = there || left > 0;
                left -= u64::from(!there && fits);
                !fits
            });
            // None: another thread freed some meanwhile.
            let fits = full.map_or(end, |page| (page * PAGE).max(offset)) - offset;
            if fits == 0 {
                return Err(Errno::ENOSPC);
            }
            from.truncate(fits as usize);
        }
    }

    fn zero(&self, pages: &PageCache, start: u64, end: u64) {
        pages.punch(start, end);
        self.inode.account(pages);
    }
}

impl File for MemoryFile {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        file.position.with(|position| {
            let done = self.read_at(*position, to)?;
            *position += done as u64;
            Ok(done)
        })
    }

    fn write(&self, file: &OpenFile, from: &mut Buf) -> SysResult<usize> {
        file.position.with(|position| {
            if file.flags() & O_APPEND != 0 {
                *position = self.pages()?.size();
            }
            let done = self.write_at(*position, from)?;
            *position += done as u64;
            Ok(done)
        })
    }

    fn read_at(&self, offset: u64, to: &mut Buf) -> SysResult<usize> {
        self.pages()?.read_at(offset, to)
    }

    fn write_at(&self, offset: u64, from: &mut Buf) -> SysResult<usize> {
        let pages = self.pages()?;
        if from.is_empty() {
            return Ok(0);
        }
        if self.inode.sealed(F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) {
            return Err(Errno::EPERM);
        }
        let end = offset
            .checked_add(from.len() as u64)
            .filter(|&e| e <= SIZE_MAX)
            .ok_or(Errno::EFBIG)?;
        if end > pages.size() && self.inode.sealed(F_SEAL_GROW) {
            if offset >= pages.size() {
                return Err(Errno::EPERM);
            }
            from.truncate((pages.size() - offset) as usize);
        }
        let room = self.make_room(pages, offset, from)?;
        let result = self.inode.settle(pages, room, || pages.write_at(offset, from));
        let done = result.map_err(|e| if e == Errno::ENOMEM { Errno::ENOSPC } else { e })?;
        self.inode.change(|meta| meta.mode &= !written_clears(meta.mode));
        self.inode.touch(true);
        Ok(done)
    }

    fn stat(&self) -> SysResult<Stat> {
        self.inode.stat()
    }

    fn seek(&self, file: &OpenFile, offset: i64, whence: u32) -> SysResult<u64> {
        let pages = self.pages()?;
        file.position.with(|position| {
            *position = match whence {
                SEEK_SET => seek_from(0, offset)?,
                SEEK_CUR => seek_from(*position, offset)?,
                SEEK_END => seek_from(pages.size(), offset)?,
                SEEK_DATA | SEEK_HOLE => seek_content(pages, offset, whence)?,
                _ => return Err(Errno::EINVAL),
            };
            Ok(*position)
        })
    }

    fn truncate(&self, size: u64) -> SysResult<()> {
        self.inode.truncate(size)
    }

    fn sync(&self, _data_only: bool) -> SysResult<()> {
        Ok(())
    }

    fn allocate(&self, mode: u32, offset: u64, len: u64) -> SysResult<()> {
        let pages = self.pages()?;
        let end = offset
            .checked_add(len)
            .filter(|&e| e <= SIZE_MAX)
            .ok_or(Errno::EFBIG)?;
        let keep = mode & FALLOC_KEEP_SIZE != 0;
        match mode & !FALLOC_KEEP_SIZE {
            FALLOC_PUNCH_HOLE if keep => {
                if self.inode.sealed(F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) {
                    return Err(Errno::EPERM);
                }
                self.zero(pages, offset, end);
            }
            FALLOC_ZERO_RANGE if !self.inode.sealed(F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) => {
                self.zero(pages, offset, end);
            }
            0 => {
                // Before the pages are counted: that takes long for a range that can't fit.
                let most = self.inode.fs.left().saturating_add(pages.used());
                if (end / PAGE - offset / PAGE).saturating_sub(1) > most / PAGE {
                    return Err(Errno::ENOSPC);
                }
                let room = Self::missing(pages, offset, end);
                self.inode.accounted(pages, room, || {
                    (offset / PAGE..end.div_ceil(PAGE)).try_for_each(|page| pages.get_or_zero(page).map(drop))
                })?;
            }
            _ => return Err(Errno::EOPNOTSUPP),
        }
        if !keep && end > pages.size() {
            self.inode.resize(pages, end)?;
        }
        self.inode.touch(true);
        Ok(())
    }

    fn map(&self, shared: bool) -> SysResult<Mapping> {
        let _ = shared;
        Ok(Mapping::Pages(self.pages()?.clone()))
    }

    fn mapped_pages(&self) -> Option<Arc<PageCache>> {
        self.pages().ok().cloned()
    }

    fn shared_page(&self, pages: &Arc<PageCache>, page: u64) -> SysResult<Frame> {
        if page >= pages.size().div_ceil(PAGE) {
            return Err(Errno::ENXIO);
        }
        match pages.get(page) {
            Some(frame) => Ok(frame),
            None => self.inode.accounted(pages, PAGE, || pages.get_or_zero(page)),
        }
    }

    fn fcntl(&self, file: &OpenFile, command: u32, argument: u64) -> SysResult {
        match command {
            F_GET_SEALS => Ok(u64::from(self.inode.seals.load(Ordering::Acquire))),
            F_ADD_SEALS => {
                let seals = u32::try_from(argument)
                    .ok()
                    .filter(|s| s & !F_SEAL_ALL == 0)
                    .ok_or(Errno::EINVAL)?;
                if !file.writable() || self.inode.sealed(F_SEAL_SEAL) {
                    return Err(Errno::EPERM);
                }
                self.inode.seals.fetch_or(seals, Ordering::AcqRel);
                Ok(0)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn node(&self) -> Option<&Arc<dyn Node>> {
        Some(&self.node)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Mode bits that a write by somebody else than root takes away.
pub(in crate::fs) fn written_clears(mode: u32) -> u32 {
    if mode & (S_ISUID | S_ISGID) == 0 || node::credentials().uid[3] == 0 {
        return 0;
    }
    let group = if mode & 0o010 != 0 { S_ISGID } else { 0 };
    S_ISUID | group
}

fn seek_content(pages: &PageCache, offset: i64, whence: u32) -> SysResult<u64> {
    let size = pages.size();
    let from = u64::try_from(offset)
        .ok()
        .filter(|&o| o < size)
        .ok_or(Errno::ENXIO)?;
    let present = pages.present();
    let data = |page: u64| present.binary_search(&page).is_ok();
    let mut pages = from / PAGE..size.div_ceil(PAGE);
    let wanted = whence == SEEK_DATA;
    let found = if wanted {
        present.iter().copied().find(|&p| pages.contains(&p))
    } else {
        pages.find(|&page| !data(page))
    };
    match found {
        Some(page) => Ok((page * PAGE).max(from)),
        None if wanted => Err(Errno::ENXIO),
        None => Ok(size),
    }
}

/// A file without a name (`memfd_create`); `sealable`: seals may be added.
///
/// # Errors
/// ENOSPC.
pub fn memfd(fs: &Arc<Tmpfs>, name: &[u8], mode: u32, sealable: bool) -> SysResult<Arc<OpenFile>> {
    let who = node::credentials();
    let mut meta = Meta::new(S_IFREG | mode, who.uid[3], who.gid[3], 0);
    meta.nlink = 0;
    let inode = Inode::new(fs, meta, Body::File(Arc::default()))?;
    if sealable {
        inode.seals.store(0, Ordering::Release);
    }
    let mut path: Vec<u8> = b"/memfd:".to_vec();
    path.extend_from_slice(name);
    path.extend_from_slice(b" (deleted)");
    Ok(OpenFile::new(
        Arc::new(MemoryFile::new(inode)),
        O_RDWR | O_LARGEFILE,
        path,
    ))
}
