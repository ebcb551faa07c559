//! Datagrams. Inside they go from inbox to inbox; from outside they are read from the host's sockets, which are asked when
//! nothing has come from inside.

use alloc::sync::Arc;
use alloc::vec;
use core::net::SocketAddr;

use super::network::{self, Way};
use super::socket::{READ, WRITE};
use super::{PrivateSocket, endpoint, ports};
use crate::errno::{Errno, SysResult};
use crate::fs::file::ready;
use crate::fs::{File, OpenFile};
use crate::net::address::{Address, family};
use crate::net::control::{Control, Sender};
use crate::net::host::HostSocket;
use crate::net::inbox::{Packet, Taken};
use crate::net::socket::{Kind, Received, Socket, Wanted, msg, waited};
use crate::user::Buf;

/// Most bytes of a datagram.
const LONGEST: usize = 65507;

impl PrivateSocket {
    pub(super) fn poll_datagrams(&self) -> u32 {
        let state = self.state.lock();
        let error = if state.error.is_some() { ready::ERR } else { 0 };
        let shut = if state.shut { READ | ready::RDHUP } else { 0 };
        let own = if self.inbox.has_data() { READ } else { 0 };
        let hosts = self.heard(&state).iter();
        let outside = hosts.fold(0, |bits, host| bits | host.poll() & (READ | ready::ERR));
        WRITE | error | shut | own | outside
    }

    /// The host's sockets that it receives from: none when its peer is inside, one when it is outside.
    fn heard<'s>(&self, state: &'s super::socket::State) -> &'s [Arc<HostSocket>] {
        match (&state.peer, &state.connected) {
            (None, _) => &state.hosts,
            (Some(_), Some(host)) => core::slice::from_ref(host),
            (Some(_), None) => &[],
        }
    }

    pub(super) fn connect_datagrams(&self, file: &OpenFile, address: &Address) -> SysResult<()> {
        if address.family() == family::UNSPEC {
            let connected = {
                let mut state = self.state.lock();
                state.peer = None;
                state.own = state.bound;
                state.connected.take()
            };
            return connected.map_or(Ok(()), |host| host.connect(file, address));
        }
        let to = self.reachable(address)?;
        let way = self.way(to)?;
        let own = self.bind_any()?;
        let (peer, source, connected) = match way {
            Way::Inside(to) => (to, network::source(own.ip(), to.ip()), None),
            Way::Outside(there) => {
                let host = self.way_out(there)?;
                host.connect(file, &endpoint::shown(there, host.domain())?)?;
                let own_ip = if own.ip().is_unspecified() {
                    network::OWN.into()
                } else {
                    own.ip()
                };
                (to, own_ip, Some(host))
            }
        };
        let mut state = self.state.lock();
        state.peer = Some(peer);
        state.own = Some(SocketAddr::new(source, own.port()));
        state.connected = connected;
        Ok(())
    }

    pub(super) fn shut_datagrams(&self, how: i32) -> SysResult<()> {
        {
            let mut state = self.state.lock();
            if state.peer.is_none() {
                return Err(Errno::ENOTCONN);
            }
            state.shut |= how != 1;
        }
        self.inbox.readers.wake_all(0);
        self.inbox.pollers.wake_all(READ);
        Ok(())
    }

    pub(super) fn send_datagram(
        &self,
        file: &OpenFile,
        from: &mut Buf,
        to: Option<&Address>,
        flags: u32,
    ) -> SysResult<usize> {
        if flags & msg::OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let (peer, connected) = {
            let mut state = self.state.lock();
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            (state.peer, state.connected.clone())
        };
        let to = match to {
            Some(address) => self.reachable(address)?,
            None => {
                if let Some(host) = connected {
                    return host.send(file, from, None, Control::default(), flags);
                }
                peer.ok_or(Errno::EDESTADDRREQ)?
            }
        };
        if to.port() == 0 {
            return Err(Errno::EINVAL);
        }
        let own = self.bind_any()?;
        match self.way(to)? {
            Way::Inside(to) => self.send_inside(from, own, to),
            Way::Outside(there) => {
                let host = self.way_out(there)?;
                let address = endpoint::shown(there, host.domain())?;
                host.send(file, from, Some(&address), Control::default(), flags)
            }
        }
    }

    fn send_inside(&self, from: &mut Buf, own: SocketAddr, to: SocketAddr) -> SysResult<usize> {
        let len = from.len();
        if len > LONGEST {
            return Err(Errno::EMSGSIZE);
        }
        let mut data = vec![0; len];
        if from.take(&mut data)? < len {
            return Err(Errno::EFAULT);
        }
        let own = SocketAddr::new(network::source(own.ip(), to.ip()), own.port());
        let Some(target) = receiver(own, to) else {
            // As the answer of who has no such port, which only a connected socket is told.
            let mut state = self.state.lock();
            if state.peer == Some(to) {
                state.error = Some(Errno::ECONNREFUSED);
                drop(state);
                self.inbox.readers.wake_all(0);
                self.inbox.pollers.wake_all(ready::ERR | READ);
            }
            return Ok(len);
        };
        // What there is no room for is lost, as it may be.
        let _ = target.inbox.push(Packet {
            data,
            rights: vec![],
            sender: Sender::current(),
            from: Some(endpoint::shown(own, target.domain)?),
        });
        Ok(len)
    }

    pub(super) fn receive_datagram(
        &self,
        file: &OpenFile,
        to: &mut Buf,
        wanted: Wanted,
        flags: u32,
    ) -> SysResult<Received> {
        if flags & (msg::OOB | msg::ERRQUEUE) != 0 {
            return Err(if flags & msg::OOB != 0 {
                Errno::EOPNOTSUPP
            } else {
                Errno::EAGAIN
            });
        }
        loop {
            if let Some(taken) = self.inbox.take_message(to.len(), flags & msg::PEEK != 0) {
                return deliver(taken, to, wanted, flags);
            }
            let (hosts, shut) = {
                let mut state = self.state.lock();
                if let Some(error) = state.error.take() {
                    return Err(error);
                }
                (self.heard(&state).to_vec(), state.shut)
            };
            for host in hosts.iter().filter(|host| host.poll() & (READ | ready::ERR) != 0) {
                match host.receive(file, to, address_only(wanted), flags | msg::DONTWAIT) {
                    Err(Errno::EAGAIN) => {}
                    other => return self.received_outside(other?),
                }
            }
            if shut {
                return Ok(Received::default());
            }
            if file.nonblocking() || flags & msg::DONTWAIT != 0 {
                return Err(Errno::EAGAIN);
            }
            let deadline = self.timeouts.receive_deadline();
            let some = || (self.poll_datagrams() & (READ | ready::ERR) != 0).then_some(Ok(()));
            self.inbox
                .readers
                .wait(deadline, some)
                .map_err(|e| waited(e, deadline))?;
        }
    }

    fn received_outside(&self, mut received: Received) -> SysResult<Received> {
        let peer = {
            let state = self.state.lock();
            state.peer.filter(|_| state.connected.is_some())
        };
        if let Some(from) = received.from.take() {
            let from = match peer {
                Some(peer) => peer,
                None => self.sender(endpoint::parse(&from)?),
            };
            received.from = Some(endpoint::shown(from, self.domain)?);
        }
        Ok(received)
    }

    /// Whether it takes what `from` sends: with a peer, from that one only. True for one that has just this peer.
    fn takes_from(&self, from: SocketAddr) -> Option<bool> {
        match self.state.lock().peer {
            None => Some(false),
            Some(peer) => (peer == from).then_some(true),
        }
    }
}

