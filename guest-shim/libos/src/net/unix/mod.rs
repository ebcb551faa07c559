//! Unix sockets inside the guest: pairs, names, descriptors and credentials in messages.
//!
//! A socket owns an [`Inbox`]; connected sockets hold each other's. What they say never leaves the guest. A
//! socket that connects to a path on a host mount where no socket of the guest is bound becomes a socket of the
//! host ([`UnixSocket::outside`]), and everything is handed to that one from then on.

mod connect;
pub mod names;
pub mod paths;
mod transfer;

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::{Mutex, Once};

use super::address::{Address, family};
use super::control::{Control, Sender};
use super::host::HostSocket;
use super::inbox::{CAPACITY, Inbox};
use super::socket::{Kind, Received, Socket, Timeouts, Wanted};
use crate::errno::{Errno, SysResult};
use crate::fs::anon::{self, FIONREAD, S_IFSOCK};
use crate::fs::file::{Stat, ready};
use crate::fs::hostlink::Doubt;
use crate::fs::{File, OpenFile};
use crate::sched::WaitQueue;
use crate::user::{self, Buf};

/// A Unix socket.
#[derive(Debug)]
pub struct UnixSocket {
    this: Weak<Self>,
    kind: Kind,
    inbox: Arc<Inbox>,
    state: Mutex<State>,
    pass_credentials: AtomicBool,
    timeouts: Timeouts,
    outside: Once<Arc<HostSocket>>,
    inode: u64,
}

#[derive(Debug, Default)]
struct State {
    name: Option<Address>,
    binding: names::Binding,
    peer: Option<Peer>,
    listener: Option<Listener>,
}

/// The other end.
#[derive(Debug, Clone)]
struct Peer {
    inbox: Arc<Inbox>,
    name: Option<Address>,
    /// Who it was when the connection was made.
    who: Sender,
}

/// Connections that wait to be accepted.
#[derive(Debug)]
struct Listener {
    waiting: VecDeque<Arc<UnixSocket>>,
    backlog: usize,
    who: Sender,
}

impl UnixSocket {
    /// An unconnected one.
    #[must_use]
    pub fn new(kind: Kind) -> Arc<Self> {
        Self::over(kind, Arc::default())
    }

    fn over(kind: Kind, inbox: Arc<Inbox>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            kind,
            inbox,
            state: Mutex::default(),
            pass_credentials: AtomicBool::new(false),
            timeouts: Timeouts::default(),
            outside: Once::new(),
            inode: anon::next_inode(),
        })
    }

    /// Two that are connected.
    #[must_use]
    pub fn pair(kind: Kind) -> (Arc<Self>, Arc<Self>) {
        Self::pair_over(kind, [Arc::default(), Arc::default()])
    }

    /// Two that are connected, with these queues.
    #[must_use]
    pub fn pair_over(kind: Kind, [one, other]: [Arc<Inbox>; 2]) -> (Arc<Self>, Arc<Self>) {
        let (one, other) = (Self::over(kind, one), Self::over(kind, other));
        let who = Sender::current();
        one.state.lock().peer = Some(Peer {
            inbox: other.inbox.clone(),
            name: None,
            who,
        });
        other.state.lock().peer = Some(Peer {
            inbox: one.inbox.clone(),
            name: None,
            who,
        });
        (one, other)
    }

    fn is_message(&self) -> bool {
        self.kind != Kind::Stream
    }

    fn peer(&self) -> Option<Peer> {
        self.state.lock().peer.clone()
    }

    fn own_option(&self, name: i32) -> SysResult<Vec<u8>> {
        let number = |n: usize| (n as u32).to_ne_bytes().to_vec();
        Ok(match name {
            2 | 5 | 6 | 9 | 15 => number(0), // REUSEADDR DONTROUTE BROADCAST KEEPALIVE REUSEPORT
            3 => number(self.kind as usize),
            4 => number(if self.inbox.take_reset() {
                Errno::ECONNRESET.number() as usize
            } else {
                0
            }),
            7 | 8 => number(CAPACITY),
            13 => alloc::vec![0; 8],
            16 => number(usize::from(self.pass_credentials.load(Ordering::Relaxed))),
            17 => self
                .peer()
                .map_or([0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255], |p| {
                    p.who.bytes()
                })
                .to_vec(),
            18 => number(1),
            30 => number(usize::from(self.state.lock().listener.is_some())),
            38 => number(0),
            39 => number(usize::from(family::UNIX)),
            _ => return Err(Errno::ENOPROTOOPT),
        })
    }
}

impl UnixSocket {
    /// Ends it: at the close of its descriptor, because who waits to connect holds on to it; and at its drop,
    /// because one that was never accepted has had no descriptor.
    /// With `resets` the peer is told of a reset, as it is of what nobody read.
    pub(in crate::net) fn end(&self, resets: bool) {
        let state = core::mem::take(&mut *self.state.lock());
        names::release(&state.binding, core::ptr::from_ref(self));
        let unread = self.inbox.close() || resets;
        // A datagram socket is one of many that may send to its peer.
        if let Some(peer) = state.peer.filter(|_| self.kind != Kind::Datagram) {
            if unread {
                peer.inbox.reset();
            }
            peer.inbox.end();
        }
        for waiting in state.listener.into_iter().flat_map(|l| l.waiting) {
            // Nobody accepted it.
            waiting.end(true);
        }
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        self.end(false);
    }
}

