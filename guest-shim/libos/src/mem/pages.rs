//! Pages of a file in guest memory: what several mappings, reads and writes of it share.
//!
//! A memory file (`tmpfs`, `memfd`) lives in its [`PageCache`] alone. A host file has one while it is
//! mapped shared: reads and writes then go through it, and dirty pages are written back.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cloak_abi::layout::PAGE;
use spin::Mutex;

use crate::errno::{Errno, SysResult};
use crate::user::Buf;

/// A frame with owners: freed when the last goes.
#[derive(Debug, Clone)]
pub struct Frame(Arc<Owned>);

/// Frames that are owned so.
static IN_USE: AtomicU64 = AtomicU64::new(0);

/// How many frames files have.
#[must_use]
pub fn frames_in_use() -> u64 {
    IN_USE.load(Ordering::Relaxed)
}

#[derive(Debug)]
struct Owned {
    address: u64,
    /// Not the context's alone: never freed.
    lent: bool,
}

impl Frame {
    /// A zero frame.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn zeroed() -> SysResult<Self> {
        let address = frames::take_zeroed()?;
        IN_USE.fetch_add(1, Ordering::Relaxed);
        Ok(Self(Arc::new(Owned { address, lent: false })))
    }

    /// A frame of a segment that other contexts share, in the window at `address`.
    #[must_use]
    pub fn lent(address: u64) -> Self {
        Self(Arc::new(Owned { address, lent: true }))
    }

    /// Its bytes as the libos reaches them. Others (the program, other threads) may write them at any
    /// time: copy, never refer.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0.address
    }

    /// Its guest-physical address.
    #[cfg(feature = "bare")]
    #[must_use]
    pub fn gpa(&self) -> u64 {
        self.0.address - cloak_abi::layout::LIBOS_PHYS_VA
    }

    /// A buffer over part of it, for copies.
    #[must_use]
    pub fn buf(&self, at: usize, len: usize) -> Buf {
        assert!(at + len <= PAGE as usize, "inside the frame");
        Buf::own_raw(self.address() + at as u64, len)
    }

    /// Copies from it.
    pub fn read(&self, at: usize, to: &mut [u8]) {
        all_of(to.len(), self.buf(at, to.len()).take(to));
    }

    /// Copies into it.
    pub fn write(&self, at: usize, from: &[u8]) {
        all_of(from.len(), self.buf(at, from.len()).put(from));
    }

    /// Writes zeros into it.
    pub fn clear(&self, at: usize, len: usize) {
        all_of(len, self.buf(at, len).put_zeros(len));
    }
}

/// A copy faults where a program may have unmapped its side. Here both sides are the libos's own.
fn all_of(len: usize, copied: SysResult<usize>) {
    assert_eq!(copied, Ok(len), "own memory");
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.lent {
            IN_USE.fetch_sub(1, Ordering::Relaxed);
            frames::give(self.address);
        }
    }
}

/// Pages of one file, by page number.
#[derive(Debug, Default)]
pub struct PageCache {
    inner: Mutex<Inner>,
    /// Whether there ever was a private mapping, which may have copies of pages.
    copied: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    size: u64,
    pages: BTreeMap<u64, Frame>,
    /// Pages written through a mapping, where somebody wants to know ([`PageCache::track`]).
    dirty: Option<BTreeSet<u64>>,
}

impl PageCache {
    /// A private mapping is made.
    pub fn set_copied(&self) {
        self.copied.store(true, Ordering::Relaxed);
    }

    /// Whether private mappings may have copies.
    pub fn is_copied(&self) -> bool {
        self.copied.load(Ordering::Relaxed)
    }

    /// Size of the file, bytes.
    pub fn size(&self) -> u64 {
        self.inner.lock().size
    }

    /// Bytes of memory in use.
    pub fn used(&self) -> u64 {
        self.inner.lock().pages.len() as u64 * PAGE
    }

    /// The page, if it is there.
    pub fn get(&self, page: u64) -> Option<Frame> {
        self.inner.lock().pages.get(&page).cloned()
    }

