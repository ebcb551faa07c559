//! What the private network looks like: its addresses, and where an address leads.
//!
//! Two interfaces: `lo`, and `eth0` with [`OWN`], behind a gateway that translates addresses. The subnet is the one that
//! RFC 6333 sets aside for ends of tunnels, so that it hides no network that the host could be in. Nothing but what
//! [`way`] calls outside is ever asked of the OS side.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use cloak_abi::config::Published;
use spin::Once;

use crate::errno::{Errno, SysResult};

/// Address of `eth0`.
pub const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
/// The gateway. Who reaches a published port from the host's own loopback interface seems to come from there.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);
/// Bits of the subnet.
pub const PREFIX: u8 = 29;
/// Most servers of names (`MAXNS` of the C libraries).
const SERVERS_MAX: usize = 3;
/// Port of servers of names.
const NAMES: u16 = 53;

/// What the configuration says of it.
#[derive(Debug, Default)]
pub struct Settings {
    /// Ports that the host publishes.
    pub published: Vec<Published>,
    /// The host's servers of names.
    pub name_servers: Vec<IpAddr>,
    /// Other lines of its `resolv.conf`.
    pub resolver: Vec<u8>,
}

static SETTINGS: Once<Settings> = Once::new();

/// Takes what the configuration says, once.
pub fn set(settings: Settings) {
    SETTINGS.call_once(|| settings);
}

/// Ports that the host publishes.
#[must_use]
pub fn published() -> &'static [Published] {
    SETTINGS.get().map_or(&[], |settings| &settings.published)
}

/// Servers of names by IPv4: what they are here, and on the host. The host's may be on its loopback interface, which is
/// not ours, so each has an address in the subnet.
fn servers() -> impl Iterator<Item = (Ipv4Addr, Ipv4Addr)> {
    let all = SETTINGS.get().map_or(&[][..], |s| &s.name_servers);
    let ours = (3..).map(|last| Ipv4Addr::new(192, 0, 0, last));
    let four = all.iter().filter_map(|server| match server {
        IpAddr::V4(server) => Some(*server),
        IpAddr::V6(_) => None,
    });
    ours.zip(four).take(SERVERS_MAX)
}

/// Text of `/etc/resolv.conf`.
#[must_use]
pub fn resolver() -> String {
    let Some(settings) = SETTINGS.get() else {
        return String::new();
    };
    let four = servers().map(|(ours, _)| IpAddr::V4(ours));
    let six = settings.name_servers.iter().copied();
    let six = six.filter(|server| server.is_ipv6() && !server.is_loopback());
    let mut text: String = four
        .chain(six)
        .take(SERVERS_MAX)
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    text.push_str(&String::from_utf8_lossy(&settings.resolver));
    text
}

/// Where an address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To a socket of the context.
    Inside(SocketAddr),
    /// To this end, through the host.
    Outside(SocketAddr),
}

fn in_subnet(ip: IpAddr) -> bool {
    let bits = |ip: Ipv4Addr| u32::from(ip) >> (32 - PREFIX);
    matches!(ip, IpAddr::V4(ip) if bits(ip) == bits(OWN))
}

/// Whether a socket can have the address.
#[must_use]
pub fn is_own(ip: IpAddr) -> bool {
    ip.is_loopback() || ip == IpAddr::V4(OWN)
}

/// Where `to` leads.
///
/// # Errors
/// EHOSTUNREACH, ENETUNREACH.
pub fn way(to: SocketAddr) -> SysResult<Way> {
    let ip = to.ip().to_canonical();
    if ip.is_unspecified() {
        let loopback = match ip {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => core::net::Ipv6Addr::LOCALHOST.into(),
        };
        return Ok(Way::Inside(SocketAddr::new(loopback, to.port())));
    }
    if is_own(ip) {
        return Ok(Way::Inside(SocketAddr::new(ip, to.port())));
    }
    if in_subnet(ip) {
        let asked = servers().find(|(ours, _)| ip == IpAddr::V4(*ours) && to.port() == NAMES);
        let (_, server) = asked.ok_or(Errno::EHOSTUNREACH)?;
        return Ok(Way::Outside(SocketAddr::new(server.into(), NAMES)));
    }
    if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(Errno::ENETUNREACH);
    }
    Ok(Way::Outside(SocketAddr::new(ip, to.port())))
}

/// An end outside, as the OS side says, as it is shown inside: no address that means something here can come from there.
#[must_use]
pub fn seen(from: SocketAddr) -> SocketAddr {
    let ip = from.ip().to_canonical();
    let server = servers().find(|(_, server)| ip == IpAddr::V4(*server) && from.port() == NAMES);
    let ip = match server {
        Some((ours, _)) => ours.into(),
        None if is_own(ip) || in_subnet(ip) || ip.is_unspecified() => GATEWAY.into(),
        None => ip,
    };
    SocketAddr::new(ip, from.port())
}

/// The address from which a socket without one sends to `to`, inside.
#[must_use]
pub fn source(own: IpAddr, to: IpAddr) -> IpAddr {
    match to {
        _ if !own.is_unspecified() => own,
        IpAddr::V4(to) if to == OWN => OWN.into(),
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => core::net::Ipv6Addr::LOCALHOST.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn no_spelling_of_the_loopback_interface_leads_outside() {
        for text in [
            "127.0.0.1:9",
            "127.255.255.254:9",
            "0.0.0.0:9",
            "[::1]:9",
            "[::]:9",
            "[::ffff:127.0.0.1]:9",
            "[::ffff:0.0.0.0]:9",
            "192.0.0.2:9",
            "[::ffff:192.0.0.2]:9",
        ] {
            assert!(matches!(way(end(text)), Ok(Way::Inside(_))), "{text}");
        }
        for text in [
            "192.0.0.1:9",
            "192.0.0.7:53",
            "224.0.0.1:9",
            "255.255.255.255:9",
            "[ff02::1]:9",
        ] {
            assert!(way(end(text)).is_err(), "{text}");
        }
        assert_eq!(way(end("192.0.0.8:9")), Ok(Way::Outside(end("192.0.0.8:9"))));
        assert_eq!(
            way(end("[2001:db8::1]:9")),
            Ok(Way::Outside(end("[2001:db8::1]:9")))
        );
    }

    #[test]
    fn nobody_outside_seems_to_be_inside() {
        for text in [
            "127.0.0.1:9",
            "[::1]:9",
            "[::ffff:127.0.0.1]:9",
            "0.0.0.0:9",
            "192.0.0.2:9",
        ] {
            assert_eq!(seen(end(text)), end("192.0.0.1:9"), "{text}");
        }
        assert_eq!(seen(end("203.0.113.5:9")), end("203.0.113.5:9"));
    }
}
