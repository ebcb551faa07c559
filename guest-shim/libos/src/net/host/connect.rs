//! Making connections: to others, and from them.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use cloak_abi::hostop::HostOp;

use super::origin::{self, Connected};
use super::{HostSocket, answers, phase};
use crate::errno::{Errno, SysResult};
use crate::fs::file::ready;
use crate::fs::hostfd::HostFd;
use crate::fs::readiness::REPORTED;
use crate::fs::{File, OpenFile};
use crate::host::Request;
use crate::net::address::{Address, family};
use crate::net::socket::waited;
use crate::sched::clock;

const SOL_SOCKET: u64 = 1;
const SO_ERROR: u64 = 4;

impl HostSocket {
    /// Connects; `directory` is the host's for a path in `address`.
    pub(crate) fn connect_to(&self, file: &OpenFile, address: &Address, directory: u64) -> SysResult<()> {
        let deadline = self.timeouts.send_deadline();
        let dissolves = address.family() == family::UNSPEC;
        let idle = self.phase() == phase::IDLE;
        if idle {
            // What an attempt before this one left behind.
            self.link
                .readiness
                .clear(self.link.readiness.snapshot(), REPORTED);
        }
        if !dissolves && self.is_stream() {
            *self.connected.lock() = Connected::to(address);
        }
        loop {
            let snapshot = self.link.readiness.snapshot();
            match self.ask_connect(address, directory) {
                Ok(()) if dissolves => return self.dissolved(),
                Ok(()) => return self.connected(),
                Err(Errno::EINPROGRESS) => {
                    self.phase.store(phase::CONNECTING, Ordering::SeqCst);
                    // What is ready by now is reported at once.
                    self.link.watch()?;
                    return self.await_connection(file, snapshot, Errno::EINPROGRESS, deadline);
                }
                // A call that a signal interrupted, made again.
                Err(Errno::EALREADY) if self.phase() == phase::CONNECTING => {
                    return self.await_connection(file, snapshot, Errno::EALREADY, deadline);
                }
                // A Unix listener whose queue is full makes no edge for us.
                Err(Errno::EAGAIN) if self.domain == family::UNIX && !file.nonblocking() => pause(deadline)?,
                Err(error) => return Err(error),
            }
        }
    }

    fn ask_connect(&self, address: &Address, directory: u64) -> SysResult<()> {
        let mut request = Request::new();
        request.put(0, address.bytes());
        let args = [self.fd(), address.bytes().len() as u64, directory, 0, 0, 0];
        request.call(HostOp::Connect, args).ok()?;
        Ok(())
    }

    fn connected(&self) -> SysResult<()> {
        self.link.readiness.suspect(ready::IN | ready::OUT);
        self.enter(phase::CONNECTED)
    }

