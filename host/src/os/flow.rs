//! Streams that run ahead of the guest: data fetched before it is asked for, and data taken that the socket
//! has no room for yet.
//!
//! ```text
//!          Fetch, nothing there          readable
//!  empty ----------------------> waiting ---------> answered
//!                                   |  close, urgent data, Fetch of length 0
//!                                   +----------------------------------------> -ECANCELED
//!
//!           Deliver, too much           writable            all gone
//!  flowing ------------------> keeping ---------> keeping ----------> flowing, or shut down, or closed
//! ```
//!
//! A server then needs no answer to be waited for: what its clients say comes with the news that they said
//! something, and what it says to them is on its way when it has gone into the ring.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::readiness;
use super::request::{Answer, Call, Refusal, Reply, Request};
use super::server::Shared;
use super::sys;
use super::table::{Entry, Kind};

/// Most bytes kept for one socket. The guest stops long before.
const KEPT_MOST: usize = 1 << 20;

/// What one stream has in hand.
#[derive(Debug, Default)]
pub struct Flow {
    /// The fetch that waits.
    fetch: Option<Request>,
    /// The last fetch found everything: until the next edge there is nothing to read.
    is_empty: bool,
    /// The peer's end, or an error, has been reported: no edge follows, and what is to be read is there.
    has_ended: bool,
    /// Bytes for the socket when it takes them.
    kept: VecDeque<u8>,
    /// A shutdown that comes after them.
    shut: Option<Shutdown>,
    /// A write found no room: the guest waits for word that there is some.
    wants_room: bool,
}

/// What there is of all streams together.
#[derive(Debug, Default)]
pub struct Flows {
    kept: AtomicUsize,
    /// Closed by the guest, and still keeping.
    closed: Mutex<Vec<Arc<Entry>>>,
}

impl Flows {
    /// Bytes kept.
    pub fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    fn closed(&self) -> MutexGuard<'_, Vec<Arc<Entry>>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The closed stream that is watched under `token`.
    fn find_closed(&self, token: u32) -> Option<Arc<Entry>> {
        self.closed()
            .iter()
            .find(|entry| entry.is_watched_as(token))
            .cloned()
    }
}

impl Flow {
    /// A read got `len` bytes where there was `space`.
    fn got(&mut self, len: usize, space: usize) {
        self.is_empty = !self.has_ended && len > 0 && len < space;
    }

    /// Whether it keeps bytes, so that nothing may overtake them.
    pub fn keeps(&self) -> bool {
        !self.kept.is_empty()
    }

    /// A write of the guest's met no room.
    pub fn wants_room(&mut self) {
        self.wants_room = true;
    }

    /// Defers a shutdown that would cut off what is kept; whether it did.
    pub fn defer_shutdown(&mut self, how: Shutdown) -> bool {
        if self.keeps() {
            self.shut = Some(how);
        }
        self.keeps()
    }

