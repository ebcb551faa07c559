//! Sockets of the host's network, behind the OS service.
//!
//! The host's socket never waits; waiting is done here on its [`HostLink`]. Every answer is checked. A
//! request and its answer take one request in the steady state: a stream whose read came short is known to
//! be empty, and the next report says when it is not.

mod answers;
mod connect;
pub mod interfaces;
pub mod options;
mod transfer;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use cloak_abi::hostop::HostOp;

use super::address::{Address, family};
use super::control::Control;
use super::mode::{self, Mode};
use super::socket::{Kind, Received, Socket, Timeouts, Wanted};
use crate::errno::{Errno, SysResult};
use crate::fs::anon::{self, FIONREAD, S_IFSOCK};
use crate::fs::file::{Stat, ready};
use crate::fs::hostfd::HostFd;
use crate::fs::hostlink::{self, Doubt, HostLink};
use crate::fs::{File, OpenFile};
use crate::host::{Request, call};
use crate::sched::WaitQueue;
use crate::user::{self, Buf};

/// `SIOCOUTQ` (what is not yet sent) and `SIOCATMARK`.
const SIOCOUTQ: u32 = 0x5411;
const SIOCATMARK: u32 = 0x8905;

/// Values of [`HostSocket::phase`]. Only stream sockets are ever idle.
mod phase {
    /// Neither connected nor listening: not watched, because the host reports a hang-up of such a socket.
    pub const IDLE: u32 = 0;
    pub const CONNECTING: u32 = 1;
    pub const CONNECTED: u32 = 2;
    pub const LISTENING: u32 = 3;
}

/// A socket on the host.
#[derive(Debug)]
pub struct HostSocket {
    link: Arc<HostLink>,
    domain: u16,
    kind: Kind,
    phase: AtomicU32,
    /// Somebody polls it while it is idle: watch it as soon as it is not.
    wanted: AtomicBool,
    timeouts: Timeouts,
    inode: u64,
}

impl HostSocket {
    /// A new one.
    ///
    /// # Errors
    /// ENETUNREACH without network; those of the OS side.
    pub fn create(domain: u16, kind: Kind, protocol: i32) -> SysResult<Arc<Self>> {
        // Whatever leads here.
        if mode::get() == Mode::None {
            return Err(Errno::ENETUNREACH);
        }
        let args = [
            u64::from(domain),
            kind as u64,
            u64::from(protocol.cast_unsigned()),
            0,
            0,
            0,
        ];
        let fd = HostFd::adopt(call(HostOp::Socket, args)?)?;
        let connected = !matches!(kind, Kind::Stream | Kind::SeqPacket);
        Ok(Self::new(
            fd,
            domain,
            kind,
            if connected { phase::CONNECTED } else { phase::IDLE },
        ))
    }

    fn new(fd: HostFd, domain: u16, kind: Kind, phase: u32) -> Arc<Self> {
        let link = HostLink::new(fd, ready::IN);
        // A fresh socket takes data.
        link.readiness
            .confirm(link.readiness.snapshot(), ready::OUT, ready::OUT);
        Arc::new(Self {
            link,
            domain,
            kind,
            phase: AtomicU32::new(phase),
            wanted: AtomicBool::new(false),
            timeouts: Timeouts::default(),
            inode: anon::next_inode(),
        })
    }

    /// Its address family.
    pub(crate) fn domain(&self) -> u16 {
        self.domain
    }

    fn fd(&self) -> u64 {
        self.link.fd.number()
    }

    fn phase(&self) -> u32 {
        self.phase.load(Ordering::SeqCst)
    }

    /// Leaves the idle phase; who polled it before is told what comes from now on.
    fn enter(&self, phase: u32) -> SysResult<()> {
        self.phase.store(phase, Ordering::SeqCst);
        if self.wanted.load(Ordering::SeqCst) {
            self.link.watch()
        } else {
            Ok(())
        }
    }

    fn is_stream(&self) -> bool {
        self.kind == Kind::Stream
    }

    /// Woken whenever readiness may have changed.
    #[must_use]
    pub fn queue(&self) -> &WaitQueue {
        &self.link.readiness.queue
    }
}

