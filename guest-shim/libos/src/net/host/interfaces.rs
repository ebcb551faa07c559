//! `ioctl` requests about network interfaces (`netdevice(7)`), which any socket answers: `if_nametoindex` and its like
//! make them on whatever socket they get, Unix sockets too.

use cloak_abi::hostop::HostOp;

use super::HostSocket;
use crate::errno::{Errno, SysResult};
use crate::host::Request;
use crate::net::address::family;
use crate::net::mode::{self, Mode};
use crate::net::private;
use crate::net::socket::Kind;
use crate::user;

/// Bytes of `struct ifreq`.
const IFREQ: usize = 40;
const SIOCGIFCONF: u32 = 0x8912;
/// Most bytes of a list of interfaces: about a hundred.
const LIST_MAX: usize = 4096;

/// Whether the request asks about an interface and is told in a `struct ifreq`: SIOCGIFNAME, SIOCGIFFLAGS,
/// SIOCGIFADDR, SIOCGIFDSTADDR, SIOCGIFBRDADDR, SIOCGIFNETMASK, SIOCGIFMETRIC, SIOCGIFMTU, SIOCGIFHWADDR,
/// SIOCGIFINDEX, SIOCGIFTXQLEN, SIOCGIFMAP.
const fn asks(request: u32) -> bool {
    matches!(
        request,
        0x8910
            | 0x8913
            | 0x8915
            | 0x8917
            | 0x8919
            | 0x891b
            | 0x891d
            | 0x8921
            | 0x8927
            | 0x8933
            | 0x8942
            | 0x8970
    )
}

/// Answers a request about interfaces through the host's socket `fd`, or through one made for it.
///
/// # Errors
/// ENOTTY for other requests; EFAULT; those of the host.
pub fn ioctl(fd: Option<u64>, request: u32, argument: u64) -> SysResult {
    if !asks(request) && request != SIOCGIFCONF {
        return Err(Errno::ENOTTY);
    }
    match mode::get() {
        Mode::Host => {}
        Mode::Private => return private::interfaces::ioctl(request, argument),
        // There is no interface; the list is empty.
        Mode::None if request == SIOCGIFCONF => return user::write(argument, &0i32).map(|()| 0),
        Mode::None => return Err(Errno::ENODEV),
    }
    let Some(fd) = fd else {
        let socket = HostSocket::create(family::INET, Kind::Datagram, 0)?;
        return ioctl(Some(socket.fd()), request, argument);
    };
    if request == SIOCGIFCONF {
        return list(fd, argument);
    }
    let mut bytes = [0; IFREQ];
    user::copy_in(&mut bytes, argument)?;
    let mut asked = Request::new();
    asked.put(0, &bytes);
    let len = IFREQ as u64;
    asked
        .call(HostOp::Ioctl, [fd, u64::from(request), len, len, 0, 0])
        .ok()?;
    user::copy_out(argument, &asked.get_array::<IFREQ>(0))?;
    Ok(0)
}

/// `SIOCGIFCONF`: `struct ifconf` is the space, and where it is; no place asks for the length only.
fn list(fd: u64, argument: u64) -> SysResult {
    let [space, to]: [u64; 2] = user::read(argument)?;
    let space = usize::try_from(space as u32 as i32).map_err(|_| Errno::EINVAL)?;
    let space = if to == 0 { LIST_MAX } else { space.min(LIST_MAX) };
    let mut asked = Request::new();
    let len = asked
        .call(HostOp::Ioctl, [fd, u64::from(SIOCGIFCONF), 0, space as u64, 0, 0])
        .len(space)?;
    if to != 0 {
        let mut bytes = alloc::vec![0; len];
        asked.get(0, &mut bytes);
        user::copy_out(to, &bytes)?;
    }
    user::write(argument, &(len as i32))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_a_number_and_that_number_its_name() {
        crate::testing::start();
        let mut ifreq = [0u8; IFREQ];
        ifreq[..2].copy_from_slice(b"lo");
        let at = ifreq.as_mut_ptr() as u64;
        assert_eq!(ioctl(None, 0x8933, at), Ok(0));
        let index = i32::from_ne_bytes([ifreq[16], ifreq[17], ifreq[18], ifreq[19]]);
        assert!(index > 0);
        ifreq[..16].fill(0);
        assert_eq!(ioctl(None, 0x8910, at), Ok(0));
        assert_eq!(&ifreq[..3], b"lo\0");
        ifreq[..16].copy_from_slice(b"no-such-device\0\0");
        assert_eq!(ioctl(None, 0x8933, at), Err(Errno::ENODEV));
        assert_eq!(ioctl(None, 0x8922, at), Err(Errno::ENOTTY)); // a change is nothing to ask about
    }
}