    /// Sends what is kept, as far as there is room. Gives the bytes that are gone, or lost with the connection.
    fn flush(&mut self, entry: &Entry) -> usize {
        let before = self.kept.len();
        while self.keeps() {
            match rustix::io::write(entry, self.kept.as_slices().0) {
                Ok(len) => drop(self.kept.drain(..len)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // The guest learns of it as of any broken connection: by an event, and at its next call.
                Err(_) => self.kept.clear(),
            }
        }
        if !self.keeps()
            && let Some(how) = self.shut.take()
        {
            // It was said to have succeeded; that the connection has ended meanwhile makes no difference.
            let _ended = rustix::net::shutdown(entry, how);
        }
        before - self.kept.len()
    }
}

fn stream(call: &Call<'_>) -> Result<Arc<Entry>, Errno> {
    let entry = call.file(0)?;
    if entry.kind == Kind::Socket {
        Ok(entry)
    } else {
        Err(Errno::INVAL)
    }
}

/// [`cloak_abi::hostop::HostOp::Fetch`]
pub fn fetch(call: &Call<'_>) -> Reply {
    let entry = stream(call)?;
    let out = call.data(1)?;
    if out.is_empty() {
        cancel(call.shared, &entry);
        return Ok(().into());
    }
    let token = u32::try_from(call.arg(2)).map_err(|_| Errno::INVAL)?;
    readiness::watch_as(&call.shared.readiness, &entry, call.arg(0), token)?;
    let mut flow = entry.flow();
    if flow.fetch.is_some() {
        return Err(Errno::BUSY.into());
    }
    if !flow.is_empty {
        match sys::read(entry.as_fd(), &out) {
            Err(Errno::AGAIN) => {}
            Ok(len) => {
                flow.got(len, out.len());
                return Ok(len.into());
            }
            Err(errno) => return Err(errno.into()),
        }
        flow.is_empty = true;
    }
    flow.fetch = Some(call.request);
    Err(Refusal::Later)
}

/// Ends a fetch that waits.
fn cancel(shared: &Shared, entry: &Entry) {
    let waiting = entry.flow().fetch.take();
    if let Some(request) = waiting {
        answer(shared, &request, Err(Errno::CANCELED));
    }
}

/// Rings nobody: who waits for it is rung for the event that brought it, or asked for its end itself.
fn answer(shared: &Shared, request: &Request, result: Result<usize, Errno>) {
    let answer = match result {
        Ok(len) => len.into(),
        Err(errno) => Answer {
            result: -i64::from(errno.raw_os_error()),
            extra: 0,
        },
    };
    shared.finish(request);
    shared.complete(request, answer);
}

/// [`cloak_abi::hostop::HostOp::Deliver`]
pub fn deliver(call: &Call<'_>) -> Reply {
    let entry = stream(call)?;
    let data = call.data(1)?;
    let mut flow = entry.flow();
    let mut taken = 0;
    if !flow.keeps() {
        taken = match sys::write(entry.as_fd(), &data) {
            Ok(len) => len,
            Err(Errno::AGAIN) => 0,
            Err(errno) => return Err(errno.into()),
        };
    }
    let rest = data.part(taken, data.len() - taken)?;
    if !rest.is_empty() {
        if flow.kept.len() + rest.len() > KEPT_MOST {
            return Err(Errno::NOBUFS.into());
        }
        let mut bytes = vec![0; rest.len()];
        rest.read(&mut bytes);
        flow.kept.extend(bytes);
        flow.wants_room = true;
        call.shared.flows.kept.fetch_add(rest.len(), Ordering::Relaxed);
    }
    Ok(taken.into())
}

/// A file is being closed: its fetch ends, and what it keeps is sent later. Gives whether that is so.
pub fn close(shared: &Shared, entry: &Arc<Entry>) -> bool {
    cancel(shared, entry);
    let keeps = entry.flow().keeps();
    if keeps {
        shared.flows.closed().push(Arc::clone(entry));
    }
    keeps
}

/// What is left to tell the guest of an event, and whether a fetch was answered.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct News {
    /// Readiness to post.
    pub bits: Option<u32>,
    /// A fetch was answered.
    pub answered: bool,
}

/// `entry`, watched under `token`, became ready.
pub fn event(shared: &Shared, number: u64, token: u32, flags: EventFlags) -> News {
    let entry = shared.table.lookup(number).ok();
    let Some(entry) = entry.filter(|entry| entry.is_watched_as(token)) else {
        // One that was closed and keeps something. Nobody is left to be told.
        if let Some(entry) = shared.flows.find_closed(token) {
            flush_closed(shared, &entry);
        }
        return News::default();
    };
    let mut flow = entry.flow();
    let mut bits = flags;
    if flow.keeps() {
        shared.flows.kept.fetch_sub(flow.flush(&entry), Ordering::Relaxed);
        if flow.keeps() {
            bits.remove(EventFlags::OUT);
        }
    }
    let comes = EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR | EventFlags::PRI;
    let mut answered = false;
    if flags.intersects(comes) {
        flow.is_empty = false;
        flow.has_ended |= flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        answered = serve_fetch(shared, &entry, &mut flow, flags);
    }
    let is_room = bits.contains(EventFlags::OUT);
    // The answer says that there is something to read, and that there is room is no news.
    let is_told = answered && !flags.intersects(comes & !EventFlags::IN) && !(is_room && flow.wants_room);
    if is_room {
        flow.wants_room = false;
    }
    let is_news = !(is_told || bits.is_empty());
    News {
        bits: is_news.then_some(bits.bits()),
        answered,
    }
}

/// Reads for a fetch that waits, or ends it where urgent data would be passed over. Gives whether it has its answer.
fn serve_fetch(shared: &Shared, entry: &Entry, flow: &mut Flow, flags: EventFlags) -> bool {
    let Some(request) = flow.fetch else {
        return false;
    };
    let read = if flags.contains(EventFlags::PRI) {
        Err(Errno::CANCELED)
    } else {
        shared
            .region
            .buffer(request.slot)
            .part(0, usize::try_from(request.args[1]).unwrap_or(0))
            .and_then(|out| Ok((sys::read(entry.as_fd(), &out)?, out.len())))
    };
    match read {
        Ok((len, space)) => flow.got(len, space),
        Err(Errno::AGAIN) => {
            flow.is_empty = true;
            return false;
        }
        Err(_) => {}
    }
    flow.fetch = None;
    answer(shared, &request, read.map(|(len, _)| len));
    true
}

fn flush_closed(shared: &Shared, entry: &Arc<Entry>) {
    let mut flow = entry.flow();
    shared.flows.kept.fetch_sub(flow.flush(entry), Ordering::Relaxed);
    if !flow.keeps() {
        drop(flow);
        readiness::forget(&shared.readiness, entry);
        shared.flows.closed().retain(|other| !Arc::ptr_eq(other, entry));
    }
}
