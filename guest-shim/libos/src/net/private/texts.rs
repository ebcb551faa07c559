//! Files about the private network: `/proc/net`, `/sys/class/net`, and what of `/etc` the C library looks at.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::net::{IpAddr, SocketAddr};

use super::interfaces::{ALL, Interface};
use super::socket::Role;
use super::{PrivateSocket, endpoint, network, ports};
use crate::net::address::family;
use crate::net::socket::Kind;

/// `/proc/net/dev`. Packets are not counted.
#[must_use]
pub fn devices() -> String {
    let mut text = String::from(
        "Inter-|   Receive                                                |  Transmit\n \
         face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n",
    );
    for interface in &ALL {
        let _ = writeln!(
            text,
            "{:>6}:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0",
            interface.name
        );
    }
    text
}

/// `/proc/net/route`.
#[must_use]
pub fn routes() -> String {
    let mut text =
        String::from("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n");
    for interface in ALL.iter().filter(|i| !i.is_loopback()) {
        let raw = |ip: core::net::Ipv4Addr| u32::from_ne_bytes(ip.octets());
        let mask = raw(interface.mask());
        let subnet = raw(interface.four.0) & mask;
        let name = interface.name;
        let gateway = raw(network::GATEWAY);
        let _ = writeln!(
            text,
            "{name}\t00000000\t{gateway:08X}\t0003\t0\t0\t0\t00000000\t0\t0\t0"
        );
        let _ = writeln!(
            text,
            "{name}\t{subnet:08X}\t00000000\t0001\t0\t0\t0\t{mask:08X}\t0\t0\t0"
        );
    }
    text
}

/// `/proc/net/if_inet6`.
#[must_use]
pub fn addresses_of_ipv6() -> String {
    let six = ALL.iter().filter_map(|i| Some((i, i.six?)));
    six.map(|(interface, (ip, bits))| {
        let digits: String = ip.octets().iter().map(|b| format!("{b:02x}")).collect();
        format!(
            "{digits} {:02x} {bits:02x} 10 80 {:>8}\n",
            interface.index, interface.name
        )
    })
    .collect()
}

/// `/proc/net/tcp`, `tcp6`, `udp` and `udp6`: sockets that have a port.
#[must_use]
pub fn sockets(kind: Kind, domain: u16) -> String {
    let mut text = String::from(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n",
    );
    let all = ports::all(kind);
    for (number, socket) in all.iter().filter(|s| s.domain == domain).enumerate() {
        let (own, peer, state) = socket.standing();
        let own = digits(own.unwrap_or(endpoint::any(domain)), domain);
        let peer = digits(peer.unwrap_or(endpoint::any(domain)), domain);
        let _ = writeln!(
            text,
            "{number:4}: {own} {peer} {state:02X} 00000000:00000000 00:00000000 00000000     0        0 {} 1 0000000000000000",
            socket.inode
        );
    }
    text
}

/// As the kernel writes it: words of the address as numbers of this machine.
fn digits(end: SocketAddr, domain: u16) -> String {
    let octets: Vec<u8> = match (end.ip(), domain) {
        (IpAddr::V4(ip), family::INET) => ip.octets().to_vec(),
        (IpAddr::V4(ip), _) => ip.to_ipv6_mapped().octets().to_vec(),
        (IpAddr::V6(ip), _) => ip.octets().to_vec(),
    };
    let words = octets
        .chunks(4)
        .map(|c| c.try_into().map_or(0, u32::from_ne_bytes));
    let ip: String = words.map(|word| format!("{word:08X}")).collect();
    format!("{ip}:{:04X}", end.port())
}

impl PrivateSocket {
    /// Own end, peer, and state as `/proc/net` has them (`TCP_*`).
    fn standing(&self) -> (Option<SocketAddr>, Option<SocketAddr>, u8) {
        let state = self.state.lock();
        let number = match &state.role {
            Role::Inside(_) | Role::Outside(..) => 1,
            Role::Listening(_) => 10,
            Role::Idle if state.peer.is_some() => 1,
            Role::Idle => 7,
        };
        (state.own, state.peer, number)
    }
}

/// Files of `/sys/class/net/NAME`.
#[must_use]
pub fn attributes(interface: &Interface) -> [(&'static str, String); 7] {
    let hardware: Vec<String> = interface.hardware.iter().map(|b| format!("{b:02x}")).collect();
    let state = if interface.is_loopback() { "unknown" } else { "up" };
    [
        ("address", format!("{}\n", hardware.join(":"))),
        ("carrier", String::from("1\n")),
        ("flags", format!("{:#x}\n", interface.flags & 0xffff)),
        ("ifindex", format!("{}\n", interface.index)),
        ("mtu", format!("{}\n", interface.mtu)),
        ("operstate", format!("{state}\n")),
        ("type", format!("{}\n", interface.kind)),
    ]
}

/// `/etc/hosts`.
#[must_use]
pub fn hosts(host_name: &str) -> String {
    format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{}\t{host_name}\n",
        network::OWN
    )
}
