//! `--publish [ADDRESS:]HOST:GUEST[/tcp|udp]`: a port of a private network on the host.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use cloak_host::run::Published;

/// As it is written.
pub const SHAPE: &str = "[ADDRESS:]HOST:GUEST[/tcp|udp]";

/// Reads one. Without an address it is all of the host's (of IPv4).
pub fn parse(text: &str) -> Result<Published, String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let datagrams = match protocol {
        "tcp" => false,
        "udp" => true,
        other => return Err(format!("{other:?} is not a protocol: tcp or udp")),
    };
    let expected = || format!("expected {SHAPE}, such as 8080:80 or 127.0.0.1:5353:53/udp");
    let (rest, guest) = ports.rsplit_once(':').ok_or_else(expected)?;
    let (address, host) = match rest.rsplit_once(':') {
        Some((address, host)) => (self::address(address)?, host),
        None => (Ipv4Addr::UNSPECIFIED.into(), rest),
    };
    Ok(Published {
        datagrams,
        port: port(guest)?,
        host: SocketAddr::new(address, port(host)?),
    })
}

fn address(text: &str) -> Result<IpAddr, String> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let parsed = bare.unwrap_or(text).parse::<IpAddr>().ok();
    parsed
        .filter(|ip| ip.is_ipv6() == bare.is_some())
        .ok_or_else(|| format!("{text:?} is not an address (one of IPv6 stands in brackets)"))
}

fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("{text:?} is not a port: 1 to 65535"))
}

/// Whether they can be published together.
pub fn check(all: &[Published]) -> Result<(), String> {
    for (index, one) in all.iter().enumerate() {
        for other in &all[..index] {
            let same_host = one.datagrams == other.datagrams && one.host == other.host;
            if same_host {
                return Err(format!("the host's port {} is published twice", one.host));
            }
            // What answers a datagram would not know through which it had come.
            if one.datagrams
                && other.datagrams
                && one.port == other.port
                && one.host.is_ipv4() == other.host.is_ipv4()
            {
                return Err(format!("the port {}/udp is published twice", one.port));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_a_host_and_a_guest() {
        let published = |text: &str| parse(text).map(|p| (p.datagrams, p.port, p.host.to_string()));
        let of = |datagrams, port, host: &str| Ok((datagrams, port, host.to_owned()));
        assert_eq!(published("8080:80"), of(false, 80, "0.0.0.0:8080"));
        assert_eq!(
            published("127.0.0.1:8080:80/tcp"),
            of(false, 80, "127.0.0.1:8080")
        );
        assert_eq!(published("[::1]:53:54/udp"), of(true, 54, "[::1]:53"));
        for wrong in [
            "80",
            "a:80",
            "80:0",
            "0:80",
            "80:65536",
            "80:80/sctp",
            "::1:80:80",
            "x:80:80",
            "80:80/",
            ":80",
            "[127.0.0.1]:80:80",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_is_published_twice() {
        let all = |texts: &[&str]| {
            let all: Vec<Published> = texts.iter().map(|t| parse(t).expect("one")).collect();
            check(&all).is_ok()
        };
        assert!(all(&["8080:80", "8081:80", "8080:80/udp"]));
        assert!(!all(&["8080:80", "8080:81"]));
        assert!(!all(&["53:53/udp", "54:53/udp"]));
        assert!(all(&["53:53/udp", "[::]:53:53/udp"]));
    }
}
