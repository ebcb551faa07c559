//! Connections: made, taken, and what goes over them.
//!
//! Inside, a connection is a pair of [`UnixSocket`]s over the two sockets' inboxes. As on Linux, who does not wait is told
//! EINPROGRESS, and how it ended by the next look.

use alloc::sync::Arc;
use core::net::SocketAddr;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::network::{self, Way};
use super::socket::{Listener, READ, Role, WRITE};
use super::{PrivateSocket, endpoint, ports};
use crate::errno::{Errno, SysResult};
use crate::fs::file::ready;
use crate::fs::{File, OpenFile, signals};
use crate::net::address::{Address, family};
use crate::net::control::Control;
use crate::net::host::HostSocket;
use crate::net::socket::{Kind, Received, Socket, Wanted, msg, waited};
use crate::net::unix::UnixSocket;
use crate::user::Buf;

/// Connections that may wait to be accepted, whatever the program says: TCP, too, takes more than the backlog says.
const WAITING_MAX: usize = 4096;
/// Which of several listeners that share a port is next.
static TURN: AtomicUsize = AtomicUsize::new(0);

impl PrivateSocket {
    pub(super) fn poll_stream(&self) -> u32 {
        let state = self.state.lock();
        match &state.role {
            Role::Listening(listener) if !listener.waiting.is_empty() => READ,
            Role::Listening(_) => {
                let hosts = state.hosts.iter();
                hosts.fold(0, |bits, host| bits | host.poll()) & READ
            }
            _ if matches!(state.outcome, Some(Err(_))) => {
                READ | WRITE | ready::ERR | ready::HUP | ready::RDHUP
            }
            _ => WRITE | ready::HUP,
        }
    }

    pub(super) fn start_listening(&self, backlog: i32) -> SysResult<()> {
        if !self.is_stream() {
            return Err(Errno::EOPNOTSUPP);
        }
        if matches!(self.state.lock().role, Role::Listening(_)) {
            return Ok(());
        }
        let unbound = self.state.lock().bound.is_none();
        let own = self.bind_any()?;
        if unbound {
            self.publish(own)?;
        }
        let hosts = {
            let mut state = self.state.lock();
            if !matches!(state.role, Role::Idle) {
                return Err(Errno::EINVAL);
            }
            state.claim.as_ref().ok_or(Errno::EINVAL)?.listen()?;
            state.role = Role::Listening(Listener::default());
            state.hosts.clone()
        };
        for host in hosts {
            host.listen(backlog)?;
            host.prepare_wait()?; // so that what it is not known to have need not be asked for
        }
        Ok(())
    }

    pub(super) fn stop_listening(&self, how: i32) -> SysResult<()> {
        let before = {
            let mut state = self.state.lock();
            if !matches!(state.role, Role::Listening(_)) {
                return Err(Errno::ENOTCONN);
            }
            if how == 1 {
                return Ok(());
            }
            (
                core::mem::take(&mut state.role),
                core::mem::take(&mut state.hosts),
                state.claim.take(),
            )
        };
        drop(before);
        self.inbox.readers.wake_all(0);
        self.inbox.pollers.wake_all(READ | ready::HUP);
        Ok(())
    }

    /// accept
    pub(super) fn take_connection(&self, file: &OpenFile) -> SysResult<(Arc<dyn File>, Option<Address>)> {
        if !self.is_stream() {
            return Err(Errno::EOPNOTSUPP);
        }
        loop {
            if let Some(taken) = self.take_waiting()? {
                let peer = taken.state.lock().peer;
                let from = peer.map(|peer| endpoint::shown(peer, self.domain)).transpose()?;
                return Ok((taken, from));
            }
            if file.nonblocking() {
                return Err(Errno::EAGAIN);
            }
            let deadline = self.timeouts.receive_deadline();
            let some = || {
                let listens = matches!(self.state.lock().role, Role::Listening(_));
                (!listens || self.poll_stream() & READ != 0).then_some(Ok(()))
            };
            self.inbox
                .readers
                .wait(deadline, some)
                .map_err(|e| waited(e, deadline))?;
        }
    }

