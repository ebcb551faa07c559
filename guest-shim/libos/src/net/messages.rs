//! System calls that send and receive.

use alloc::vec;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::address::Address;
use super::calls::with;
use super::control::Control;
use super::socket::{Received, Socket, Wanted, msg};
use crate::errno::{Errno, SysResult};
use crate::fs::OpenFile;
use crate::sched::time_calls::timeout_at;
use crate::syscall::Args;
use crate::user::{self, Buf, IOV_MAX};

/// Linux's `struct msghdr`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    name: u64,
    name_len: u32,
    pad: u32,
    segments: u64,
    segment_count: u64,
    control: u64,
    control_len: u64,
    flags: u32,
    pad2: u32,
}

/// Distance of two `struct mmsghdr`: a header, then the length that was moved.
const MANY_STEP: u64 = 64;
const MANY_LEN_AT: u64 = 56;
/// `MSG_WAITFORONE`.
const WAITFORONE: u32 = 0x10000;
/// Most bytes of ancillary data in one call (`net.core.optmem_max` is of this order).
const CONTROL_MAX: usize = 20 << 10;

pub(super) fn sendto(args: &Args) -> SysResult {
    let mut from = Buf::user(args.u64(1), args.usize(2))?;
    let to = address_at(args.u64(4), args.usize(5))?;
    let flags = sendable(args.u32(3))?;
    with(args.i32(0), |socket, file| {
        socket.send(file, &mut from, to.as_ref(), Control::default(), flags)
    })
    .map(|sent| sent as u64)
}

pub(super) fn recvfrom(args: &Args) -> SysResult {
    let mut to = Buf::user(args.u64(1), args.usize(2))?;
    let wanted = Wanted {
        address: args.u64(4) != 0,
        control: 0,
    };
    let received = with(args.i32(0), |socket, file| {
        socket.receive(file, &mut to, wanted, args.u32(3))
    })?;
    if wanted.address {
        match received.from {
            Some(address) => address.to_user(args.u64(4), args.u64(5))?,
            None => user::write(args.u64(5), &0u32)?,
        }
    }
    Ok(received.len as u64)
}

fn address_at(address: u64, len: usize) -> SysResult<Option<Address>> {
    if address == 0 || len == 0 {
        Ok(None)
    } else {
        Address::from_user(address, len).map(Some)
    }
}

fn sendable(flags: u32) -> SysResult<u32> {
    if flags & msg::FASTOPEN != 0 {
        Err(Errno::EOPNOTSUPP)
    } else {
        Ok(flags)
    }
}

fn segments(header: &Header) -> SysResult<Buf> {
    let count = usize::try_from(header.segment_count)
        .ok()
        .filter(|&c| c <= IOV_MAX)
        .ok_or(Errno::EMSGSIZE)?;
    Buf::user_vector(header.segments, count)
}

pub(super) fn sendmsg(args: &Args) -> SysResult {
    let flags = sendable(args.u32(2))?;
    with(args.i32(0), |socket, file| {
        send_one(socket, file, args.u64(1), flags)
    })
    .map(|sent| sent as u64)
}

fn send_one(socket: &dyn Socket, file: &OpenFile, at: u64, flags: u32) -> SysResult<usize> {
    let header: Header = user::read(at)?;
    let to = address_at(header.name, header.name_len as usize)?;
    let mut from = segments(&header)?;
    let control = match usize::try_from(header.control_len) {
        _ if header.control == 0 => Control::default(),
        Ok(0) => Control::default(),
        Ok(len) if len <= CONTROL_MAX => {
            let mut bytes = vec![0; len];
            user::copy_in(&mut bytes, header.control)?;
            Control::from_program(&bytes)?
        }
        _ => return Err(Errno::ENOBUFS),
    };
    socket.send(file, &mut from, to.as_ref(), control, flags)
}

