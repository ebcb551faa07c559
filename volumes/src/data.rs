//! Content of files: reading, writing, cutting, holes; and how long a file without names stays.

use alloc::vec::Vec;
use core::mem;
use core::ops::Range;

use crate::block::{BLOCK, BlockId, Fork, Page, Pointer};
use crate::engine::{Engine, Need, RUN};
use crate::error::VolumeError;
use crate::inode::{Ino, Inode, REGULAR};
use crate::store::Store;
use crate::tree::blocks_of;
use crate::volume::Volume;

/// Largest file, in bytes.
pub const MAX_FILE: u64 = 1 << 50;
/// Bytes that one step of a long write changes: it bounds what is dirty at once.
const STEP: usize = 32 * BLOCK;

/// A block of a file's content.
pub(crate) const fn data(ino: Ino, index: u64) -> BlockId {
    BlockId::new(ino.0, Fork::Data, 0, index)
}

/// The part of a range of bytes that lies in one block: its index, first byte, and length.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % BLOCK as u64) as usize;
        let piece = (BLOCK - within).min(len - done);
        done += piece;
        Some((at / BLOCK as u64, within, piece))
    })
}

impl<S: Store> Volume<S> {
    /// An inode stays, with its content, until it is closed as often as it was opened.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`].
    pub fn open_inode(&mut self, ino: Ino) -> Result<(), VolumeError> {
        self.engine.inode(ino)?;
        *self.opened.entry(ino).or_insert(0) += 1;
        Ok(())
    }

    /// The other end of [`Volume::open_inode`]. Frees what has no name left.
    ///
    /// # Errors
    /// Those of freeing.
    pub fn close_inode(&mut self, ino: Ino) -> Result<(), VolumeError> {
        let Some(count) = self.opened.get_mut(&ino) else {
            return Err(VolumeError::Invalid("closed more often than opened"));
        };
        *count -= 1;
        if *count > 0 {
            return Ok(());
        }
        self.opened.remove(&ino);
        if self.engine.inode(ino)?.links == 0 {
            self.change(Need::Freeing, 0, |volume| volume.remove_inode(ino))?;
        }
        Ok(())
    }

