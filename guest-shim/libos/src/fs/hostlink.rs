//! A host descriptor with its readiness, and asking the host about what is in doubt.
//!
//! Watching starts when somebody first has to wait or polls: a file that is only read and written never
//! costs the request.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use cloak_abi::hostop::HostOp;

use super::OpenFile;
use super::fd::PositionLock;
use super::file::ready;
use super::hostfd::HostFd;
use super::readiness::HostReadiness;
use crate::errno::SysResult;
use crate::host::{self, Request};

/// Files asked about in one request.
const BATCH: usize = 4096;
/// Bytes of `struct pollfd`.
const POLLFD: usize = 8;
const POLLNVAL: u32 = 0x20;

/// The descriptor and what is known of it.
#[derive(Debug)]
pub struct HostLink {
    /// The host's number.
    pub fd: HostFd,
    /// What was reported.
    pub readiness: Arc<HostReadiness>,
    /// 1 once the service reports. A lock that parks: no thread may rely on reports before they begin.
    watched: PositionLock,
    watching: AtomicBool,
}

impl HostLink {
    /// A link whose bits in `initial` count as ready, with doubt.
    #[must_use]
    pub fn new(fd: HostFd, initial: u32) -> Arc<Self> {
        Arc::new(Self {
            fd,
            readiness: HostReadiness::register(initial),
            watched: PositionLock::default(),
            watching: AtomicBool::new(false),
        })
    }

    /// Has the service report from now on (what is ready now is reported at once). Parks the first time.
    ///
    /// # Errors
    /// Those of the OS side.
    pub fn watch(&self) -> SysResult<()> {
        if self.watching() {
            return Ok(());
        }
        self.watched.with(|watched| {
            if *watched == 0 {
                let args = [self.fd.number(), u64::from(self.readiness.token), 0, 0, 0, 0];
                host::call(HostOp::Watch, args)?;
                *watched = 1;
                self.watching.store(true, Ordering::Release);
            }
            Ok(())
        })
    }

    /// The service reports from its next request about the file on, by itself.
    pub fn is_watched(&self) {
        self.watching.store(true, Ordering::Release);
    }

    /// Whether the service reports: then what is not known to be ready is not.
    #[must_use]
    pub fn watching(&self) -> bool {
        self.watching.load(Ordering::Acquire)
    }

    /// Adds to `doubts` what `events` of this file the host must be asked about before `file` shows them.
    pub fn doubts(self: &Arc<Self>, file: &OpenFile, events: u32, doubts: &mut Vec<Doubt>) {
        let snapshot = self.readiness.snapshot();
        let known = if file.nonblocking() {
            self.readiness.doubtful()
        } else {
            self.readiness.ready()
        };
        let bits = known & (events | also(events));
        if bits != 0 {
            doubts.push(Doubt {
                link: self.clone(),
                snapshot,
                bits,
            });
        }
    }
}

/// Bits that the program's names for `events` stand for on the host, and those that nobody asks for.
fn also(events: u32) -> u32 {
    let read = if events & ready::RDNORM != 0 { ready::IN } else { 0 };
    let write = if events & ready::WRNORM != 0 {
        ready::OUT
    } else {
        0
    };
    read | write | ready::ERR | ready::HUP
}

/// Whether something was done to a file of the host that may have made another one ready.
static EFFECTS: AtomicBool = AtomicBool::new(false);

/// Notes that what was just done may have made another file ready: a socket at the other end of the host's loopback.
pub fn has_effects() {
    EFFECTS.store(true, Ordering::Release);
}

/// For who looks without waiting and found nothing: has the service report what is ready by now, if this program itself may
/// have made something so since the last time. Whether it was asked. By itself a report may come a moment after the call that
/// caused it, when a single look, which on Linux is sure to see it, is over.
///
/// # Errors
/// Those of the OS side.
pub fn catch_up() -> SysResult<bool> {
    if !EFFECTS.swap(false, Ordering::AcqRel) {
        return Ok(false);
    }
    host::call(HostOp::Poll, [0; 6])?;
    super::poll::take_reports();
    host::let_events_pass();
    Ok(true)
}

/// Something that the host is to be asked about.
#[derive(Debug)]
pub struct Doubt {
    link: Arc<HostLink>,
    snapshot: u64,
    bits: u32,
}

/// Asks the host about all of `doubts`, in one request where they fit, and remembers the answers.
///
/// # Errors
/// Those of the OS side.
pub fn verify(doubts: &[Doubt]) -> SysResult<()> {
    for part in doubts.chunks(BATCH) {
        let mut bytes = vec![0; part.len() * POLLFD];
        for (doubt, record) in part.iter().zip(bytes.chunks_exact_mut(POLLFD)) {
            record[..4].copy_from_slice(&(doubt.link.fd.number() as u32).to_ne_bytes());
            record[4..6].copy_from_slice(&(doubt.bits as u16).to_ne_bytes());
        }
        let mut request = Request::new();
        request.put(0, &bytes);
        request
            .call(HostOp::Poll, [part.len() as u64, 0, 0, 0, 0, 0])
            .len(part.len())?;
        request.get(0, &mut bytes);
        for (doubt, record) in part.iter().zip(bytes.chunks_exact(POLLFD)) {
            doubt.settle(u32::from(u16::from_ne_bytes([record[6], record[7]])));
        }
    }
    Ok(())
}

impl Doubt {
    fn settle(&self, answer: u32) {
        // A descriptor that the service does not know (any more) is an error to whoever reads it.
        let lost = if answer & POLLNVAL != 0 { ready::ERR } else { 0 };
        let found = (answer | lost) & (self.bits | ready::ERR | ready::HUP);
        self.link.readiness.confirm(self.snapshot, self.bits, found);
    }
}
