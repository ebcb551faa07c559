//! Socket addresses of IPv4 and IPv6 as values: an IPv4 address that is written as one of IPv6 is one of IPv4.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::errno::{Errno, SysResult};
use crate::net::address::{Address, family};

/// The end that an address names.
///
/// # Errors
/// EAFNOSUPPORT, EINVAL when it is too short.
pub fn parse(address: &Address) -> SysResult<SocketAddr> {
    let bytes = address.bytes();
    let port = bytes.get(2..4).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    let ip: IpAddr = match address.family() {
        family::INET if bytes.len() >= 16 => {
            let host = bytes[4..].first_chunk::<4>().ok_or(Errno::EINVAL)?;
            Ipv4Addr::from(*host).into()
        }
        family::INET6 if bytes.len() >= 24 => {
            let host = bytes[8..].first_chunk::<16>().ok_or(Errno::EINVAL)?;
            Ipv6Addr::from(*host).to_canonical()
        }
        family::INET | family::INET6 => return Err(Errno::EINVAL),
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    Ok(SocketAddr::new(ip, port))
}

/// An end as a socket of `domain` shows it.
///
/// # Errors
/// EINVAL for one of IPv6 on a socket of IPv4.
pub fn shown(end: SocketAddr, domain: u16) -> SysResult<Address> {
    let mut bytes = [0; 28];
    bytes[..2].copy_from_slice(&domain.to_ne_bytes());
    bytes[2..4].copy_from_slice(&end.port().to_be_bytes());
    match (domain, end.ip()) {
        (family::INET, IpAddr::V4(ip)) => {
            bytes[4..8].copy_from_slice(&ip.octets());
            Address::new(&bytes[..16])
        }
        (family::INET6, ip) => {
            let ip = match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            bytes[8..24].copy_from_slice(&ip.octets());
            Address::new(&bytes)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// The family of its address.
#[must_use]
pub fn family_of(end: SocketAddr) -> u16 {
    if end.is_ipv4() {
        family::INET
    } else {
        family::INET6
    }
}

/// All addresses of a socket of `domain`, and no port.
#[must_use]
pub fn any(domain: u16) -> SocketAddr {
    let ip: IpAddr = match domain {
        family::INET => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_shown_as_they_were_given() {
        for (text, domain) in [
            ("127.0.0.1:80", family::INET),
            ("127.0.0.1:80", family::INET6),
            ("[::1]:80", family::INET6),
        ] {
            let end: SocketAddr = text.parse().expect("an address");
            let address = shown(end, domain).expect("fits");
            assert_eq!((parse(&address), address.family()), (Ok(end), domain));
        }
        assert!(shown("[::1]:80".parse().expect("an address"), family::INET).is_err());
        assert_eq!(parse(&Address::unnamed(family::INET)), Err(Errno::EINVAL));
        assert_eq!(parse(&Address::unnamed(family::UNIX)), Err(Errno::EAFNOSUPPORT));
    }
}
