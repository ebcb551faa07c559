//! The pager: serves the faults of a context's memory and keeps at most so much plaintext.
//!
//! One thread owns which pages are where. A page that is touched for the first time gets zeros, one that was sealed
//! comes back verified, one that was frozen is let go and its sealed copy forgotten. Before pages come, others go:
//!
//! ```text
//!   active ──oldest──▶ parked ──oldest, untouched──▶ sealed, on the OS side
//!      ▲                 │ touched: second chance        │ touched: verified
//!      └─────────────────┴───────────────────────────────┘
//! ```
//!
//! *Second chance* without accessed bits: a parked page is still plaintext in memory, only out of the program's
//! sight, so a touch costs a fault and no cipher, and says that the page is in use. A quarter of the limit is parked.
//! Faults in a row are seen and answered with growing windows, as a fault costs a hundred times what a page does.
//!
//! The thread never touches watched memory by itself: it would wait for itself. A failure, an integrity error above
//! all, is told once and the fault stays unanswered: the program never runs on with wrong bytes.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::engine::{BATCH, Memory};
use crate::error::{MemoryError, Step};
use crate::page::Page;
use crate::ram::PrivateRam;
use crate::sides::{Access, Run, Store};
use crate::state::PageState;
use crate::table::BlockGuard;

/// Fewest pages that may be kept: room for what one instruction can touch, on several vCPUs, and for windows.
pub const LEAST_RESIDENT: u64 = 1024;

/// Pages that leave together.
const EVICTED_AT_ONCE: usize = 64;

/// Counters, readable while the pager runs.
#[derive(Debug, Default)]
pub struct Counters {
    /// Faults served.
    pub faults: AtomicU64,
    /// Pages that got zeros.
    pub filled: AtomicU64,
    /// Pages that came back from the OS side.
    pub brought_back: AtomicU64,
    /// Pages that were touched while parked.
    pub second_chances: AtomicU64,
    /// Pages that left for the OS side.
    pub evicted: AtomicU64,
    /// Most pages of plaintext there ever were at once.
    pub most_resident: AtomicU64,
}

/// A running pager. Stops when dropped; faults are then no longer answered.
#[derive(Debug)]
pub struct Pager {
    counters: Arc<Counters>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Pager {
    /// Starts serving. At most `limit` pages of plaintext are kept; none: as many as there are. `failed` is called
    /// once, when the context can't go on.
    ///
    /// # Errors
    /// [`MemoryError::LimitTooSmall`], [`MemoryError::Os`].
    pub fn start<S: Store + 'static>(
        memory: Arc<Memory<PrivateRam, S>>,
        limit: Option<u64>,
        failed: impl FnOnce(MemoryError) + Send + 'static,
    ) -> Result<Self, MemoryError> {
        let limit = limit.unwrap_or(u64::MAX / 2);
        if limit < LEAST_RESIDENT {
            return Err(MemoryError::LimitTooSmall {
                asked: limit,
                least: LEAST_RESIDENT,
            });
        }
        let counters = Arc::new(Counters::default());
        let stop = eventfd(0, EventfdFlags::CLOEXEC).step("making an eventfd")?;
        let stop = Arc::new(stop);
        let mut work = Work {
            memory,
            limit,
            active: VecDeque::new(),
            parked: VecDeque::new(),
            streams: Streams::default(),
            counters: counters.clone(),
        };
        let stopped = stop.clone();
        let body = move || {
            if let Err(error) = work.serve_until(&stopped) {
                failed(error);
            }
        };
        let thread = thread::Builder::new()
            .name("pager".to_owned())
            .spawn(body)
            .step("starting the pager")?;
        Ok(Self {
            counters,
            stop,
            thread: Some(thread),
        })
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        // An eventfd takes a one unless it is full, and then it wakes as well.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its hook.
            let _ = thread.join();
        }
    }
}

