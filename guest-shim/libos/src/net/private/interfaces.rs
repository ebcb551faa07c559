//! The interfaces of the private network, and what `ioctl` tells of them (`netdevice(7)`).

use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{endpoint, network};
use crate::errno::{Errno, SysResult};
use crate::net::address::{Address, family};
use crate::user;

/// An interface.
#[derive(Debug)]
pub struct Interface {
    /// Name.
    pub name: &'static str,
    /// Number.
    pub index: u32,
    /// `IFF_*` bits.
    pub flags: u32,
    /// `ARPHRD_*` type.
    pub kind: u16,
    /// Longest packet.
    pub mtu: u32,
    /// Packets that its queue takes.
    pub queue: u32,
    /// Hardware address.
    pub hardware: [u8; 6],
    /// Address of IPv4, and bits of its subnet.
    pub four: (Ipv4Addr, u8),
    /// Address of IPv6, and bits of its subnet.
    pub six: Option<(Ipv6Addr, u8)>,
}

/// UP LOOPBACK RUNNING LOWER_UP; UP BROADCAST RUNNING MULTICAST LOWER_UP.
const FLAGS: [u32; 2] = [0x1_0049, 0x1_1043];
const LOOPBACK: u32 = 8;

/// All.
pub static ALL: [Interface; 2] = [
    Interface {
        name: "lo",
        index: 1,
        flags: FLAGS[0],
        kind: 772,
        mtu: 65536,
        queue: 1000,
        hardware: [0; 6],
        four: (Ipv4Addr::LOCALHOST, 8),
        six: Some((Ipv6Addr::LOCALHOST, 128)),
    },
    Interface {
        name: "eth0",
        index: 2,
        flags: FLAGS[1],
        kind: 1,
        mtu: 1500,
        queue: 1000,
        hardware: [2, 0, 192, 0, 0, 2],
        four: (network::OWN, network::PREFIX),
        six: None,
    },
];

impl Interface {
    /// Bits of its subnet, as an address.
    #[must_use]
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX << (32 - u32::from(self.four.1)))
    }

    /// Address of all in its subnet.
    #[must_use]
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.four.0) | !u32::from(self.mask()))
    }

    /// Whether it is the loopback interface.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.flags & LOOPBACK != 0
    }
}

/// Bytes of a name, and of `struct ifreq`.
const NAME: usize = 16;
const IFREQ: usize = 40;
const SIOCGIFNAME: u32 = 0x8910;
const SIOCGIFCONF: u32 = 0x8912;

/// Answers a request.
///
/// # Errors
/// ENOTTY for one that is not about interfaces, EPERM for one that changes them, ENODEV, EFAULT.
pub fn ioctl(request: u32, argument: u64) -> SysResult {
    if request == SIOCGIFCONF {
        return list(argument);
    }
    let answer: fn(&Interface) -> SysResult<Vec<u8>> = match request {
        SIOCGIFNAME => |_| Ok(Vec::new()),
        0x8913 => |i| Ok((i.flags as u16).to_ne_bytes().to_vec()),
        0x8915 => |i| inet(i.four.0),
        0x8917 => |_| inet(Ipv4Addr::UNSPECIFIED),
        0x8919 => |i| {
            inet(if i.is_loopback() {
                Ipv4Addr::UNSPECIFIED
            } else {
                i.broadcast()
            })
        },
        0x891b => |i| inet(i.mask()),
        0x891d => |_| Ok(0u32.to_ne_bytes().to_vec()), // metric
        0x8921 => |i| Ok(i.mtu.to_ne_bytes().to_vec()),
        0x8927 => |i| Ok([&i.kind.to_ne_bytes()[..], &i.hardware].concat()),
        0x8933 => |i| Ok(i.index.to_ne_bytes().to_vec()),
        0x8942 => |i| Ok(i.queue.to_ne_bytes().to_vec()),
        0x8970 => |_| Ok([0; 24].to_vec()), // map
        0x8914 | 0x8916 | 0x8918 | 0x891a | 0x891c | 0x891e | 0x8922..=0x8924 => return Err(Errno::EPERM),
        _ => return Err(Errno::ENOTTY),
    };
    let mut bytes = [0; IFREQ];
    user::copy_in(&mut bytes, argument)?;
    let (name, value) = bytes.split_at_mut(NAME);
    let interface = if request == SIOCGIFNAME {
        let index = value.first_chunk().copied().map_or(0, u32::from_ne_bytes);
        ALL.iter().find(|i| i.index == index)
    } else {
        let end = name.iter().position(|b| *b == 0).unwrap_or(NAME);
        ALL.iter().find(|i| i.name.as_bytes() == &name[..end])
    };
    let interface = interface.ok_or(Errno::ENODEV)?;
    if request == SIOCGIFNAME {
        name.fill(0);
        name[..interface.name.len()].copy_from_slice(interface.name.as_bytes());
    } else {
        let answer = answer(interface)?;
        value
            .get_mut(..answer.len())
            .ok_or(Errno::EINVAL)?
            .copy_from_slice(&answer);
    }
    user::copy_out(argument, &bytes)?;
    Ok(0)
}

fn inet(ip: Ipv4Addr) -> SysResult<Vec<u8>> {
    let address: Address = endpoint::shown(SocketAddr::new(ip.into(), 0), family::INET)?;
    Ok(address.bytes().to_vec())
}

/// `SIOCGIFCONF`: `struct ifconf` is the space, and where it is; no place asks for the length only.
fn list(argument: u64) -> SysResult {
    let [space, to]: [u64; 2] = user::read(argument)?;
    let space = usize::try_from(space as u32 as i32).map_err(|_| Errno::EINVAL)?;
    let mut all = Vec::new();
    for interface in &ALL {
        let at = all.len();
        all.extend_from_slice(interface.name.as_bytes());
        all.resize(at + NAME, 0);
        all.extend(inet(interface.four.0)?);
        all.resize(at + IFREQ, 0);
    }
    if to != 0 {
        all.truncate(space / IFREQ * IFREQ);
        user::copy_out(to, &all)?;
    }
    user::write(argument, &(all.len() as i32))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_have_numbers_names_and_addresses() {
        let mut ifreq = [0u8; IFREQ];
        ifreq[..4].copy_from_slice(b"eth0");
        let at = ifreq.as_mut_ptr() as u64;
        assert_eq!(ioctl(0x8933, at), Ok(0));
        assert_eq!(ifreq[16], 2);
        assert_eq!(ioctl(0x8915, at), Ok(0));
        assert_eq!(ifreq[20..24], [192, 0, 0, 2]);
        assert_eq!(ioctl(0x891b, at), Ok(0));
        assert_eq!(ifreq[20..24], [255, 255, 255, 248]);
        ifreq[16..20].copy_from_slice(&1u32.to_ne_bytes());
        assert_eq!(ioctl(SIOCGIFNAME, at), Ok(0));
        assert_eq!(&ifreq[..3], b"lo\0");
        ifreq[..5].copy_from_slice(b"eth1\0");
        assert_eq!(ioctl(0x8933, at), Err(Errno::ENODEV));
        assert_eq!(ioctl(0x8922, at), Err(Errno::EPERM));
        assert_eq!(ioctl(0x5401, at), Err(Errno::ENOTTY));
    }
}
