//! Sockets of the host's network, behind the OS service.
//!
//! The host's socket never waits; waiting is done here on its [`HostLink`]. Every answer is checked. A
//! request and its answer take one request in the steady state: a stream whose read came short is known to
//! be empty, and the next report says when it is not.

mod answers;
mod connect;
mod flow;
pub mod interfaces;
pub mod options;
mod origin;
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
use spin::Mutex;

use flow::Flow;
pub use flow::finish;
use origin::Connected;

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
    /// A listener's.
    port: AtomicU32,
    /// Where it is connected to, if that was asked for here.
    connected: Mutex<Option<Connected>>,
    /// A client's connection, ahead of the program.
    flow: Option<Arc<Flow>>,
}

impl Drop for HostSocket {
    fn drop(&mut self) {
        // Its peer sees the end.
        self.has_effects();
        if let Some(flow) = &self.flow {
            flow.close();
        }
    }
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
            false,
        ))
    }

    /// `is_ahead`: a client's connection, which runs ahead of the program.
    fn new(fd: HostFd, domain: u16, kind: Kind, phase: u32, is_ahead: bool) -> Arc<Self> {
        let link = HostLink::new(fd, ready::IN);
        // A fresh socket takes data.
        link.readiness
            .confirm(link.readiness.snapshot(), ready::OUT, ready::OUT);
        let flow = is_ahead.then(|| {
            // Nobody can tell when it is closed but the client.
            link.fd.set_unnoticed(true);
            Flow::start(&link)
        });
        Arc::new(Self {
            flow,
            port: AtomicU32::new(0),
            connected: Mutex::new(None),
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
        let mut bits = self.link.readiness.ready();
        if let Some(flow) = self.flow.as_ref().filter(|flow| flow.covers()) {
            bits &= !ready::IN;
            bits |= if flow.has_news() { ready::IN } else { 0 };
        }
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
        let covered = self.flow.as_ref().is_some_and(|flow| flow.covers());
        let known = if covered { ready::IN | ready::RDNORM } else { 0 };
        if self.phase() != phase::IDLE {
            self.link.doubts(file, events & !known, doubts);
        }
    }

    fn ioctl(&self, _: &OpenFile, request: u32, argument: u64) -> SysResult {
        if ![FIONREAD, SIOCOUTQ, SIOCATMARK].contains(&request) {
            return interfaces::ioctl(Some(self.fd()), request, argument);
        }
        self.settle()?;
        let held = self.flow.as_ref().map_or(0, |flow| flow.held());
        let mut asked = Request::new();
        let args = [self.fd(), u64::from(request), 0, 4, 0, 0];
        asked.call(HostOp::Ioctl, args).ok()?;
        let mut value = i32::from_ne_bytes(asked.get_array(0)).max(0);
        match request {
            FIONREAD => value = value.saturating_add(i32::try_from(held).unwrap_or(i32::MAX)),
            SIOCATMARK if held > 0 => value = 0,
            _ => {}
        }
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
        if self.is_stream() && matches!(self.domain, family::INET | family::INET6) {
            // A port that is not known is none to which anything is connected: its connections are asked about each time.
            let port = self.ask_name(0).ok().and_then(|name| name.port());
            self.port.store(port.map_or(0, u32::from), Ordering::SeqCst);
        }
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
        self.has_effects();
        connected
    }

    fn shutdown(&self, how: i32) -> SysResult<()> {
        self.settle()?;
        call(
            HostOp::Shutdown,
            [self.fd(), u64::from(how.cast_unsigned()), 0, 0, 0, 0],
        )?;
        self.has_effects();
        if let Some(flow) = self.flow.as_ref().filter(|_| how != 0) {
            flow.shut();
        }
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
        self.has_effects();
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

impl HostSocket {
    /// What was just done may have made another file ready; not where the other end is none of this context.
    fn has_effects(&self) {
        if self.flow.is_none() {
            hostlink::has_effects();
        }
    }

    /// Waits until what was sent without waiting has reached the service: for what must not overtake it.
    fn settle(&self) -> SysResult<()> {
        self.flow.as_ref().map_or(Ok(()), |flow| flow.settle())
    }

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
mod flow_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
