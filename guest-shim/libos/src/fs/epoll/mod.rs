//! `epoll`: sets of files with a list of those that may be ready.
//!
//! A registered file is an [`Item`], which lies as a waker in the file's wait queue. A wake-up puts the item
//! on its set's ready list, once, and wakes one sleeper. Collecting takes items off the list, asks the files
//! (and the host about what is in doubt, all in one request), and puts level-triggered items that were
//! reported back at its end. Nothing is ever done for files at rest: the cost is that of the ready ones.
//!
//! A set does not keep its files open. A file that is closed for good takes its items with it ([`dropped`]).

mod calls;
mod item;
mod nesting;

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::Ordering;

use hashbrown::HashMap;
use spin::Mutex;

pub use calls::SYSCALLS;
use item::Item;
pub use item::{Watchers, dropped};

use super::file::{Stat, ready};
use super::hostlink::{self, Doubt};
use super::{File, OpenFile, anon, poll};
use crate::errno::{Errno, SysResult};
use crate::sched::WaitQueue;
use crate::user::Buf;

/// Bits beside [`ready`] that a program may set.
pub mod flag {
    /// Told once, then silent until modified.
    pub const ONESHOT: u32 = 1 << 30;
    /// Edge-triggered.
    pub const ET: u32 = 1 << 31;
    /// Not all sets that watch the file need be woken.
    pub const EXCLUSIVE: u32 = 1 << 28;
    /// Keeps the machine from sleeping; no meaning here.
    pub const WAKEUP: u32 = 1 << 29;
    /// All of them.
    pub const ALL: u32 = ONESHOT | ET | EXCLUSIVE | WAKEUP;
}

/// What is told of a file: its bits, and the program's own word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// [`ready`] bits.
    pub bits: u32,
    /// As the program registered it.
    pub data: u64,
}

/// Descriptor number and identity of the open file, as on Linux: a number may be used again while
/// a duplicate keeps the file open.
type Place = (i32, usize);

fn place(number: i32, open: &Arc<OpenFile>) -> Place {
    (number, Arc::as_ptr(open) as usize)
}

/// A set.
pub struct Epoll {
    this: Weak<Self>,
    items: Mutex<HashMap<Place, Arc<Item>>>,
    ready: Mutex<VecDeque<Arc<Item>>>,
    sleepers: WaitQueue,
    pollers: WaitQueue,
    /// Sets that this one is in.
    parents: Mutex<Vec<Weak<Self>>>,
    inode: u64,
}

impl core::fmt::Debug for Epoll {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Epoll")
            .field("inode", &self.inode)
            .finish_non_exhaustive()
    }
}

