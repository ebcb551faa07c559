//! What a private network is told of the host's: its servers of names, and which ports are published.

use std::net::IpAddr;

use cloak_abi::config::{Published, Tag, Writer};

const RESOLVER: &str = "/etc/resolv.conf";
/// Where systemd-resolved keeps the servers that it asks itself.
const BEHIND: &str = "/run/systemd/resolve/resolv.conf";

/// Puts it into the configuration. A host without `resolv.conf` has no servers of names for the guest either.
pub fn put(published: &[Published], config: &mut Writer) {
    for port in published {
        config.published(port);
    }
    let text = std::fs::read_to_string(RESOLVER).unwrap_or_default();
    let (mut servers, rest) = parse(&text);
    if servers
        .iter()
        .all(|server| server.is_ipv6() && server.is_loopback())
    {
        // Those of the guest go out by IPv4.
        servers.extend(parse(&std::fs::read_to_string(BEHIND).unwrap_or_default()).0);
    }
    for server in servers {
        config.ip_address(Tag::NameServer, server);
    }
    config.put(Tag::Resolver, rest.as_bytes());
}

/// The servers of a `resolv.conf`, and those of its other lines that say how to search (`resolv.conf(5)`).
fn parse(text: &str) -> (Vec<IpAddr>, String) {
    let mut servers = Vec::new();
    let mut rest = String::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("nameserver"), Some(address)) => servers.extend(address.parse::<IpAddr>()),
            (Some("search" | "domain" | "options"), Some(_)) => {
                rest.push_str(line.trim());
                rest.push('\n');
            }
            _ => {}
        }
    }
    (servers, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_search_lines_are_told_apart() {
        let text = "# none\nnameserver 127.0.0.53\nsearch a b\n nameserver ::1 \nnameserver fe80::1%eth0\noptions edns0\nsortlist 1\n";
        let (servers, rest) = parse(text);
        let addresses: Vec<String> = servers.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["127.0.0.53", "::1"]);
        assert_eq!(rest, "search a b\noptions edns0\n");
    }
}
