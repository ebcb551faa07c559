//! Further processes in a running context: the monitor's half of [`cloak_abi::exec`].
//!
//! An unsafe island: it refers to the head, which lies in guest RAM. All of it are atomics, as the guest writes there at any
//! time; what stands there is a number or a text for a person, whatever the guest makes of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cloak_abi::config::{Tag, Writer};
use cloak_abi::exec::{EXECS, ExecPage, HEAD_LEN, LEN, REQUEST_MAX, exec_flags};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::Outcome;
use super::border::eventfd;
use super::error::VmError;
use super::signals::{Reach, notify};
use crate::os::handed::{self, Streams};

/// How long the libos may take to take a request over. It does so at its next look outside, a time slice away at most; a
/// machine that swaps is slower.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks, and between two calls to look.
const LOOK: Duration = Duration::from_millis(1);
const CALL: Duration = Duration::from_millis(50);

/// Why no process is started.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The manifest fixes what runs.
    #[error(
        "the manifest of this context does not let its owner start further programs (program.exec): what runs is what it says"
    )]
    Forbidden,
    /// The context has ended, or ends.
    #[error("the context has ended")]
    Ended,
    /// All slots are in use.
    #[error("{EXECS} such programs run in the context already; wait for one to end")]
    TooMany,
    /// The request does not fit.
    #[error("arguments and environment are too long: at most {REQUEST_MAX} bytes")]
    TooLong,
    /// The OS service does not take the streams.
    #[error("handing the streams to the OS service: {0}")]
    Streams(rustix::io::Errno),
    /// The guest does not look.
    #[error("the context does not take the request; does it still run?")]
    Silent,
}

/// A context's further processes.
#[derive(Debug)]
pub struct Execs {
    head: NonNull<u8>,
    allowed: bool,
    reach: Reach,
    /// To the OS service.
    streams: OwnedFd,
    tickets: AtomicU64,
    /// Which slots are in use.
    used: [AtomicBool; EXECS],
    /// Rung when the process of the slot has ended.
    bells: Vec<OwnedFd>,
    /// Held by who writes a request.
    buffer: Mutex<()>,
    closed: AtomicBool,
}

// SAFETY: the head and the buffer behind it are reached through atomics, and by raw copies under the lock of the buffer.
unsafe impl Send for Execs {}
// SAFETY: as above.
unsafe impl Sync for Execs {}

impl Execs {
    /// `at`: guest-physical address of the head. `allowed`: whether the owner may start anything.
    ///
    /// # Errors
    /// When there are no descriptors left, or the head is not in guest RAM.
    pub fn new(
        memory: &GuestMemoryMmap,
        at: u64,
        allowed: bool,
        reach: Reach,
        streams: OwnedFd,
    ) -> Result<Self, VmError> {
        let inside = memory.check_range(GuestAddress(at), LEN as usize);
        let head = memory
            .get_host_address(GuestAddress(at))
            .ok()
            .and_then(NonNull::new);
        let head = head.filter(|_| inside).ok_or(VmError::Shim(
            "the place for further processes is outside guest RAM",
        ))?;
        Ok(Self {
            head,
            allowed,
            reach,
            streams,
            tickets: AtomicU64::new(1),
            used: [const { AtomicBool::new(false) }; EXECS],
            bells: (0..EXECS).map(|_| eventfd()).collect::<Result<_, _>>()?,
            buffer: Mutex::new(()),
            closed: AtomicBool::new(false),
        })
    }

    fn page(&self) -> &ExecPage {
        // SAFETY: in guest RAM, which is never unmapped, and aligned to a page; all fields are atomics.
        unsafe { self.head.cast::<ExecPage>().as_ref() }
    }

    /// Whether the owner may start anything.
    pub fn is_allowed(&self) -> bool {
        self.allowed
    }

    /// Whether the context has ended.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// A vCPU says that the process of this slot has ended.
    ///
    /// # Errors
    /// For a slot that there is none of.
    pub fn ended(&self, slot: u32) -> Result<(), VmError> {
        let bell = self
            .bells
            .get(slot as usize)
            .ok_or(VmError::Shim("the end of a process of no slot"))?;
        ring(bell);
        Ok(())
    }

