//! `ioctl` on host terminals: the requests that are passed on, with the sizes of what they carry.

use cloak_abi::hostop::HostOp;

use super::hostfd::HostFd;
use super::{jobs, signals};
use crate::errno::{Errno, SysResult};
use crate::host::Request;
use crate::user;

/// What a request carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// A structure of this size from the host.
    Out(usize),
    /// A structure of this size to the host.
    In(usize),
    /// The argument itself, passed as 8 bytes.
    Value,
}

/// `TIOCGPGRP`.
const GET_GROUP: u32 = 0x540f;
/// `TIOCSPGRP`.
const SET_GROUP: u32 = 0x5410;
/// `TIOCGSID`.
const GET_SESSION: u32 = 0x5429;

/// Size of the kernel's `struct termios`.
const TERMIOS: usize = 36;
/// Size of `struct termios2`.
const TERMIOS2: usize = 44;

const fn shape(request: u32) -> Option<Shape> {
    Some(match request {
        0x5401 => Shape::Out(TERMIOS),                               // TCGETS
        0x5402..=0x5404 => Shape::In(TERMIOS),                       // TCSETS, TCSETSW, TCSETSF
        0x802c_542a => Shape::Out(TERMIOS2),                         // TCGETS2
        0x402c_542b..=0x402c_542d => Shape::In(TERMIOS2),            // TCSETS2, TCSETSW2, TCSETSF2
        0x5409 | 0x540a | 0x540b | 0x5425 => Shape::Value,           // TCSBRK, TCXONC, TCFLSH, TCSBRKP
        0x540f | 0x5429 | 0x5411 | 0x541b | 0x5424 => Shape::Out(4), // TIOCGPGRP, TIOCGSID, TIOCOUTQ, FIONREAD, TIOCGETD
        0x5410 => Shape::In(4),                                      // TIOCSPGRP
        0x5413 => Shape::Out(8),                                     // TIOCGWINSZ
        0x5414 => Shape::In(8),                                      // TIOCSWINSZ
        _ => return None,
    })
}

/// Passes a request on to the host.
///
/// # Errors
/// ENOTTY for a request that is not on the list; what the host reports; EFAULT.
pub fn ioctl(fd: &HostFd, number: u32, argument: u64) -> SysResult {
    let shape = shape(number).ok_or(Errno::ENOTTY)?;
    if number == SET_GROUP {
        return set_group(fd, argument);
    }
    let changes = matches!(shape, Shape::In(TERMIOS | TERMIOS2) | Shape::Value);
    if changes && jobs::in_background(signals::job()) && is_controlling(fd) {
        jobs::keep_out(jobs::SIGTTOU, Ok(()))?;
    }
    let mut bytes = [0; 64];
    let (inward, outward) = match shape {
        Shape::Out(len) => (0, len),
        Shape::In(len) => (len, 0),
        Shape::Value => (8, 0),
    };
    match shape {
        Shape::In(len) => user::copy_in(&mut bytes[..len], argument)?,
        Shape::Value => bytes[..8].copy_from_slice(&argument.to_ne_bytes()),
        Shape::Out(_) => {}
    }
    let mut request = Request::new();
    request.put(0, &bytes[..inward]);
    let args = [
        fd.number(),
        u64::from(number),
        inward as u64,
        outward as u64,
        u64::from(changes && signals::does_nothing(jobs::SIGTTOU)),
        0,
    ];
    let answer = request.call(HostOp::Ioctl, args);
    let result = answer.ok()?;
    if result > i32::MAX as u64 {
        return Err(Errno::EIO);
    }
    if outward > 0 {
        request.get(0, &mut bytes[..outward]);
        let job = signals::job();
        if matches!(number, GET_GROUP | GET_SESSION) && !jobs::controls(job) {
            return Err(Errno::ENOTTY);
        }
        // The host's numbers mean nothing here. While another of the host's groups has the terminal, no group of the
        // guest has it, and a number that is none of theirs says so.
        match number {
            GET_GROUP if answer.extra == 1 => {
                bytes[..4].copy_from_slice(&jobs::foreground(job).to_ne_bytes());
            }
            GET_GROUP => bytes[..4].copy_from_slice(&i32::MAX.to_ne_bytes()),
            GET_SESSION => bytes[..4].copy_from_slice(&job.session.to_ne_bytes()),
            _ => {}
        }
        user::copy_out(argument, &bytes[..outward])?;
    }
    Ok(result)
}

/// Whether it is the terminal of Cloak's session on the host: only such a one knows a foreground group.
pub fn is_controlling(fd: &HostFd) -> bool {
    let args = [fd.number(), u64::from(GET_GROUP), 0, 4, 0, 0];
    Request::new().call(HostOp::Ioctl, args).ok().is_ok()
}

/// `TIOCSPGRP`: the host is asked only that Cloak's group has the terminal (0 stands for it).
fn set_group(fd: &HostFd, argument: u64) -> SysResult {
    let group: i32 = user::read(argument)?;
    let job = signals::job();
    if !jobs::controls(job) || !is_controlling(fd) {
        return Err(Errno::ENOTTY);
    }
    jobs::keep_out(jobs::SIGTTOU, Ok(()))?;
    let mut request = Request::new();
    request.put(0, &0u32.to_ne_bytes());
    let insists = u64::from(signals::does_nothing(jobs::SIGTTOU));
    let args = [fd.number(), u64::from(SET_GROUP), 4, 0, insists, 0];
    request.call(HostOp::Ioctl, args).ok()?;
    jobs::give(job, group).map(|()| 0)
}
