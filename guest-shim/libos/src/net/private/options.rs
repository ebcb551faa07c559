//! Socket options: kept here; what means something to the host's sockets is told to them.

use alloc::vec;
use alloc::vec::Vec;

use super::PrivateSocket;
use super::ports::Sharing;
use super::socket::Role;
use crate::errno::{Errno, SysResult};
use crate::net::address::family;
use crate::net::host::{HostSocket, options};
use crate::net::inbox::CAPACITY;
use crate::net::socket::{Kind, Socket};

const SOCKET: i32 = 1;
const IP: i32 = 0;
const TCP: i32 = 6;
const UDP: i32 = 17;
const IPV6: i32 = 41;
const REUSE_ADDRESS: i32 = 2;
const LINGER: i32 = 13;
const REUSE_PORT: i32 = 15;
const V6_ONLY: i32 = 26;
/// ADD_MEMBERSHIP, ADD_SOURCE_MEMBERSHIP: nothing here carries what is sent to groups.
const MEMBERSHIPS: [(i32, i32); 3] = [(IP, 35), (IP, 39), (IPV6, 20)];
/// SO_RCVTIMEO and SO_SNDTIMEO.
const TIMEOUTS: [i32; 2] = [20, 21];
const TCP_INFO: i32 = 11;
/// `TCP_ESTABLISHED`, `TCP_CLOSE`, `TCP_LISTEN`.
const STATES: [u8; 3] = [1, 7, 10];

/// Whether the host's sockets are told: nothing that names an interface or an address, or lets others share a port.
fn passes(level: i32, name: i32, domain: u16) -> bool {
    match level {
        // SNDBUF RCVBUF KEEPALIVE OOBINLINE PRIORITY LINGER RCVLOWAT
        SOCKET => [7, 8, 9, 10, 12, LINGER, 18].contains(&name),
        TCP | UDP => true,
        IP => domain == family::INET && [1, 2].contains(&name), // TOS TTL
        IPV6 => domain == family::INET6 && [16, 67].contains(&name), // UNICAST_HOPS TCLASS
        _ => false,
    }
}

/// What an option is that nobody set.
fn default(level: i32, name: i32) -> i32 {
    match (level, name) {
        (IP, 2) | (IPV6, 16) => 64,                               // TTL UNICAST_HOPS
        (IP, 33 | 34) | (IPV6, 18 | 19) | (SOCKET, 18 | 19) => 1, // MULTICAST_TTL and LOOP, RCVLOWAT SNDLOWAT
        (TCP, 2) => 1460,                                         // MAXSEG
        (TCP, 4) => 7200,                                         // KEEPIDLE
        (TCP, 5) => 75,                                           // KEEPINTVL
        (TCP, 6) => 9,                                            // KEEPCNT
        _ => 0,
    }
}

impl PrivateSocket {
    fn is_set(&self, level: i32, name: i32) -> bool {
        let options = self.options.lock();
        let value = options.get(&(level, name));
        value.is_some_and(|v| v.iter().take(4).any(|b| *b != 0))
    }

    pub(super) fn sharing(&self) -> Sharing {
        Sharing {
            dual: self.domain == family::INET6 && !self.is_set(IPV6, V6_ONLY),
            address: self.is_set(SOCKET, REUSE_ADDRESS),
            port: self.is_set(SOCKET, REUSE_PORT),
        }
    }

    /// Whether its end is a reset: SO_LINGER with no time.
    pub(super) fn resets(&self) -> bool {
        let options = self.options.lock();
        let value = options.get(&(SOCKET, LINGER));
        value.is_some_and(|v| v.len() == 8 && v[..4] != [0; 4] && v[4..] == [0; 4])
    }

    /// Tells a socket of the host what was set here before there was one. What the host refuses it does without.
    pub(super) fn hand_options(&self, host: &HostSocket) {
        let set: Vec<_> = {
            let options = self.options.lock();
            let passing = options.iter().filter(|((l, n), _)| passes(*l, *n, host.domain()));
            passing.map(|(key, value)| (*key, value.clone())).collect()
        };
        for ((level, name), value) in set {
            let _ = host.set_option(level, name, &value);
        }
    }

