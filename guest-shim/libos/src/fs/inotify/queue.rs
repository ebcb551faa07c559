//! One inotify instance: its watches, and what has happened and was not yet read.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::Ordering;

use spin::Mutex;

use super::{INSTANCES, WATCHES, event};
use crate::errno::{Errno, SysResult};
use crate::fs::anon::{self, FIONREAD};
use crate::fs::file::{Stat, ready};
use crate::fs::{File, OpenFile, path};
use crate::sched::WaitQueue;
use crate::user::{self, Buf};

/// Most events that wait (`fs.inotify.max_queued_events`).
const EVENTS_MAX: usize = 16_384;
/// Most instances (`fs.inotify.max_user_instances`).
const INSTANCES_MAX: usize = 1024;
/// Most watches of one instance (`fs.inotify.max_user_watches` is of this order).
const WATCHES_MAX: usize = 65_536;
/// Bytes of `struct inotify_event`, and what its name is filled up to.
const HEADER: usize = 16;

#[derive(Debug)]
struct Watch {
    number: i32,
    path: Vec<u8>,
    mask: u32,
}

#[derive(Debug, PartialEq, Eq)]
struct Event {
    number: i32,
    mask: u32,
    cookie: u32,
    name: Vec<u8>,
}

impl Event {
    fn name_space(&self) -> usize {
        match self.name.len() {
            0 => 0,
            len => (len + 1).next_multiple_of(HEADER),
        }
    }

    fn len(&self) -> usize {
        HEADER + self.name_space()
    }

    fn put(&self, out: &mut Vec<u8>) {
        let end = out.len() + self.len();
        out.extend(self.number.to_ne_bytes());
        out.extend(self.mask.to_ne_bytes());
        out.extend(self.cookie.to_ne_bytes());
        out.extend((self.name_space() as u32).to_ne_bytes());
        out.extend(&self.name);
        out.resize(end, 0);
    }
}

#[derive(Debug, Default)]
struct State {
    last: i32,
    watches: Vec<Watch>,
    events: VecDeque<Event>,
}

impl State {
    /// Adds an event, unless it says again what the last one says.
    fn add(&mut self, event: Event) {
        if self.events.back() == Some(&event) {
            return;
        }
        match self.events.len() {
            0..EVENTS_MAX => self.events.push_back(event),
            EVENTS_MAX => self.events.push_back(Event {
                number: -1,
                mask: event::OVERFLOW,
                cookie: 0,
                name: Vec::new(),
            }),
            _ => {}
        }
    }

    fn end(&mut self, number: i32) {
        self.watches.retain(|watch| watch.number != number);
        WATCHES.fetch_sub(1, Ordering::Relaxed);
        self.add(Event {
            number,
            mask: event::IGNORED,
            cookie: 0,
            name: Vec::new(),
        });
    }
}

/// An instance.
#[derive(Debug)]
pub struct Inotify {
    state: Mutex<State>,
    queue: WaitQueue,
    inode: u64,
}

impl Inotify {
    /// A new one, which is told of what happens from now on.
    ///
    /// # Errors
    /// EMFILE when there are too many.
    pub fn new() -> SysResult<Arc<Self>> {
        let this = Arc::new(Self {
            state: Mutex::default(),
            queue: WaitQueue::new(),
            inode: anon::next_inode(),
        });
        let mut all = INSTANCES.lock();
        all.retain(|one| one.strong_count() > 0);
        if all.len() >= INSTANCES_MAX {
            return Err(Errno::EMFILE);
        }
        all.push(Arc::downgrade(&this));
        Ok(this)
    }

    /// Watches what is at `path`; gives the watch's number, the same for the same path.
    ///
    /// # Errors
    /// EEXIST with MASK_CREATE, ENOSPC.
    pub fn watch(&self, path: &[u8], mask: u32) -> SysResult<i32> {
        let mut state = self.state.lock();
        let kept = mask & (event::ALL | event::ONCE | event::EXCLUDE_UNLINKED);
        if let Some(known) = state.watches.iter_mut().find(|watch| watch.path == path) {
            if mask & event::MASK_CREATE != 0 {
                return Err(Errno::EEXIST);
            }
            known.mask = kept
                | if mask & event::MASK_ADD != 0 {
                    known.mask
                } else {
                    0
                };
            return Ok(known.number);
        }
        if state.watches.len() >= WATCHES_MAX || state.last == i32::MAX {
            return Err(Errno::ENOSPC);
        }
        state.last += 1;
        let number = state.last;
        state.watches.push(Watch {
            number,
            path: path.to_vec(),
            mask: kept,
        });
        WATCHES.fetch_add(1, Ordering::Relaxed);
        Ok(number)
    }