pub(super) fn recvmsg(args: &Args) -> SysResult {
    let flags = args.u32(2);
    with(args.i32(0), |socket, file| {
        receive_one(socket, file, args.u64(1), flags)
    })
    .map(|len| len as u64)
}

fn receive_one(socket: &dyn Socket, file: &OpenFile, at: u64, flags: u32) -> SysResult<usize> {
    let header: Header = user::read(at)?;
    let mut to = segments(&header)?;
    let space = usize::try_from(header.control_len)
        .unwrap_or(CONTROL_MAX)
        .min(CONTROL_MAX);
    let wanted = Wanted {
        address: header.name != 0,
        control: if header.control == 0 { 0 } else { space },
    };
    let received = socket.receive(file, &mut to, wanted, flags)?;
    tell(&header, at, received, wanted, flags)
}

/// Writes what came beside the payload; gives the payload's length.
fn tell(header: &Header, at: u64, received: Received, wanted: Wanted, flags: u32) -> SysResult<usize> {
    if wanted.address {
        let name = received.from.as_ref().map_or(&[][..], Address::bytes);
        user::copy_out(header.name, &name[..name.len().min(header.name_len as usize)])?;
        user::write(at + 8, &(name.len() as u32))?;
    }
    let (control, cut) = received
        .control
        .into_program(wanted.control, flags & msg::CMSG_CLOEXEC != 0);
    if !control.is_empty() {
        user::copy_out(header.control, &control)?;
    }
    user::write(at + 40, &(control.len() as u64))?;
    let close = flags & msg::CMSG_CLOEXEC;
    let stated = received.flags | if cut { msg::CTRUNC } else { 0 } | close;
    user::write(at + 48, &stated)?;
    Ok(received.len)
}

/// Runs `one` for up to `count` headers; an error after the first is kept back.
fn many(at: u64, count: u32, mut one: impl FnMut(u64, usize) -> SysResult<usize>) -> SysResult {
    let count = (count as usize).min(IOV_MAX);
    for i in 0..count {
        let header = at + i as u64 * MANY_STEP;
        match one(header, i).and_then(|len| user::write(header + MANY_LEN_AT, &(len as u32))) {
            Ok(()) => {}
            Err(error) if i == 0 => return Err(error),
            Err(_) => return Ok(i as u64),
        }
    }
    Ok(count as u64)
}

pub(super) fn sendmmsg(args: &Args) -> SysResult {
    let flags = sendable(args.u32(3))?;
    with(args.i32(0), |socket, file| {
        many(args.u64(1), args.u32(2), |at, _| {
            send_one(socket, file, at, flags)
        })
    })
}

pub(super) fn recvmmsg(args: &Args) -> SysResult {
    // As on Linux the time is looked at between messages only.
    let deadline = timeout_at(args.u64(4))?;
    let flags = args.u32(3);
    with(args.i32(0), |socket, file| {
        many(args.u64(1), args.u32(2), |at, i| {
            if i > 0 && deadline != u64::MAX && crate::arch::ticks() >= deadline {
                return Err(Errno::EAGAIN);
            }
            let hurry = if i > 0 && flags & WAITFORONE != 0 {
                msg::DONTWAIT
            } else {
                0
            };
            receive_one(socket, file, at, flags & !WAITFORONE | hurry)
        })
    })
}

/// For tests: a header over one segment.
#[cfg(test)]
pub(super) fn header_for_tests(
    segment: &[u64; 2],
    name: &mut [u8],
    control: &mut [u8],
) -> alloc::vec::Vec<u8> {
    let header = Header {
        name: if name.is_empty() {
            0
        } else {
            name.as_mut_ptr() as u64
        },
        name_len: name.len() as u32,
        pad: 0,
        segments: segment.as_ptr() as u64,
        segment_count: 1,
        control: if control.is_empty() {
            0
        } else {
            control.as_mut_ptr() as u64
        },
        control_len: control.len() as u64,
        flags: 0,
        pad2: 0,
    };
    header.as_bytes().to_vec()
}