    fn dissolved(&self) -> SysResult<()> {
        if self.is_stream() {
            self.phase.store(phase::IDLE, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Waits for the end of an attempt that the host has begun; `otherwise` is for who may not wait.
    fn await_connection(
        &self,
        file: &OpenFile,
        snapshot: u64,
        otherwise: Errno,
        deadline: u64,
    ) -> SysResult<()> {
        if file.nonblocking() {
            return Err(otherwise);
        }
        let ends = ready::OUT | ready::ERR | ready::HUP;
        let waiting = self
            .link
            .readiness
            .wait_after(snapshot, ready::OUT, ends, deadline);
        waiting.map_err(|e| {
            if e == Errno::ETIMEDOUT {
                otherwise
            } else {
                waited(e, deadline)
            }
        })?;
        match self.take_error()? {
            None => self.connected(),
            Some(error) => {
                self.phase.store(phase::IDLE, Ordering::SeqCst);
                Err(error)
            }
        }
    }

    /// SO_ERROR.
    pub(super) fn take_error(&self) -> SysResult<Option<Errno>> {
        let mut request = Request::new();
        let answer = request.call(HostOp::GetSockOpt, [self.fd(), SOL_SOCKET, SO_ERROR, 4, 0, 0]);
        answer.ok()?;
        let number = i32::from_ne_bytes(request.get_array(0));
        self.link.readiness.doubt(REPORTED);
        match number {
            0 => Ok(None),
            1..=4095 => Ok(Errno::check(-i64::from(number)).err()),
            _ => Err(Errno::EIO),
        }
    }

    /// The result of a non-blocking attempt shows in SO_ERROR, and from then on the socket is what it became.
    pub(super) fn settle_phase(&self, failed: bool) {
        let to = if failed { phase::IDLE } else { phase::CONNECTED };
        if failed || self.link.readiness.ready() & ready::OUT != 0 {
            // Only an attempt can be settled.
            let _ = self
                .phase
                .compare_exchange(phase::CONNECTING, to, Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    /// accept
    pub(super) fn take_connection(&self, file: &OpenFile) -> SysResult<(Arc<dyn File>, Option<Address>)> {
        let deadline = self.timeouts.receive_deadline();
        loop {
            let snapshot = self.link.readiness.snapshot();
            match self.ask_accept() {
                Ok((socket, from)) => return Ok((socket, from)),
                Err(Errno::EAGAIN) => self.nothing_yet(file, snapshot, ready::IN, deadline)?,
                Err(error) => return Err(error),
            }
        }
    }

    /// A connection that has come, if one has.
    pub(crate) fn take_waiting(&self) -> SysResult<Option<(Arc<Self>, Option<Address>)>> {
        let snapshot = self.link.readiness.snapshot();
        match self.ask_accept() {
            Ok(taken) => Ok(Some(taken)),
            Err(Errno::EAGAIN) => {
                self.link.readiness.clear(snapshot, ready::IN);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn ask_accept(&self) -> SysResult<(Arc<Self>, Option<Address>)> {
        let mut request = Request::new();
        let answer = request.call(HostOp::Accept, [self.fd(), 0, 0, 0, 0, 0]);
        // First of all it has an owner, so that it is closed whatever comes.
        let fd = HostFd::adopt(answer.ok()?)?;
        self.link.readiness.doubt(ready::IN);
        let from = answers::address(&request, answer.extra, self.domain)?;
        // Whoever is told of the answer to one call at the other end may look at this one at once.
        let port = u16::try_from(self.port.load(Ordering::SeqCst)).unwrap_or(0);
        let is_ahead = port != 0 && !origin::may_be_own(port);
        Ok((
            Self::new(fd, self.domain, self.kind, phase::CONNECTED, is_ahead),
            from,
        ))
    }

    /// Whether it is neither connected nor about to be.
    pub(crate) fn is_idle(&self) -> bool {
        self.phase() == phase::IDLE
    }

    /// An attempt that began at `snapshot` found nothing: waits for `bits`, or says so.
    pub(super) fn nothing_yet(
        &self,
        file: &OpenFile,
        snapshot: u64,
        bits: u32,
        deadline: u64,
    ) -> SysResult<()> {
        if file.nonblocking() {
            self.link.readiness.clear(snapshot, bits);
            return Err(Errno::EAGAIN);
        }
        if !self.link.watching() {
            // What came before the reports began may be known to nobody: try once more.
            return self.link.watch();
        }
        let wake = bits | ready::ERR | ready::HUP | ready::RDHUP;
        self.link
            .readiness
            .wait_after(snapshot, bits, wake, deadline)
            .map_err(|e| waited(e, deadline))
    }
}

/// Lets a moment pass.
fn pause(deadline: u64) -> SysResult<()> {
    if deadline != u64::MAX && crate::arch::ticks() >= deadline {
        return Err(Errno::EAGAIN);
    }
    crate::sched::time_calls::sleep_until(clock::monotonic() + 1_000_000)
        .map(drop)
        .map_err(|e| waited(e, deadline))
}