impl File for HostSocket {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        if to.is_empty() && self.is_stream() {
            return Ok(0);
        }
        self.receive(file, to, Wanted::default(), 0)
            .map(|received| received.len)
    }

    fn write(&self, file: &OpenFile, from: &mut Buf) -> SysResult<usize> {
        self.send(file, from, None, Control::default(), 0)
    }

    fn stat(&self) -> SysResult<Stat> {
        Ok(anon::stat(S_IFSOCK | 0o777, self.inode))
    }

    fn poll(&self) -> u32 {
        if self.phase() == phase::IDLE {
            return ready::OUT | ready::WRNORM | ready::HUP;
        }
        let bits = self.link.readiness.ready();
        let also = |bit, normal| if bits & bit != 0 { normal } else { 0 };
        bits | also(ready::IN, ready::RDNORM) | also(ready::OUT, ready::WRNORM)
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(self.queue())
    }

    fn prepare_wait(&self) -> SysResult<()> {
        // First the note, then the look: `enter` does it the other way round.
        self.wanted.store(true, Ordering::SeqCst);
        if self.phase() == phase::IDLE {
            Ok(())
        } else {
            self.link.watch()
        }
    }

    fn doubts(&self, file: &OpenFile, events: u32, doubts: &mut Vec<Doubt>) {
        if self.phase() != phase::IDLE {
            self.link.doubts(file, events, doubts);
        }
    }

    fn ioctl(&self, _: &OpenFile, request: u32, argument: u64) -> SysResult {
        if ![FIONREAD, SIOCOUTQ, SIOCATMARK].contains(&request) {
            return interfaces::ioctl(Some(self.fd()), request, argument);
        }
        let mut asked = Request::new();
        let args = [self.fd(), u64::from(request), 0, 4, 0, 0];
        asked.call(HostOp::Ioctl, args).ok()?;
        let value = i32::from_ne_bytes(asked.get_array(0)).max(0);
        user::write(argument, &value)?;
        Ok(0)
    }

    fn host_fd(&self) -> Option<u32> {
        u32::try_from(self.fd()).ok()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Socket for HostSocket {
    fn bind(&self, address: &Address) -> SysResult<()> {
        let mut request = Request::new();
        request.put(0, address.bytes());
        request
            .call(
                HostOp::Bind,
                [self.fd(), address.bytes().len() as u64, 0, 0, 0, 0],
            )
            .ok()?;
        Ok(())
    }

    fn listen(&self, backlog: i32) -> SysResult<()> {
        call(
            HostOp::Listen,
            [self.fd(), u64::from(backlog.cast_unsigned()), 0, 0, 0, 0],
        )?;
        // A fresh socket counts as one that takes data; one that listens never does.
        self.link.readiness.doubt(ready::OUT);
        self.link.readiness.suspect(ready::IN);
        self.enter(phase::LISTENING)
    }

    fn accept(&self, file: &OpenFile) -> SysResult<(Arc<dyn File>, Option<Address>)> {
        self.take_connection(file)
    }

    fn connect(&self, file: &OpenFile, address: &Address) -> SysResult<()> {
        let connected = self.connect_to(file, address, 0);
        hostlink::has_effects();
        connected
    }

    fn shutdown(&self, how: i32) -> SysResult<()> {
        call(
            HostOp::Shutdown,
            [self.fd(), u64::from(how.cast_unsigned()), 0, 0, 0, 0],
        )?;
        hostlink::has_effects();
        // The end of one's own reading is not always reported as an edge.
        self.link
            .readiness
            .suspect(ready::IN | ready::OUT | ready::RDHUP | ready::HUP);
        Ok(())
    }

    fn name(&self) -> SysResult<Address> {
        self.ask_name(0)
    }

    fn peer_name(&self) -> SysResult<Address> {
        self.ask_name(1)
    }

    fn send(
        &self,
        file: &OpenFile,
        from: &mut Buf,
        to: Option<&Address>,
        control: Control,
        flags: u32,
    ) -> SysResult<usize> {
        let control = control.network_only()?;
        let sent = if self.is_stream() && to.is_none() && control.is_empty() {
            self.send_stream(file, from, flags)
        } else {
            self.send_message(file, from, to, control, flags)
        };
        hostlink::has_effects();
        sent
    }

    fn receive(&self, file: &OpenFile, to: &mut Buf, wanted: Wanted, flags: u32) -> SysResult<Received> {
        self.receive_waiting(file, to, wanted, flags)
    }

    fn option(&self, level: i32, name: i32, space: usize) -> SysResult<Vec<u8>> {
        self.ask_option(level, name, space)
    }

    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> SysResult<()> {
        self.tell_option(level, name, value)
    }
}

impl Drop for HostSocket {
    fn drop(&mut self) {
        // Its peer sees the end.
        hostlink::has_effects();
    }
}

impl HostSocket {
    fn ask_name(&self, whose: u64) -> SysResult<Address> {
        let mut request = Request::new();
        let answer = request.call(HostOp::SockName, [self.fd(), whose, 0, 0, 0, 0]);
        answer.ok()?;
        let address = answers::address(&request, answer.extra, self.domain)?;
        Ok(address.unwrap_or_else(|| Address::unnamed(self.domain)))
    }
}

/// Whether a short read tells that nothing is left. Unix sockets also stop at borders of messages, and
/// anything but a stream gives one message at a time.
fn short_means_empty(domain: u16, kind: Kind) -> bool {
    kind == Kind::Stream && (domain == family::INET || domain == family::INET6)
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