    /// The context has ended, and with it all processes.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.bells.iter().for_each(ring);
    }

    /// Asks for one more process. `records` are what its libos reads of it but for [`Tag::Exec`].
    ///
    /// # Errors
    /// [`ExecError`].
    pub fn start(
        &self,
        records: &[u8],
        terminal: Option<[u16; 2]>,
        streams: &Streams,
    ) -> Result<Running<'_>, ExecError> {
        if !self.allowed {
            return Err(ExecError::Forbidden);
        }
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let [rows, columns] = terminal.unwrap_or_default().map(u64::from);
        let flags = if terminal.is_some() {
            exec_flags::TERMINAL
        } else {
            0
        };
        let mut head = Writer::default();
        head.numbers(Tag::Exec, &[flags, ticket, rows, columns]);
        let request = [head.finish(), records.to_vec()].concat();
        if request.len() > REQUEST_MAX {
            return Err(ExecError::TooLong);
        }
        let running = self.take_slot()?;
        handed::send(self.streams.as_fd(), ticket, streams).map_err(ExecError::Streams)?;
        self.hand_over(running.slot, &request)?;
        Ok(running)
    }

    fn take_slot(&self) -> Result<Running<'_>, ExecError> {
        let free = |used: &AtomicBool| !used.swap(true, Ordering::SeqCst);
        let slot = self.used.iter().position(free).ok_or(ExecError::TooMany)?;
        let place = &self.page().slots[slot];
        for word in [&place.signals, &place.window, &place.status, &place.message_len] {
            word.store(0, Ordering::Relaxed);
        }
        drain(&self.bells[slot]);
        Ok(Running { execs: self, slot })
    }

    /// Leaves the request where the libos finds it, and waits until it has taken it.
    fn hand_over(&self, slot: usize, request: &[u8]) -> Result<(), ExecError> {
        let _turn = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let page = self.page();
        // SAFETY: the buffer behind the head, whose bytes fit. The guest reads it only once `asked` is set.
        unsafe {
            let to = self.head.as_ptr().add(HEAD_LEN);
            std::ptr::copy_nonoverlapping(request.as_ptr(), to, request.len());
        }
        page.len.store(request.len() as u32, Ordering::Relaxed);
        page.asked.store(slot as u32 + 1, Ordering::SeqCst);
        let begin = Instant::now();
        let mut called: Option<Instant> = None;
        while page.asked.load(Ordering::SeqCst) != 0 {
            if self.is_closed() {
                return Err(ExecError::Ended);
            }
            if begin.elapsed() > PATIENCE {
                page.asked.store(0, Ordering::SeqCst);
                return Err(ExecError::Silent);
            }
            if called.is_none_or(|at| at.elapsed() > CALL) {
                notify(&self.reach.shared, &self.reach.handles);
                called = Some(Instant::now());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// A process that the owner started. Its slot is free again when this is dropped, which is to be after its end.
#[derive(Debug)]
pub struct Running<'e> {
    execs: &'e Execs,
    slot: usize,
}

impl Running<'_> {
    /// Readable when there is something to look at: [`Running::outcome`].
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.execs.bells[self.slot].as_fd()
    }

    /// How it ended, if it has.
    pub fn outcome(&self) -> Option<Result<Outcome, ExecError>> {
        drain(&self.execs.bells[self.slot]);
        let place = &self.execs.page().slots[self.slot];
        let status = place.status.load(Ordering::Acquire);
        let code = status as u8;
        match status >> 32 {
            1 => Some(Ok(Outcome::Exited(code))),
            2 => Some(Ok(Outcome::Signalled(code))),
            3 => Some(Ok(Outcome::Refused(code, self.message()))),
            _ => self.execs.is_closed().then_some(Err(ExecError::Ended)),
        }
    }

    fn message(&self) -> String {
        let place = &self.execs.page().slots[self.slot];
        let words = place.message.iter();
        let bytes: Vec<u8> = words
            .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
            .collect();
        let len = (place.message_len.load(Ordering::Relaxed) as usize).min(bytes.len());
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }

    /// Sends it a signal, 1 to 64.
    pub fn signal(&self, signal: u32) {
        let place = &self.execs.page().slots[self.slot];
        if let Some(bit) = signal.checked_sub(1).and_then(|n| 1u64.checked_shl(n)) {
            place.signals.fetch_or(bit, Ordering::SeqCst);
            self.call();
        }
    }

    /// Its terminal has this size now.
    pub fn resize(&self, [rows, columns]: [u16; 2]) {
        let word = u64::from(rows) | u64::from(columns) << 16;
        let place = &self.execs.page().slots[self.slot];
        place.window.store(word, Ordering::Relaxed);
        self.call();
    }

    fn call(&self) {
        self.execs.page().news.fetch_or(1 << self.slot, Ordering::SeqCst);
        notify(&self.execs.reach.shared, &self.execs.reach.handles);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.execs.used[self.slot].store(false, Ordering::SeqCst);
    }
}

fn ring(bell: &OwnedFd) {
    // An eventfd takes a one unless it is full, and then it is rung as it is.
    let _full = rustix::io::write(bell, &1u64.to_ne_bytes());
}

fn drain(bell: &OwnedFd) {
    // Non-blocking: nothing to take is nothing to drain.
    let _empty = rustix::io::read(bell, &mut [0u8; 8]);
}
