//! Messages with addresses and control data.
//!
//! Control data is copied before it is looked at, both ways. Descriptors do not pass: one that a guest
//! sends would be a number of this process's, and one that comes would be a descriptor that nobody asked
//! for; those are closed and the message is marked `MSG_CTRUNC`, as Linux marks what a receiver had no
//! room for.

use std::os::fd::AsFd;

use cloak_abi::hostop::{ADDR_MAX, CONTROL_MAX};
use rustix::io::Errno;

use super::request::{Answer, Call, Reply, Scratch};
use super::sys::{self, Address, Control};
use super::unix;
use super::{sockets, streams};

/// Message flags that a guest may use.
const FLAGS: i32 = libc::MSG_OOB
    | libc::MSG_PEEK
    | libc::MSG_DONTROUTE
    | libc::MSG_TRUNC
    | libc::MSG_CTRUNC
    | libc::MSG_EOR
    | libc::MSG_CONFIRM
    | libc::MSG_ERRQUEUE
    | libc::MSG_MORE
    | libc::MSG_FASTOPEN;

/// Bytes of `struct cmsghdr`.
const HEADER: usize = 16;
const SCM_RIGHTS: i32 = 1;
const SCM_CREDENTIALS: i32 = 2;
const SCM_PIDFD: i32 = 4;

/// Where the payload starts.
fn payload_at(has_address: bool, control: usize) -> usize {
    if has_address || control > 0 {
        ADDR_MAX + CONTROL_MAX
    } else {
        0
    }
}

/// [`cloak_abi::hostop::HostOp::SendMsg`]
pub fn send(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let entry = call.file(0)?;
    let (address_len, control_len) = (call.len(2)?, call.len(3)?);
    let payload = call
        .buffer()
        .part(payload_at(address_len > 0, control_len), call.len(4)?)?;
    let flags = call.int(1) & FLAGS;
    let control = match control_len {
        0 => None,
        len => Some(control_to_send(call, len)?),
    };
    if address_len == 0 {
        let send = || sys::send(entry.as_fd(), &Address::NONE, control.as_ref(), &payload, flags);
        return Ok(streams::in_turn(&entry, payload.len(), send)?.into());
    }
    let named = unix::to_reach(call, 5, sockets::address(call, 2)?, scratch)?;
    Ok(sys::send(entry.as_fd(), &named.address, control.as_ref(), &payload, flags)?.into())
}

fn control_to_send(call: &Call<'_>, len: usize) -> Result<Control, Errno> {
    let mut control = Control::space(len)?;
    call.buffer().part(ADDR_MAX, len)?.read(control.bytes_mut());
    for message in Messages(control.bytes()) {
        match (message.level, message.kind) {
            (libc::SOL_SOCKET, SCM_RIGHTS) => return Err(Errno::OPNOTSUPP),
            (libc::SOL_SOCKET, SCM_CREDENTIALS | SCM_PIDFD) => return Err(Errno::PERM),
            _ => {}
        }
    }
    Ok(control)
}

/// [`cloak_abi::hostop::HostOp::RecvMsg`]
pub fn receive(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    let (wants_address, control_len) = (call.arg(2) == 1, call.len(3)?);
    let payload = call
        .buffer()
        .part(payload_at(wants_address, control_len), call.len(4)?)?;
    let flags = call.int(1) & FLAGS;
    if !wants_address && control_len == 0 {
        let got = sys::receive(entry.as_fd(), None, None, &payload, flags)?;
        return Ok(Answer::with(got.len, u64::from(got.flags.cast_unsigned())));
    }
    let mut address = Address::NONE;
    let mut control = Control::space(control_len)?;
    let got = sys::receive(
        entry.as_fd(),
        wants_address.then_some(&mut address),
        (control_len > 0).then_some(&mut control),
        &payload,
        flags,
    )?;
    let address = unix::as_seen(address);
    call.buffer().write(address.bytes());
    let received = &control.bytes()[..got.control_len.min(control_len)];
    let (passed, dropped) = without_descriptors(received);
    call.buffer().part(ADDR_MAX, control_len)?.write(&passed);
    let flags = (got.flags | if dropped { libc::MSG_CTRUNC } else { 0 }).cast_unsigned();
    let lengths = (address.bytes().len() as u64) << 32 | (passed.len() as u64) << 48;
    Ok(Answer::with(got.len, u64::from(flags) | lengths))
}

/// Control data without the messages that bring descriptors; those are closed. True when there were some.
fn without_descriptors(control: &[u8]) -> (Vec<u8>, bool) {
    let (passed, descriptors) = sort(control);
    let dropped = !descriptors.is_empty();
    drop(sys::adopt(descriptors.into_iter()));
    (passed, dropped)
}

/// What the guest may have of control data, and the descriptors in the rest.
pub(super) fn sort(control: &[u8]) -> (Vec<u8>, Vec<i32>) {
    let mut passed = Vec::with_capacity(control.len());
    let mut descriptors = Vec::new();
    for message in Messages(control) {
        if message.level == libc::SOL_SOCKET && matches!(message.kind, SCM_RIGHTS | SCM_PIDFD) {
            let numbers = message.data.chunks_exact(4).filter_map(|n| n.try_into().ok());
            descriptors.extend(numbers.map(i32::from_ne_bytes));
        } else {
            passed.extend_from_slice(message.whole);
        }
    }
    (passed, descriptors)
}

/// One control message.
#[derive(Debug)]
struct Message<'m> {
    level: i32,
    kind: i32,
    data: &'m [u8],
    /// With header and padding.
    whole: &'m [u8],
}

/// Walks control messages as the kernel does: up to the first that is cut.
#[derive(Debug)]
struct Messages<'m>(&'m [u8]);

impl<'m> Iterator for Messages<'m> {
    type Item = Message<'m>;

    fn next(&mut self) -> Option<Message<'m>> {
        let len = u64::from_ne_bytes(self.0.get(..8)?.try_into().ok()?);
        let len = usize::try_from(len)
            .ok()
            .filter(|len| *len >= HEADER && *len <= self.0.len())?;
        let int = |at: usize| Some(i32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?));
        let padded = len.next_multiple_of(8).min(self.0.len());
        let message = Message {
            level: int(8)?,
            kind: int(12)?,
            data: self.0.get(HEADER..len)?,
            whole: self.0.get(..padded)?,
        };
        self.0 = self.0.get(padded..)?;
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + data.len()) as u64).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&level.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn messages_are_walked_up_to_the_first_cut_one() {
        let mut bytes = message(1, 29, b"12345");
        bytes.extend(message(41, 50, b""));
        let kinds: Vec<i32> = Messages(&bytes).map(|m| m.kind).collect();
        assert_eq!(kinds, [29, 50]);
        bytes.truncate(30);
        assert_eq!(Messages(&bytes).count(), 1);
        for lie in [0u64, 15, 1 << 40, u64::MAX] {
            bytes[..8].copy_from_slice(&lie.to_ne_bytes());
            assert_eq!(Messages(&bytes).count(), 0);
        }
    }

    #[test]
    fn descriptors_are_taken_out_and_the_rest_kept() {
        let kept = message(1, 29, b"12345678");
        let numbers = [5i32.to_ne_bytes(), 6i32.to_ne_bytes()].concat();
        let mut bytes = message(libc::SOL_SOCKET, SCM_RIGHTS, &numbers);
        bytes.extend_from_slice(&kept);
        assert_eq!(sort(&bytes), (kept, vec![5, 6]));
    }
}
