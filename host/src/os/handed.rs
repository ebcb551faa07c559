//! Further standard streams: the monitor hands them over for processes that the owner starts (`cloak exec`).
//!
//! A message is a ticket and three descriptors. The libos learns the ticket from the monitor, in private RAM, and asks for
//! its streams with it. The monitor sends before it tells, so what is asked for is there.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::request::{Answer, Call, Reply};
use super::stdio;

/// Streams of one process: input, output, errors.
pub type Streams = [OwnedFd; 3];

/// Most that wait to be asked for; older ones are closed.
const WAITING: usize = 64;

/// The two ends: the monitor's, and the service's.
///
/// # Errors
/// When there are no descriptors left.
pub fn channel() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// The monitor's half: hands streams over.
///
/// # Errors
/// `EAGAIN` when the service takes none, `EPIPE` when it is gone.
pub fn send(channel: BorrowedFd<'_>, ticket: u64, streams: &Streams) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [streams[0].as_fd(), streams[1].as_fd(), streams[2].as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let bytes = ticket.to_le_bytes();
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(channel, &[IoSlice::new(&bytes)], &mut ancillary, flags).map(drop)
}

/// The service's half.
#[derive(Debug)]
pub struct Handed {
    channel: OwnedFd,
    waiting: Mutex<Vec<(u64, Streams)>>,
}

impl Handed {
    /// Takes from this socket.
    #[must_use]
    pub fn new(channel: OwnedFd) -> Self {
        Self {
            channel,
            waiting: Mutex::new(Vec::new()),
        }
    }

    /// The streams of a ticket.
    fn streams(&self, ticket: u64) -> Result<Streams, Errno> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(next) = self.receive()? {
            waiting.push(next);
        }
        let found = waiting.iter().position(|(number, _)| *number == ticket);
        let streams = found.map(|at| waiting.remove(at).1).ok_or(Errno::AGAIN);
        let too_many = waiting.len().saturating_sub(WAITING);
        waiting.drain(..too_many);
        streams
    }

    fn receive(&self) -> Result<Option<(u64, Streams)>, Errno> {
        let mut ticket = [0; 8];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = recvmsg(
            &self.channel,
            &mut [IoSliceMut::new(&mut ticket)],
            &mut ancillary,
            flags,
        );
        match received {
            Ok(message) if message.bytes == ticket.len() => {}
            // The monitor is gone, and so will this process be.
            Ok(_) | Err(Errno::AGAIN) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let streams = Streams::try_from(descriptors).map_err(|_| Errno::MFILE)?;
        Ok(Some((u64::from_le_bytes(ticket), streams)))
    }
}

/// [`cloak_abi::hostop::HostOp::Streams`]
pub fn take(call: &Call<'_>) -> Reply {
    let streams = call.shared.handed.streams(call.arg(0))?;
    let entries = streams.map(stdio::stream);
    let table = &call.shared.table;
    let mut numbers: Vec<u32> = Vec::new();
    for entry in entries {
        match entry.and_then(|entry| table.insert(entry)) {
            Ok(number) => numbers.push(number),
            Err(errno) => {
                for number in numbers {
                    table.remove(u64::from(number))?;
                }
                return Err(errno.into());
            }
        }
    }
    for (at, number) in numbers.iter().enumerate() {
        call.buffer().part(4 * at, 4)?.write(&number.to_ne_bytes());
    }
    Ok(Answer::from(()))
}