    fn take_waiting(&self) -> SysResult<Option<Arc<Self>>> {
        let (inside, hosts) = {
            let mut state = self.state.lock();
            let hosts = state.hosts.clone();
            let Role::Listening(listener) = &mut state.role else {
                return Err(Errno::EINVAL);
            };
            (listener.waiting.pop_front(), hosts)
        };
        if inside.is_some() {
            self.inbox.writers.wake_all(0);
            return Ok(inside);
        }
        for host in hosts {
            if host.poll() & READ == 0 {
                continue;
            }
            if let Some((socket, from)) = host.take_waiting()? {
                let from = from.ok_or(Errno::EIO)?;
                return self.taken_from_host(socket, endpoint::parse(&from)?).map(Some);
            }
        }
        Ok(None)
    }

    /// A connection to a published port.
    fn taken_from_host(&self, host: Arc<HostSocket>, from: SocketAddr) -> SysResult<Arc<Self>> {
        let own = self.state.lock().own.ok_or(Errno::EINVAL)?;
        let taken = Self::new(self.domain, Kind::Stream);
        taken.options.lock().clone_from(&self.options.lock());
        let ip = if own.ip().is_unspecified() {
            network::OWN.into()
        } else {
            own.ip()
        };
        {
            let mut state = taken.state.lock();
            state.own = Some(SocketAddr::new(ip, own.port()));
            state.bound = state.own;
            state.peer = Some(network::seen(from));
            state.role = Role::Outside(host.clone(), from);
        }
        taken.attach(&host)?;
        Ok(taken)
    }

    pub(super) fn connect_stream(&self, file: &OpenFile, address: &Address) -> SysResult<()> {
        if address.family() == family::UNSPEC {
            return self.dissolve();
        }
        let under_way = {
            let mut state = self.state.lock();
            if let Some(outcome) = state.outcome.take() {
                return outcome;
            }
            match &state.role {
                Role::Idle => None,
                Role::Listening(_) | Role::Inside(_) => return Err(Errno::EISCONN),
                Role::Outside(host, to) => Some((host.clone(), *to)).filter(|(host, _)| !host.is_idle()),
            }
        };
        // An attempt goes on to where it began, whatever the program says now.
        if let Some((host, to)) = under_way {
            return host.connect(file, &endpoint::shown(to, endpoint::family_of(to))?);
        }
        let to = self.reachable(address)?;
        let own = self.bind_any()?;
        match network::way(to)? {
            Way::Inside(to) => self.connect_inside(file, own, to),
            Way::Outside(there) => self.connect_outside(file, own, to, there),
        }
    }

