//! Open measured files.

use alloc::sync::Arc;
use core::any::Any;

use cloak_abi::layout::PAGE;
use cloak_volumes::verity::BLOCK;

use super::content::{CHUNK, Known, buffer, stat_of};
use super::node::FileNode;
use crate::errno::{Errno, SysResult};
use crate::fs::OpenFile;
use crate::fs::file::{File, Mapping, Stat};
use crate::fs::hostfd::HostFd;
use crate::fs::hostfile::seek_without_holes;
use crate::fs::node::Node;
use crate::fs::read_cache::{self, Source, believed_until};
use crate::mem::pages::{Frame, PageCache};
use crate::user::Buf;

/// An open file.
pub struct MeasuredFile {
    inode: Arc<FileNode>,
    node: Arc<dyn Node>,
    known: Arc<Known>,
    fd: Arc<HostFd>,
    cached: Arc<read_cache::Content>,
}

impl MeasuredFile {
    /// Opens a file.
    ///
    /// # Errors
    /// EIO for another one than the manifest lists; what the OS side says.
    pub fn open(inode: Arc<FileNode>) -> SysResult<Self> {
        let (known, fd) = inode.content.open(inode.key())?;
        Ok(Self {
            node: inode.clone(),
            cached: read_cache::content(inode.key(), &stat_of(known.length), believed_until()),
            inode,
            known,
            fd,
        })
    }

    /// One block, by itself: another one that is wrong is no reason to refuse this one.
    fn one_block(&self, offset: u64, to: &mut Buf) -> SysResult<usize> {
        let first = offset / BLOCK as u64;
        let len = (self.known.length - first * BLOCK as u64).min(BLOCK as u64) as usize;
        let mut block = [0; BLOCK];
        self.inode
            .content
            .compared(&self.known, &self.fd, first, &mut block[..len], true)?;
        let rest = &block[(offset % BLOCK as u64) as usize..len];
        to.put(&rest[..rest.len().min(to.len())])
    }
}

impl Source for MeasuredFile {
    /// Whole or not at all.
    fn fetch(&self, mut offset: u64, to: &mut Buf) -> SysResult<usize> {
        let mut bounce = buffer(CHUNK)?;
        let mut done = 0;
        while !to.is_empty() && offset < self.known.length {
            let first = offset / BLOCK as u64;
            let within = (offset % BLOCK as u64) as usize;
            let left = usize::try_from(self.known.length - first * BLOCK as u64).unwrap_or(usize::MAX);
            let len = (within + to.len()).next_multiple_of(BLOCK).min(CHUNK).min(left);
            self.inode
                .content
                .compared(&self.known, &self.fd, first, &mut bounce[..len], false)?;
            let piece = (len - within).min(to.len());
            let put = to.put(&bounce[within..within + piece])?;
            done += put;
            offset += put as u64;
            if put < piece {
                break;
            }
        }
        Ok(done)
    }

    fn attributes(&self) -> SysResult<Stat> {
        Ok(stat_of(self.known.length))
    }
}

impl File for MeasuredFile {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        file.position.with(|position| {
            let done = self.read_at(*position, to)?;
            *position += done as u64;
            Ok(done)
        })
    }

    fn read_at(&self, mut offset: u64, to: &mut Buf) -> SysResult<usize> {
        let mut done = 0;
        while !to.is_empty() && offset < self.known.length {
            let step = match self.cached.step(self, offset, to) {
                Err(Errno::EIO) => self.one_block(offset, to),
                step => step,
            };
            match step {
                Ok(0) => break,
                Ok(n) => {
                    done += n;
                    offset += n as u64;
                }
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn unchanging(&self) -> Option<[u64; 7]> {
        let (device, inode) = self.inode.key();
        let [a, b, c, d] = self.inode.content.words();
        Some([device, inode, self.known.length, a, b, c, d])
    }

    fn stat(&self) -> SysResult<Stat> {
        self.inode.stat()
    }

    fn seek(&self, file: &OpenFile, offset: i64, whence: u32) -> SysResult<u64> {
        seek_without_holes(file, self.known.length, offset, whence)
    }

    fn sync(&self, _data_only: bool) -> SysResult<()> {
        Ok(())
    }

    fn map(&self, shared: bool) -> SysResult<Mapping> {
        if shared {
            Ok(Mapping::Pages(self.inode.pages(self.known.length)))
        } else {
            Ok(Mapping::Read)
        }
    }

    fn shared_page(&self, pages: &Arc<PageCache>, page: u64) -> SysResult<Frame> {
        if page >= self.known.length.div_ceil(PAGE) {
            return Err(Errno::ENXIO);
        }
        if let Some(frame) = pages.get(page) {
            return Ok(frame);
        }
        let frame = Frame::zeroed()?;
        let mut to = frame.buf(0, (self.known.length - page * PAGE).min(PAGE) as usize);
        let mut offset = page * PAGE;
        while !to.is_empty() {
            match self.read_at(offset, &mut to)? {
                0 => return Err(Errno::EIO),
                got => offset += got as u64,
            }
        }
        Ok(pages.insert(page, frame))
    }

    fn node(&self) -> Option<&Arc<dyn Node>> {
        Some(&self.node)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
