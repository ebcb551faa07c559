//! Sending and receiving inside the guest.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::names::{self, Target};
use super::{Arc, UnixSocket};
use crate::errno::{Errno, SysResult};
use crate::fs::{OpenFile, signals};
use crate::net::address::Address;
use crate::net::control::{Control, Sender};
use crate::net::inbox::{CAPACITY, Inbox, Packet, Taken};
use crate::net::socket::{Kind, Received, Wanted, msg, waited};
use crate::user::Buf;

/// Most bytes of a stream that travel as one packet.
const PART: usize = 32 << 10;

impl UnixSocket {
    pub(super) fn send_inside(
        &self,
        file: &OpenFile,
        from: &mut Buf,
        to: Option<&Address>,
        control: Control,
        flags: u32,
    ) -> SysResult<usize> {
        if flags & msg::OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let target = self.target(to)?;
        let result = if self.is_message() {
            self.send_whole(file, &target, from, control, flags)
        } else {
            self.send_parts(file, &target, from, control, flags)
        };
        let pipe = self.kind != Kind::Datagram && flags & msg::NOSIGNAL == 0;
        result.map_err(|error| match error {
            Errno::EPIPE if pipe => signals::broken_pipe(),
            Errno::EPIPE if self.kind == Kind::Datagram => Errno::ECONNREFUSED,
            other => other,
        })
    }

    /// Where a message goes.
    fn target(&self, to: Option<&Address>) -> SysResult<Arc<Inbox>> {
        match (to, self.peer()) {
            (None, Some(peer)) => Ok(peer.inbox),
            (None, None) => Err(Errno::ENOTCONN),
            (Some(_), peer) if self.kind != Kind::Datagram => Err(if peer.is_some() {
                Errno::EISCONN
            } else {
                Errno::EOPNOTSUPP
            }),
            (Some(address), _) => match names::find(address)? {
                Target::Guest(socket) if socket.kind != self.kind => Err(Errno::EPROTOTYPE),
                Target::Guest(socket) if socket.accepts_from(self) => Ok(socket.inbox.clone()),
                Target::Guest(_) => Err(Errno::EPERM),
                Target::Host(..) => Err(Errno::ECONNREFUSED),
            },
        }
    }

    /// A connected datagram socket takes messages from its peer only.
    fn accepts_from(&self, sender: &Self) -> bool {
        self.peer()
            .is_none_or(|peer| Arc::ptr_eq(&peer.inbox, &sender.inbox))
    }

    fn packet(&self, data: Vec<u8>, control: &mut Control) -> Packet {
        Packet {
            data,
            rights: core::mem::take(&mut control.rights),
            sender: control.sender.unwrap_or_else(Sender::current),
            from: self.state.lock().name,
        }
    }

    fn send_whole(
        &self,
        file: &OpenFile,
        target: &Inbox,
        from: &mut Buf,
        mut control: Control,
        flags: u32,
    ) -> SysResult<usize> {
        let len = from.len();
        if len > CAPACITY {
            return Err(Errno::EMSGSIZE);
        }
        let data = taken(from, len)?;
        if data.len() < len {
            return Err(Errno::EFAULT);
        }
        let packet = self.packet(data, &mut control);
        self.push(file, target, packet, flags)?;
        Ok(len)
    }