    /// Reads a file from a byte on; gives the number of bytes, which is smaller only at the end. Every byte is
    /// checked before it is given. `out` must be memory that nobody else sees or writes.
    ///
    /// # Errors
    /// [`VolumeError`]; `out` then holds some of what was good, and nothing else of the volume.
    pub fn read_at(&mut self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<usize, VolumeError> {
        let inode = self.regular(ino)?;
        self.read_content(ino, &inode, offset, out)
    }

    pub(crate) fn read_content(
        &mut self,
        ino: Ino,
        inode: &Inode,
        offset: u64,
        out: &mut [u8],
    ) -> Result<usize, VolumeError> {
        let len = inode.size.saturating_sub(offset).min(out.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            // A run of what is read together, and not more than the cache can hold at once.
            let step = (len - done).min(STEP);
            let at = offset + done as u64;
            if self.engine.passes(inode.size, at, step) {
                let (pages, _) = out[done..done + step].as_chunks_mut();
                pass(&mut self.engine, ino, at / BLOCK as u64, pages)?;
                done += pages.len() * BLOCK;
                continue;
            }
            prefetch(
                &mut self.engine,
                ino,
                at / BLOCK as u64,
                blocks_of(at + step as u64),
            )?;
            let mut to = &mut out[done..done + step];
            for (index, within, piece) in pieces(at, step) {
                let (now, rest) = to.split_at_mut(piece);
                match self.engine.page(&data(ino, index))? {
                    Some(page) => now.copy_from_slice(&page[within..within + piece]),
                    None => now.fill(0),
                }
                to = rest;
            }
            done += step;
        }
        Ok(len)
    }

    /// Writes to a file from a byte on, all of it. What lies between the old end and `offset` reads as zeros.
    ///
    /// # Errors
    /// [`VolumeError::NoSpace`] and the like; a first part may be written, in steps of 128 KiB.
    pub fn write_at(&mut self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        let end = offset
            .checked_add(bytes.len() as u64)
            .filter(|&end| end <= MAX_FILE);
        end.ok_or(VolumeError::FileTooLarge)?;
        let size = self.regular(ino)?.size.max(offset + bytes.len() as u64);
        let mut done = 0;
        while done < bytes.len() {
            // Steps end with blocks, so that only the first and the last block are read before they are written.
            let at = offset + done as u64;
            let step = (bytes.len() - done).min(STEP - (at % BLOCK as u64) as usize);
            self.change(Need::Adding, (step / BLOCK) as u64 + 2, |volume| {
                write_blocks(&mut volume.engine, ino, at, &bytes[done..done + step])?;
                if volume.engine.passes(size, at, step) {
                    let whole = at / BLOCK as u64..(at + step as u64) / BLOCK as u64;
                    whole.for_each(|index| volume.engine.cache.pass(&data(ino, index)));
                }
                let mut inode = volume.engine.inode(ino)?;
                inode.size = inode.size.max(at + step as u64);
                volume.touched(ino, inode)
            })?;
            done += step;
        }
        Ok(())
    }

    /// Cuts or extends a file; what is new reads as zeros.
    ///
    /// # Errors
    /// [`VolumeError::FileTooLarge`] and the like.
    pub fn truncate(&mut self, ino: Ino, size: u64) -> Result<(), VolumeError> {
        if size > MAX_FILE {
            return Err(VolumeError::FileTooLarge);
        }
        let old = self.regular(ino)?.size;
        self.change(Need::Freeing, 1, |volume| {
            if size < old {
                volume
                    .engine
                    .free_range(ino, Fork::Data, blocks_of(size), u64::MAX)?;
                zero(&mut volume.engine, ino, size, size.next_multiple_of(BLOCK as u64))?;
            }
            let mut inode = volume.engine.inode(ino)?;
            inode.size = size;
            volume.touched(ino, inode)
        })
    }

    /// Makes zeros of `offset..offset + len`, without the end of the file changing, and frees whole blocks.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn punch_hole(&mut self, ino: Ino, offset: u64, len: u64) -> Result<(), VolumeError> {
        let inode = self.regular(ino)?;
        let end = offset.saturating_add(len).min(inode.size);
        if offset >= end {
            return Ok(());
        }
        let block = BLOCK as u64;
        // The last block is whole if the file ends in it.
        let whole_end = if end == inode.size {
            blocks_of(end)
        } else {
            end / block
        };
        let whole = blocks_of(offset)..whole_end;
        self.change(Need::Freeing, 2, |volume| {
            if whole.start < whole.end {
                zero(&mut volume.engine, ino, offset, whole.start * block)?;
                volume
                    .engine
                    .free_range(ino, Fork::Data, whole.start, whole.end)?;
                zero(&mut volume.engine, ino, (whole.end * block).min(end), end)?;
            } else {
                let middle = offset.next_multiple_of(block).min(end);
                zero(&mut volume.engine, ino, offset, middle)?;
                zero(&mut volume.engine, ino, middle, end)?;
            }
            let inode = volume.engine.inode(ino)?;
            volume.touched(ino, inode)
        })
    }

    /// The first byte from `offset` on that is data, as far as blocks tell; `None` if there is none.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn next_data(&mut self, ino: Ino, offset: u64) -> Result<Option<u64>, VolumeError> {
        let inode = self.regular(ino)?;
        if offset >= inode.size {
            return Ok(None);
        }
        let (from, end) = (offset / BLOCK as u64, blocks_of(inode.size));
        let found = self.engine.find(ino, from, end, true)?;
        Ok(found.map(|block| offset.max(block * BLOCK as u64)))
    }

    /// The first byte from `offset` on that is in a hole, the end of the file being one; `None` beyond the end.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn next_hole(&mut self, ino: Ino, offset: u64) -> Result<Option<u64>, VolumeError> {
        let inode = self.regular(ino)?;
        if offset >= inode.size {
            return Ok(None);
        }
        let (from, end) = (offset / BLOCK as u64, blocks_of(inode.size));
        let found = self.engine.find(ino, from, end, false)?;
        Ok(Some(
            found.map_or(inode.size, |block| offset.max(block * BLOCK as u64)),
        ))
    }

    fn regular(&mut self, ino: Ino) -> Result<Inode, VolumeError> {
        let inode = self.engine.inode(ino)?;
        if inode.is_directory() {
            return Err(VolumeError::IsDirectory(ino));
        }
        if inode.kind() != REGULAR {
            return Err(VolumeError::Invalid("only regular files have content"));
        }
        Ok(inode)
    }

    /// Content changed just now.
    fn touched(&mut self, ino: Ino, mut inode: Inode) -> Result<(), VolumeError> {
        inode.modified = (self.clock)();
        inode.changed = inode.modified;
        self.unsynced.insert(ino);
        self.engine.put_inode(ino, &inode)
    }
}

