//! A file in a set.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Mutex;

use super::{Epoll, Event, Place, flag, place};
use crate::fs::OpenFile;
use crate::fs::file::ready;
use crate::fs::hostlink::Doubt;
use crate::sched::{Key, WaitQueue, Waker};

/// Registered as a waker with the file.
pub(super) struct Item {
    this: Weak<Self>,
    epoll: Weak<Epoll>,
    /// Where the set keeps it.
    pub place: Place,
    open: Weak<OpenFile>,
    /// Asked for, with flags; no [`ready`] bits while disabled (removed, or told once).
    events: AtomicU32,
    data: AtomicU64,
    /// On the ready list.
    pub queued: AtomicBool,
    registration: Mutex<Registration>,
}

/// Whether a file's queue has the item. One thread may retire it before another, which adds it, has come to register it.
enum Registration {
    NotYet,
    Under(Key),
    Over,
}

/// The items of an open file, which end when it does.
#[derive(Default)]
pub struct Watchers(Mutex<Vec<Weak<Item>>>);

#[cfg(test)]
impl Watchers {
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// `open` is closed for good. Its wait queue may stay (that of arriving signals does for ever), and would keep the items.
pub fn dropped(open: &OpenFile) {
    let watchers = core::mem::take(&mut *open.watchers.0.lock());
    for item in watchers.iter().filter_map(Weak::upgrade) {
        item.retire(open);
        if let Some(epoll) = item.epoll.upgrade() {
            epoll.forget(&item.place);
        }
    }
}

impl Item {
    pub fn new(epoll: Weak<Epoll>, number: i32, open: &Arc<OpenFile>, events: u32, data: u64) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            epoll,
            place: place(number, open),
            open: Arc::downgrade(open),
            events: AtomicU32::new(enabled(events)),
            data: AtomicU64::new(data),
            queued: AtomicBool::new(false),
            registration: Mutex::new(Registration::NotYet),
        })
    }

    /// Has `queue`, which is `open`'s, tell it, if it has not been retired meanwhile.
    pub fn register(&self, open: &OpenFile, queue: &WaitQueue) {
        let mut registration = self.registration.lock();
        if let (Registration::NotYet, Some(this)) = (&*registration, self.this.upgrade()) {
            open.watchers.0.lock().push(self.this.clone());
            *registration = Registration::Under(queue.add(this));
        }
    }

    /// Ends it: no more wake-ups, no more events.
    pub fn retire(&self, open: &OpenFile) {
        self.events.store(0, Ordering::SeqCst);
        let before = core::mem::replace(&mut *self.registration.lock(), Registration::Over);
        if let (Registration::Under(key), Some(queue)) = (before, open.file.wait_queue()) {
            queue.remove(key);
            open.watchers.0.lock().retain(|other| !other.ptr_eq(&self.this));
        }
    }

    pub fn events(&self) -> u32 {
        self.events.load(Ordering::SeqCst)
    }

    pub fn set(&self, events: u32, data: u64) {
        self.data.store(data, Ordering::SeqCst);
        self.events.store(enabled(events), Ordering::SeqCst);
    }

    /// The file, while it is open.
    pub fn file(&self) -> Option<Arc<OpenFile>> {
        self.open.upgrade()
    }

    /// Bits that are asked for and there, as far as is known.
    pub fn bits_now(&self) -> u32 {
        let asked = self.events() & !flag::ALL;
        if asked == 0 {
            return 0;
        }
        self.file().map_or(0, |open| open.file.poll() & asked)
    }

    /// What the host must be asked about before this one is told of.
    pub fn doubts(&self, doubts: &mut Vec<Doubt>) {
        let asked = self.events() & !flag::ALL;
        if asked != 0
            && let Some(open) = self.file()
        {
            open.file.doubts(&open, asked, doubts);
        }
    }

    /// What to tell now. One that is told once is disabled by this: only one thread gets it.
    pub fn take_event(&self) -> Option<Event> {
        let asked = self.events();
        let bits = self.bits_now() & asked;
        if bits == 0 {
            return None;
        }
        if asked & flag::ONESHOT != 0 {
            let disabled = asked & flag::ALL;
            self.events
                .compare_exchange(asked, disabled, Ordering::SeqCst, Ordering::SeqCst)
                .ok()?;
        }
        Some(Event {
            bits,
            data: self.data.load(Ordering::SeqCst),
        })
    }
}

/// Errors and hang-ups are always told.
fn enabled(events: u32) -> u32 {
    events | ready::ERR | ready::HUP
}

impl Waker for Item {
    fn wake(&self, bits: u32) {
        let asked = self.events() & !flag::ALL;
        if asked == 0 || (bits != 0 && bits & asked == 0) {
            return;
        }
        if let (Some(epoll), Some(this)) = (self.epoll.upgrade(), self.this.upgrade()) {
            epoll.enqueue(&this);
        }
    }
}
