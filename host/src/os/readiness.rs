//! Readiness: one epoll set, edge-triggered, whose events go to the event page.
//!
//! The doorbell is in the same set, edge-triggered too: each ring makes a new edge, so its counter is
//! never read and a ring costs no second system call.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cloak_abi::ring::{EVENTS, EventPage};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::request::{Call, Reply, Scratch};
use super::table::Entry;

/// Events carry the token and, above it, the guest's number of the file, which is never all ones.
const DOORBELL: u64 = u64::MAX;
const LIFELINE: u64 = u64::MAX - 1;
const NUMBER_SHIFT: u32 = 32;

/// Events taken at once.
const BATCH: usize = 64;
/// Most files in one [`poll`]: what a buffer holds.
const POLL_MOST: usize = cloak_abi::ring::BUFFER / 8;

/// The timeout of who does not wait.
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// What one look at the epoll set brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// So many events were posted.
    Events(usize),
    /// The monitor is gone.
    Gone,
}

/// The epoll set.
#[derive(Debug)]
pub struct Readiness {
    set: OwnedFd,
}

impl Readiness {
    /// A set with the doorbell and the lifeline in it.
    ///
    /// # Errors
    /// Those of epoll.
    pub fn new(doorbell: BorrowedFd<'_>, lifeline: BorrowedFd<'_>) -> Result<Self, Errno> {
        let set = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(
            &set,
            doorbell,
            EventData::new_u64(DOORBELL),
            EventFlags::IN | EventFlags::ET,
        )?;
        epoll::add(&set, lifeline, EventData::new_u64(LIFELINE), EventFlags::IN)?;
        Ok(Self { set })
    }

    /// Passes what is ready to `each`, by number, token and readiness, waiting at most `timeout` (none: until something
    /// is). `each` says whether the guest has something to look at.
    ///
    /// # Errors
    /// Those of epoll.
    pub fn turn(
        &self,
        timeout: Option<Duration>,
        mut each: impl FnMut(u64, u32, EventFlags) -> bool,
    ) -> Result<Turn, Errno> {
        let mut space = [const { MaybeUninit::uninit() }; BATCH];
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        let ready = match epoll::wait(&self.set, &mut space, timeout.as_ref()) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => return Ok(Turn::Events(0)),
            Err(errno) => return Err(errno),
        };
        let mut count = 0;
        for event in ready {
            match event.data.u64() {
                LIFELINE => return Ok(Turn::Gone),
                DOORBELL => {}
                data => {
                    let told = each(data >> NUMBER_SHIFT, data as u32, event.flags);
                    count += usize::from(told);
                }
            }
        }
        Ok(Turn::Events(count))
    }
}

/// Appends an event, or notes that one was dropped.
pub fn post(page: &EventPage, posted: &mut u32, event: u64) {
    let head = page.head.load(Ordering::Acquire);
    if posted.wrapping_sub(head) as usize >= EVENTS {
        page.overflow.store(1, Ordering::Release);
        return;
    }
    if let Some(entry) = page.entries.get(*posted as usize % EVENTS) {
        entry.store(event, Ordering::Relaxed);
    }
    *posted = posted.wrapping_add(1);
    page.tail.store(*posted, Ordering::Release);
}

/// [`cloak_abi::hostop::HostOp::Watch`]
pub fn watch(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    let token = u32::try_from(call.arg(1)).map_err(|_| Errno::INVAL)?;
    watch_as(&call.shared.readiness, &entry, call.arg(0), token)?;
    Ok(().into())
}

/// Registers a file, whose number of the guest's is `number`, if it is not registered under `token`.
pub fn watch_as(readiness: &Readiness, entry: &Entry, number: u64, token: u32) -> Result<(), Errno> {
    if entry.is_watched_as(token) {
        return Ok(());
    }
    let set = &readiness.set;
    let data = EventData::new_u64(number << NUMBER_SHIFT | u64::from(token));
    let flags = EventFlags::IN
        | EventFlags::OUT
        | EventFlags::RDHUP
        | EventFlags::PRI
        | EventFlags::ERR
        | EventFlags::HUP
        | EventFlags::ET;
    match epoll::add(set, entry, data, flags) {
        Err(Errno::EXIST) => epoll::modify(set, entry, data, flags)?,
        other => other?,
    }
    entry.is_watched_from_now_on(token);
    Ok(())
}

/// Ends the watching of a file that is being closed: a request in progress or a duplicate may keep the
/// open file, and with it the registration, alive.
pub fn forget(readiness: &Readiness, entry: &Entry) {
    if entry.is_watched() {
        // The only failure is that it is not in the set, which is what is wanted.
        let _absent = epoll::delete(&readiness.set, entry);
    }
}

/// Bytes of `struct pollfd`: fd, events, revents.
const POLLFD: usize = 8;

/// [`cloak_abi::hostop::HostOp::Poll`]
pub fn poll(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let count = usize::try_from(call.arg(0))
        .ok()
        .filter(|n| *n <= POLL_MOST)
        .ok_or(Errno::INVAL)?;
    let buffer = call.buffer().part(0, count * POLLFD)?;
    let bytes = &mut scratch.bytes;
    bytes.clear();
    bytes.resize(count * POLLFD, 0);
    buffer.read(bytes);
    let asked: Vec<Asked> = bytes
        .chunks_exact(POLLFD)
        .map(|record| Asked::parse(call, record))
        .collect();
    let mut known: Vec<PollFd<'_>> = asked.iter().filter_map(Asked::known).collect();
    rustix::event::poll(&mut known, Some(&AT_ONCE))?;
    let mut answers = known.iter().map(|fd| fd.revents().bits());
    let mut ready = 0usize;
    for (record, asked) in bytes.chunks_exact_mut(POLLFD).zip(&asked) {
        let revents = match asked {
            Asked::Ignored => 0,
            Asked::Unknown => PollFlags::NVAL.bits(),
            // There is room when what is kept for it has gone.
            Asked::Known(entry, _) if entry.flow().keeps() => {
                answers.next().unwrap_or(0) & !PollFlags::OUT.bits()
            }
            Asked::Known(..) => answers.next().unwrap_or(0),
        };
        ready += usize::from(revents != 0);
        record[6..8].copy_from_slice(&revents.to_ne_bytes());
    }
    buffer.write(bytes);
    Ok(ready.into())
}

/// One record of [`poll`].
#[derive(Debug)]
enum Asked {
    /// A negative descriptor.
    Ignored,
    /// A number that was not given out.
    Unknown,
    Known(Arc<Entry>, PollFlags),
}

impl Asked {
    fn parse(call: &Call<'_>, record: &[u8]) -> Self {
        let fd = i32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
        let events = u16::from_ne_bytes([record[4], record[5]]);
        let Ok(fd) = u64::try_from(fd) else {
            return Self::Ignored;
        };
        match call.shared.table.lookup(fd) {
            Ok(entry) => Self::Known(entry, PollFlags::from_bits_retain(events)),
            Err(_) => Self::Unknown,
        }
    }

    fn known(&self) -> Option<PollFd<'_>> {
        match self {
            Self::Known(entry, events) => Some(PollFd::from_borrowed_fd(entry.as_fd(), *events)),
            _ => None,
        }
    }
}

/// Whether a file is ready for `events`, without waiting.
pub fn is_ready(fd: BorrowedFd<'_>, events: PollFlags) -> Result<bool, Errno> {
    let mut fds = [PollFd::from_borrowed_fd(fd, events)];
    Ok(rustix::event::poll(&mut fds, Some(&AT_ONCE))? > 0)
}
