//! Connections of the context's clients, ahead of the program's calls.
//!
//! What a client sends is fetched before the program asks: the request waits at the OS service, and its answer says
//! at once that there is something and what. What the program sends is handed over without waiting for the answer:
//! what the socket has no room for the service keeps, and an error comes at the next call, as TCP's errors do.
//!
//! ```text
//!  Idle ──fetch──▶ Pending ──answer──▶ Held ──read to its end──▶ Idle
//!                     │ nothing left, error
//!                     └──────────────▶ End, Failed
//! ```
//!
//! Only connections that were accepted, and whose other end is not a socket of this context, are served so: to
//! programs that write at one end and look at the other at once, a socket that lags would be wrong. An [`Inbox`] is a
//! slot of the ring that stays taken; where few are left, or options are set that these would pass by, a connection
//! is [`Inbox::Off`] or stays `Idle`, and each call is asked of the host.

use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cloak_abi::hostop::HostOp;
use spin::Mutex;

use crate::arch;
use crate::errno::{Errno, SysResult};
use crate::fs::file::ready;
use crate::fs::hostlink::HostLink;
use crate::fs::readiness::HostReadiness;
use crate::host::{self, Answer, Answered, CAPACITY, Request};
use crate::sched::{self, Lock, clock};
use crate::user::Buf;

/// Slots that are left to requests that somebody waits for, by fetches and by deliveries.
pub const SPARE_FETCH: usize = 128;
const SPARE_DELIVER: usize = 64;
/// Most bytes of one write that is not waited for.
pub const DELIVER_MOST: usize = 64 << 10;
/// Most bytes of one connection on their way to the service.
const IN_FLIGHT_MOST: usize = 256 << 10;
/// How long the end of the context waits for clients that don't read, milliseconds.
const LAST_WAIT_MS: u64 = 5_000;

const SOL_SOCKET: u64 = 1;
const SO_LINGER: u64 = 13;

/// Rounds of questions after which a service that leaves something unanswered does so for ever.
const ROUNDS_MOST: u32 = 10_000;

/// Bytes of all connections on their way to the service.
static IN_FLIGHT: AtomicUsize = AtomicUsize::new(0);
/// Whether there ever were any.
static HAS_SENT: AtomicBool = AtomicBool::new(false);

/// What came from the client.
#[derive(Debug)]
enum Inbox {
    /// Nothing is fetched: each call asks the host.
    Off,
    /// The same until a fetch is begun.
    Idle,
    /// A fetch waits at the service.
    Pending,
    /// Bytes `[at, end)` of a slot's buffer.
    Held { request: Request, at: usize, end: usize },
    /// A reader has what was held.
    Read,
    /// No more will come.
    End,
    /// The connection is broken, and nobody was told yet.
    Failed(Errno),
}

#[derive(Debug, Default)]
struct Outbox {
    /// Bytes on their way to the service.
    in_flight: usize,
    /// The vCPU whose queue they are in: that of another would overtake them.
    vcpu: usize,
    /// The socket did not take all.
    is_full: bool,
    /// The program has ended its sending.
    is_shut: bool,
    failed: Option<Errno>,
}

/// One connection's two directions.
#[derive(Debug)]
pub struct Flow {
    number: u64,
    /// Not owned: its end is what ends a fetch that waits, and that owns this.
    link: Weak<HostLink>,
    readiness: Arc<HostReadiness>,
    inbox: Mutex<Inbox>,
    /// Held by whoever copies out of the inbox.
    reading: Lock<()>,
    outbox: Mutex<Outbox>,
    is_off: AtomicBool,
}

/// What a reader found.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// Bytes, or the end.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// The host has to be asked.
    Ask,
}

impl Flow {
    /// Of a connection. The first fetch is on its way at once.
    pub fn start(link: &Arc<HostLink>) -> Arc<Self> {
        let flow = Arc::new(Self {
            number: link.fd.number(),
            link: Arc::downgrade(link),
            readiness: link.readiness.clone(),
            inbox: Mutex::new(Inbox::Idle),
            reading: Lock::new(()),
            outbox: Mutex::default(),
            is_off: AtomicBool::new(false),
        });
        flow.fetch();
        flow
    }

    /// Begins a fetch, if none waits and nothing is held. Does not park.
    pub fn fetch(self: &Arc<Self>) {
        if self.is_off.load(Ordering::SeqCst) {
            return;
        }
        let mut inbox = self.inbox.lock();
        if !matches!(*inbox, Inbox::Idle) {
            return;
        }
        if let Some(request) = Request::spare(SPARE_FETCH) {
            *inbox = Inbox::Pending;
            let args = [
                self.number,
                CAPACITY as u64,
                u64::from(self.readiness.token),
                0,
                0,
                0,
            ];
            request.send_for(HostOp::Fetch, args, self.clone(), 0);
            if let Some(link) = self.link.upgrade() {
                link.is_watched();
            }
        }
    }