impl Epoll {
    /// An empty set.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            items: Mutex::new(HashMap::new()),
            ready: Mutex::new(VecDeque::new()),
            sleepers: WaitQueue::new(),
            pollers: WaitQueue::new(),
            parents: Mutex::new(Vec::new()),
            inode: anon::next_inode(),
        })
    }

    /// Adds `open` under `number`.
    ///
    /// # Errors
    /// EEXIST; EPERM for a file that can't be waited for; ELOOP, EINVAL for sets in sets.
    pub fn add(&self, number: i32, open: &Arc<OpenFile>, events: u32, data: u64) -> SysResult<()> {
        open.file.prepare_wait()?;
        let queue = open.file.wait_queue().ok_or(Errno::EPERM)?;
        let nested = open.file.as_any().downcast_ref::<Self>();
        if let Some(inner) = nested {
            nesting::link(self, inner)?;
        }
        let item = Item::new(self.this.clone(), number, open, events, data);
        if let Err(error) = self.insert(&item) {
            if let Some(inner) = nested {
                nesting::unlink(self, inner);
            }
            return Err(error);
        }
        item.register(open, queue);
        self.look(&item);
        Ok(())
    }

    fn insert(&self, item: &Arc<Item>) -> SysResult<()> {
        let mut items = self.items.lock();
        if items.contains_key(&item.place) {
            return Err(Errno::EEXIST);
        }
        items.insert(item.place, item.clone());
        Ok(())
    }

    /// A file was closed.
    fn forget(&self, place: &Place) {
        let item = self.items.lock().remove(place);
        drop(item);
    }

    /// Changes what is asked of a file.
    ///
    /// # Errors
    /// ENOENT; EINVAL for an exclusive one.
    pub fn modify(&self, number: i32, open: &Arc<OpenFile>, events: u32, data: u64) -> SysResult<()> {
        let item = self
            .items
            .lock()
            .get(&place(number, open))
            .cloned()
            .ok_or(Errno::ENOENT)?;
        if item.events() & flag::EXCLUSIVE != 0 {
            return Err(Errno::EINVAL);
        }
        open.file.prepare_wait()?;
        item.set(events, data);
        self.look(&item);
        Ok(())
    }

    /// Removes a file.
    ///
    /// # Errors
    /// ENOENT.
    pub fn remove(&self, number: i32, open: &Arc<OpenFile>) -> SysResult<()> {
        let item = self
            .items
            .lock()
            .remove(&place(number, open))
            .ok_or(Errno::ENOENT)?;
        item.retire(open);
        if let Some(inner) = open.file.as_any().downcast_ref::<Self>() {
            nesting::unlink(self, inner);
        }
        Ok(())
    }

    /// Puts the item on the list if its file seems ready.
    fn look(&self, item: &Arc<Item>) {
        if item.bits_now() != 0 {
            self.enqueue(item);
        }
    }

    /// An item was woken. Does not park.
    fn enqueue(&self, item: &Arc<Item>) {
        if !item.queued.swap(true, Ordering::SeqCst) {
            self.ready.lock().push_back(item.clone());
            self.sleepers.wake_one();
            self.pollers.wake_all(ready::IN | ready::RDNORM);
        }
    }

    /// Events of at most `most` files; none when nothing is ready.
    ///
    /// # Errors
    /// Those of the OS side.
    pub fn collect(&self, most: usize) -> SysResult<Vec<Event>> {
        let mut events = Vec::new();
        let mut again = Vec::new();
        let mut left = self.ready.lock().len();
        while left > 0 && events.len() < most {
            let batch: Vec<Arc<Item>> = {
                let mut list = self.ready.lock();
                let count = left.min(most - events.len()).min(list.len());
                list.drain(..count).collect()
            };
            if batch.is_empty() {
                break; // another thread was faster
            }
            left -= batch.len();
            if let Err(error) = self.report(&batch, &mut events, &mut again) {
                if events.is_empty() {
                    return Err(error);
                }
                break;
            }
        }
        self.put_back(again);
        Ok(events)
    }

    fn report(
        &self,
        batch: &[Arc<Item>],
        events: &mut Vec<Event>,
        again: &mut Vec<Arc<Item>>,
    ) -> SysResult<()> {
        // From here on a wake-up lists the item anew: what we look at below is at least as new.
        batch
            .iter()
            .for_each(|item| item.queued.store(false, Ordering::SeqCst));
        let mut doubts: Vec<Doubt> = Vec::new();
        batch.iter().for_each(|item| item.doubts(&mut doubts));
        if !doubts.is_empty() {
            hostlink::verify(&doubts).inspect_err(|_| batch.iter().for_each(|item| self.enqueue(item)))?;
        }
        for item in batch {
            if let Some(event) = item.take_event() {
                events.push(event);
                if item.events() & (flag::ET | flag::ONESHOT) == 0 {
                    again.push(item.clone());
                }
            }
        }
        Ok(())
    }

    /// Level-triggered items stay listed until they are found not ready.
    fn put_back(&self, again: Vec<Arc<Item>>) {
        let more = {
            let mut list = self.ready.lock();
            list.extend(
                again
                    .into_iter()
                    .filter(|item| !item.queued.swap(true, Ordering::SeqCst)),
            );
            !list.is_empty()
        };
        if more {
            self.sleepers.wake_one();
        }
    }

    /// Waits for events until `deadline` (ticks).
    ///
    /// # Errors
    /// EINTR, and those of the OS side.
    pub fn wait(&self, most: usize, deadline: u64) -> SysResult<Vec<Event>> {
        loop {
            poll::take_reports();
            let mut events = self.collect(most)?;
            if events.is_empty() && deadline == 0 && hostlink::catch_up()? {
                events = self.collect(most)?;
            }
            if !events.is_empty() || deadline == 0 {
                return Ok(events);
            }
            match self
                .sleepers
                .wait(deadline, || (!self.ready.lock().is_empty()).then_some(Ok(())))
            {
                Err(Errno::ETIMEDOUT) => return self.collect(most),
                other => other?,
            }
        }
    }
}

impl File for Epoll {
    fn read(&self, _: &OpenFile, _: &mut Buf) -> SysResult<usize> {
        Err(Errno::EINVAL)
    }

    fn stat(&self) -> SysResult<Stat> {
        Ok(anon::stat(0o600, self.inode))
    }

    fn poll(&self) -> u32 {
        let listed: Vec<_> = self.ready.lock().iter().cloned().collect();
        if listed.iter().any(|item| item.bits_now() != 0) {
            ready::IN | ready::RDNORM
        } else {
            0
        }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.pollers)
    }

    fn doubts(&self, _: &OpenFile, _: u32, doubts: &mut Vec<Doubt>) {
        let listed: Vec<_> = self.ready.lock().iter().cloned().collect();
        listed.iter().for_each(|item| item.doubts(doubts));
    }

    fn closed(&self, _: &OpenFile) {
        // Here and not in a drop: the last owner of a file may go with it, which may park.
        let items = core::mem::take(&mut *self.items.lock());
        for item in items.into_values() {
            if let Some(open) = item.file() {
                item.retire(&open);
                if let Some(inner) = open.file.as_any().downcast_ref::<Self>() {
                    nesting::unlink(self, inner);
                }
            }
        }
        self.ready.lock().clear();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests;
