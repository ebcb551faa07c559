//! A socket of the private network.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::net::SocketAddr;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;

use super::{endpoint, interfaces, network, ports};
use crate::errno::{Errno, SysResult};
use crate::fs::anon::{self, FIONREAD, S_IFSOCK};
use crate::fs::file::{Stat, ready};
use crate::fs::hostlink::Doubt;
use crate::fs::{File, OpenFile};
use crate::net::address::Address;
use crate::net::control::Control;
use crate::net::host::HostSocket;
use crate::net::inbox::Inbox;
use crate::net::socket::{Kind, Received, Socket, Timeouts, Wanted};
use crate::net::unix::UnixSocket;
use crate::sched::WaitQueue;
use crate::user::{self, Buf};

pub(super) const READ: u32 = ready::IN | ready::RDNORM;
pub(super) const WRITE: u32 = ready::OUT | ready::WRNORM;
/// `SIOCOUTQ` (what is not yet sent) and `SIOCATMARK`.
const SIOCOUTQ: u32 = 0x5411;
const SIOCATMARK: u32 = 0x8905;
const IPPROTO_TCP: i32 = 6;
const IPPROTO_UDP: i32 = 17;

/// A socket.
#[derive(Debug)]
pub struct PrivateSocket {
    pub(super) this: Weak<Self>,
    pub(super) domain: u16,
    pub(super) kind: Kind,
    /// What has come from inside: datagrams, or the stream of [`Role::Inside`]. Whoever waits for the socket waits on its queues.
    pub(super) inbox: Arc<Inbox>,
    pub(super) state: Mutex<State>,
    pub(super) options: Mutex<BTreeMap<(i32, i32), Vec<u8>>>,
    pub(super) timeouts: Timeouts,
    /// Somebody polls it: sockets of the host that it gets are to report.
    pub(super) wanted: AtomicBool,
    pub(super) inode: u64,
}

/// What a stream is.
#[derive(Debug, Default)]
pub(super) enum Role {
    /// Nothing yet. Datagram sockets stay so.
    #[default]
    Idle,
    /// It takes connections.
    Listening(Listener),
    /// Connected to another socket of the context.
    Inside(Arc<UnixSocket>),
    /// Connected, or being connected, to this end through the host.
    Outside(Arc<HostSocket>, SocketAddr),
}

/// Connections that wait to be accepted.
#[derive(Debug, Default)]
pub(super) struct Listener {
    pub(super) waiting: VecDeque<Arc<PrivateSocket>>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// What it was bound to. While it is connected, [`State::own`] has the address that this made it have.
    pub(super) bound: Option<SocketAddr>,
    pub(super) own: Option<SocketAddr>,
    pub(super) claim: Option<ports::Claim>,
    pub(super) peer: Option<SocketAddr>,
    pub(super) role: Role,
    /// The end of an attempt to connect that the program did not wait for and has not been told.
    pub(super) outcome: Option<SysResult<()>>,
    /// What the next call is told (datagrams).
    pub(super) error: Option<Errno>,
    /// Nothing is received any more (datagrams).
    pub(super) shut: bool,
    /// Sockets of the host: published ports, and what datagrams go out through.
    pub(super) hosts: Vec<Arc<HostSocket>>,
    /// The socket of the host that is connected (datagrams).
    pub(super) connected: Option<Arc<HostSocket>>,
    /// Who sent to a published port from the host's loopback interface: as shown, and really.
    pub(super) clients: VecDeque<(SocketAddr, SocketAddr)>,
}

impl PrivateSocket {
    /// A new one.
    ///
    /// # Errors
    /// EPROTONOSUPPORT.
    pub fn create(domain: u16, kind: Kind, protocol: i32) -> SysResult<Arc<Self>> {
        let own = if kind == Kind::Stream {
            IPPROTO_TCP
        } else {
            IPPROTO_UDP
        };
        if protocol != 0 && protocol != own {
            return Err(Errno::EPROTONOSUPPORT);
        }
        Ok(Self::new(domain, kind))
    }

    pub(super) fn new(domain: u16, kind: Kind) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            domain,
            kind,
            inbox: Arc::default(),
            state: Mutex::default(),
            options: Mutex::default(),
            timeouts: Timeouts::default(),
            wanted: AtomicBool::new(false),
            inode: anon::next_inode(),
        })
    }

    pub(super) fn is_stream(&self) -> bool {
        self.kind == Kind::Stream
    }

    /// The stream that the program's bytes go to: inside, or through the host.
    pub(super) fn line(&self) -> Option<Arc<dyn Socket>> {
        match &self.state.lock().role {
            Role::Inside(line) => Some(line.clone()),
            Role::Outside(host, _) => Some(host.clone()),
            Role::Idle | Role::Listening(_) => None,
        }
    }

    /// The host's sockets behind it.
    pub(super) fn hosts(&self) -> Vec<Arc<HostSocket>> {
        let state = self.state.lock();
        let outside = match &state.role {
            Role::Outside(host, _) => Some(host.clone()),
            _ => None,
        };
        state.hosts.iter().cloned().chain(outside).collect()
    }

    /// Gives it a port, if it has none; gives what it is bound to.
    pub(super) fn bind_any(&self) -> SysResult<SocketAddr> {
        if let Some(bound) = self.state.lock().bound {
            return Ok(bound);
        }
        self.take(endpoint::any(self.domain))
    }

    fn take(&self, at: SocketAddr) -> SysResult<SocketAddr> {
        let claim = ports::claim(&self.this, self.kind, at, self.sharing())?;
        let own = SocketAddr::new(at.ip(), claim.port);
        let mut state = self.state.lock();
        if state.bound.is_some() {
            return Err(Errno::EINVAL);
        }
        (state.bound, state.own, state.claim) = (Some(own), Some(own), Some(claim));
        Ok(own)
    }

    fn end(&self) {
        let resets = self.resets();
        let state = core::mem::take(&mut *self.state.lock());
        if let Role::Inside(line) = &state.role {
            line.end(resets);
        }
        self.inbox.close();
        // Connections that nobody accepted, sockets of the host and the port go with `state`.
    }
}

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        self.end();
    }
}