    /// Whether what can be read is known here, so that the host's word on it does not count.
    pub fn covers(&self) -> bool {
        !matches!(*self.inbox.lock(), Inbox::Off | Inbox::Idle)
    }

    /// Whether a read would find something.
    pub fn has_news(&self) -> bool {
        matches!(
            *self.inbox.lock(),
            Inbox::Held { .. } | Inbox::Read | Inbox::End | Inbox::Failed(_)
        )
    }

    /// Bytes that are here.
    pub fn held(&self) -> usize {
        match &*self.inbox.lock() {
            Inbox::Held { at, end, .. } => end - at,
            _ => 0,
        }
    }

    /// The error that broke the connection, once.
    pub fn take_error(&self) -> Option<Errno> {
        let mut inbox = self.inbox.lock();
        match *inbox {
            Inbox::Failed(error) => {
                // The host says from now on what follows an error.
                *inbox = Inbox::Off;
                Some(error)
            }
            _ => None,
        }
    }

    /// Bytes for `to`, which are left where they are with `peek`, and counted only with `discard`.
    ///
    /// # Errors
    /// EFAULT, and what broke the connection.
    pub fn take(self: &Arc<Self>, to: &mut Buf, peek: bool, discard: bool) -> SysResult<Taken> {
        let _reading = self.reading.lock();
        // What the host has said is there a fetch would bring too late for this call.
        if self.readiness.ready() & ready::IN == 0 {
            self.fetch();
        }
        let (request, at, end) = {
            let mut inbox = self.inbox.lock();
            match core::mem::replace(&mut *inbox, Inbox::Read) {
                Inbox::Held { request, at, end } => (request, at, end),
                other => {
                    let found = match other {
                        Inbox::Failed(error) if !peek => {
                            *inbox = Inbox::Off;
                            return Err(error);
                        }
                        Inbox::Failed(error) => Err(error),
                        Inbox::End => Ok(Taken::Bytes(0)),
                        Inbox::Pending => Ok(Taken::Nothing),
                        _ => Ok(Taken::Ask),
                    };
                    *inbox = other;
                    return found;
                }
            }
        };
        let len = (end - at).min(to.len());
        let copied = if discard {
            to.truncate(to.len() - len);
            Ok(len)
        } else {
            request.get_into(at, to, len)
        };
        let gone = match copied {
            Ok(len) if !peek => len,
            _ => 0,
        };
        if at + gone < end {
            *self.inbox.lock() = Inbox::Held {
                request,
                at: at + gone,
                end,
            };
        } else {
            *self.inbox.lock() = self.at_rest();
            drop(request);
            self.fetch();
        }
        Ok(Taken::Bytes(copied?))
    }

    fn at_rest(&self) -> Inbox {
        if self.is_off.load(Ordering::SeqCst) {
            Inbox::Off
        } else {
            Inbox::Idle
        }
    }

    /// From now on each read asks the host. What is here already comes first.
    ///
    /// # Errors
    /// Those of the OS side.
    pub fn stop_fetching(&self) -> SysResult<()> {
        self.is_off.store(true, Ordering::SeqCst);
        {
            let mut inbox = self.inbox.lock();
            if matches!(*inbox, Inbox::Idle) {
                *inbox = Inbox::Off;
            }
        }
        let end = || host::call(HostOp::Fetch, [self.number, 0, 0, 0, 0, 0]);
        let done = settle(end, || !matches!(*self.inbox.lock(), Inbox::Pending));
        self.readiness.suspect(ready::IN);
        done
    }

    /// Hands over `from` without waiting, if that can be. None where the host has to be asked.
    pub fn deliver(self: &Arc<Self>, from: &mut Buf) -> Option<SysResult<usize>> {
        let broken = ready::ERR | ready::HUP | ready::RDHUP;
        let known = self.readiness.ready();
        // What is kept is sent when the service sees room, which it does of what it watches.
        if !self.link.upgrade().is_some_and(|link| link.watching()) {
            return None;
        }
        if from.is_empty() || from.len() > DELIVER_MOST || known & broken != 0 || known & ready::OUT == 0 {
            return None;
        }
        {
            let mut outbox = self.outbox.lock();
            if let Some(error) = outbox.failed.take() {
                return Some(Err(error));
            }
            if outbox.is_shut || outbox.is_full || outbox.in_flight + from.len() > IN_FLIGHT_MOST {
                return None;
            }
        }
        if let Some(error) = self.take_error() {
            return Some(Err(error));
        }
        let mut request = Request::spare(SPARE_DELIVER)?;
        let len = match request.put_from(0, from, from.len()) {
            Ok(len) => len,
            Err(error) => return Some(Err(error)),
        };
        if let Err(error) = self.queue(len) {
            return Some(Err(error));
        }
        let args = [self.number, len as u64, 0, 0, 0, 0];
        request.send_for(HostOp::Deliver, args, self.clone(), len);
        Some(Ok(len))
    }