    /// A published port is shared on the host by those that share it here.
    pub(super) fn hand_sharing(&self, host: &HostSocket) -> SysResult<()> {
        let sharing = self.sharing();
        let on = 1i32.to_ne_bytes();
        for (name, set) in [(REUSE_ADDRESS, sharing.address), (REUSE_PORT, sharing.port)] {
            if set {
                host.set_option(SOCKET, name, &on)?;
            }
        }
        if host.domain() == family::INET6 {
            host.set_option(IPV6, V6_ONLY, &on)?;
        }
        Ok(())
    }

    pub(super) fn hand_timeouts(&self, to: &dyn Socket) {
        for name in TIMEOUTS {
            let value = self.timeouts.option(SOCKET, name);
            if let Some(value) = value.filter(|v| v.iter().any(|b| *b != 0)) {
                // It has been checked: it is our own.
                let _ = to.set_option(SOCKET, name, &value);
            }
        }
    }

    fn take_error(&self) -> SysResult<i32> {
        let mut state = self.state.lock();
        if let Some(Err(error)) = state.outcome.take_if(|outcome| outcome.is_err()) {
            return Ok(error.number());
        }
        // A connection that was made is told as such once.
        state.outcome = None;
        Ok(state.error.take().map_or(0, Errno::number))
    }

    pub(super) fn own_option(&self, level: i32, name: i32, space: usize) -> SysResult<Vec<u8>> {
        if let Some(value) = self.timeouts.option(level, name) {
            return Ok(value);
        }
        let (most, _) = options::find(level, name)?;
        let number = |n: i32| n.to_ne_bytes().to_vec();
        let outside = match &self.state.lock().role {
            Role::Outside(host, _) => Some(host.clone()),
            _ => None,
        };
        let of_host = |name: i32| passes(level, name, 0) || (level, name) == (SOCKET, 4);
        if let Some(host) = outside.filter(|_| of_host(name)) {
            return host.option(level, name, space);
        }
        let mut value = match (level, name) {
            (SOCKET, 3) => number(self.kind as i32),
            (SOCKET, 4) => match (self.take_error()?, self.line()) {
                (0, Some(line)) => return line.option(level, name, space),
                (error, _) => number(error),
            },
            (SOCKET, 30) => number(i32::from(matches!(self.state.lock().role, Role::Listening(_)))),
            (SOCKET, 38) => number(if self.kind == Kind::Stream { TCP } else { UDP }),
            (SOCKET, 39) => number(i32::from(self.domain)),
            (TCP, TCP_INFO) => self.information(),
            (TCP, 13) => b"cubic\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
            key => match (self.options.lock().get(&key).cloned(), key) {
                (Some(value), _) => value,
                (None, (SOCKET, 7 | 8)) => number(CAPACITY as i32),
                (None, (SOCKET, LINGER)) => vec![0; 8],
                (None, _) => {
                    let mut value = number(default(level, name));
                    value.resize(most.min(4), 0);
                    value
                }
            },
        };
        value.truncate(space);
        Ok(value)
    }

    /// `struct tcp_info` of a connection that loses nothing and has no way to go.
    fn information(&self) -> Vec<u8> {
        let mut info = vec![0; 104];
        info[0] = STATES[match self.state.lock().role {
            Role::Inside(_) | Role::Outside(..) => 0,
            Role::Idle => 1,
            Role::Listening(_) => 2,
        }];
        info
    }

    pub(super) fn set_own_option(&self, level: i32, name: i32, value: &[u8]) -> SysResult<()> {
        if let Some(result) = self.timeouts.set_option(level, name, value) {
            result?;
            if let Some(line) = self.line() {
                line.set_option(level, name, value)?;
            }
            return Ok(());
        }
        let (most, set) = options::find(level, name)?;
        if !set || (level == IPV6 && self.domain != family::INET6) {
            return Err(Errno::ENOPROTOOPT);
        }
        if value.len() < 4.min(most) && level != IP {
            return Err(Errno::EINVAL);
        }
        if MEMBERSHIPS.contains(&(level, name)) {
            return Err(Errno::ENODEV);
        }
        let value = &value[..value.len().min(most)];
        for host in self.hosts() {
            if passes(level, name, host.domain()) {
                host.set_option(level, name, value)?;
            }
        }
        self.options.lock().insert((level, name), value.to_vec());
        Ok(())
    }
}
