//! System calls that make, name and configure sockets.

use alloc::sync::Arc;

use super::address::{Address, family};
use super::empty::EmptySocket;
use super::host::HostSocket;
use super::mode::{self, Mode};
use super::private::{NetlinkSocket, PrivateSocket};
use super::socket::{Kind, Socket, socket_of};
use super::unix::UnixSocket;
use crate::errno::{Errno, SysResult};
use crate::fs::fd::{self, O_CLOEXEC, O_NONBLOCK};
use crate::fs::{File, OpenFile, anon};
use crate::syscall::Args;
use crate::user;

const AF_PACKET: i32 = 17;
const SOCK_RAW: i32 = 3;
const NETLINK_ROUTE: i32 = 0;
/// Longest option value of a program that is looked at.
const OPTION_MAX: usize = 1024;

/// Runs `work` on the socket behind `number`.
pub(super) fn with<R>(
    number: i32,
    work: impl FnOnce(&dyn Socket, &OpenFile) -> SysResult<R>,
) -> SysResult<R> {
    let open = fd::get(number)?;
    work(socket_of(&open)?, &open)
}

/// Kind and flags of a `type` argument.
fn parse_type(value: i32) -> SysResult<(i32, u32)> {
    let flags = value.cast_unsigned() & !0xf;
    if flags & !(O_NONBLOCK | O_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    Ok((value & 0xf, flags))
}

fn unix_kind(kind: i32, protocol: i32) -> SysResult<Kind> {
    if protocol != 0 && protocol != i32::from(family::UNIX) {
        return Err(Errno::EPROTONOSUPPORT);
    }
    match kind {
        1 => Ok(Kind::Stream),
        // As on Linux, a raw Unix socket is a datagram one.
        2 | SOCK_RAW => Ok(Kind::Datagram),
        5 => Ok(Kind::SeqPacket),
        _ => Err(Errno::ESOCKTNOSUPPORT),
    }
}

fn install(file: Arc<dyn File>, flags: u32) -> SysResult {
    let inode = file.stat()?.ino;
    anon::install(file, flags | 2, anon::numbered("socket", inode))
}

pub(super) fn socket(args: &Args) -> SysResult {
    let (domain, protocol) = (args.i32(0), args.i32(2));
    let (kind, flags) = parse_type(args.i32(1))?;
    let number = u16::try_from(domain).map_err(|_| Errno::EAFNOSUPPORT)?;
    match number {
        family::UNIX => install(UnixSocket::new(unix_kind(kind, protocol)?), flags),
        family::INET | family::INET6 => {
            let kind = match kind {
                1 => Kind::Stream,
                2 => Kind::Datagram,
                SOCK_RAW => return Err(Errno::EPERM),
                _ => return Err(Errno::ESOCKTNOSUPPORT),
            };
            match mode::get() {
                Mode::Host => install(HostSocket::create(number, kind, protocol)?, flags),
                Mode::None => install(EmptySocket::new(number, kind, protocol), flags),
                Mode::Private => install(PrivateSocket::create(number, kind, protocol)?, flags),
            }
        }
        family::NETLINK if mode::get() == Mode::None => Err(Errno::EAFNOSUPPORT),
        family::NETLINK if protocol != NETLINK_ROUTE => Err(Errno::EPROTONOSUPPORT),
        family::NETLINK if mode::get() == Mode::Private => {
            let kind = match kind {
                2 => Kind::Datagram,
                SOCK_RAW => Kind::Raw,
                _ => return Err(Errno::ESOCKTNOSUPPORT),
            };
            install(NetlinkSocket::new(kind), flags)
        }
        family::NETLINK if kind == 2 => install(HostSocket::create(number, Kind::Datagram, protocol)?, flags),
        family::NETLINK if kind == SOCK_RAW => {
            install(HostSocket::create(number, Kind::Raw, protocol)?, flags)
        }
        family::NETLINK => Err(Errno::ESOCKTNOSUPPORT),
        _ if domain == AF_PACKET => Err(Errno::EPERM),
        _ => Err(Errno::EAFNOSUPPORT),
    }
}

pub(super) fn socketpair(args: &Args) -> SysResult {
    let (kind, flags) = parse_type(args.i32(1))?;
    if args.i32(0) != i32::from(family::UNIX) {
        return Err(Errno::EOPNOTSUPP);
    }
    let (one, other) = UnixSocket::pair(unix_kind(kind, args.i32(2))?);
    let open = |socket: Arc<UnixSocket>| -> SysResult<_> {
        let name = anon::numbered("socket", socket.stat()?.ino);
        Ok((
            OpenFile::new(socket, flags & O_NONBLOCK | 2, name),
            flags & O_CLOEXEC != 0,
        ))
    };
    anon::install_pair(args.u64(3), open(one)?, open(other)?)
}

pub(super) fn bind(args: &Args) -> SysResult {
    let address = Address::from_user(args.u64(1), args.usize(2))?;
    with(args.i32(0), |socket, _| socket.bind(&address))?;
    Ok(0)
}

pub(super) fn listen(args: &Args) -> SysResult {
    with(args.i32(0), |socket, _| socket.listen(args.i32(1)))?;
    Ok(0)
}

pub(super) fn connect(args: &Args) -> SysResult {
    let address = Address::from_user(args.u64(1), args.usize(2))?;
    with(args.i32(0), |socket, file| socket.connect(file, &address))?;
    Ok(0)
}

pub(super) fn accept(args: &Args) -> SysResult {
    accept_with(args, 0)
}

pub(super) fn accept4(args: &Args) -> SysResult {
    let flags = args.u32(3);
    if flags & !(O_NONBLOCK | O_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    accept_with(args, flags)
}

fn accept_with(args: &Args, flags: u32) -> SysResult {
    let (file, from) = with(args.i32(0), |socket, file| socket.accept(file))?;
    if args.u64(1) != 0 {
        from.unwrap_or(Address::unnamed(family::UNSPEC))
            .to_user(args.u64(1), args.u64(2))?;
    }
    install(file, flags)
}

pub(super) fn shutdown(args: &Args) -> SysResult {
    if !(0..=2).contains(&args.i32(1)) {
        return Err(Errno::EINVAL);
    }
    with(args.i32(0), |socket, _| socket.shutdown(args.i32(1)))?;
    Ok(0)
}

pub(super) fn getsockname(args: &Args) -> SysResult {
    with(args.i32(0), |socket, _| socket.name())?.to_user(args.u64(1), args.u64(2))?;
    Ok(0)
}

pub(super) fn getpeername(args: &Args) -> SysResult {
    with(args.i32(0), |socket, _| socket.peer_name())?.to_user(args.u64(1), args.u64(2))?;
    Ok(0)
}

pub(super) fn getsockopt(args: &Args) -> SysResult {
    let space: i32 = user::read(args.u64(4))?;
    let space = usize::try_from(space).map_err(|_| Errno::EINVAL)?;
    let value = with(args.i32(0), |socket, _| {
        socket.option(args.i32(1), args.i32(2), space.min(OPTION_MAX))
    })?;
    let len = value.len().min(space);
    user::copy_out(args.u64(3), &value[..len])?;
    user::write(args.u64(4), &(len as u32))?;
    Ok(0)
}

pub(super) fn setsockopt(args: &Args) -> SysResult {
    let len = usize::try_from(args.i32(4)).map_err(|_| Errno::EINVAL)?;
    let mut value = [0; OPTION_MAX];
    let value = &mut value[..len.min(OPTION_MAX)];
    user::copy_in(value, args.u64(3))?;
    with(args.i32(0), |socket, _| {
        socket.set_option(args.i32(1), args.i32(2), value)
    })?;
    Ok(0)
}