struct Work<S> {
    memory: Arc<Memory<PrivateRam, S>>,
    limit: u64,
    /// In the order in which they came. An entry is stale when the page has been parked or has left since.
    active: VecDeque<Page>,
    /// In the order in which they were parked. An entry is stale when the page was touched since.
    parked: VecDeque<Page>,
    streams: Streams,
    counters: Arc<Counters>,
}

impl<S: Store> Work<S> {
    fn serve_until(&mut self, stop: &OwnedFd) -> Result<(), MemoryError> {
        let memory = self.memory.clone();
        let mut faults = Vec::new();
        loop {
            let ram = memory.plaintext();
            let mut fds = [PollFd::new(ram, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).step("waiting for faults (poll)"),
            }
            if !fds[1].revents().is_empty() {
                return Ok(());
            }
            ram.faults(&mut faults).step("reading faults")?;
            for fault in faults.drain(..) {
                // What is registered is watched, so there is a page.
                if let Some(page) = ram.page_at(fault.address) {
                    self.serve(page, fault.write)?;
                    self.counters.faults.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn serve(&mut self, page: Page, write: bool) -> Result<(), MemoryError> {
        let window = self.streams.window(page);
        self.make_room(window)?;
        let memory = self.memory.clone();
        let ram = memory.plaintext();
        let mut block = memory.lock(page)?;
        let state = block.state(page);
        let here = state.has_plaintext() && !ram.is_parked(page);
        if here && !write {
            return ram.wake(page).step("waking a vCPU (UFFDIO_WAKE)");
        }
        let run = alike(ram, &block, page, window);
        if here {
            // A program that writes in a row will write what follows, too.
            memory.written_in(&mut block, run)?;
            drop(block);
            self.streams.served(page, run.count);
            return Ok(());
        }
        // Neighbours come as the page does: a program that writes in a row would fault at each of them again. What it then
        // leaves alone is sealed once more for nothing, which costs a hundredth of a fault.
        let access = if write { Access::Free } else { Access::Frozen };
        let pages: Vec<Page> = run.pages().collect();
        let counter = match state {
            PageState::Zero => {
                memory.fill_in(&mut block, &pages)?;
                &self.counters.filled
            }
            PageState::Sealed => {
                memory.open_in(&mut block, &pages, access)?;
                &self.counters.brought_back
            }
            PageState::Plain | PageState::Clean => {
                self.unpark(&mut block, run, write)?;
                &self.counters.second_chances
            }
        };
        let served = run.count;
        counter.fetch_add(served, Ordering::Relaxed);
        self.counters
            .most_resident
            .fetch_max(ram.resident(), Ordering::Relaxed);
        drop(block);
        self.streams.served(page, served);
        self.active.extend(pages);
        Ok(())
    }

    /// Gives back parked pages that are in one state.
    fn unpark(&self, block: &mut BlockGuard<'_>, run: Run, write: bool) -> Result<(), MemoryError> {
        if write {
            run.pages()
                .try_for_each(|page| self.memory.stale_in(block, page))?;
        }
        let access = if block.state(run.first) == PageState::Clean {
            Access::Frozen
        } else {
            // They come back writable, whatever they were before, so a change will go unseen.
            run.pages().for_each(|page| block.set_changed(page));
            Access::Free
        };
        let ram = self.memory.plaintext();
        ram.unpark(run, access).map_err(|source| MemoryError::Plaintext {
            step: "giving back",
            page: run.first,
            source,
        })
    }

    /// Sends pages away until `pages` more may come.
    fn make_room(&mut self, pages: u64) -> Result<(), MemoryError> {
        while self.memory.plaintext().resident() + pages > self.limit {
            self.park_oldest()?;
            let mut leaving: Vec<Page> = Vec::with_capacity(EVICTED_AT_ONCE);
            while leaving.len() < EVICTED_AT_ONCE
                && let Some(page) = self.parked.pop_front()
            {
                // A page that was touched and parked again is in the queue twice.
                if self.memory.plaintext().is_parked(page) && !leaving.contains(&page) {
                    leaving.push(page);
                }
            }
            leaving.sort_unstable();
            self.memory.seal(&leaving)?;
            self.memory.drop_plaintext(&leaving)?;
            self.counters
                .evicted
                .fetch_add(leaving.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Parks the oldest until a quarter of the limit is parked, but not more than a few rounds' worth at once.
    fn park_oldest(&mut self) -> Result<(), MemoryError> {
        let memory = self.memory.clone();
        let ram = memory.plaintext();
        let enough = (self.limit / 4).max(EVICTED_AT_ONCE as u64);
        let mut tries = 4 * EVICTED_AT_ONCE;
        while (ram.parked() < enough && tries > 0) || ram.parked() == 0 {
            let Some(page) = self.active.pop_front() else {
                break;
            };
            tries = tries.saturating_sub(1);
            let block = memory.lock(page)?;
            let fits = |p: Page| block.holds(p) && block.state(p).has_plaintext() && !ram.is_parked(p);
            if !fits(page) {
                continue;
            }
            let mut run = Run::one(page);
            // What came in a row leaves in a row, by one call.
            while let Some(&next) = self.active.front()
                && next.number() == run.numbers().end
                && fits(next)
            {
                self.active.pop_front();
                run.count += 1;
            }
            tries = tries.saturating_sub(run.count as usize - 1);
            let (moved, result) = ram.park(run);
            let mut pages = run.pages();
            self.parked.extend(pages.by_ref().take(moved as usize));
            let Err(source) = result else { continue };
            let Some(stopped_at) = pages.next() else { continue };
            // Something in the kernel holds it: in use.
            if source.raw_os_error() != Some(rustix::io::Errno::BUSY.raw_os_error()) {
                return Err(MemoryError::Plaintext {
                    step: "parking",
                    page: stopped_at,
                    source,
                });
            }
            self.active.push_back(stopped_at);
            let untried: Vec<Page> = pages.collect();
            untried.into_iter().rev().for_each(|p| self.active.push_front(p));
        }
        Ok(())
    }
}

/// The page and those after it, up to the window, that are as it is: in the same state, parked or not.
fn alike(ram: &PrivateRam, block: &BlockGuard<'_>, page: Page, window: u64) -> Run {
    let kind = |p: Page| (block.state(p), ram.is_parked(p));
    let wanted = kind(page);
    let after = (page.number() + 1..page.number() + window)
        .filter_map(Page::new)
        .take_while(|&p| block.holds(p) && ram.watches(p) && kind(p) == wanted);
    Run {
        first: page,
        count: 1 + after.count() as u64,
    }
}

/// Recent places where faults came in a row.
#[derive(Debug, Default)]
struct Streams {
    /// Page number expected next, and the window then.
    known: [Option<(u64, u64)>; 16],
    oldest: usize,
}

impl Streams {
    /// How many pages to serve for a fault on this page.
    fn window(&self, page: Page) -> u64 {
        let mut known = self.known.iter().flatten();
        known
            .find(|(next, _)| *next == page.number())
            .map_or(1, |&(_, window)| window)
    }

    /// Remembers that pages from this one on were served.
    fn served(&mut self, page: Page, count: u64) {
        let next = page.number() + count;
        let mut known = self.known.iter_mut().flatten();
        if let Some(stream) = known.find(|(n, _)| *n == page.number()) {
            *stream = (next, (stream.1 * 2).min(BATCH as u64));
        } else {
            self.known[self.oldest] = Some((next, 4));
            self.oldest = (self.oldest + 1) % self.known.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_grow_along_a_stream_only() {
        let page = |n| Page::new(n).unwrap();
        let mut streams = Streams::default();
        assert_eq!(streams.window(page(0)), 1, "nothing is known yet");
        let mut next = 100;
        for expected in [1, 4, 8, 16, 32, 32] {
            assert_eq!(streams.window(page(next)), expected);
            streams.served(page(next), expected);
            next += expected;
            // Touches elsewhere leave the stream alone.
            assert_eq!(streams.window(page(next + 1000)), 1);
            streams.served(page(next + 1000), 1);
        }
    }
}