    /// An attempt through the host that failed is forgotten; a connection stays.
    fn dissolve(&self) -> SysResult<()> {
        let mut state = self.state.lock();
        match &state.role {
            Role::Idle => Ok(()),
            Role::Outside(host, _) if host.is_idle() => {
                let before = core::mem::take(&mut state.role);
                state.peer = None;
                drop(state);
                drop(before);
                Ok(())
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    /// The end that an address names, if this socket can speak with it.
    pub(super) fn reachable(&self, address: &Address) -> SysResult<SocketAddr> {
        let to = endpoint::parse(address)?;
        match (self.domain, address.family()) {
            (family::INET, family::INET6) => Err(Errno::EAFNOSUPPORT),
            (family::INET6, family::INET) if self.is_stream() => Err(Errno::EAFNOSUPPORT),
            (family::INET6, _) if to.is_ipv4() && !self.sharing().dual => Err(Errno::ENETUNREACH),
            _ => Ok(to),
        }
    }

    fn connect_outside(
        &self,
        file: &OpenFile,
        own: SocketAddr,
        to: SocketAddr,
        there: SocketAddr,
    ) -> SysResult<()> {
        let domain = endpoint::family_of(there);
        let host = HostSocket::create(domain, Kind::Stream, 0)?;
        let before = {
            let mut state = self.state.lock();
            state.peer = Some(to);
            state.own = Some(SocketAddr::new(network::OWN.into(), own.port()));
            core::mem::replace(&mut state.role, Role::Outside(host.clone(), there))
        };
        drop(before);
        self.attach(&host)?;
        host.connect(file, &endpoint::shown(there, domain)?)
    }

    fn connect_inside(&self, file: &OpenFile, own: SocketAddr, to: SocketAddr) -> SysResult<()> {
        let own = SocketAddr::new(network::source(own.ip(), to.ip()), own.port());
        let deadline = self.timeouts.send_deadline();
        let target = listener(to);
        let outcome = match &target {
            None => Err(Errno::ECONNREFUSED),
            Some(target) => match target.offer(self, own, to) {
                Some(outcome) => outcome,
                None if file.nonblocking() => return Err(Errno::EAGAIN),
                None => {
                    let offer = || target.offer(self, own, to);
                    let waiting = target.inbox.writers.wait(deadline, offer);
                    waiting.map_err(|e| waited(e, deadline))
                }
            },
        };
        if let (Ok(()), Some(target)) = (&outcome, &target) {
            target.inbox.readers.wake_one();
            target.inbox.pollers.wake_all(READ);
        }
        self.inbox.pollers.wake_all(WRITE);
        if file.nonblocking() {
            self.state.lock().outcome = Some(outcome);
            return Err(Errno::EINPROGRESS);
        }
        outcome
    }

    /// Connects `near` (which is `own`) to a new socket that waits to be accepted here. None: no room.
    fn offer(&self, near: &Self, own: SocketAddr, to: SocketAddr) -> Option<SysResult<()>> {
        let far = Self::new(self.domain, Kind::Stream);
        far.options.lock().clone_from(&self.options.lock());
        let mut state = self.state.lock();
        let Role::Listening(listener) = &mut state.role else {
            return Some(Err(Errno::ECONNREFUSED));
        };
        if listener.waiting.len() >= WAITING_MAX {
            return None;
        }
        let (near_line, far_line) =
            UnixSocket::pair_over(Kind::Stream, [near.inbox.clone(), far.inbox.clone()]);
        {
            let mut far_state = far.state.lock();
            (far_state.bound, far_state.own, far_state.peer) = (Some(to), Some(to), Some(own));
            far_state.role = Role::Inside(far_line);
        }
        {
            let mut near_state = near.state.lock();
            (near_state.own, near_state.peer) = (Some(own), Some(to));
            near_state.role = Role::Inside(near_line.clone());
        }
        listener.waiting.push_back(far);
        drop(state);
        near.hand_timeouts(&*near_line);
        Some(Ok(()))
    }

    pub(super) fn send_stream(&self, file: &OpenFile, from: &mut Buf, flags: u32) -> SysResult<usize> {
        match self.line() {
            // A destination is not looked at, as on Linux.
            Some(line) => line.send(file, from, None, Control::default(), flags),
            None if flags & msg::NOSIGNAL == 0 => Err(signals::broken_pipe()),
            None => Err(Errno::EPIPE),
        }
    }

    pub(super) fn receive_stream(&self, file: &OpenFile, to: &mut Buf, flags: u32) -> SysResult<Received> {
        let line = match self.line() {
            Some(line) => line,
            None => {
                let failed = self.state.lock().outcome.take_if(|outcome| outcome.is_err());
                return Err(failed.and_then(Result::err).unwrap_or(Errno::ENOTCONN));
            }
        };
        line.receive(file, to, Wanted::default(), flags)
    }
}

/// Who takes connections there: who is bound to just that address before who is bound to all.
fn listener(to: SocketAddr) -> Option<Arc<PrivateSocket>> {
    let mut meant = ports::find(Kind::Stream, to);
    let best = meant.iter().map(|(rank, _)| *rank).max()?;
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let count = meant.iter().filter(|(rank, _)| *rank == best).count();
    let at = meant
        .iter()
        .enumerate()
        .filter(|(_, (rank, _))| *rank == best)
        .nth(turn % count)?
        .0;
    Some(meant.swap_remove(at).1)
}
