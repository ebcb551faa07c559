//! Host files that may make a reader or writer wait: terminals, FIFOs, character devices, standard streams.
//!
//! The service never waits; it says EAGAIN and reports readiness later. What was reported is a promise only
//! until the next read or write, so [`File::poll`] asks the host once more after one ([`HostStream::stale`]):
//! a program that polls, reads all there is and polls again must not be told of data that is gone.

use alloc::sync::Arc;
use alloc::vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, Ordering};

use cloak_abi::hostop::HostOp;

use super::fd::PositionLock;
use super::file::{File, Stat, ready};
use super::hostfd::HostFd;
use super::readiness::HostReadiness;
use super::{OpenFile, hostops, tty};
use crate::errno::{Errno, SysResult};
use crate::host::{Answer, CAPACITY, Request};
use crate::sched::WaitQueue;
use crate::user::Buf;

const SIGTTIN: u64 = 21;
const SIGTTOU: u64 = 22;
const READABLE: u32 = ready::IN | ready::HUP | ready::ERR | ready::RDHUP;
const WRITABLE: u32 = ready::OUT | ready::HUP | ready::ERR;

/// Values of [`HostStream::watched`].
const UNKNOWN: u64 = 0;
const WATCHED: u64 = 1;
const ALWAYS_READY: u64 = 2;

/// An open stream.
#[derive(Debug)]
pub struct HostStream {
    fd: HostFd,
    readiness: Arc<HostReadiness>,
    watched: PositionLock,
    stale: AtomicBool,
}

impl HostStream {
    /// A stream that was opened.
    #[must_use]
    pub fn new(fd: HostFd) -> Self {
        Self {
            fd,
            readiness: HostReadiness::register(0),
            watched: PositionLock::default(),
            stale: AtomicBool::new(true),
        }
    }

    /// Whether readiness is reported; asks for it the first time. False: it never makes anybody wait.
    fn watch(&self) -> bool {
        self.watched.with(|state| {
            if *state == UNKNOWN {
                let token = u64::from(self.readiness.token);
                let result = hostops::plain(HostOp::Watch, &self.fd, token, 0, 0);
                *state = if result.is_ok() { WATCHED } else { ALWAYS_READY };
            }
            *state == WATCHED
        })
    }

    /// Waits until something of `bits` was reported since `snapshot`.
    fn wait(&self, snapshot: u64, bits: u32) -> SysResult<()> {
        self.readiness.clear(snapshot, bits);
        self.readiness.queue.wait(u64::MAX, || {
            (self.readiness.ready() & bits != 0).then_some(Ok(()))
        })
    }

    /// Runs `attempt` until it gives something else than EAGAIN.
    fn retry(&self, file: &OpenFile, bits: u32, mut attempt: impl FnMut() -> Answer) -> SysResult<Answer> {
        let mut stopped = false;
        loop {
            let snapshot = self.readiness.snapshot();
            let answer = attempt();
            match answer.ok() {
                Err(Errno::EAGAIN) if file.nonblocking() => {
                    self.readiness.clear(snapshot, bits);
                    return Err(Errno::EAGAIN);
                }
                // What was there before the watch began may not be reported: try once more.
                Err(Errno::EAGAIN) if self.watched.with(|w| *w) == UNKNOWN => {
                    if !self.watch() {
                        return Err(Errno::EAGAIN);
                    }
                }
                Err(Errno::EAGAIN) => self.wait(snapshot, bits)?,
                // Another job has the terminal: on Linux we would be stopped by this signal.
                Err(Errno::EIO) if !stopped && matches!(answer.extra, SIGTTIN | SIGTTOU) => {
                    stopped = true;
                    crate::host::call(HostOp::Stop, [answer.extra, 0, 0, 0, 0, 0])?;
                }
                Err(e) => return Err(e),
                Ok(_) => {
                    self.stale.store(true, Ordering::Release);
                    return Ok(answer);
                }
            }
        }
    }

    /// Writes the first `len` bytes of the request's buffer, all of them when it may wait.
    fn write_out(&self, file: &OpenFile, request: &mut Request, len: usize) -> SysResult<usize> {
        let mut done = 0;
        loop {
            let left = len - done;
            let args = [self.fd.number(), left as u64, 0, 0, 0, 0];
            let wrote = match self.retry(file, WRITABLE, || request.call(HostOp::Write, args)) {
                Ok(answer) => answer.len(left)?,
                Err(_) if done > 0 => return Ok(done),
                Err(e) => return Err(e),
            };
            done += wrote;
            if done == len || wrote == 0 {
                return Ok(done);
            }
            // Rare (a full pipe): what is left moves to the front of the buffer.
            let mut rest = vec![0; len - done];
            request.get(wrote, &mut rest);
            request.put(0, &rest);
        }
    }

    fn refresh(&self) {
        let snapshot = self.readiness.snapshot();
        let wanted = ready::IN | ready::PRI | ready::OUT | ready::RDHUP;
        let mut request = Request::new();
        let mut entry = [0; 8];
        entry[..4].copy_from_slice(&(self.fd.number() as u32).to_ne_bytes());
        entry[4..6].copy_from_slice(&(wanted as u16).to_ne_bytes());
        request.put(0, &entry);
        if request.call(HostOp::Poll, [1, 0, 0, 0, 0, 0]).ok().is_err() {
            return;
        }
        let entry = request.get_array::<8>(0);
        let bits = u32::from(u16::from_ne_bytes([entry[6], entry[7]])) & (wanted | ready::ERR | ready::HUP);
        self.stale.store(false, Ordering::Release);
        self.readiness.clear(snapshot, !bits);
        if bits & !self.readiness.ready() != 0 {
            self.readiness.report(bits);
        }
    }
}

impl File for HostStream {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        let want = to.len().min(CAPACITY);
        let mut request = Request::new();
        let args = [self.fd.number(), want as u64, 0, 0, 0, 0];
        let got = self
            .retry(file, READABLE, || request.call(HostOp::Read, args))?
            .len(want)?;
        request.get_into(0, to, got)
    }

    fn write(&self, file: &OpenFile, from: &mut Buf) -> SysResult<usize> {
        let mut request = Request::new();
        let mut done = 0;
        loop {
            let step = request.put_from(0, from, from.len().min(CAPACITY));
            let step = step.and_then(|len| Ok((len, self.write_out(file, &mut request, len)?)));
            match step {
                Ok((len, wrote)) => {
                    done += wrote;
                    if wrote < len || from.is_empty() {
                        return Ok(done);
                    }
                }
                Err(e) if done == 0 => return Err(e),
                Err(_) => return Ok(done),
            }
        }
    }

    fn stat(&self) -> SysResult<Stat> {
        hostops::fstat(&self.fd)
    }

    fn poll(&self) -> u32 {
        if !self.watch() {
            return ready::IN | ready::OUT | ready::RDNORM | ready::WRNORM;
        }
        if self.stale.load(Ordering::Acquire) {
            self.refresh();
        }
        let bits = self.readiness.ready();
        let also = |bit, normal| if bits & bit != 0 { normal } else { 0 };
        bits | also(ready::IN, ready::RDNORM) | also(ready::OUT, ready::WRNORM)
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        self.watch().then_some(&self.readiness.queue)
    }

    fn ioctl(&self, file: &OpenFile, request: u32, argument: u64) -> SysResult {
        let _ = file;
        tty::ioctl(&self.fd, request, argument)
    }

    fn sync(&self, _data_only: bool) -> SysResult<()> {
        Err(Errno::EINVAL)
    }

    fn host_fd(&self) -> Option<u32> {
        u32::try_from(self.fd.number()).ok()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
