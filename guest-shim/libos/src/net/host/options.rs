//! Socket options: a list of those that pass to the host, with the lengths that they can have.

use alloc::vec;
use alloc::vec::Vec;

use cloak_abi::hostop::HostOp;

use super::HostSocket;
use crate::errno::{Errno, SysResult};
use crate::fs::readiness::REPORTED;
use crate::host::Request;

const SOCKET: i32 = 1;
const IP: i32 = 0;
const TCP: i32 = 6;
const UDP: i32 = 17;
const IPV6: i32 = 41;
const NETLINK: i32 = 270;

const SO_ERROR: i32 = 4;
const SO_LINGER: i32 = 13;

/// Level, numbers, longest value in bytes, whether it may be set.
const OPTIONS: &[(i32, &[i32], usize, bool)] = &[
    // TYPE ERROR SNDLOWAT ACCEPTCONN PEERSEC? no: PROTOCOL DOMAIN INCOMING_NAPI_ID COOKIE MEMINFO
    (SOCKET, &[3, 4, 19, 30, 38, 39, 56], 4, false),
    (SOCKET, &[57], 8, false),
    (SOCKET, &[55], 36, false),
    // REUSEADDR DONTROUTE BROADCAST SNDBUF RCVBUF KEEPALIVE OOBINLINE NO_CHECK PRIORITY REUSEPORT RCVLOWAT
    (SOCKET, &[2, 5, 6, 7, 8, 9, 10, 11, 12, 15, 18], 4, true),
    // LINGER
    (SOCKET, &[13], 8, true),
    // BINDTODEVICE
    (SOCKET, &[25], 16, true),
    // TIMESTAMP SNDBUFFORCE RCVBUFFORCE TIMESTAMPNS MARK TIMESTAMPING RXQ_OVFL PEEK_OFF BUSY_POLL INCOMING_CPU
    (SOCKET, &[29, 32, 33, 35, 36, 37, 40, 42, 46, 49], 8, true),
    // TXTIME
    (SOCKET, &[61], 8, true),
    // PASSCRED: harmless on what has none
    (SOCKET, &[16], 4, true),
    // TOS TTL PKTINFO MTU_DISCOVER RECVERR RECVTTL RECVTOS MTU FREEBIND TRANSPARENT ORIGDSTADDR MINTTL
    // BIND_ADDRESS_NO_PORT
    (IP, &[1, 2, 8, 10, 11, 12, 13, 14, 15, 19, 20, 21, 24], 4, true),
    // MULTICAST_IF TTL LOOP ADD DROP, source ADD DROP, MULTICAST_ALL UNICAST_IF LOCAL_PORT_RANGE
    (IP, &[32, 33, 34, 35, 36, 39, 40, 49, 50, 51], 12, true),
    // ADDRFORM? no: UNICAST_HOPS MULTICAST_IF HOPS LOOP MTU_DISCOVER MTU RECVERR V6ONLY RECVPKTINFO
    // RECVHOPLIMIT DONTFRAG RECVTCLASS TCLASS AUTOFLOWLABEL ADDR_PREFERENCES MINHOPCOUNT ORIGDSTADDR FREEBIND
    (
        IPV6,
        &[
            16, 17, 18, 19, 23, 24, 25, 26, 49, 51, 62, 66, 67, 70, 72, 73, 74, 78,
        ],
        4,
        true,
    ),
    // ADD_MEMBERSHIP DROP_MEMBERSHIP PKTINFO
    (IPV6, &[20, 21, 50], 20, true),
    // NODELAY MAXSEG CORK KEEPIDLE KEEPINTVL KEEPCNT SYNCNT LINGER2 DEFER_ACCEPT WINDOW_CLAMP QUICKACK
    // USER_TIMEOUT FASTOPEN TIMESTAMP NOTSENT_LOWAT FASTOPEN_CONNECT
    (
        TCP,
        &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 18, 23, 24, 25, 30],
        4,
        true,
    ),
    // INFO
    (TCP, &[11], 512, false),
    // CONGESTION
    (TCP, &[13], 16, true),
    // CORK SEGMENT GRO
    (UDP, &[1, 103, 104], 4, true),
    // ADD_MEMBERSHIP DROP_MEMBERSHIP PKTINFO NO_ENOBUFS CAP_ACK EXT_ACK STRICT_CHK
    (NETLINK, &[1, 2, 3, 5, 10, 11, 12], 4, true),
];

