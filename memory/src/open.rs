//! Private memory that is plaintext as a whole, and of which pages are sealed when the OS side looks at them.
//!
//! Nothing is asked of pages that nobody looked at: they keep their large pages, and a write costs what it costs without
//! this. A page that is sealed is write-protected, which splits the large page that it lies in; its first write is
//! reported, the sealed copy is forgotten and the protection goes. Registering memory for that costs nothing by itself: it
//! changes the flags of the mapping and no page ([`Watch::Writes`]).
//!
//! One of the crate's unsafe islands.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::engine::Memory;
use crate::error::{MemoryError, Step};
use crate::page::{PAGE_SIZE, Page, PageBytes};
use crate::ram::{Segment, page_at, place};
use crate::sides::{Access, Plaintext, Run, Store};
use crate::uffd::{Fault, Userfaultfd, Watch};

/// Memory whose pages all have plaintext, always. What lies between its segments reads as zeros: the OS side, which may
/// touch any page of the view, gets ciphertext there as well.
#[derive(Debug)]
pub struct OpenRam {
    segments: Vec<Segment>,
    uffd: Userfaultfd,
}

impl OpenRam {
    /// Watches writes to protected pages of this memory. `uffd` was opened for [`crate::uffd::Use::Writes`].
    ///
    /// # Errors
    /// [`MemoryError::Os`].
    ///
    /// # Safety
    /// Each segment is private anonymous memory, readable, page-aligned, mapped until this value is gone, and no Rust
    /// reference into it exists meanwhile.
    pub unsafe fn watch(segments: Vec<Segment>, uffd: Userfaultfd) -> Result<Self, MemoryError> {
        for segment in &segments {
            let len = segment.pages * PAGE_SIZE as u64;
            // SAFETY: as the caller promises.
            unsafe { uffd.register(segment.address.as_ptr() as u64, len, Watch::Writes) }
                .step("watching writes to guest RAM (UFFDIO_REGISTER)")?;
        }
        Ok(Self { segments, uffd })
    }

    /// Whether a page is in this memory, and not between its parts.
    #[must_use]
    pub fn holds(&self, page: Page) -> bool {
        place(&self.segments, Run::one(page)).is_ok()
    }

    fn protect(&self, run: Run, protected: bool) -> io::Result<()> {
        let pages: Vec<Page> = run.pages().filter(|page| self.holds(*page)).collect();
        Run::group(&pages).try_for_each(|run| {
            let (at, len) = place(&self.segments, run)?;
            self.uffd.protect(at, len, protected)
        })
    }

    fn faults(&self, out: &mut Vec<Fault>) -> io::Result<()> {
        self.uffd.faults(out)
    }
}

impl Plaintext for OpenRam {
    fn freeze(&self, run: Run) -> io::Result<()> {
        self.protect(run, true)
    }

    fn thaw(&self, run: Run) -> io::Result<()> {
        self.protect(run, false)
    }

    fn read(&self, page: Page, out: &mut PageBytes) -> io::Result<()> {
        let Ok((at, _)) = place(&self.segments, Run::one(page)) else {
            out.fill(0);
            return Ok(());
        };
        // SAFETY: the segment is mapped, and the page is frozen, so that nobody writes it.
        unsafe { std::ptr::copy_nonoverlapping(at as *const u8, out.as_mut_ptr(), PAGE_SIZE) };
        Ok(())
    }

    fn install(&self, _: Page, _: &[PageBytes], _: Access) -> io::Result<()> {
        Err(never())
    }

    fn release(&self, _: Run) -> io::Result<()> {
        Err(never())
    }
}

/// What all of it always has is neither taken away nor given.
fn never() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "this memory keeps its plaintext; only the resident limiter takes pages away",
    )
}

impl AsFd for OpenRam {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}

/// Forgets the sealed copies of pages as they are written. Stops when dropped; writes to protected pages then wait.
#[derive(Debug)]
pub struct WriteServer {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl WriteServer {
    /// Serves the writes to a context's memory. `failed` is called once, when that can't go on: the vCPU that writes
    /// then waits for good.
    ///
    /// # Errors
    /// [`MemoryError::Os`].
    pub fn start<S: Store + 'static>(
        memory: Arc<Memory<OpenRam, S>>,
        failed: impl FnOnce(MemoryError) + Send + 'static,
    ) -> Result<Self, MemoryError> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).step("making an eventfd")?);
        let stopped = stop.clone();
        let body = move || {
            if let Err(error) = serve(&memory, &stopped) {
                failed(error);
            }
        };
        let thread = thread::Builder::new()
            .name("view-writes".to_owned())
            .stack_size(256 << 10)
            .spawn(body)
            .step("starting the server of writes")?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for WriteServer {
    fn drop(&mut self) {
        // An eventfd takes a one unless it is full, and then it wakes as well.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its hook.
            let _ = thread.join();
        }
    }
}

fn serve<S: Store>(memory: &Memory<OpenRam, S>, stop: &OwnedFd) -> Result<(), MemoryError> {
    let mut faults = Vec::new();
    let ram = memory.plaintext();
    loop {
        let mut fds = [PollFd::new(ram, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).step("waiting for writes (poll)"),
        }
        if !fds[1].revents().is_empty() {
            return Ok(());
        }
        ram.faults(&mut faults).step("reading faults")?;
        for fault in faults.drain(..) {
            // What is registered is watched, so there is a page.
            if let Some(page) = page_at(&ram.segments, fault.address) {
                memory.written(page)?;
            }
        }
    }
}
