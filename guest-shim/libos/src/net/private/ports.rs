//! Ports of the private network: which socket has which, and who is meant by an address.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use spin::Mutex;

use super::PrivateSocket;
use crate::errno::{Errno, SysResult};
use crate::net::socket::Kind;

/// Ports that are given to who asks for any (`ip_local_port_range`).
const ANY: core::ops::Range<u16> = 32768..60999;

/// What a socket allows others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sharing {
    /// All addresses of IPv6 are those of IPv4, too.
    pub dual: bool,
    /// SO_REUSEADDR.
    pub address: bool,
    /// SO_REUSEPORT.
    pub port: bool,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    ip: IpAddr,
    sharing: Sharing,
    listens: bool,
    socket: Weak<PrivateSocket>,
}

#[derive(Debug)]
struct Table {
    next: u64,
    any: u16,
    bound: BTreeMap<(u32, u16), Vec<Entry>>,
}

/// Nothing of a socket is looked at, and none is dropped, while this is locked: who drops one comes here.
static PORTS: Mutex<Table> = Mutex::new(Table {
    next: 0,
    any: ANY.start,
    bound: BTreeMap::new(),
});

/// A port that a socket has, until this is dropped.
#[derive(Debug)]
pub struct Claim {
    kind: u32,
    /// Which.
    pub port: u16,
    id: u64,
}

impl Entry {
    /// How exactly `ip` is meant by it: 2 by name, 1 with all others; 0 not at all.
    fn covers(&self, ip: IpAddr) -> u32 {
        match self.ip {
            own if own == ip => 2,
            own if !own.is_unspecified() => 0,
            IpAddr::V4(_) => u32::from(ip.is_ipv4()),
            IpAddr::V6(_) => u32::from(ip.is_ipv6() || self.sharing.dual),
        }
    }

    fn conflicts(&self, other: &Self, datagrams: bool) -> bool {
        let overlap = self.covers(other.ip) > 0 || other.covers(self.ip) > 0;
        let ports = self.sharing.port && other.sharing.port;
        let listens = self.listens || other.listens;
        let addresses = self.sharing.address && other.sharing.address && (datagrams || !listens);
        overlap && !ports && !addresses
    }
}

impl Table {
    /// A port that nobody has, the next one each time.
    fn free(&mut self, kind: u32) -> Option<u16> {
        let mut candidates = (self.any..ANY.end).chain(ANY.start..self.any);
        let port = candidates.find(|port| !self.bound.contains_key(&(kind, *port)))?;
        self.any = if port + 1 < ANY.end { port + 1 } else { ANY.start };
        Some(port)
    }
}

/// Gives `socket` the port of `at`, or any one for port 0.
///
/// # Errors
/// EADDRINUSE.
pub fn claim(socket: &Weak<PrivateSocket>, kind: Kind, at: SocketAddr, sharing: Sharing) -> SysResult<Claim> {
    let mut table = PORTS.lock();
    let kind_number = kind as u32;
    let port = match at.port() {
        0 => table.free(kind_number).ok_or(Errno::EADDRINUSE)?,
        port => port,
    };
    table.next += 1;
    let entry = Entry {
        id: table.next,
        ip: at.ip(),
        sharing,
        listens: false,
        socket: socket.clone(),
    };
    let others = table.bound.entry((kind_number, port)).or_default();
    if others.iter().any(|o| o.conflicts(&entry, kind == Kind::Datagram)) {
        return Err(Errno::EADDRINUSE);
    }
    let id = entry.id;
    others.push(entry);
    Ok(Claim {
        kind: kind_number,
        port,
        id,
    })
}

impl Claim {
    /// Its socket takes connections from now on.
    ///
    /// # Errors
    /// EADDRINUSE when another does already.
    pub fn listen(&self) -> SysResult<()> {
        let mut table = PORTS.lock();
        let entries = table
            .bound
            .get_mut(&(self.kind, self.port))
            .ok_or(Errno::EINVAL)?;
        let own = entries
            .iter()
            .position(|e| e.id == self.id)
            .ok_or(Errno::EINVAL)?;
        entries[own].listens = true;
        let others = entries.iter().filter(|e| e.id != self.id && e.listens);
        if others
            .into_iter()
            .any(|other| entries[own].conflicts(other, false))
        {
            entries[own].listens = false;
            return Err(Errno::EADDRINUSE);
        }
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut table = PORTS.lock();
        let key = (self.kind, self.port);
        let left = table.bound.get_mut(&key).map(|entries| {
            entries.retain(|e| e.id != self.id);
            entries.len()
        });
        if left == Some(0) {
            table.bound.remove(&key);
        }
    }
}