    fn send_parts(
        &self,
        file: &OpenFile,
        target: &Inbox,
        from: &mut Buf,
        mut control: Control,
        flags: u32,
    ) -> SysResult<usize> {
        let mut done = 0;
        while !from.is_empty() {
            let part = taken(from, from.len().min(PART)).and_then(|data| {
                let len = data.len();
                let packet = self.packet(data, &mut control);
                self.push(file, target, packet, flags).map(|()| len)
            });
            match part {
                Ok(len) => done += len,
                Err(Errno::EPIPE) if done == 0 => return Err(Errno::EPIPE),
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Puts the packet into `target`, waiting for room where that is allowed.
    fn push(&self, file: &OpenFile, target: &Inbox, packet: Packet, flags: u32) -> SysResult<()> {
        let Some(packet) = target.push(packet)? else {
            return Ok(());
        };
        if file.nonblocking() || flags & msg::DONTWAIT != 0 {
            target.writable(&self.inbox); // leaves word for pollers
            return Err(Errno::EAGAIN);
        }
        let deadline = self.timeouts.send_deadline();
        let mut packet = Some(packet);
        let attempt = || match target.push(packet.take()?) {
            Ok(None) => Some(Ok(())),
            Ok(back) => {
                packet = back;
                None
            }
            Err(error) => Some(Err(error)),
        };
        target
            .writers
            .wait(deadline, attempt)
            .map_err(|e| waited(e, deadline))
    }

    pub(super) fn receive_inside(
        &self,
        file: &OpenFile,
        to: &mut Buf,
        wanted: Wanted,
        flags: u32,
    ) -> SysResult<Received> {
        if flags & (msg::OOB | msg::ERRQUEUE) != 0 {
            return Err(if flags & msg::OOB != 0 {
                Errno::EOPNOTSUPP
            } else {
                Errno::EAGAIN
            });
        }
        if self.kind != Kind::Datagram && self.state.lock().peer.is_none() {
            return Err(if self.kind == Kind::Stream {
                Errno::EINVAL
            } else {
                Errno::ENOTCONN
            });
        }
        let mut received = self.receive_once(file, to, wanted, flags)?;
        let all =
            flags & msg::WAITALL != 0 && flags & (msg::PEEK | msg::DONTWAIT) == 0 && !file.nonblocking();
        while all && !self.is_message() && !to.is_empty() && received.control.rights.is_empty() {
            match self.receive_once(file, to, Wanted::default(), flags) {
                Ok(more) if more.len > 0 => received.len += more.len,
                _ => break,
            }
        }
        Ok(received)
    }

    fn receive_once(&self, file: &OpenFile, to: &mut Buf, wanted: Wanted, flags: u32) -> SysResult<Received> {
        let space = to.len();
        let peek = flags & msg::PEEK != 0;
        let tells = self.pass_credentials.load(Ordering::Relaxed);
        let attempt = || {
            let taken = if self.is_message() {
                self.inbox.take_message(space, peek)
            } else {
                self.inbox.take_bytes(space, peek, tells)
            };
            match taken {
                Some(taken) => Some(Ok(Some(taken))),
                None if self.inbox.take_reset() => Some(Err(Errno::ECONNRESET)),
                None if self.inbox.has_ended() => Some(Ok(None)),
                None => None,
            }
        };
        let taken = match attempt() {
            Some(result) => result?,
            None if file.nonblocking() || flags & msg::DONTWAIT != 0 => return Err(Errno::EAGAIN),
            None => {
                let deadline = self.timeouts.receive_deadline();
                self.inbox
                    .readers
                    .wait(deadline, attempt)
                    .map_err(|e| waited(e, deadline))?
            }
        };
        let Some(taken) = taken else {
            return Ok(Received::default());
        };
        self.deliver(taken, to, wanted, flags)
    }

    fn deliver(&self, taken: Taken, to: &mut Buf, wanted: Wanted, flags: u32) -> SysResult<Received> {
        let len = to.put(&taken.data)?;
        let cut = self.is_message() && taken.whole > len;
        let mut control = taken.control;
        if !self.pass_credentials.load(Ordering::Relaxed) {
            control.sender = None;
        }
        let loses_files = wanted.control == 0 && !control.rights.is_empty();
        if loses_files {
            control.rights.clear();
        }
        Ok(Received {
            len: if cut && flags & msg::TRUNC != 0 {
                taken.whole
            } else {
                len
            },
            flags: if cut { msg::TRUNC } else { 0 }
                | if loses_files { msg::CTRUNC } else { 0 }
                | if self.kind == Kind::SeqPacket && !cut {
                    msg::EOR
                } else {
                    0
                },
            from: taken
                .from
                .filter(|_| wanted.address && self.kind == Kind::Datagram),
            control,
        })
    }
}

/// Takes `len` bytes of `from`, or as many as can be read.
fn taken(from: &mut Buf, len: usize) -> SysResult<Vec<u8>> {
    let mut data = vec![0; len];
    let got = from.take(&mut data)?;
    data.truncate(got);
    Ok(data)
}
