//! Host files that may make a reader or writer wait: terminals, FIFOs, character devices, standard streams.
//!
//! The service never waits; it says EAGAIN and reports readiness later ([`super::hostlink`]). Some files can't
//! be watched because they never make anybody wait (`/dev/null` of the host): those are always ready.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, Ordering};

use cloak_abi::hostop::HostOp;

use super::file::{File, Stat, ready};
use super::hostfd::HostFd;
use super::hostlink::{Doubt, HostLink};
use super::{OpenFile, hostops, jobs, signals, tty};
use crate::errno::{Errno, SysResult};
use crate::host::{Answer, CAPACITY, Request};
use crate::sched::WaitQueue;
use crate::user::Buf;

const SIGTTIN: u64 = 21;
const SIGTTOU: u64 = 22;
const READABLE: u32 = ready::IN | ready::HUP | ready::ERR | ready::RDHUP;
const WRITABLE: u32 = ready::OUT | ready::HUP | ready::ERR;

/// An open stream.
#[derive(Debug)]
pub struct HostStream {
    link: Arc<HostLink>,
    /// The service said that it can't be watched.
    always_ready: AtomicBool,
}

impl HostStream {
    /// A stream that was opened.
    #[must_use]
    pub fn new(fd: HostFd) -> Self {
        Self {
            link: HostLink::new(fd, ready::IN | ready::OUT),
            always_ready: AtomicBool::new(false),
        }
    }

    /// Has readiness reported from now on, where the host can.
    fn watch(&self) -> SysResult<()> {
        match self.link.watch() {
            Err(Errno::EPERM) => {
                self.always_ready.store(true, Ordering::Relaxed);
                Ok(())
            }
            result => result,
        }
    }

    /// Runs `attempt` until it gives something else than EAGAIN.
    fn retry(&self, file: &OpenFile, bits: u32, mut attempt: impl FnMut() -> Answer) -> SysResult<Answer> {
        let readiness = &self.link.readiness;
        let mut watched = false;
        let mut stopped = false;
        loop {
            let snapshot = readiness.snapshot();
            let answer = attempt();
            match answer.ok() {
                Err(Errno::EAGAIN) => {
                    readiness.clear(snapshot, bits);
                    if file.nonblocking() || self.always_ready.load(Ordering::Relaxed) {
                        return Err(Errno::EAGAIN);
                    }
                    if watched {
                        readiness
                            .queue
                            .wait(u64::MAX, || (readiness.ready() & bits != 0).then_some(Ok(())))?;
                    } else {
                        // What came before the watch began may not be reported: try once more.
                        self.watch()?;
                        watched = true;
                    }
                }
                // Another job has the terminal: on Linux we would be stopped by this signal.
                Err(Errno::EIO) if !stopped && matches!(answer.extra, SIGTTIN | SIGTTOU) => {
                    stopped = true;
                    crate::host::call(HostOp::Stop, [answer.extra, 0, 0, 0, 0, 0])?;
                }
                Err(Errno::EPIPE) => return Err(signals::broken_pipe()),
                Err(e) => return Err(e),
                Ok(_) => {
                    readiness.doubt(bits);
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
            let args = [self.link.fd.number(), left as u64, 0, 0, 0, 0];
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
}

impl File for HostStream {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        // Only for who may be in the background: the second look is a request.
        if jobs::in_background(signals::job()) && tty::is_controlling(&self.link.fd) {
            jobs::keep_out(jobs::SIGTTIN, Err(Errno::EIO))?;
        }
        let want = to.len().min(CAPACITY);
        let mut request = Request::new();
        let args = [self.link.fd.number(), want as u64, 0, 0, 0, 0];
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
        hostops::fstat(&self.link.fd)
    }

    fn poll(&self) -> u32 {
        let always = self.always_ready.load(Ordering::Relaxed);
        let bits = if always {
            ready::IN | ready::OUT
        } else {
            self.link.readiness.ready()
        };
        let also = |bit, normal| if bits & bit != 0 { normal } else { 0 };
        bits | also(ready::IN, ready::RDNORM) | also(ready::OUT, ready::WRNORM)
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        (!self.always_ready.load(Ordering::Relaxed)).then_some(&self.link.readiness.queue)
    }

    fn prepare_wait(&self) -> SysResult<()> {
        self.watch()
    }

    fn doubts(&self, file: &OpenFile, events: u32, doubts: &mut Vec<Doubt>) {
        if !self.always_ready.load(Ordering::Relaxed) {
            self.link.doubts(file, events, doubts);
        }
    }

    fn ioctl(&self, file: &OpenFile, request: u32, argument: u64) -> SysResult {
        let _ = file;
        tty::ioctl(&self.link.fd, request, argument)
    }

    fn host_fd(&self) -> Option<u32> {
        u32::try_from(self.link.fd.number()).ok()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
