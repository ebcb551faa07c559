//! What is in a file, by calls and by shared mappings.
//!
//! A file that is mapped shared has pages in guest memory, which mappings write unseen. Before the file is read or
//! made durable another way, what they hold goes into the volume; what calls write goes into the volume and the pages at
//! once. So both agree.

use alloc::sync::Arc;
use alloc::vec;

use cloak_abi::layout::PAGE;
use cloak_volumes::{Ino, Volume, VolumeError};

use super::State;
use super::node::Inode;
use super::store::Container;
use crate::errno::{Errno, SysResult};
use crate::mem::pages::{Frame, PageCache};

/// Brings what mappings wrote in the bytes `[start, end)` into the volume.
///
/// # Errors
/// Those of the volume.
pub(super) fn settle(
    volume: &mut Volume<Container>,
    ino: Ino,
    pages: &PageCache,
    start: u64,
    end: u64,
) -> Result<(), VolumeError> {
    let span = start / PAGE..end.div_ceil(PAGE);
    let mut dirty = pages.dirty();
    dirty.retain(|page| span.contains(page));
    if dirty.is_empty() {
        return Ok(());
    }
    let size = pages.size();
    let (mut mapped, mut stored) = (vec![0; PAGE as usize], vec![0; PAGE as usize]);
    for page in dirty {
        let offset = page.saturating_mul(PAGE);
        let len = size.saturating_sub(offset).min(PAGE) as usize;
        let Some(frame) = pages.get(page).filter(|_| len > 0) else {
            continue; // cut off meanwhile
        };
        let (mapped, stored) = (&mut mapped[..len], &mut stored[..len]);
        // Copied once: the program may write it meanwhile.
        frame.read(0, mapped);
        volume.read_at(ino, offset, stored)?;
        // Nothing tells when a mapping stops writing; sealing the same bytes again and again costs more than looking.
        if mapped != stored {
            volume.write_at(ino, offset, mapped)?;
        }
    }
    Ok(())
}

/// Puts bytes that a call wrote at `offset` into the pages that are there.
fn show(pages: &PageCache, offset: u64, bytes: &[u8]) {
    let mut at = 0;
    while at < bytes.len() {
        let position = offset + at as u64;
        let inside = (position % PAGE) as usize;
        let part = (PAGE as usize - inside).min(bytes.len() - at);
        if let Some(frame) = pages.get(position / PAGE) {
            frame.write(inside, &bytes[at..at + part]);
        }
        at += part;
    }
}

impl Inode {
    /// [`settle`] for this inode's pages, if it has some.
    pub(super) fn settle(&self, state: &mut State, start: u64, end: u64) -> Result<(), VolumeError> {
        match self.pages() {
            Some(pages) => settle(&mut state.volume, self.ino, &pages, start, end),
            None => Ok(()),
        }
    }

    /// Fills `out` from byte `offset` on; gives the bytes read, fewer only at the end of the file.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> SysResult<usize> {
        self.fs.with(|state| {
            self.settle(state, offset, offset.saturating_add(out.len() as u64))?;
            state.volume.read_at(self.ino, offset, out)
        })
    }

    /// Writes all of `bytes` at `offset`, or at the end of the file when that is `None`; clears `bits` of the mode.
    /// Gives the first byte after it.
    pub(super) fn write(&self, offset: Option<u64>, bytes: &[u8]) -> SysResult<u64> {
        self.fs.with(|state| {
            let stat = state.volume.stat(self.ino)?;
            let offset = offset.unwrap_or(stat.size);
            let clears = crate::fs::tmpfs::written_clears(stat.mode);
            state.volume.write_at(self.ino, offset, bytes)?;
            if clears != 0 {
                let permissions = Some(stat.mode & !clears & 0o7777);
                let set = cloak_volumes::SetAttributes {
                    permissions,
                    ..Default::default()
                };
                state.volume.set_attributes(self.ino, &set)?;
            }
            let end = offset + bytes.len() as u64;
            if let Some(pages) = self.pages() {
                if end > pages.size() {
                    pages.resize(end);
                }
                show(&pages, offset, bytes);
            }
            Ok(end)
        })
    }

    /// Sets the size.
    pub(super) fn resize(&self, size: u64) -> SysResult<()> {
        self.fs.with(|state| {
            // What lies before the new end is the mappings' word, and what beyond it is gone.
            self.settle(state, 0, size)?;
            state.volume.truncate(self.ino, size)?;
            if let Some(pages) = self.pages() {
                pages.resize(size);
            }
            Ok(())
        })
    }

    /// Makes zeros of `[start, end)` as far as the file goes, and frees what was there.
    pub(super) fn punch(&self, start: u64, end: u64) -> SysResult<()> {
        self.fs.with(|state| {
            self.settle(state, start, end)?;
            state.volume.punch_hole(self.ino, start, end - start)?;
            if let Some(pages) = self.pages() {
                // Pages stay where they are mapped: they become zeros themselves.
                let (first, last) = (start / PAGE, end.min(pages.size()).div_ceil(PAGE));
                for page in pages.present().into_iter().filter(|p| (first..last).contains(p)) {
                    let (from, to) = (start.max(page * PAGE), end.min((page + 1) * PAGE));
                    if let Some(frame) = pages.get(page) {
                        frame.clear((from % PAGE) as usize, (to - from) as usize);
                    }
                }
            }
            Ok(())
        })
    }

    /// Makes it durable, and all that was done before.
    pub(super) fn make_durable(&self) -> SysResult<()> {
        self.fs.with(|state| {
            self.settle(state, 0, u64::MAX)?;
            state.volume.sync(self.ino)
        })
    }

    /// The pages that its shared mappings share, made when there are none yet.
    pub(super) fn shared_pages(&self) -> SysResult<Arc<PageCache>> {
        self.fs.with(|state| {
            let size = state.volume.stat(self.ino)?.size;
            Ok(self.pages_of_size(size))
        })
    }

    /// One of them, read in if it is not there.
    pub(super) fn shared_page(&self, pages: &PageCache, page: u64) -> SysResult<Frame> {
        let offset = page.checked_mul(PAGE).ok_or(Errno::ENXIO)?;
        if offset >= pages.size() {
            return Err(Errno::ENXIO);
        }
        if let Some(frame) = pages.get(page) {
            return Ok(frame);
        }
        let frame = Frame::zeroed()?;
        let mut bytes = vec![0; PAGE as usize];
        super::writeback::mapped();
        self.fs.with(|state| {
            let got = state.volume.read_at(self.ino, offset, &mut bytes)?;
            frame.write(0, &bytes[..got]);
            // Under the lock: a write that comes next finds the page.
            Ok(pages.insert(page, frame.clone()))
        })
    }
}
