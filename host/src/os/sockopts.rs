//! Socket options: a list of those that are plain values.
//!
//! Left out is what holds addresses of this process (packet filters, zero-copy receive), hands out
//! descriptors (SO_PEERPIDFD), makes the kernel send some along (SO_PASSPIDFD), or changes the host.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::request::{Answer, Call, Reply};
use super::sys;

/// Longest value.
const MOST: usize = 1024;

/// SOL_SOCKET by number: DEBUG REUSEADDR TYPE ERROR DONTROUTE BROADCAST SNDBUF RCVBUF KEEPALIVE OOBINLINE
/// NO_CHECK PRIORITY LINGER REUSEPORT PASSCRED PEERCRED RCVLOWAT SNDLOWAT RCVTIMEO SNDTIMEO BINDTODEVICE
/// PEERNAME TIMESTAMP ACCEPTCONN PEERSEC PASSSEC TIMESTAMPNS MARK TIMESTAMPING PROTOCOL DOMAIN RXQ_OVFL
/// PEEK_OFF BUSY_POLL MAX_PACING_RATE INCOMING_CPU MEMINFO INCOMING_NAPI_ID COOKIE PEERGROUPS TXTIME TIMESTAMP_NEW
/// TIMESTAMPNS_NEW TIMESTAMPING_NEW RCVTIMEO_NEW SNDTIMEO_NEW PREFER_BUSY_POLL NETNS... (see Linux's
/// asm-generic/socket.h).
const SOCKET: &[i32] = &[
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 20, 21, 25, 28, 29, 30, 31, 34, 35, 36,
    37, 38, 39, 40, 42, 46, 47, 49, 55, 56, 57, 59, 61, 63, 64, 65, 66, 67, 69,
];
/// IPPROTO_TCP: up to TCP_CONGESTION 13, MD5SIG left out, COOKIE.. FASTOPEN.. INQ; without REPAIR (19),
/// ULP (31) and ZEROCOPY_RECEIVE (35).
const TCP: &[i32] = &[
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18, 23, 24, 25, 26, 27, 30, 34, 36, 37,
];
/// IPPROTO_UDP: CORK, SEGMENT, GRO.
const UDP: &[i32] = &[1, 103, 104];
/// SOL_NETLINK: memberships, PKTINFO, BROADCAST_ERROR, NO_ENOBUFS, LIST_MEMBERSHIPS, CAP_ACK, EXT_ACK,
/// GET_STRICT_CHK.
const NETLINK: &[i32] = &[1, 2, 3, 4, 5, 9, 10, 11, 12];

const SOL_NETLINK: i32 = 270;

fn is_known(level: i32, name: i32) -> bool {
    match level {
        libc::SOL_SOCKET => SOCKET.contains(&name),
        libc::IPPROTO_TCP => TCP.contains(&name),
        libc::IPPROTO_UDP => UDP.contains(&name),
        // Beyond these numbers lie packet filters and their kin, which hold addresses.
        libc::IPPROTO_IP => (1..=52).contains(&name),
        libc::IPPROTO_IPV6 => (1..=63).contains(&name) || (66..=80).contains(&name),
        SOL_NETLINK => NETLINK.contains(&name),
        _ => false,
    }
}

fn option(call: &Call<'_>) -> Result<(i32, i32), Errno> {
    let (level, name) = (call.int(1), call.int(2));
    if is_known(level, name) {
        Ok((level, name))
    } else {
        Err(Errno::NOPROTOOPT)
    }
}

/// [`cloak_abi::hostop::HostOp::GetSockOpt`]
pub fn get(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    let (level, name) = option(call)?;
    let mut value = [0u8; MOST];
    let value = &mut value[..call.len(3)?.min(MOST)];
    let len = sys::option(entry.as_fd(), level, name, value)?;
    call.buffer().write(&value[..len]);
    Ok(Answer::with(0, len as u64))
}

/// [`cloak_abi::hostop::HostOp::SetSockOpt`]
pub fn set(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    let (level, name) = option(call)?;
    let source = call.data(3)?;
    let mut value = [0u8; MOST];
    let value = value.get_mut(..source.len()).ok_or(Errno::INVAL)?;
    source.read(value);
    sys::set_option(entry.as_fd(), level, name, value)?;
    if (level, name) == (libc::SOL_SOCKET, libc::SO_LINGER) {
        // Closing such a socket may wait for its peer, non-blocking or not.
        entry
            .lingers
            .store(value.first().is_some_and(|on| *on != 0), Ordering::Relaxed);
    }
    Ok(().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_addresses_or_descriptors_is_not_known() {
        for (level, name) in [
            (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
            (libc::SOL_SOCKET, libc::SO_ATTACH_BPF),
            (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF),
            (libc::SOL_SOCKET, libc::SO_ZEROCOPY),
            (libc::SOL_SOCKET, 76), // SO_PASSPIDFD
            (libc::SOL_SOCKET, 77), // SO_PEERPIDFD
            (libc::IPPROTO_TCP, libc::TCP_ZEROCOPY_RECEIVE),
            (libc::IPPROTO_TCP, libc::TCP_REPAIR),
            (libc::IPPROTO_IP, 64),   // IPT_SO_SET_REPLACE
            (libc::IPPROTO_IPV6, 64), // IP6T_SO_SET_REPLACE
            (284, 4),                 // MPTCP_FULL_INFO
        ] {
            assert!(!is_known(level, name), "level {level} name {name}");
        }
        assert!(is_known(libc::IPPROTO_TCP, libc::TCP_NODELAY));
        assert!(is_known(libc::SOL_SOCKET, libc::SO_REUSEPORT));
        assert!(is_known(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY));
    }
}
