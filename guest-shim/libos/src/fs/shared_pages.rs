//! Host files while they are mapped shared: their pages in guest memory, one set per inode.
//!
//! Pages are read from the host when first touched and written back when the program asks (msync, fsync),
//! when a page set goes, and before anything reads the file another way. Writes by calls go to the host and
//! into the pages at once. So calls and mappings of the context agree; other programs of the host see a
//! mapping's changes at the next write-back.
//!
//! The memory module tells which pages may be dirty ([`PageCache::mark_dirty`], when it maps a page
//! writable). From then on the page is written back each time, because nothing tells when the program
//! writes it again.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use cloak_abi::hostop::HostOp;
use cloak_abi::layout::PAGE;
use hashbrown::HashMap;
use spin::{Lazy, Mutex};

use super::hostfd::HostFd;
use crate::errno::{Errno, SysResult};
use crate::host::{CAPACITY, Request};
use crate::mem::pages::{Frame, PageCache};

/// Device and inode: what the host says that a file is. A lie mixes files that the host could mix anyway.
pub type Key = (u64, u64);

static SETS: Lazy<Mutex<HashMap<Key, Weak<SharedPages>>>> = Lazy::new(|| Mutex::new(HashMap::new()));
/// Page sets that live: reads and writes look no further while there are none.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// The pages of one inode.
#[derive(Debug)]
pub struct SharedPages {
    /// The pages themselves.
    pub cache: Arc<PageCache>,
    key: Key,
    reader: Arc<HostFd>,
    writer: Mutex<Option<Arc<HostFd>>>,
}

/// The page set of an inode, if there is one.
#[must_use]
pub fn find(key: Key) -> Option<Arc<SharedPages>> {
    if LIVE.load(Ordering::Acquire) == 0 {
        return None;
    }
    SETS.lock().get(&key).and_then(Weak::upgrade)
}

/// The page set of an inode of `size` bytes, made if there is none. `writable`: `fd` can write it back.
#[must_use]
pub fn get(key: Key, fd: &Arc<HostFd>, writable: bool, size: u64) -> Arc<SharedPages> {
    let fresh = Arc::new(SharedPages {
        cache: Arc::new(PageCache::default()),
        key,
        reader: fd.clone(),
        writer: Mutex::new(None),
    });
    LIVE.fetch_add(1, Ordering::AcqRel);
    fresh.cache.track();
    fresh.cache.set_size(size);
    let pages = {
        let mut sets = SETS.lock();
        match sets.get(&key).and_then(Weak::upgrade) {
            Some(existing) => existing,
            None => {
                sets.insert(key, Arc::downgrade(&fresh));
                fresh.clone()
            }
        }
    };
    drop(fresh); // its drop locks the table when it lost
    if writable {
        pages.writer.lock().get_or_insert_with(|| fd.clone());
    }
    pages
}

/// Writes back what all shared mappings of host files changed: at the end of the context, and `sync`.
pub fn sync_all() {
    let all: Vec<_> = SETS.lock().values().filter_map(Weak::upgrade).collect();
    for pages in all {
        // As for a write-back by Linux's own flusher, there is nobody to tell.
        let _ = pages.write_back(0, u64::MAX);
    }
}

impl SharedPages {
    /// The frame of a page, read in if it is not there.
    ///
    /// # Errors
    /// ENXIO beyond the end of the file (SIGBUS); EIO; ENOMEM.
    pub fn page(&self, page: u64) -> SysResult<Frame> {
        if page >= self.cache.size().div_ceil(PAGE) {
            let size = super::hostops::fstat(&self.reader)?.size as u64;
            if page >= size.div_ceil(PAGE) {
                return Err(Errno::ENXIO);
            }
            self.cache.resize(size);
        }
        match self.cache.get(page) {
            Some(frame) => Ok(frame),
            None => Ok(self.cache.insert(page, self.fetch(page, Frame::zeroed()?)?)),
        }
    }

