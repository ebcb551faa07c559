//! Open regular files of a protected volume.
//!
//! Data passes through memory of the libos: the volume must not work on what the program can change meanwhile.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::any::Any;

use cloak_abi::layout::PAGE;
use cloak_volumes::data::MAX_FILE;
use spin::Mutex;

use super::node::Inode;
use crate::errno::{Errno, SysResult};
use crate::fs::OpenFile;
use crate::fs::file::{File, Mapping, Stat};
use crate::fs::flags::*;
use crate::fs::hostfile::seek_from;
use crate::fs::node::Node;
use crate::mem::pages::{Frame, PageCache};
use crate::user::Buf;

/// Bytes that are read or written under one hold of the volume's lock: what the volume changes in one step.
const STEP: usize = 128 << 10;
/// Bytes that one appending write puts at the end as one piece.
const APPEND: usize = 1 << 20;

const FALLOC_KEEP_SIZE: u32 = 1;
const FALLOC_PUNCH_HOLE: u32 = 2;
const FALLOC_ZERO_RANGE: u32 = 0x10;

/// [`STEP`] bytes through which data passes. They are kept for the next call, as new ones would be cleared first.
struct Passing(Vec<u8>);

/// What is kept at most.
const KEPT: usize = 8;
static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

impl Passing {
    fn new() -> Self {
        let spare = SPARE.lock().pop();
        Self(spare.unwrap_or_else(|| vec![0; STEP]))
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        let mut spare = SPARE.lock();
        if spare.len() < KEPT {
            spare.push(core::mem::take(&mut self.0));
        }
    }
}

/// An open regular file.
pub struct VolumeFile {
    node: Arc<dyn Node>,
    inode: Arc<Inode>,
    /// Opened with O_DSYNC or O_SYNC: what is written is durable when the call returns.
    durable: bool,
}

impl VolumeFile {
    /// Opens `inode` with these flags.
    #[must_use]
    pub fn new(inode: Arc<Inode>, flags: u32) -> Self {
        Self {
            node: inode.clone(),
            inode,
            durable: flags & O_DSYNC != 0,
        }
    }

    fn size(&self) -> SysResult<u64> {
        Ok(self.inode.stat()?.size as u64)
    }

    /// Writes in steps; an error after the first one leaves what was written.
    fn write_steps(&self, mut offset: u64, from: &mut Buf) -> SysResult<usize> {
        let Passing(bytes) = &mut Passing::new();
        let mut done = 0;
        while !from.is_empty() {
            // Steps end with blocks, so that none but the last is in two.
            let want = from.len().min(STEP - (offset % PAGE) as usize);
            let step = from.take(&mut bytes[..want]).and_then(|got| {
                let end = self.inode.write(Some(offset), &bytes[..got])?;
                Ok((got, end))
            });
            match step {
                Ok((got, end)) => (done, offset) = (done + got, end),
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn written(&self, done: usize) -> SysResult<usize> {
        if self.durable && done > 0 {
            self.inode.make_durable()?;
        }
        Ok(done)
    }

    /// Writes at the end; gives what was written and where it ends.
    fn append(&self, from: &mut Buf) -> SysResult<(usize, u64)> {
        from.truncate(APPEND);
        let mut bytes = vec![0; from.len()];
        let got = from.take(&mut bytes)?;
        let end = self.inode.write(None, &bytes[..got])?;
        Ok((self.written(got)?, end))
    }

    fn seek_content(&self, offset: i64, whence: u32) -> SysResult<u64> {
        let from = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        let ino = self.inode.ino;
        let found = self.inode.fs.with(|state| {
            self.inode.settle(state, 0, u64::MAX)?;
            if whence == SEEK_DATA {
                state.volume.next_data(ino, from)
            } else {
                state.volume.next_hole(ino, from)
            }
        })?;
        found.ok_or(Errno::ENXIO)
    }
}

impl File for VolumeFile {
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
                if from.is_empty() {
                    return Ok(0);
                }
                let (done, end) = self.append(from)?;
                *position = end;
                return Ok(done);
            }
            let done = self.write_at(*position, from)?;
            *position += done as u64;
            Ok(done)
        })
    }

    fn read_at(&self, offset: u64, to: &mut Buf) -> SysResult<usize> {
        let Passing(bytes) = &mut Passing::new();
        let mut done = 0;
        while !to.is_empty() {
            let want = to.len().min(STEP);
            let at = offset.saturating_add(done as u64);
            let step = self
                .inode
                .read(at, &mut bytes[..want])
                .and_then(|got| Ok((got, to.put(&bytes[..got])?)));
            match step {
                Ok((got, put)) => {
                    done += put;
                    if got < want || put < got {
                        break;
                    }
                }
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, from: &mut Buf) -> SysResult<usize> {
        if from.is_empty() {
            return Ok(0);
        }
        let end = offset.checked_add(from.len() as u64);
        if end.is_none_or(|end| end > MAX_FILE) {
            return Err(Errno::EFBIG);
        }
        let done = self.write_steps(offset, from)?;
        self.written(done)
    }

    fn stat(&self) -> SysResult<Stat> {
        self.inode.stat()
    }

    fn seek(&self, file: &OpenFile, offset: i64, whence: u32) -> SysResult<u64> {
        file.position.with(|position| {
            *position = match whence {
                SEEK_SET => seek_from(0, offset)?,
                SEEK_CUR => seek_from(*position, offset)?,
                SEEK_END => seek_from(self.size()?, offset)?,
                SEEK_DATA | SEEK_HOLE => self.seek_content(offset, whence)?,
                _ => return Err(Errno::EINVAL),
            };
            Ok(*position)
        })
    }

    fn truncate(&self, size: u64) -> SysResult<()> {
        self.inode.truncate(size)
    }

    fn sync(&self, _data_only: bool) -> SysResult<()> {
        self.inode.make_durable()
    }

    fn allocate(&self, mode: u32, offset: u64, len: u64) -> SysResult<()> {
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= MAX_FILE)
            .ok_or(Errno::EFBIG)?;
        let keep = mode & FALLOC_KEEP_SIZE != 0;
        match mode & !FALLOC_KEEP_SIZE {
            FALLOC_PUNCH_HOLE if keep => return self.inode.punch(offset, end),
            FALLOC_ZERO_RANGE => self.inode.punch(offset, end)?,
            // Each write goes to a new place, so none can be kept for it: what can be said is whether there is room.
            0 if len / PAGE > self.inode.fs.usage().free => return Err(Errno::ENOSPC),
            0 => {}
            _ => return Err(Errno::EOPNOTSUPP),
        }
        if !keep && end > self.size()? {
            self.inode.resize(end)?;
        }
        Ok(())
    }

    fn map(&self, shared: bool) -> SysResult<Mapping> {
        if shared {
            Ok(Mapping::Pages(self.inode.shared_pages()?))
        } else {
            Ok(Mapping::Read)
        }
    }

    fn mapped_pages(&self) -> Option<Arc<PageCache>> {
        self.inode.pages()
    }

    fn shared_page(&self, pages: &Arc<PageCache>, page: u64) -> SysResult<Frame> {
        self.inode.shared_page(pages, page)
    }

    fn sync_pages(&self, _pages: &Arc<PageCache>, first: u64, last: u64) -> SysResult<()> {
        let (start, end) = (first.saturating_mul(PAGE), last.saturating_mul(PAGE));
        self.inode.fs.with(|state| self.inode.settle(state, start, end))
    }

    fn node(&self) -> Option<&Arc<dyn Node>> {
        Some(&self.node)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