/// The sockets that an address means, each with how exactly it does; of streams those that listen.
#[must_use]
pub fn find(kind: Kind, to: SocketAddr) -> Vec<(u32, Arc<PrivateSocket>)> {
    let table = PORTS.lock();
    let entries = table.bound.get(&(kind as u32, to.port()));
    let takes = |entry: &&Entry| entry.covers(to.ip()) > 0 && (entry.listens || kind == Kind::Datagram);
    let meant = entries.into_iter().flatten().filter(takes);
    meant
        .filter_map(|entry| Some((entry.covers(to.ip()), entry.socket.upgrade()?)))
        .collect()
}

/// All sockets of a kind that have a port, for `/proc/net`.
#[must_use]
pub fn all(kind: Kind) -> Vec<Arc<PrivateSocket>> {
    let table = PORTS.lock();
    let of_kind = table.bound.iter().filter(|((k, _), _)| *k == kind as u32);
    let sockets = of_kind.flat_map(|(_, entries)| entries.iter().filter_map(|e| e.socket.upgrade()));
    sockets.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn take(kind: Kind, text: &str, sharing: Sharing) -> SysResult<Claim> {
        claim(&Weak::new(), kind, at(text), sharing)
    }

    #[test]
    fn addresses_that_overlap_are_not_given_twice() {
        let alone = Sharing::default();
        let dual = Sharing { dual: true, ..alone };
        let pairs = [
            ("0.0.0.0:1", alone, "127.0.0.1:1", alone, false),
            ("127.0.0.1:2", alone, "127.0.0.2:2", alone, true),
            ("127.0.0.1:3", alone, "127.0.0.1:3", alone, false),
            ("[::]:4", dual, "0.0.0.0:4", alone, false),
            ("[::]:5", alone, "0.0.0.0:5", alone, true),
            ("[::]:6", dual, "127.0.0.1:6", alone, false),
            ("[::]:7", dual, "[::1]:7", alone, false),
        ];
        for (first, how, second, also, both) in pairs {
            let one = take(Kind::Stream, first, how).expect("free");
            assert_eq!(take(Kind::Stream, second, also).is_ok(), both, "{first} {second}");
            assert!(
                take(Kind::Datagram, second, also).is_ok(),
                "another kind: {second}"
            );
            drop(one);
            assert!(take(Kind::Stream, second, also).is_ok(), "{second}");
        }
    }

    #[test]
    fn what_is_shared_is_shared_by_both() {
        let (address, port) = (
            Sharing {
                address: true,
                ..Sharing::default()
            },
            Sharing {
                port: true,
                ..Sharing::default()
            },
        );
        let first = take(Kind::Stream, "0.0.0.0:21", address).expect("free");
        let second = take(Kind::Stream, "0.0.0.0:21", address).expect("shared");
        assert_eq!(first.listen(), Ok(()));
        assert_eq!(second.listen(), Err(Errno::EADDRINUSE));
        assert!(take(Kind::Stream, "0.0.0.0:21", address).is_err(), "it listens");
        let both = [(); 2].map(|()| take(Kind::Stream, "0.0.0.0:22", port).expect("shared"));
        assert_eq!(both.each_ref().map(Claim::listen), [Ok(()); 2]);
        assert!(take(Kind::Stream, "0.0.0.0:22", Sharing::default()).is_err());
    }

    #[test]
    fn any_port_is_a_free_one() {
        let claims: Vec<Claim> = (0..100)
            .map(|_| take(Kind::Stream, "0.0.0.0:0", Sharing::default()).expect("free"))
            .collect();
        let mut ports: Vec<u16> = claims.iter().map(|c| c.port).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 100);
        assert!(ports.iter().all(|port| ANY.contains(port)));
    }
}
