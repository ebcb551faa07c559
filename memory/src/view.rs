//! The OS view: a file that the OS side maps, in which a page is sealed at the moment it is touched.
//!
//! The OS side maps the file of [`FileStore::view`], registers the mapping with a userfaultfd of its own
//! ([`ViewMapping::attach`]) and hands that to the monitor. A touch of a page without ciphertext waits; the monitor's
//! [`ViewServer`] seals the page into the file and wakes it. When the program then writes, the page's ciphertext is
//! removed from the file, which unmaps it everywhere, and the next touch waits again.
//!
//! Nothing depends on the OS side's honesty: if it doesn't register, or reads the file, it sees zeros where no
//! ciphertext is yet; what it writes is found out when the page comes back.
//!
//! An unsafe island: it maps the file.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::engine::{BATCH, Memory};
use crate::error::{MemoryError, Step};
use crate::page::{PAGE_SIZE, Page, PageBytes};
use crate::sides::{Plaintext, Store};
use crate::uffd::{Use, Userfaultfd, Watch};

#[cfg(doc)]
use crate::file::FileStore;

/// The view in the OS side's address space.
#[derive(Debug)]
pub struct ViewMapping {
    address: NonNull<u8>,
    pages: u64,
}

// SAFETY: reads go through volatile copies, which any thread may do.
unsafe impl Send for ViewMapping {}
// SAFETY: as above.
unsafe impl Sync for ViewMapping {}

impl ViewMapping {
    /// Maps a view of that many pages; gives with it the descriptor that the monitor needs to answer its faults.
    ///
    /// # Errors
    /// [`MemoryError::Os`].
    pub fn attach(view: impl AsFd, pages: u64) -> Result<(Self, Userfaultfd), MemoryError> {
        let own = Self::unattended(view, pages)?;
        let uffd = Userfaultfd::open(Use::Shared)?;
        // SAFETY: the mapping is ours, and read by volatile copies only.
        unsafe { uffd.register(own.base(), own.pages * PAGE_SIZE as u64, Watch::Missing) }
            .step("watching the OS view (UFFDIO_REGISTER)")?;
        Ok((own, uffd))
    }

    /// Maps a file of that many pages as it is: what is not sealed yet reads as zeros.
    ///
    /// # Errors
    /// [`MemoryError::Os`].
    pub fn unattended(view: impl AsFd, pages: u64) -> Result<Self, MemoryError> {
        let len = pages as usize * PAGE_SIZE;
        // SAFETY: a new shared mapping, read only, where the kernel likes.
        let raw = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::SHARED,
                view.as_fd(),
                0,
            )
        }
        .step("mapping the OS view (mmap)")?;
        let address = NonNull::new(raw.cast()).ok_or(MemoryError::Os {
            step: "mapping the OS view (mmap)",
            source: io::ErrorKind::OutOfMemory.into(),
        })?;
        Ok(Self { address, pages })
    }

    /// Where the view begins; the monitor needs it to know which page was touched.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.address.as_ptr() as u64
    }

    /// Copies a page as the OS side sees it. Waits until it is sealed. None beyond the view.
    #[must_use]
    pub fn read(&self, page: Page) -> Option<PageBytes> {
        if page.number() >= self.pages {
            return None;
        }
        let mut bytes = [0; PAGE_SIZE];
        for (index, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: inside the mapping. Volatile, as the monitor changes the file meanwhile.
            *byte = unsafe {
                self.address
                    .as_ptr()
                    .add(page.gpa() as usize + index)
                    .read_volatile()
            };
        }
        Some(bytes)
    }
}

impl Drop for ViewMapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `attach`, unmapped once. A failure leaves the mapping, which harms nothing.
        let _ = unsafe { munmap(self.address.as_ptr().cast(), self.pages as usize * PAGE_SIZE) };
    }
}

/// Seals pages as the OS side touches them. Stops when dropped.
#[derive(Debug)]
pub struct ViewServer {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl ViewServer {
    /// Serves one mapping of the view, which begins at `base` in the process that `uffd` comes from. The store of
    /// `memory` is the view. `failed` is called once, when pages can't be sealed any more.
    ///
    /// # Errors
    /// [`MemoryError::Os`].
    pub fn start<P: Plaintext + 'static, S: Store + 'static>(
        memory: Arc<Memory<P, S>>,
        uffd: Userfaultfd,
        base: u64,
        failed: impl FnOnce(MemoryError) + Send + 'static,
    ) -> Result<Self, MemoryError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC).step("making an eventfd")?;
        let stop = Arc::new(stop);
        let stopped = stop.clone();
        let body = move || {
            if let Err(error) = serve_until(&memory, &uffd, base, &stopped) {
                failed(error);
            }
        };
        let thread = thread::Builder::new()
            .name("os-view".to_owned())
            .spawn(body)
            .step("starting the OS view's server")?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for ViewServer {
    fn drop(&mut self) {
        // An eventfd takes a one unless it is full, and then it wakes as well.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its hook.
            let _ = thread.join();
        }
    }
}

fn serve_until<P: Plaintext, S: Store>(
    memory: &Memory<P, S>,
    uffd: &Userfaultfd,
    base: u64,
    stop: &OwnedFd,
) -> Result<(), MemoryError> {
    let mut faults = Vec::new();
    let mut reader = Reader::default();
    loop {
        let mut fds = [PollFd::new(uffd, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).step("waiting for the OS side's touches (poll)"),
        }
        // A peer that is gone, or that hands over a descriptor of nothing, ends its own view only.
        let gone = fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP);
        if !fds[1].revents().is_empty() || gone || uffd.faults(&mut faults).is_err() {
            return Ok(());
        }
        for fault in faults.drain(..) {
            let page = fault.address.checked_sub(base).and_then(Page::containing);
            // An address outside of the view was not faulted by an honest peer.
            let Some(page) = page.filter(|p| p.number() < memory.table().pages()) else {
                continue;
            };
            let pages = reader.window(page, memory.table().pages());
            memory.seal(&pages)?;
            if uffd.wake(base + page.gpa(), PAGE_SIZE as u64).is_err() {
                return Ok(());
            }
        }
    }
}

/// Whether the OS side reads on and on: a fault costs a hundred times what a page does.
#[derive(Debug, Default)]
struct Reader {
    next: u64,
    window: u64,
}

impl Reader {
    /// What to seal for a touch of this page.
    fn window(&mut self, page: Page, end: u64) -> Vec<Page> {
        self.window = if page.number() == self.next {
            (self.window * 2).clamp(1, BATCH as u64)
        } else {
            1
        };
        self.next = page.number() + self.window;
        (page.number()..self.next.min(end))
            .filter_map(Page::new)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_on_gets_more_at_once() {
        let page = |n| Page::new(n).unwrap();
        let mut reader = Reader::default();
        let mut next = 10;
        for expected in [1, 2, 4, 8, 16, 32, 32] {
            assert_eq!(reader.window(page(next), 1000).len(), expected);
            next += expected as u64;
        }
        assert_eq!(reader.window(page(5), 1000), [page(5)], "elsewhere");
        assert_eq!(reader.window(page(6), 7), [page(6)], "not beyond the end");
    }
}