impl File for PrivateSocket {
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
        if let Some(line) = self.line() {
            return line.poll();
        }
        if self.is_stream() {
            self.poll_stream()
        } else {
            self.poll_datagrams()
        }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.inbox.pollers)
    }

    fn prepare_wait(&self) -> SysResult<()> {
        // First the note, then the look: who attaches a socket of the host does it the other way round.
        self.wanted.store(true, Ordering::SeqCst);
        self.hosts().iter().try_for_each(|host| host.prepare_wait())
    }

    fn doubts(&self, file: &OpenFile, events: u32, doubts: &mut Vec<Doubt>) {
        for host in self.hosts() {
            host.doubts(file, events, doubts);
        }
    }

    fn closed(&self, _: &OpenFile) {
        self.end();
    }

    fn ioctl(&self, file: &OpenFile, request: u32, argument: u64) -> SysResult {
        if ![FIONREAD, SIOCOUTQ, SIOCATMARK].contains(&request) {
            return interfaces::ioctl(request, argument);
        }
        let asked = match &self.state.lock().role {
            Role::Outside(host, _) => Some(host.clone()),
            _ => None,
        };
        let elsewhere = || self.hosts().into_iter().find(|_| !self.is_stream());
        let bytes = match request {
            FIONREAD => self.inbox.readable_bytes(self.is_stream()),
            _ => 0,
        };
        match asked.or_else(|| elsewhere().filter(|_| request == FIONREAD && bytes == 0)) {
            Some(host) => host.ioctl(file, request, argument),
            None => user::write(argument, &i32::try_from(bytes).unwrap_or(i32::MAX)).map(|()| 0),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Socket for PrivateSocket {
    fn bind(&self, address: &Address) -> SysResult<()> {
        let at = endpoint::parse(address)?;
        if address.family() != self.domain {
            return Err(Errno::EAFNOSUPPORT);
        }
        if !at.ip().is_unspecified() && !network::is_own(at.ip()) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        if self.state.lock().bound.is_some() {
            return Err(Errno::EINVAL);
        }
        let own = self.take(at)?;
        self.publish(own).inspect_err(|_| {
            let mut state = self.state.lock();
            let claim = state.claim.take();
            (state.bound, state.own) = (None, None);
            drop(state);
            drop(claim);
        })
    }

    fn listen(&self, backlog: i32) -> SysResult<()> {
        self.start_listening(backlog)
    }

    fn accept(&self, file: &OpenFile) -> SysResult<(Arc<dyn File>, Option<Address>)> {
        self.take_connection(file)
    }

    fn connect(&self, file: &OpenFile, address: &Address) -> SysResult<()> {
        if self.is_stream() {
            self.connect_stream(file, address)
        } else {
            self.connect_datagrams(file, address)
        }
    }

    fn shutdown(&self, how: i32) -> SysResult<()> {
        match self.line() {
            Some(line) => line.shutdown(how),
            None if self.is_stream() => self.stop_listening(how),
            None => self.shut_datagrams(how),
        }
    }

    fn name(&self) -> SysResult<Address> {
        let own = self.state.lock().own;
        endpoint::shown(own.unwrap_or(endpoint::any(self.domain)), self.domain)
    }

    fn peer_name(&self) -> SysResult<Address> {
        let (peer, outside) = {
            let state = self.state.lock();
            let outside = match &state.role {
                Role::Outside(host, _) => Some(host.clone()),
                _ => None,
            };
            (state.peer.ok_or(Errno::ENOTCONN)?, outside)
        };
        if let Some(outside) = outside {
            outside.peer_name()?; // the host knows whether there is one
        }
        endpoint::shown(peer, self.domain)
    }

    fn send(
        &self,
        file: &OpenFile,
        from: &mut Buf,
        to: Option<&Address>,
        control: Control,
        flags: u32,
    ) -> SysResult<usize> {
        control.network_only()?;
        if self.is_stream() {
            self.send_stream(file, from, flags)
        } else {
            self.send_datagram(file, from, to, flags)
        }
    }

    fn receive(&self, file: &OpenFile, to: &mut Buf, wanted: Wanted, flags: u32) -> SysResult<Received> {
        if self.is_stream() {
            self.receive_stream(file, to, flags)
        } else {
            self.receive_datagram(file, to, wanted, flags)
        }
    }

    fn option(&self, level: i32, name: i32, space: usize) -> SysResult<Vec<u8>> {
        self.own_option(level, name, space)
    }

    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> SysResult<()> {
        self.set_own_option(level, name, value)
    }
}