    /// Ends a watch.
    ///
    /// # Errors
    /// EINVAL.
    pub fn unwatch(&self, number: i32) -> SysResult<()> {
        let mut state = self.state.lock();
        if !state.watches.iter().any(|watch| watch.number == number) {
            return Err(Errno::EINVAL);
        }
        state.end(number);
        drop(state);
        self.wake();
        Ok(())
    }

    /// `mask` happened to `path`, or with a name to what has that name in it.
    pub(super) fn tell(&self, path: &[u8], name: Option<&[u8]>, mask: u32, cookie: u32) {
        {
            let mut state = self.state.lock();
            let meant = |watch: &&Watch| watch.mask & mask & event::ALL != 0 && watch.path == path;
            let Some(watch) = state.watches.iter().find(meant) else {
                return;
            };
            let (number, once) = (watch.number, watch.mask & event::ONCE != 0);
            state.add(Event {
                number,
                mask,
                cookie,
                name: name.unwrap_or_default().to_vec(),
            });
            if once {
                state.end(number);
            }
        }
        self.wake();
    }

    /// What was at `path` is gone: who watches it is told, whatever was asked for, that this is the end.
    pub(super) fn forget(&self, path: &[u8]) {
        self.tell(path, None, event::DELETE_SELF, 0);
        {
            let mut state = self.state.lock();
            let Some(number) = state.watches.iter().find(|w| w.path == path).map(|w| w.number) else {
                return;
            };
            state.end(number);
        }
        self.wake();
    }

    /// Watches of what was renamed go along.
    pub(super) fn follow(&self, from: &[u8], to: &[u8], exchanged: bool) {
        for watch in &mut self.state.lock().watches {
            let back = || path::moved(&watch.path, to, from).filter(|_| exchanged);
            if let Some(path) = path::moved(&watch.path, from, to).or_else(back) {
                watch.path = path;
            }
        }
    }

    fn wake(&self) {
        self.queue.wake_all(ready::IN | ready::RDNORM);
    }

    /// As many events as fit into `space`. None: there is none.
    fn take(&self, space: usize) -> Option<SysResult<Vec<u8>>> {
        let mut state = self.state.lock();
        let first = state.events.front()?;
        if first.len() > space {
            return Some(Err(Errno::EINVAL));
        }
        let mut out = Vec::new();
        while let Some(event) = state
            .events
            .pop_front_if(|event| out.len() + event.len() <= space)
        {
            event.put(&mut out);
        }
        Some(Ok(out))
    }
}

impl Drop for Inotify {
    fn drop(&mut self) {
        WATCHES.fetch_sub(self.state.get_mut().watches.len(), Ordering::Relaxed);
    }
}

impl File for Inotify {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        let space = to.len();
        let bytes = match self.take(space) {
            Some(bytes) => bytes?,
            None if file.nonblocking() => return Err(Errno::EAGAIN),
            None => self.queue.wait(u64::MAX, || self.take(space))?,
        };
        to.put(&bytes)
    }

    fn stat(&self) -> SysResult<Stat> {
        Ok(anon::stat(0o600, self.inode))
    }

    fn poll(&self) -> u32 {
        if self.state.lock().events.is_empty() {
            0
        } else {
            ready::IN | ready::RDNORM
        }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn ioctl(&self, _: &OpenFile, request: u32, argument: u64) -> SysResult {
        if request != FIONREAD {
            return Err(Errno::ENOTTY);
        }
        let bytes: usize = self.state.lock().events.iter().map(Event::len).sum();
        user::write(argument, &i32::try_from(bytes).unwrap_or(i32::MAX))?;
        Ok(0)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
