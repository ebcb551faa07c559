//! Sockets of a network that has nothing in it: what a context without network gets for IPv4 and IPv6.
//!
//! They answer as Linux's do in a new network namespace, whose loopback interface is down too: wildcard addresses can be
//! bound and listened on, nobody ever comes, and nothing can be reached. No request goes to the OS side.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::any::Any;

use spin::Mutex;

use super::address::{Address, family};
use super::control::Control;
use super::host::{interfaces, options};
use super::socket::{Kind, Received, Socket, Timeouts, Wanted, msg, waited};
use crate::errno::{Errno, SysResult};
use crate::fs::anon::{self, FIONREAD, S_IFSOCK};
use crate::fs::file::{Stat, ready};
use crate::fs::{File, OpenFile, signals};
use crate::sched::WaitQueue;
use crate::user::{self, Buf};

/// Ports that are bound, by kind, and whether they may be shared.
static PORTS: Mutex<BTreeMap<(u32, u16), usize>> = Mutex::new(BTreeMap::new());
/// Ports that are given to who asks for any (`ip_local_port_range`).
const ANY: core::ops::Range<u16> = 32768..60999;

const SOCKET: i32 = 1;
const REUSE_ADDRESS: i32 = 2;
const REUSE_PORT: i32 = 15;

/// A socket that reaches nobody.
#[derive(Debug)]
pub struct EmptySocket {
    domain: u16,
    kind: Kind,
    protocol: i32,
    state: Mutex<State>,
    options: Mutex<BTreeMap<(i32, i32), Vec<u8>>>,
    timeouts: Timeouts,
    queue: WaitQueue,
    inode: u64,
}

#[derive(Debug, Default)]
struct State {
    port: Option<u16>,
    listens: bool,
    /// Nothing is received any more.
    shut: bool,
}

impl EmptySocket {
    /// A new one.
    #[must_use]
    pub fn new(domain: u16, kind: Kind, protocol: i32) -> Arc<Self> {
        Arc::new(Self {
            domain,
            kind,
            protocol,
            state: Mutex::default(),
            options: Mutex::default(),
            timeouts: Timeouts::default(),
            queue: WaitQueue::default(),
            inode: anon::next_inode(),
        })
    }

    fn is_stream(&self) -> bool {
        self.kind == Kind::Stream
    }

    fn shares_port(&self) -> bool {
        let options = self.options.lock();
        let set = |name| {
            options
                .get(&(SOCKET, name))
                .is_some_and(|v| v.iter().any(|b| *b != 0))
        };
        set(REUSE_ADDRESS) || set(REUSE_PORT)
    }

    fn take_port(&self, wanted: u16) -> SysResult<u16> {
        let shares = self.shares_port();
        let mut ports = PORTS.lock();
        let kind = self.kind as u32;
        let port = if wanted == 0 {
            ANY.clone().find(|port| !ports.contains_key(&(kind, *port)))
        } else {
            Some(wanted).filter(|port| shares || !ports.contains_key(&(kind, *port)))
        };
        let port = port.ok_or(Errno::EADDRINUSE)?;
        *ports.entry((kind, port)).or_default() += 1;
        Ok(port)
    }

    /// The address of its own, with this port.
    fn address(&self, port: u16) -> SysResult<Address> {
        let mut bytes = vec![0; if self.domain == family::INET { 16 } else { 28 }];
        bytes[..2].copy_from_slice(&self.domain.to_ne_bytes());
        bytes[2..4].copy_from_slice(&port.to_be_bytes());
        Address::new(&bytes)
    }

    /// Where an address leads: nowhere, if it is one.
    fn unreachable(&self, address: &Address) -> Errno {
        let long_enough = match address.family() {
            family::INET => address.bytes().len() >= 16,
            family::INET6 => address.bytes().len() >= 24 && self.domain == family::INET6,
            _ => return Errno::EAFNOSUPPORT,
        };
        match (long_enough, self.domain) {
            (false, _) => Errno::EINVAL,
            (true, family::INET6) if address.family() == family::INET6 => Errno::EADDRNOTAVAIL,
            _ => Errno::ENETUNREACH,
        }
    }

