//! Sockets.
//!
//! | module | concept |
//! |---|---|
//! | [`address`] | addresses, from the program and from the OS side |
//! | [`control`] | ancillary data, checked and rebuilt |
//! | [`socket`] | what all sockets can do |
//! | [`host`] | sockets of the host's network (IPv4, IPv6, netlink, Unix sockets on host mounts) |
//! | [`empty`] | what there is instead without network |
//! | [`private`] | a network of the context's own |
//! | [`mode`] | which of the three it is |
//! | [`unix`] | Unix sockets inside the guest |
//! | [`inbox`] | what was sent inside and not yet read |
//!
//! What two programs of the context say to each other through a Unix socket, or over a private network, stays
//! inside; everything else goes through the OS side, in clear text unless the program encrypts it.

pub mod address;
mod calls;
pub mod control;
pub mod empty;
pub mod host;
pub mod inbox;
mod messages;
pub mod mode;
pub mod private;
pub mod socket;
pub mod unix;

use crate::syscall::{Entry, full, partial};

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    partial(
        41,
        "socket",
        "iii",
        "raw and packet sockets give EPERM; netlink is the routing one",
        calls::socket,
    ),
    full(42, "connect", "fxu", calls::connect),
    full(43, "accept", "fxx", calls::accept),
    full(44, "sendto", "fxsxxu", messages::sendto),
    full(45, "recvfrom", "fxsxxx", messages::recvfrom),
    partial(
        46,
        "sendmsg",
        "fxx",
        "descriptors pass between sockets of the guest only",
        messages::sendmsg,
    ),
    full(47, "recvmsg", "fxx", messages::recvmsg),
    full(48, "shutdown", "fi", calls::shutdown),
    full(49, "bind", "fxu", calls::bind),
    full(50, "listen", "fi", calls::listen),
    full(51, "getsockname", "fxx", calls::getsockname),
    full(52, "getpeername", "fxx", calls::getpeername),
    full(53, "socketpair", "iiix", calls::socketpair),
    partial(
        54,
        "setsockopt",
        "fiixu",
        "options on a list; socket filters are not on it",
        calls::setsockopt,
    ),
    partial(55, "getsockopt", "fiixx", "options on a list", calls::getsockopt),
    full(288, "accept4", "fxxx", calls::accept4),
    full(299, "recvmmsg", "fxuxx", messages::recvmmsg),
    full(307, "sendmmsg", "fxux", messages::sendmmsg),
];