    /// The page, made zero if it is not there.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn get_or_zero(&self, page: u64) -> SysResult<Frame> {
        if let Some(frame) = self.get(page) {
            return Ok(frame);
        }
        let fresh = Frame::zeroed()?;
        Ok(self.inner.lock().pages.entry(page).or_insert(fresh).clone())
    }

    /// Puts a page that was read from elsewhere, unless another thread was faster; gives the one that stays.
    pub fn insert(&self, page: u64, frame: Frame) -> Frame {
        self.inner.lock().pages.entry(page).or_insert(frame).clone()
    }

    /// From now on, remember which pages are written through mappings (they must be written back).
    pub fn track(&self) {
        self.inner.lock().dirty.get_or_insert_default();
    }

    /// Whether writes through mappings are remembered.
    pub fn is_tracked(&self) -> bool {
        self.inner.lock().dirty.is_some()
    }

    /// A page was, or is about to be, written through a mapping.
    pub fn mark_dirty(&self, page: u64) {
        if let Some(dirty) = self.inner.lock().dirty.as_mut() {
            dirty.insert(page);
        }
    }

    /// Whether a page was written through a mapping since it was last taken by [`PageCache::dirty`].
    pub fn is_dirty(&self, page: u64) -> bool {
        self.inner
            .lock()
            .dirty
            .as_ref()
            .is_some_and(|d| d.contains(&page))
    }

    /// Pages written through mappings. They stay so as long as a mapping can write them unseen.
    pub fn dirty(&self) -> Vec<u64> {
        self.inner
            .lock()
            .dirty
            .as_ref()
            .map(|d| d.iter().copied().collect())
            .unwrap_or_default()
    }

    /// Sets the size without touching pages (the host file's size at open).
    pub fn set_size(&self, size: u64) {
        self.inner.lock().size = size;
    }

    /// Page numbers present.
    pub fn present(&self) -> Vec<u64> {
        self.inner.lock().pages.keys().copied().collect()
    }

    /// Sets the size. Pages beyond it go; the rest of the last one becomes zero.
    pub fn resize(&self, size: u64) {
        let (dropped, edge) = {
            let mut inner = self.inner.lock();
            let shrinks = size < inner.size;
            inner.size = size;
            let dropped = inner.pages.split_off(&size.div_ceil(PAGE));
            let edge = if shrinks && !size.is_multiple_of(PAGE) {
                inner.pages.get(&(size / PAGE)).cloned()
            } else {
                None
            };
            (dropped, edge)
        };
        drop(dropped);
        if let Some(frame) = edge {
            let at = (size % PAGE) as usize;
            frame.clear(at, PAGE as usize - at);
        }
    }

    /// Frees the pages that lie wholly in `[start, end)` and clears the parts of others.
    pub fn punch(&self, start: u64, end: u64) {
        let affected: Vec<u64> = {
            let inner = self.inner.lock();
            inner
                .pages
                .range(start / PAGE..end.div_ceil(PAGE))
                .map(|(&p, _)| p)
                .collect()
        };
        for page in affected {
            let (from, to) = (start.max(page * PAGE), end.min((page + 1) * PAGE));
            let Some(frame) = self.get(page) else { continue };
            if to - from == PAGE && !frame.0.lent {
                self.inner.lock().pages.remove(&page);
            } else {
                frame.clear((from % PAGE) as usize, (to - from) as usize);
            }
        }
    }

    /// Reads at `offset`, holes as zeros, up to the size.
    ///
    /// # Errors
    /// EFAULT.
    pub fn read_at(&self, mut offset: u64, to: &mut Buf) -> SysResult<usize> {
        let mut done = 0;
        while !to.is_empty() {
            let size = self.size();
            if offset >= size {
                break;
            }
            let at = (offset % PAGE) as usize;
            let len = (PAGE as usize - at)
                .min(to.len())
                .min(usize::try_from(size - offset).unwrap_or(usize::MAX));
            let step = match self.get(offset / PAGE) {
                Some(frame) => to.put_raw((frame.address() + at as u64) as *const u8, len),
                None => to.put_zeros(len),
            };
            match step {
                Ok(0) => break,
                Ok(n) => {
                    done += n;
                    offset += n as u64;
                }
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Writes at `offset`, growing the file.
    ///
    /// # Errors
    /// EFAULT, ENOMEM (ENOSPC is the caller's word for it), EFBIG.
    pub fn write_at(&self, mut offset: u64, from: &mut Buf) -> SysResult<usize> {
        if offset
            .checked_add(from.len() as u64)
            .is_none_or(|end| end > i64::MAX as u64)
        {
            return Err(Errno::EFBIG);
        }
        let mut done = 0;
        while !from.is_empty() {
            let at = (offset % PAGE) as usize;
            let len = (PAGE as usize - at).min(from.len());
            let step = self
                .get_or_zero(offset / PAGE)
                .and_then(|frame| from.take_raw((frame.address() + at as u64) as *mut u8, len));
            match step {
                Ok(0) => break,
                Ok(n) => {
                    done += n;
                    offset += n as u64;
                    let mut inner = self.inner.lock();
                    inner.size = inner.size.max(offset);
                }
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(done)
    }
}

#[cfg(feature = "bare")]
use super::frames;

#[cfg(not(feature = "bare"))]
mod frames {
    //! Frames under test come from the host's allocator.
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    use crate::errno::{Errno, SysResult};

    fn layout() -> Layout {
        Layout::from_size_align(4096, 4096).expect("a valid layout")
    }

    pub fn take_zeroed() -> SysResult<u64> {
        // SAFETY: not a zero size.
        let raw = unsafe { alloc_zeroed(layout()) };
        if raw.is_null() {
            Err(Errno::ENOMEM)
        } else {
            Ok(raw as u64)
        }
    }

    pub fn give(address: u64) {
        // SAFETY: from `take_zeroed`, given back once by its owner's drop.
        unsafe { dealloc(address as *mut u8, layout()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_read_as_zeros_and_shrinking_clears_the_edge() {
        let cache = PageCache::default();
        assert_eq!(cache.write_at(5000, &mut Buf::own(b"abcdef")), Ok(6));
        let mut all = [1u8; 5006];
        assert_eq!(cache.read_at(0, &mut Buf::own_mut(&mut all)), Ok(5006));
        assert!(all[..5000].iter().all(|&b| b == 0));
        assert_eq!(&all[5000..], b"abcdef");
        cache.resize(5002);
        cache.resize(5006);
        let mut tail = [1u8; 6];
        assert_eq!(cache.read_at(5000, &mut Buf::own_mut(&mut tail)), Ok(6));
        assert_eq!(&tail, b"ab\0\0\0\0");
    }
}