impl File for UnixSocket {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        if to.is_empty() && !self.is_message() {
            return Ok(0);
        }
        self.receive(file, to, Wanted::default(), 0)
            .map(|received| received.len)
    }

    fn write(&self, file: &OpenFile, from: &mut Buf) -> SysResult<usize> {
        self.send(file, from, None, Control::default(), 0)
    }

    fn stat(&self) -> SysResult<Stat> {
        Ok(anon::stat(S_IFSOCK | 0o777, self.inode))
    }

    fn poll(&self) -> u32 {
        if let Some(outside) = self.outside.get() {
            return outside.poll();
        }
        let (peer, listening) = {
            let state = self.state.lock();
            (
                state.peer.clone(),
                state.listener.as_ref().map(|l| !l.waiting.is_empty()),
            )
        };
        const READ: u32 = ready::IN | ready::RDNORM;
        const WRITE: u32 = ready::OUT | ready::WRNORM;
        match (listening, peer) {
            (Some(waiting), _) => {
                if waiting {
                    READ
                } else {
                    0
                }
            }
            (None, None) if self.kind != Kind::Datagram => WRITE | ready::HUP,
            (None, peer) => {
                let ended = self.inbox.has_ended();
                let read = if self.inbox.has_data() || ended { READ } else { 0 };
                let room = peer.as_ref().is_none_or(|p| p.inbox.writable(&self.inbox));
                let hung = ended && self.kind != Kind::Datagram;
                let gone = hung && peer.is_none_or(|p| p.inbox.has_ended());
                read | if room { WRITE } else { 0 }
                    | if hung { ready::RDHUP } else { 0 }
                    | if gone { ready::HUP } else { 0 }
                    | if self.inbox.is_reset() { ready::ERR } else { 0 }
            }
        }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.inbox.pollers)
    }

    fn prepare_wait(&self) -> SysResult<()> {
        self.outside
            .get()
            .map_or(Ok(()), |outside| outside.prepare_wait())
    }

    fn doubts(&self, file: &OpenFile, events: u32, doubts: &mut Vec<Doubt>) {
        if let Some(outside) = self.outside.get() {
            outside.doubts(file, events, doubts);
        }
    }

    fn closed(&self, _: &OpenFile) {
        self.end(false);
    }

    fn ioctl(&self, file: &OpenFile, request: u32, argument: u64) -> SysResult {
        if let Some(outside) = self.outside.get() {
            return outside.ioctl(file, request, argument);
        }
        if request != FIONREAD {
            return super::host::interfaces::ioctl(None, request, argument);
        }
        let bytes = self.inbox.readable_bytes(!self.is_message());
        user::write(argument, &i32::try_from(bytes).unwrap_or(i32::MAX))?;
        Ok(0)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Socket for UnixSocket {
    fn bind(&self, address: &Address) -> SysResult<()> {
        self.bind_to(address)
    }

    fn listen(&self, backlog: i32) -> SysResult<()> {
        self.start_listening(backlog)
    }

    fn accept(&self, file: &OpenFile) -> SysResult<(Arc<dyn File>, Option<Address>)> {
        self.take_connection(file)
    }

    fn connect(&self, file: &OpenFile, address: &Address) -> SysResult<()> {
        self.connect_to(file, address)
    }

    fn shutdown(&self, how: i32) -> SysResult<()> {
        if let Some(outside) = self.outside.get() {
            return outside.shutdown(how);
        }
        if !(0..=2).contains(&how) {
            return Err(Errno::EINVAL);
        }
        if how != 1 {
            // Whoever writes to us meets EPIPE, whoever accepts EINVAL; what has come can still be read.
            self.inbox.end();
        }
        if let Some(peer) = self.peer().filter(|_| how != 0 && self.kind != Kind::Datagram) {
            peer.inbox.end();
        }
        Ok(())
    }

    fn name(&self) -> SysResult<Address> {
        Ok(self.state.lock().name.unwrap_or(Address::unnamed(family::UNIX)))
    }

    fn peer_name(&self) -> SysResult<Address> {
        if let Some(outside) = self.outside.get() {
            return outside.peer_name();
        }
        let peer = self.peer().ok_or(Errno::ENOTCONN)?;
        Ok(peer.name.unwrap_or(Address::unnamed(family::UNIX)))
    }

    fn send(
        &self,
        file: &OpenFile,
        from: &mut Buf,
        to: Option<&Address>,
        control: Control,
        flags: u32,
    ) -> SysResult<usize> {
        if let Some(outside) = self.outside.get() {
            return outside.send(file, from, to, control, flags);
        }
        self.send_inside(file, from, to, control, flags)
    }

    fn receive(&self, file: &OpenFile, to: &mut Buf, wanted: Wanted, flags: u32) -> SysResult<Received> {
        if let Some(outside) = self.outside.get() {
            return outside.receive(file, to, wanted, flags);
        }
        self.receive_inside(file, to, wanted, flags)
    }

    fn option(&self, level: i32, name: i32, space: usize) -> SysResult<Vec<u8>> {
        if let Some(outside) = self.outside.get() {
            return outside.option(level, name, space);
        }
        if let Some(value) = self.timeouts.option(level, name) {
            return Ok(value);
        }
        if level == 1 {
            self.own_option(name)
        } else {
            Err(Errno::EOPNOTSUPP)
        }
    }

    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> SysResult<()> {
        if let Some(outside) = self.outside.get() {
            return outside.set_option(level, name, value);
        }
        if let Some(result) = self.timeouts.set_option(level, name, value) {
            return result;
        }
        let number = value
            .first_chunk()
            .copied()
            .map(i32::from_ne_bytes)
            .ok_or(Errno::EINVAL)?;
        match (level, name) {
            (1, 16) => self.pass_credentials.store(number != 0, Ordering::Relaxed),
            // Taken and without effect: the queue has one size, and there is no network.
            (1, 2 | 5 | 6 | 7 | 8 | 9 | 12 | 13 | 15 | 18 | 32 | 33) => {}
            (1, _) => return Err(Errno::ENOPROTOOPT),
            _ => return Err(Errno::EOPNOTSUPP),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