    fn fetch(&self, page: u64, frame: Frame) -> SysResult<Frame> {
        let mut request = Request::new();
        let mut done = 0;
        while done < PAGE as usize {
            let want = PAGE as usize - done;
            let args = [
                self.reader.number(),
                want as u64,
                page * PAGE + done as u64,
                0,
                0,
                0,
            ];
            let got = request.call(HostOp::PRead, args).len(want)?;
            if got == 0 {
                break;
            }
            request.get_into(0, &mut frame.buf(done, got), got)?;
            done += got;
        }
        Ok(frame)
    }

    /// Writes back the pages of the bytes `[start, end)` that may be dirty.
    ///
    /// # Errors
    /// What the host reports of the first write that failed; the others are tried all the same.
    pub fn write_back(&self, start: u64, end: u64) -> SysResult<()> {
        let span = start / PAGE..end.div_ceil(PAGE);
        let pages: Vec<u64> = self
            .cache
            .dirty()
            .into_iter()
            .filter(|page| span.contains(page))
            .collect();
        if pages.is_empty() {
            return Ok(());
        }
        let writer = self.writer.lock().clone().ok_or(Errno::EBADF)?;
        let mut request = Request::new();
        let mut result = Ok(());
        let mut rest = &pages[..];
        while let Some(&first) = rest.first() {
            let most = CAPACITY / PAGE as usize;
            let run = rest
                .iter()
                .zip(first..)
                .take(most)
                .take_while(|(page, n)| **page == *n)
                .count();
            result = result.and(self.write_run(&mut request, &writer, first, run));
            rest = &rest[run..];
        }
        result
    }

    fn write_run(&self, request: &mut Request, writer: &HostFd, first: u64, count: usize) -> SysResult<()> {
        let offset = first * PAGE;
        let left = usize::try_from(self.cache.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = left.min(count * PAGE as usize);
        for (n, page) in (first..).take(count).enumerate() {
            let at = n * PAGE as usize;
            if at >= len {
                break;
            }
            let Some(frame) = self.cache.get(page) else {
                return Ok(());
            }; // truncated meanwhile
            let part = (len - at).min(PAGE as usize);
            request.put_from(at, &mut frame.buf(0, part), part)?;
        }
        if len == 0 {
            return Ok(());
        }
        let wrote = request
            .call(HostOp::PWrite, [writer.number(), len as u64, offset, 0, 0, 0])
            .len(len)?;
        if wrote == len { Ok(()) } else { Err(Errno::EIO) }
    }

    /// A call wrote the first `len` bytes of the request's buffer at `offset`: puts them into the pages.
    pub fn written(&self, request: &Request, offset: u64, len: usize) {
        let Some(end) = offset.checked_add(len as u64) else {
            return;
        };
        if end > self.cache.size() {
            self.cache.resize(end);
        }
        let mut at = 0;
        while at < len {
            let position = offset + at as u64;
            let inside = (position % PAGE) as usize;
            let part = (PAGE as usize - inside).min(len - at);
            if let Some(frame) = self.cache.get(position / PAGE) {
                // Own memory on both sides: the copy can't fault.
                let _ = request.get_into(at, &mut frame.buf(inside, part), part);
            }
            at += part;
        }
    }

    /// The host changed the bytes `[start, end)`: reads the pages that are there again.
    ///
    /// # Errors
    /// EIO.
    pub fn reload(&self, start: u64, end: u64) -> SysResult<()> {
        let size = super::hostops::fstat(&self.reader)?.size as u64;
        self.cache.resize(size);
        let affected = start / PAGE..end.div_ceil(PAGE);
        for page in self.cache.present().into_iter().filter(|p| affected.contains(p)) {
            if let Some(frame) = self.cache.get(page) {
                frame.clear(0, PAGE as usize);
                self.fetch(page, frame)?;
            }
        }
        Ok(())
    }

    /// The file's size changed.
    pub fn resize(&self, size: u64) {
        self.cache.resize(size);
    }
}

/// Page sets that live, or are noted.
#[cfg(test)]
pub(crate) fn live() -> usize {
    LIVE.load(Ordering::Acquire).max(SETS.lock().len())
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::AcqRel);
        // Nobody is left who could be told of an error.
        let _ = self.write_back(0, u64::MAX);
        let mut sets = SETS.lock();
        if sets.get(&self.key).is_some_and(|weak| weak.strong_count() == 0) {
            sets.remove(&self.key);
        }
    }
}
