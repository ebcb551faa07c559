//! Sockets of the host behind those of the private network.

use alloc::sync::Arc;
use core::net::{IpAddr, SocketAddr};
use core::sync::atomic::Ordering;

use super::network::{self, Way};
use super::{PrivateSocket, endpoint};
use crate::errno::SysResult;
use crate::fs::File;
use crate::net::host::HostSocket;
use crate::net::inbox::Relay;
use crate::net::socket::{Kind, Socket};

/// Most clients on the host's loopback interface that a published port of datagrams remembers.
const CLIENTS_MAX: usize = 64;

impl PrivateSocket {
    /// The host's socket is told what this one was, and its reports wake who waits for this one.
    pub(super) fn attach(&self, host: &Arc<HostSocket>) -> SysResult<()> {
        self.hand_options(host);
        self.hand_timeouts(&**host);
        host.queue().add(Relay::to(&self.inbox));
        if self.wanted.load(Ordering::SeqCst) {
            host.prepare_wait()?;
        }
        self.inbox.readers.wake_all(0);
        Ok(())
    }

    /// Binds the port on the host, wherever it is published. (Streams listen there when they do here.)
    pub(super) fn publish(&self, own: SocketAddr) -> SysResult<()> {
        let open = own.ip().is_unspecified() || own.ip() == IpAddr::V4(network::OWN);
        let datagrams = !self.is_stream();
        let meant = network::published()
            .iter()
            .filter(|p| open && p.datagrams == datagrams && p.port == own.port());
        for published in meant {
            let domain = endpoint::family_of(published.host);
            let host = HostSocket::create(domain, self.kind, 0)?;
            self.hand_sharing(&host)?;
            host.bind(&endpoint::shown(published.host, domain)?)?;
            self.attach(&host)?;
            if datagrams {
                host.prepare_wait()?;
            }
            self.state.lock().hosts.push(host);
        }
        Ok(())
    }

    /// Where a datagram to `to` goes: as [`network::way`] says, or back to a client of a published port.
    pub(super) fn way(&self, to: SocketAddr) -> SysResult<Way> {
        let known = |(shown, _): &&(SocketAddr, SocketAddr)| *shown == to;
        let client = self.state.lock().clients.iter().find(known).copied();
        match client {
            Some((_, there)) => Ok(Way::Outside(there)),
            None => network::way(to),
        }
    }

    /// The host's socket that datagrams to `there` go out through.
    pub(super) fn way_out(&self, there: SocketAddr) -> SysResult<Arc<HostSocket>> {
        let domain = endpoint::family_of(there);
        let known = self
            .state
            .lock()
            .hosts
            .iter()
            .find(|host| host.domain() == domain)
            .cloned();
        if let Some(host) = known {
            return Ok(host);
        }
        let host = HostSocket::create(domain, Kind::Datagram, 0)?;
        self.attach(&host)?;
        host.prepare_wait()?;
        self.state.lock().hosts.push(host.clone());
        Ok(host)
    }

    /// Who sent a datagram from outside, as it is shown.
    pub(super) fn sender(&self, from: SocketAddr) -> SocketAddr {
        let shown = network::seen(from);
        if shown.ip() == IpAddr::V4(network::GATEWAY) {
            let mut state = self.state.lock();
            state.clients.retain(|(known, _)| *known != shown);
            state.clients.truncate(CLIENTS_MAX - 1);
            state.clients.push_front((shown, from));
        }
        shown
    }
}
