//! Sockets: made, named, connected.

use std::os::fd::AsFd;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, Shutdown, SocketFlags, SocketType};

use super::readiness::is_ready;
use super::request::{Answer, Call, Reply, Scratch};
use super::sys::{self, Address, End};
use super::table::{Entry, Kind};
use super::unix;

/// What a guest may open: a domain, and within it a kind and a protocol.
#[derive(Debug, Clone, Copy)]
struct Shape {
    family: AddressFamily,
    kind: SocketType,
    protocol: Option<Protocol>,
}

/// Netlink protocols that read the machine's network: NETLINK_ROUTE and NETLINK_SOCK_DIAG.
const NETLINK: [i32; 2] = [0, 4];
/// IP protocols beyond what the type implies: ICMP, TCP, UDP, ICMPv6, UDP-Lite, MPTCP. Others have options
/// that hand out descriptors or take addresses in this process.
const IP: [i32; 7] = [0, 1, 6, 17, 58, 136, 262];

impl Shape {
    fn parse(call: &Call<'_>) -> Result<Self, Errno> {
        let (domain, kind, protocol) = (call.int(0), call.int(1) & 0xf, call.int(2));
        let known = match domain {
            libc::AF_UNIX => protocol == 0 || protocol == libc::AF_UNIX,
            libc::AF_INET | libc::AF_INET6 => kind == libc::SOCK_RAW || IP.contains(&protocol),
            libc::AF_NETLINK => NETLINK.contains(&protocol),
            _ => return Err(Errno::AFNOSUPPORT),
        };
        if !known {
            return Err(Errno::PROTONOSUPPORT);
        }
        Ok(Self {
            family: AddressFamily::from_raw(domain as u16),
            kind: SocketType::from_raw(kind as u32),
            protocol: std::num::NonZeroU32::new(protocol as u32).map(Protocol::from_raw),
        })
    }
}

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// [`cloak_abi::hostop::HostOp::Socket`]
pub fn socket(call: &Call<'_>) -> Reply {
    let shape = Shape::parse(call)?;
    let socket = rustix::net::socket_with(shape.family, shape.kind, FLAGS, shape.protocol)?;
    Ok(call.shared.table.insert(Entry::new(socket, Kind::Socket))?.into())
}

/// [`cloak_abi::hostop::HostOp::SocketPair`]
pub fn socketpair(call: &Call<'_>) -> Reply {
    let shape = Shape::parse(call)?;
    let (one, other) = rustix::net::socketpair(shape.family, shape.kind, FLAGS, shape.protocol)?;
    let ends = (Entry::new(one, Kind::Socket), Entry::new(other, Kind::Socket));
    let (one, other) = call.shared.table.insert_pair(ends.0, ends.1)?;
    Ok(Answer::with(one as usize, u64::from(other)))
}

/// Copies the address of `args[n]` bytes at the start of the buffer.
pub fn address(call: &Call<'_>, n: usize) -> Result<Address, Errno> {
    let source = call.data(n)?;
    let mut bytes = [0u8; cloak_abi::hostop::ADDR_MAX];
    let bytes = bytes.get_mut(..source.len()).ok_or(Errno::INVAL)?;
    source.read(bytes);
    Address::new(bytes)
}

/// [`cloak_abi::hostop::HostOp::Bind`]
pub fn bind(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let entry = call.file(0)?;
    let named = unix::to_bind(call, 2, address(call, 1)?, scratch)?;
    sys::bind(entry.as_fd(), &named.address)?;
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::Connect`]
pub fn connect(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let entry = call.file(0)?;
    if entry.kind == Kind::SharedSocket {
        // Inherited, so it may be blocking, and connect(2) knows no flag against that.
        call.may_take_long()?;
    }
    let named = unix::to_reach(call, 2, address(call, 1)?, scratch)?;
    sys::connect(entry.as_fd(), &named.address)?;
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::Listen`]
pub fn listen(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    rustix::net::listen(&*entry, call.int(1))?;
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::Accept`]
pub fn accept(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    if entry.kind == Kind::SharedSocket && !is_ready(entry.as_fd(), PollFlags::IN)? {
        return Err(Errno::AGAIN.into());
    }
    let (socket, peer) = sys::accept(entry.as_fd())?;
    let fd = call.shared.table.insert(Entry::new(socket, Kind::Socket))?;
    let peer = unix::as_seen(peer);
    call.buffer().write(peer.bytes());
    Ok(Answer::with(fd as usize, peer.bytes().len() as u64))
}

/// [`cloak_abi::hostop::HostOp::Shutdown`]
pub fn shutdown(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    let how = match call.int(1) {
        libc::SHUT_RD => Shutdown::Read,
        libc::SHUT_WR => Shutdown::Write,
        libc::SHUT_RDWR => Shutdown::Both,
        _ => return Err(Errno::INVAL.into()),
    };
    if how == Shutdown::Read || !entry.flow().defer_shutdown(how) {
        rustix::net::shutdown(&*entry, how)?;
    }
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::SockName`]
pub fn name(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    let end = if call.arg(1) == 0 { End::Own } else { End::Peer };
    let name = unix::as_seen(sys::name(entry.as_fd(), end)?);
    call.buffer().write(name.bytes());
    Ok(Answer::with(0, name.bytes().len() as u64))
}