/// Options that make no difference to what is received and how: REUSEADDR SNDBUF RCVBUF KEEPALIVE PRIORITY LINGER
/// REUSEPORT, NODELAY CORK KEEPIDLE KEEPINTVL KEEPCNT QUICKACK USER_TIMEOUT NOTSENT_LOWAT, TOS TCLASS.
const PASSED_BY: &[(i32, i32)] = &[
    (SOCKET, 2),
    (SOCKET, 7),
    (SOCKET, 8),
    (SOCKET, 9),
    (SOCKET, 12),
    (SOCKET, SO_LINGER),
    (SOCKET, 15),
    (TCP, 1),
    (TCP, 3),
    (TCP, 4),
    (TCP, 5),
    (TCP, 6),
    (TCP, 12),
    (TCP, 18),
    (TCP, 25),
    (IP, 1),
    (IPV6, 67),
];

/// `TCP_ULP`: with TLS in the kernel the program's keys would be the host's.
const TCP_ULP: i32 = 31;

/// Longest value and whether it may be set.
///
/// # Errors
/// ENOPROTOOPT for an option that is not on the list; ENOENT for protocols above TCP, as where no module has them.
pub fn find(level: i32, name: i32) -> SysResult<(usize, bool)> {
    if (level, name) == (TCP, TCP_ULP) {
        return Err(Errno::ENOENT);
    }
    let known = OPTIONS
        .iter()
        .find(|(l, names, ..)| *l == level && names.contains(&name));
    known
        .map(|&(_, _, most, set)| (most, set))
        .ok_or(Errno::ENOPROTOOPT)
}

impl HostSocket {
    pub(super) fn ask_option(&self, level: i32, name: i32, space: usize) -> SysResult<Vec<u8>> {
        if let Some(value) = self.timeouts.option(level, name) {
            return Ok(value);
        }
        let space = space.min(find(level, name)?.0);
        if let Some(flow) = &self.flow {
            flow.settle()?;
            if (level, name) == (SOCKET, SO_ERROR)
                && let Some(error) = flow.take_error().or_else(|| flow.take_delivery_error())
            {
                let value = error.number().to_ne_bytes();
                return Ok(value[..space.min(value.len())].to_vec());
            }
        }
        let mut request = Request::new();
        let place = [u64::from(level.cast_unsigned()), u64::from(name.cast_unsigned())];
        let answer = request.call(
            HostOp::GetSockOpt,
            [self.fd(), place[0], place[1], space as u64, 0, 0],
        );
        answer.ok()?;
        let len = usize::try_from(answer.extra)
            .ok()
            .filter(|&l| l <= space)
            .ok_or(Errno::EIO)?;
        let mut value = vec![0; len];
        request.get(0, &mut value);
        if (level, name) == (SOCKET, SO_ERROR) {
            self.link.readiness.doubt(REPORTED);
            self.settle_phase(value.iter().any(|&b| b != 0));
        }
        Ok(value)
    }

    pub(super) fn tell_option(&self, level: i32, name: i32, value: &[u8]) -> SysResult<()> {
        if let Some(result) = self.timeouts.set_option(level, name, value) {
            return result;
        }
        let (most, set) = find(level, name)?;
        if !set {
            return Err(Errno::ENOPROTOOPT);
        }
        // Linux takes the beginning of a value that is too long.
        let value = &value[..value.len().min(most)];
        if let Some(flow) = &self.flow {
            flow.settle()?;
            if !PASSED_BY.contains(&(level, name)) {
                flow.stop_fetching()?;
            }
            if (level, name) == (SOCKET, SO_LINGER) {
                self.link.fd.set_unnoticed(false);
            }
        }
        let mut request = Request::new();
        request.put(0, value);
        let place = [u64::from(level.cast_unsigned()), u64::from(name.cast_unsigned())];
        request
            .call(
                HostOp::SetSockOpt,
                [self.fd(), place[0], place[1], value.len() as u64, 0, 0],
            )
            .ok()?;
        Ok(())
    }
}