/// Writes into blocks; the size is the caller's.
pub(crate) fn write_blocks<S: Store>(
    engine: &mut Engine<S>,
    ino: Ino,
    offset: u64,
    bytes: &[u8],
) -> Result<(), VolumeError> {
    let mut from = bytes;
    for (index, within, piece) in pieces(offset, bytes.len()) {
        let (now, rest) = from.split_at(piece);
        let id = data(ino, index);
        let page = if piece == BLOCK {
            engine.page_to_overwrite(&id)?
        } else {
            engine.page_mut(&id)?
        };
        page[within..within + piece].copy_from_slice(now);
        from = rest;
    }
    Ok(())
}

/// Makes zeros of bytes of one block, if it is there.
fn zero<S: Store>(engine: &mut Engine<S>, ino: Ino, from: u64, end: u64) -> Result<(), VolumeError> {
    if from >= end {
        return Ok(());
    }
    let id = data(ino, from / BLOCK as u64);
    if engine.page(&id)?.is_some() {
        let within = (from % BLOCK as u64) as usize;
        engine.page_mut(&id)?[within..within + (end - from) as usize].fill(0);
    }
    Ok(())
}

/// Reads what is not in the cache, neighbours in the container with one read.
fn prefetch<S: Store>(engine: &mut Engine<S>, ino: Ino, first: u64, end: u64) -> Result<(), VolumeError> {
    runs(engine, ino, first..end, |engine, step| match step {
        Step::Cached(_) | Step::Hole(_) => Ok(()),
        Step::Run(_, run) => engine.load_run(run),
    })
}

/// Reads whole blocks to where the caller wants them. Those that are not in the cache do not come there.
fn pass<S: Store>(engine: &mut Engine<S>, ino: Ino, first: u64, to: &mut [Page]) -> Result<(), VolumeError> {
    runs(engine, ino, first..first + to.len() as u64, |engine, step| {
        match step {
            Step::Cached(at) => {
                let page = engine.cache.get(&data(ino, first + at as u64));
                to[at].copy_from_slice(page.expect("it is in the cache"));
            }
            Step::Hole(at) => to[at].fill(0),
            Step::Run(at, run) => engine.pass_run(run, &mut to[at..at + run.len()])?,
        }
        Ok(())
    })
}

/// What is to be done for some blocks of a range; each counts from the first of the range.
enum Step<'a> {
    /// It is in the cache.
    Cached(usize),
    Hole(usize),
    /// Neighbours in the range and in the container, beginning with that one.
    Run(usize, &'a [(BlockId, Pointer)]),
}

/// Goes through a range of a file's blocks.
fn runs<S: Store>(
    engine: &mut Engine<S>,
    ino: Ino,
    range: Range<u64>,
    mut each: impl FnMut(&mut Engine<S>, Step) -> Result<(), VolumeError>,
) -> Result<(), VolumeError> {
    let mut run = mem::take(&mut engine.run);
    let result = runs_by(engine, &mut run, ino, range, &mut each);
    run.clear();
    engine.run = run;
    result
}

fn runs_by<S: Store>(
    engine: &mut Engine<S>,
    run: &mut Vec<(BlockId, Pointer)>,
    ino: Ino,
    range: Range<u64>,
    each: &mut impl FnMut(&mut Engine<S>, Step) -> Result<(), VolumeError>,
) -> Result<(), VolumeError> {
    let first = range.start;
    let place = |id: &BlockId| (id.index - first) as usize;
    let tree = engine.tree(&data(ino, first))?;
    for id in range.map(|index| data(ino, index)) {
        if engine.cache.is_dirty(&id).is_some() {
            each(engine, Step::Cached(place(&id)))?;
            continue;
        }
        let pointer = engine.pointer_in_tree(&id, &tree)?;
        if pointer.is_hole() {
            each(engine, Step::Hole(place(&id)))?;
            continue;
        }
        let follows = |(before, last): &(BlockId, Pointer)| {
            before.index + 1 == id.index && last.address + 1 == pointer.address
        };
        let full = run.len() * BLOCK == RUN;
        if let Some((begin, _)) = run.first()
            && (full || !run.last().is_some_and(follows))
        {
            each(engine, Step::Run(place(begin), run))?;
            run.clear();
        }
        run.push((id, pointer));
    }
    match run.first() {
        Some((begin, _)) => each(engine, Step::Run(place(begin), run)),
        None => Ok(()),
    }
}
