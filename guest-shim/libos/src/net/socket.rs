//! What all sockets can do, and what is kept here for each of them.

use core::sync::atomic::{AtomicU64, Ordering};

use super::address::Address;
use super::control::Control;
use super::empty::EmptySocket;
use super::host::HostSocket;
use super::private::{NetlinkSocket, PrivateSocket};
use super::unix::UnixSocket;
use crate::errno::{Errno, SysResult};
use crate::fs::{File, OpenFile};
use crate::sched::clock;
use crate::user::Buf;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// `MSG_*` flags.
#[allow(missing_docs)]
pub mod msg {
    pub const OOB: u32 = 1;
    pub const PEEK: u32 = 2;
    pub const DONTROUTE: u32 = 4;
    pub const CTRUNC: u32 = 8;
    pub const TRUNC: u32 = 0x20;
    pub const DONTWAIT: u32 = 0x40;
    pub const EOR: u32 = 0x80;
    pub const WAITALL: u32 = 0x100;
    pub const CONFIRM: u32 = 0x800;
    pub const ERRQUEUE: u32 = 0x2000;
    pub const NOSIGNAL: u32 = 0x4000;
    pub const MORE: u32 = 0x8000;
    pub const FASTOPEN: u32 = 0x2000_0000;
    pub const CMSG_CLOEXEC: u32 = 0x4000_0000;
}

/// Kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Bytes in order.
    Stream = 1,
    /// Messages.
    Datagram = 2,
    /// Messages of the kernel's routing tables.
    Raw = 3,
    /// Messages in order, connected.
    SeqPacket = 5,
}

/// What is to be received beside the payload.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// The sender's address.
    pub address: bool,
    /// Bytes of ancillary data.
    pub control: usize,
}

/// What was received.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes (with [`msg::TRUNC`] asked for: of the message, even if cut).
    pub len: usize,
    /// [`msg`] flags of the message.
    pub flags: u32,
    /// Sender.
    pub from: Option<Address>,
    /// Ancillary data.
    pub control: Control,
}

/// A socket.
pub trait Socket: File {
    /// Gives it a name.
    fn bind(&self, address: &Address) -> SysResult<()>;
    /// Makes it take connections.
    fn listen(&self, backlog: i32) -> SysResult<()>;
    /// Takes a connection: the new socket and its peer's name.
    fn accept(&self, file: &OpenFile) -> SysResult<(Arc<dyn File>, Option<Address>)>;
    /// Connects.
    fn connect(&self, file: &OpenFile, address: &Address) -> SysResult<()>;
    /// Ends one or both directions: 0 reading, 1 writing, 2 both.
    fn shutdown(&self, how: i32) -> SysResult<()>;
    /// Its own name.
    fn name(&self) -> SysResult<Address>;
    /// The peer's.
    fn peer_name(&self) -> SysResult<Address>;
    /// Sends.
    fn send(
        &self,
        file: &OpenFile,
        from: &mut Buf,
        to: Option<&Address>,
        control: Control,
        flags: u32,
    ) -> SysResult<usize>;
    /// Receives.
    fn receive(&self, file: &OpenFile, to: &mut Buf, wanted: Wanted, flags: u32) -> SysResult<Received>;
    /// Value of an option, at most `space` bytes.
    fn option(&self, level: i32, name: i32, space: usize) -> SysResult<Vec<u8>>;
    /// Sets an option.
    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> SysResult<()>;
}

/// The socket behind an open file.
///
/// # Errors
/// ENOTSOCK.
pub fn socket_of(open: &OpenFile) -> SysResult<&dyn Socket> {
    let any = open.file.as_any();
    if let Some(socket) = any.downcast_ref::<HostSocket>() {
        return Ok(socket);
    }
    if let Some(socket) = any.downcast_ref::<EmptySocket>() {
        return Ok(socket);
    }
    if let Some(socket) = any.downcast_ref::<PrivateSocket>() {
        return Ok(socket);
    }
    if let Some(socket) = any.downcast_ref::<NetlinkSocket>() {
        return Ok(socket);
    }
    any.downcast_ref::<UnixSocket>()
        .map(|s| s as &dyn Socket)
        .ok_or(Errno::ENOTSOCK)
}

/// SO_RCVTIMEO and SO_SNDTIMEO, in nanoseconds; 0: none.
#[derive(Debug, Default)]
pub struct Timeouts {
    receive: AtomicU64,
    send: AtomicU64,
}

const SOL_SOCKET: i32 = 1;

impl Timeouts {
    /// Tick until which a receiving call may wait.
    pub fn receive_deadline(&self) -> u64 {
        deadline(&self.receive)
    }

    /// Tick until which a sending call may wait.
    pub fn send_deadline(&self) -> u64 {
        deadline(&self.send)
    }

    fn cell(&self, level: i32, name: i32) -> Option<&AtomicU64> {
        match (level, name) {
            (SOL_SOCKET, 20 | 66) => Some(&self.receive),
            (SOL_SOCKET, 21 | 67) => Some(&self.send),
            _ => None,
        }
    }

    /// The option, if it is one of these.
    pub fn option(&self, level: i32, name: i32) -> Option<Vec<u8>> {
        let ns = self.cell(level, name)?.load(Ordering::Relaxed);
        let value = [ns / clock::SECOND, ns % clock::SECOND / 1000];
        Some(value.iter().flat_map(|word| word.to_ne_bytes()).collect())
    }

    /// Sets it, if it is one of these.
    pub fn set_option(&self, level: i32, name: i32, value: &[u8]) -> Option<SysResult<()>> {
        let cell = self.cell(level, name)?;
        Some(parse_time(value).map(|ns| cell.store(ns, Ordering::Relaxed)))
    }
}

fn parse_time(value: &[u8]) -> SysResult<u64> {
    let word = |at: usize| {
        value
            .get(at..at + 8)
            .and_then(|b| b.try_into().ok())
            .map(i64::from_ne_bytes)
    };
    let (sec, micros) = word(0).zip(word(8)).ok_or(Errno::EINVAL)?;
    if !(0..1_000_000).contains(&micros) {
        return Err(Errno::EDOM);
    }
    // A negative time ends every wait at once.
    let sec = u64::try_from(sec);
    Ok(sec.map_or(1, |sec| {
        sec.saturating_mul(clock::SECOND)
            .saturating_add(micros as u64 * 1000)
    }))
}

fn deadline(cell: &AtomicU64) -> u64 {
    match cell.load(Ordering::Relaxed) {
        0 => u64::MAX,
        ns => clock::deadline_in(ns),
    }
}

/// What a wait that did not end well means for a socket call: a call with a timeout is not restarted.
#[must_use]
pub fn waited(error: Errno, deadline: u64) -> Errno {
    match error {
        Errno::ETIMEDOUT => Errno::EAGAIN,
        Errno::EINTR if deadline == u64::MAX => Errno::ERESTARTSYS,
        other => other,
    }
}