    /// Waits for what never comes: until a signal, a timeout or the end of reading.
    fn wait<T>(&self, file: &OpenFile, flags: u32, ended: impl Fn() -> SysResult<T>) -> SysResult<T> {
        if file.nonblocking() || flags & msg::DONTWAIT != 0 {
            return Err(Errno::EAGAIN);
        }
        let deadline = self.timeouts.receive_deadline();
        let attempt = || self.state.lock().shut.then(&ended);
        self.queue
            .wait(deadline, attempt)
            .map_err(|e| waited(e, deadline))
    }
}

impl Drop for EmptySocket {
    fn drop(&mut self) {
        if let Some(port) = self.state.lock().port {
            let mut ports = PORTS.lock();
            let key = (self.kind as u32, port);
            match ports.get_mut(&key) {
                Some(users) if *users > 1 => *users -= 1,
                _ => drop(ports.remove(&key)),
            }
        }
    }
}

impl File for EmptySocket {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
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
        let state = self.state.lock();
        let shut = if state.shut {
            ready::IN | ready::RDNORM | ready::RDHUP
        } else {
            0
        };
        match (self.is_stream(), state.listens) {
            (true, true) => shut,
            (true, false) => ready::OUT | ready::WRNORM | ready::HUP,
            (false, _) => ready::OUT | ready::WRNORM | shut,
        }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn ioctl(&self, _: &OpenFile, request: u32, argument: u64) -> SysResult {
        if request == FIONREAD {
            user::write(argument, &0i32)?;
            return Ok(0);
        }
        interfaces::ioctl(None, request, argument)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Socket for EmptySocket {
    fn bind(&self, address: &Address) -> SysResult<()> {
        let (least, host) = match self.domain {
            family::INET => (16, 4..8),
            _ => (28, 8..24),
        };
        let bytes = address.bytes();
        if bytes.len() < least {
            return Err(Errno::EINVAL);
        }
        if address.family() != self.domain {
            return Err(Errno::EAFNOSUPPORT);
        }
        if bytes[host].iter().any(|byte| *byte != 0) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        if self.state.lock().port.is_some() {
            return Err(Errno::EINVAL);
        }
        let port = self.take_port(u16::from_be_bytes([bytes[2], bytes[3]]))?;
        self.state.lock().port = Some(port);
        Ok(())
    }

    fn listen(&self, _backlog: i32) -> SysResult<()> {
        if !self.is_stream() {
            return Err(Errno::EOPNOTSUPP);
        }
        if self.state.lock().port.is_none() {
            let port = self.take_port(0)?;
            self.state.lock().port = Some(port);
        }
        let mut state = self.state.lock();
        (state.listens, state.shut) = (true, false);
        Ok(())
    }

    fn accept(&self, file: &OpenFile) -> SysResult<(Arc<dyn File>, Option<Address>)> {
        if !self.is_stream() {
            return Err(Errno::EOPNOTSUPP);
        }
        if !self.state.lock().listens {
            return Err(Errno::EINVAL);
        }
        self.wait(file, 0, || Err(Errno::EINVAL))
    }

    fn connect(&self, _file: &OpenFile, address: &Address) -> SysResult<()> {
        if address.family() == family::UNSPEC {
            return Ok(());
        }
        if self.state.lock().listens {
            return Err(Errno::EISCONN);
        }
        Err(self.unreachable(address))
    }

    fn shutdown(&self, how: i32) -> SysResult<()> {
        let mut state = self.state.lock();
        if !state.listens {
            return Err(Errno::ENOTCONN);
        }
        if how != 1 {
            (state.listens, state.shut) = (false, true);
            drop(state);
            self.queue.wake_all(ready::IN | ready::RDNORM);
        }
        Ok(())
    }

    fn name(&self) -> SysResult<Address> {
        self.address(self.state.lock().port.unwrap_or(0))
    }

    fn peer_name(&self) -> SysResult<Address> {
        Err(Errno::ENOTCONN)
    }

    fn send(
        &self,
        _file: &OpenFile,
        _from: &mut Buf,
        to: Option<&Address>,
        _control: Control,
        flags: u32,
    ) -> SysResult<usize> {
        match to {
            _ if self.is_stream() && flags & msg::NOSIGNAL == 0 => Err(signals::broken_pipe()),
            _ if self.is_stream() => Err(Errno::EPIPE),
            None => Err(Errno::EDESTADDRREQ),
            Some(address) => Err(self.unreachable(address)),
        }
    }

    fn receive(&self, file: &OpenFile, _to: &mut Buf, _wanted: Wanted, flags: u32) -> SysResult<Received> {
        if self.is_stream() {
            return Err(Errno::ENOTCONN);
        }
        self.wait(file, flags, || Ok(Received::default()))
    }

    fn option(&self, level: i32, name: i32, space: usize) -> SysResult<Vec<u8>> {
        if let Some(value) = self.timeouts.option(level, name) {
            return Ok(value);
        }
        let number = |n: i32| n.to_ne_bytes().to_vec();
        let most = options::find(level, name)?.0;
        let mut value = match (level, name) {
            (SOCKET, 3) => number(self.kind as i32),
            (SOCKET, 4) => number(0),
            (SOCKET, 7 | 8) => number(212_992),
            (SOCKET, 30) => number(i32::from(self.state.lock().listens)),
            (SOCKET, 38) => number(match (self.protocol, self.kind) {
                (0, Kind::Stream) => 6,
                (0, _) => 17,
                (protocol, _) => protocol,
            }),
            (SOCKET, 39) => number(i32::from(self.domain)),
            key => self
                .options
                .lock()
                .get(&key)
                .cloned()
                .unwrap_or_else(|| vec![0; most.min(4)]),
        };
        value.truncate(space);
        Ok(value)
    }

    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> SysResult<()> {
        if let Some(result) = self.timeouts.set_option(level, name, value) {
            return result;
        }
        let (most, set) = options::find(level, name)?;
        if !set {
            return Err(Errno::ENOPROTOOPT);
        }
        let value = value[..value.len().min(most)].to_vec();
        self.options.lock().insert((level, name), value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inet(host: [u8; 4], port: u16) -> Address {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&family::INET.to_ne_bytes());
        bytes[2..4].copy_from_slice(&port.to_be_bytes());
        bytes[4..8].copy_from_slice(&host);
        Address::new(&bytes).expect("fits")
    }

    #[test]
    fn nothing_can_be_reached_and_only_wildcards_can_be_bound() {
        let socket = EmptySocket::new(family::INET, Kind::Stream, 0);
        let file = OpenFile::new(socket.clone(), 2, Vec::new());
        for host in [[127, 0, 0, 1], [1, 2, 3, 4]] {
            assert_eq!(socket.connect(&file, &inet(host, 80)), Err(Errno::ENETUNREACH));
            assert_eq!(socket.bind(&inet(host, 0)), Err(Errno::EADDRNOTAVAIL));
        }
        assert_eq!(socket.bind(&inet([0; 4], 4711)), Ok(()));
        let other = EmptySocket::new(family::INET, Kind::Stream, 0);
        assert_eq!(other.bind(&inet([0; 4], 4711)), Err(Errno::EADDRINUSE));
        assert_eq!(socket.listen(1), Ok(()));
        assert_eq!(socket.name(), Ok(inet([0; 4], 4711)));
        drop((socket, file));
        assert_eq!(other.bind(&inet([0; 4], 4711)), Ok(()));
        let datagram = EmptySocket::new(family::INET, Kind::Datagram, 0);
        assert_eq!(datagram.unreachable(&inet([127, 0, 0, 1], 9)), Errno::ENETUNREACH);
        assert_eq!(datagram.poll() & ready::IN, 0);
    }
}