/// What of the host's addresses and control data is meant inside: only who sent it.
fn address_only(wanted: Wanted) -> Wanted {
    Wanted {
        address: wanted.address,
        control: 0,
    }
}

/// Who receives at `to`: who is connected to the sender before who is bound to just that address, and that one before who is
/// bound to all; of several the same one each time for one sender.
fn receiver(from: SocketAddr, to: SocketAddr) -> Option<Arc<PrivateSocket>> {
    let meant = ports::find(Kind::Datagram, to);
    let ranked = meant.into_iter().filter_map(|(rank, socket)| {
        let connected = socket.takes_from(from)?;
        Some((u32::from(connected) * 4 + rank, socket))
    });
    let ranked: alloc::vec::Vec<_> = ranked.collect();
    let best = ranked.iter().map(|(rank, _)| *rank).max()?;
    let mut best: alloc::vec::Vec<_> = ranked.into_iter().filter(|(rank, _)| *rank == best).collect();
    let at = usize::from(from.port()) % best.len();
    Some(best.swap_remove(at).1)
}

fn deliver(taken: Taken, to: &mut Buf, wanted: Wanted, flags: u32) -> SysResult<Received> {
    let len = to.put(&taken.data)?;
    let cut = taken.whole > len;
    Ok(Received {
        len: if cut && flags & msg::TRUNC != 0 {
            taken.whole
        } else {
            len
        },
        flags: if cut { msg::TRUNC } else { 0 },
        from: taken.from.filter(|_| wanted.address),
        control: Control::default(),
    })
}