    /// Counts `len` bytes as on their way, when nothing of another vCPU's queue is. No thread leaves its vCPU between
    /// this and the submission.
    fn queue(&self, len: usize) -> SysResult<()> {
        loop {
            {
                let mut outbox = self.outbox.lock();
                let vcpu = arch::vcpu_index();
                if outbox.in_flight == 0 || outbox.vcpu == vcpu {
                    outbox.in_flight += len;
                    outbox.vcpu = vcpu;
                    IN_FLIGHT.fetch_add(len, Ordering::SeqCst);
                    HAS_SENT.store(true, Ordering::Relaxed);
                    return Ok(());
                }
            }
            self.settle()?;
        }
    }

    /// Waits until the service has all that was handed over: for what must not overtake it.
    ///
    /// # Errors
    /// EIO when it does not say so.
    pub fn settle(&self) -> SysResult<()> {
        settle(undelivered, || self.outbox.lock().in_flight == 0)
    }

    /// What is asked of the host is answered: there was room for all of a write.
    pub fn has_room(&self) {
        self.outbox.lock().is_full = false;
    }

    /// What broke the connection while nobody waited, once.
    pub fn take_delivery_error(&self) -> Option<Errno> {
        self.outbox.lock().failed.take()
    }

    /// The program has ended its sending.
    pub fn shut(&self) {
        self.outbox.lock().is_shut = true;
    }

    /// The program closes it: what was handed over comes first. As on Linux, a client learns by a reset that what it
    /// sent was not read.
    pub fn close(&self) {
        // Nobody is left who could be told of an error, here and below.
        let _ = self.settle();
        if self.held() > 0 {
            let mut request = Request::new();
            request.put(0, &[1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat());
            let _ = request.call(HostOp::SetSockOpt, [self.number, SOL_SOCKET, SO_LINGER, 8, 0, 0]);
        }
        self.is_off.store(true, Ordering::SeqCst);
        let held = core::mem::replace(&mut *self.inbox.lock(), Inbox::Off);
        drop(held);
    }

    /// As if so many bytes were on their way.
    #[cfg(test)]
    pub fn pretend_in_flight(&self, bytes: usize) {
        self.outbox.lock().in_flight = bytes;
    }

    fn fetched(&self, request: Request, answer: Answer) {
        let mut inbox = self.inbox.lock();
        if !matches!(*inbox, Inbox::Pending) {
            return; // closed meanwhile
        }
        *inbox = match answer.len(CAPACITY) {
            Ok(0) => Inbox::End,
            Ok(end) => Inbox::Held { request, at: 0, end },
            Err(Errno::ECANCELED) => {
                self.is_off.store(true, Ordering::SeqCst);
                Inbox::Off
            }
            Err(error) => Inbox::Failed(error),
        };
        let is_off = matches!(*inbox, Inbox::Off);
        drop(inbox);
        if is_off {
            self.readiness.suspect(ready::IN);
        } else {
            self.readiness.report(ready::IN);
        }
    }

    fn delivered(&self, len: usize, answer: Answer) {
        let mut outbox = self.outbox.lock();
        outbox.in_flight = outbox.in_flight.saturating_sub(len);
        match answer.len(len) {
            Ok(taken) => outbox.is_full |= taken < len,
            Err(error) => outbox.failed = Some(error),
        }
        drop(outbox);
        IN_FLIGHT.fetch_sub(len, Ordering::SeqCst);
    }
}

impl Answered for Flow {
    fn answered(&self, note: usize, request: Request, answer: Answer) {
        match note {
            0 => self.fetched(request, answer),
            len => {
                drop(request);
                self.delivered(len, answer);
            }
        }
    }
}

fn undelivered() -> SysResult<u64> {
    host::call(HostOp::Undelivered, [0; 6])
}

/// Asks the service for `something` until it has answered what went before.
fn settle(something: impl Fn() -> SysResult<u64>, done: impl Fn() -> bool) -> SysResult<()> {
    for _ in 0..ROUNDS_MOST {
        if done() {
            return Ok(());
        }
        // Its answer comes when the service has been through this queue, and when it has been so twice, through all.
        something()?;
        host::poll_every();
        sched::yield_now();
    }
    Err(Errno::EIO)
}

/// The context ends: what programs have sent goes out first, as far as clients take it within some seconds.
pub fn finish() {
    // The service that does not answer keeps the context from nothing but its answers.
    let _ = settle(undelivered, || IN_FLIGHT.load(Ordering::SeqCst) == 0);
    let until = clock::monotonic() + LAST_WAIT_MS * 1_000_000;
    let keeps = || undelivered().is_ok_and(|bytes| bytes > 0);
    while HAS_SENT.load(Ordering::Relaxed) && keeps() && clock::monotonic() < until {
        sched::park(clock::deadline_in(1_000_000));
    }
}
