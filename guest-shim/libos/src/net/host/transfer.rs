//! Sending and receiving.

use alloc::sync::Arc;
use alloc::vec;

use cloak_abi::hostop::{ADDR_MAX, CONTROL_MAX, HostOp};

use super::flow::{Flow, Taken};
use super::{HostSocket, answers, short_means_empty};
use crate::errno::{Errno, SysResult};
use crate::fs::file::ready;
use crate::fs::{OpenFile, signals};
use crate::host::{Answer, CAPACITY, Request};
use crate::net::address::Address;
use crate::net::socket::{Kind, Received, Wanted, msg, waited};
use crate::user::Buf;

/// Where the payload starts when an address or control data go before it.
const PAYLOAD_AT: usize = ADDR_MAX + CONTROL_MAX;
/// Flags that the host gets to see. The others are served here, or always set by the service.
const SENT: u32 = msg::OOB | msg::DONTROUTE | msg::EOR | msg::CONFIRM | msg::MORE;
const RECEIVED: u32 = msg::OOB | msg::PEEK | msg::TRUNC | msg::ERRQUEUE;
/// Flags of a message that the host may state.
const STATED: u32 = msg::OOB | msg::CTRUNC | msg::TRUNC | msg::EOR | msg::ERRQUEUE | msg::CONFIRM;
/// Most bytes that a message can have had, though cut.
const MESSAGE_MAX: usize = 1 << 24;

/// Whether the message call must not wait, whatever the descriptor says.
struct Patience<'a> {
    file: &'a OpenFile,
    hurried: bool,
    deadline: u64,
}

impl HostSocket {
    fn nothing(&self, patience: &Patience<'_>, snapshot: u64, bits: u32) -> SysResult<()> {
        if patience.hurried {
            self.link.readiness.clear(snapshot, bits);
            return Err(Errno::EAGAIN);
        }
        self.nothing_yet(patience.file, snapshot, bits, patience.deadline)
    }

    /// Sends all of `from`, or as much as there is room for when it must not wait.
    pub(super) fn send_stream(&self, file: &OpenFile, from: &mut Buf, flags: u32) -> SysResult<usize> {
        if let Some(flow) = &self.flow {
            if flags & SENT == 0
                && let Some(sent) = flow.deliver(from)
            {
                return sent.map_err(|error| broken(error, flags));
            }
            flow.settle()?;
            if let Some(error) = flow.take_error().or_else(|| flow.take_delivery_error()) {
                return Err(broken(error, flags));
            }
        }
        let deadline = self.timeouts.send_deadline();
        let patience = Patience {
            file,
            hurried: flags & msg::DONTWAIT != 0,
            deadline,
        };
        let mut request = Request::new();
        let mut done = 0;
        loop {
            let part = request.put_from(0, from, from.len().min(CAPACITY));
            let sent = part.and_then(|len| Ok((len, self.send_part(&patience, &mut request, len, flags)?)));
            match sent {
                Ok((len, sent)) => {
                    done += sent;
                    if sent < len || from.is_empty() {
                        if sent == len
                            && let Some(flow) = &self.flow
                        {
                            flow.has_room();
                        }
                        return Ok(done);
                    }
                }
                Err(_) if done > 0 => return Ok(done),
                Err(error) => return Err(broken(error, flags)),
            }
        }
    }

    /// Sends the first `len` bytes of the buffer; fewer only when it must not wait.
    fn send_part(
        &self,
        patience: &Patience<'_>,
        request: &mut Request,
        len: usize,
        flags: u32,
    ) -> SysResult<usize> {
        let mut done = 0;
        loop {
            let left = len - done;
            let snapshot = self.link.readiness.snapshot();
            let result = self.ask_send(request, left, flags).len(left);
            match result {
                Ok(sent) if sent == left => return Ok(len),
                Ok(sent) => {
                    done += sent;
                    // Rare (the host's buffer is full): what is left moves to the front.
                    let mut rest = vec![0; left - sent];
                    request.get(sent, &mut rest);
                    request.put(0, &rest);
                }
                Err(Errno::EAGAIN) => {}
                Err(_) if done > 0 => return Ok(done),
                Err(error) => {
                    self.link.readiness.doubt(ready::ERR);
                    return Err(error);
                }
            }
            match self.nothing(patience, snapshot, ready::OUT) {
                Err(_) if done > 0 => return Ok(done),
                other => other?,
            }
        }
    }

    fn ask_send(&self, request: &mut Request, len: usize, flags: u32) -> Answer {
        match flags & SENT {
            0 => request.call(HostOp::Write, [self.fd(), len as u64, 0, 0, 0, 0]),
            flags => request.call(
                HostOp::SendMsg,
                [self.fd(), u64::from(flags), 0, 0, len as u64, 0],
            ),
        }
    }

    /// Sends one message, whole.
    pub(super) fn send_message(
        &self,
        file: &OpenFile,
        from: &mut Buf,
        to: Option<&Address>,
        control: &[u8],
        flags: u32,
    ) -> SysResult<usize> {
        self.settle()?;
        let deadline = self.timeouts.send_deadline();
        let patience = Patience {
            file,
            hurried: flags & msg::DONTWAIT != 0,
            deadline,
        };
        let to = to.map_or(&[][..], Address::bytes);
        let at = if to.is_empty() && control.is_empty() {
            0
        } else {
            PAYLOAD_AT
        };
        if control.len() > CONTROL_MAX {
            return Err(Errno::ENOBUFS);
        }
        let len = match from.len() {
            len if len <= CAPACITY - at => len,
            _ if self.is_stream() => CAPACITY - at,
            _ => return Err(Errno::EMSGSIZE),
        };
        let mut request = Request::new();
        request.put(0, to);
        request.put(ADDR_MAX.min(at), control);
        if request.put_from(at, from, len)? < len {
            return Err(Errno::EFAULT);
        }
        let sizes = [to.len() as u64, control.len() as u64, len as u64];
        let args = [
            self.fd(),
            u64::from(flags & SENT),
            sizes[0],
            sizes[1],
            sizes[2],
            0,
        ];
        loop {
            let snapshot = self.link.readiness.snapshot();
            match request.call(HostOp::SendMsg, args).len(len) {
                Err(Errno::EAGAIN) => self.nothing(&patience, snapshot, ready::OUT)?,
                Err(error) => {
                    self.link.readiness.doubt(ready::ERR);
                    return Err(if self.kind == Kind::Datagram {
                        error
                    } else {
                        broken(error, flags)
                    });
                }
                Ok(sent) => return Ok(sent),
            }
        }
    }

    /// Receives, waiting as the descriptor and the flags say.
    pub(super) fn receive_waiting(
        &self,
        file: &OpenFile,
        to: &mut Buf,
        wanted: Wanted,
        flags: u32,
    ) -> SysResult<Received> {
        let hurried = flags & (msg::DONTWAIT | msg::ERRQUEUE) != 0;
        let patience = Patience {
            file,
            hurried,
            deadline: self.timeouts.receive_deadline(),
        };
        if flags & (msg::OOB | msg::ERRQUEUE) == 0
            && let Some(flow) = &self.flow
            && let Some(len) = self.take_ahead(flow, &patience, to, flags)?
        {
            return Ok(Received {
                len,
                ..Received::default()
            });
        }
        self.wait_first(&patience, flags)?;
        let mut received = loop {
            let snapshot = self.link.readiness.snapshot();
            match self.receive_once(to, wanted, flags, snapshot) {
                Err(Errno::EAGAIN) => self.nothing(&patience, snapshot, source(flags))?,
                other => break other?,
            }
        };
        if self.is_stream() && flags & (msg::PEEK | msg::OOB | msg::ERRQUEUE) == 0 {
            self.receive_more(&patience, to, &mut received, flags);
        }
        Ok(received)
    }

    /// Receives what was fetched ahead, waiting for it as the caller does. None where the host has to be asked.
    fn take_ahead(
        &self,
        flow: &Arc<Flow>,
        patience: &Patience<'_>,
        to: &mut Buf,
        flags: u32,
    ) -> SysResult<Option<usize>> {
        let (peek, discard) = (flags & msg::PEEK != 0, flags & msg::TRUNC != 0);
        // Who peeks sees the beginning each time, so there is no use in waiting for more than comes at once.
        let all = flags & msg::WAITALL != 0 && !peek;
        let mut done = 0;
        loop {
            match flow.take(to, peek, discard) {
                Ok(Taken::Bytes(len)) => {
                    done += len;
                    if len == 0 || !all || to.is_empty() {
                        return Ok(Some(done));
                    }
                }
                Ok(Taken::Ask) if done == 0 => return Ok(None),
                Ok(Taken::Ask) => return Ok(Some(done)),
                Ok(Taken::Nothing) if patience.hurried || patience.file.nonblocking() => {
                    return if done > 0 {
                        Ok(Some(done))
                    } else {
                        Err(Errno::EAGAIN)
                    };
                }
                Ok(Taken::Nothing) => {
                    let queue = &self.link.readiness.queue;
                    let comes = || (flow.has_news() || !flow.covers()).then_some(Ok(()));
                    match queue.wait(patience.deadline, comes) {
                        Ok(()) => {}
                        Err(_) if done > 0 => return Ok(Some(done)),
                        Err(error) => return Err(waited(error, patience.deadline)),
                    }
                }
                Err(_) if done > 0 => return Ok(Some(done)),
                Err(error) => return Err(error),
            }
        }
    }

    /// What is known not to be there need not be asked for by who is going to wait anyway.
    fn wait_first(&self, patience: &Patience<'_>, flags: u32) -> SysResult<()> {
        let readiness = &self.link.readiness;
        let waits = !patience.hurried && !patience.file.nonblocking() && flags & msg::OOB == 0;
        if waits && self.link.watching() && readiness.ready() & !ready::OUT == 0 {
            let some = || readiness.ready() & !ready::OUT != 0;
            let waiting = readiness
                .queue
                .wait(patience.deadline, || some().then_some(Ok(())));
            return waiting.map_err(|e| crate::net::socket::waited(e, patience.deadline));
        }
        Ok(())
    }

    /// A stream gives what there is, in several requests where one is too small; with WAITALL, all.
    fn receive_more(&self, patience: &Patience<'_>, to: &mut Buf, received: &mut Received, flags: u32) {
        let all = flags & msg::WAITALL != 0;
        let mut last = received.len;
        while !to.is_empty() && last > 0 && (all || last == CAPACITY) {
            let snapshot = self.link.readiness.snapshot();
            match self.receive_once(to, Wanted::default(), flags, snapshot) {
                Ok(more) => {
                    last = more.len;
                    received.len += last;
                }
                Err(Errno::EAGAIN) if all && self.nothing(patience, snapshot, ready::IN).is_ok() => {}
                // What is here is given; an error comes again, or was EAGAIN.
                Err(_) => return,
            }
        }
    }

    fn receive_once(&self, to: &mut Buf, wanted: Wanted, flags: u32, snapshot: u64) -> SysResult<Received> {
        let control = wanted.control.min(CONTROL_MAX);
        let at = if wanted.address || control > 0 {
            PAYLOAD_AT
        } else {
            0
        };
        let space = to.len().min(CAPACITY - at);
        let mut request = Request::new();
        let plain = self.is_stream() && at == 0 && flags & RECEIVED == 0;
        let answer = if plain {
            request.call(HostOp::Read, [self.fd(), space as u64, 0, 0, 0, 0])
        } else {
            let bits = u64::from(flags & RECEIVED);
            let args = [
                self.fd(),
                bits,
                u64::from(wanted.address),
                control as u64,
                space as u64,
                0,
            ];
            request.call(HostOp::RecvMsg, args)
        };
        // A cut message states its whole length when that was asked for.
        let whole = flags & msg::TRUNC != 0 && !self.is_stream();
        let len = answer.len(if whole { MESSAGE_MAX } else { space });
        self.note(len, space, flags, snapshot);
        let len = len?;
        let mut received = Received {
            len,
            ..Received::default()
        };
        if !plain {
            received.flags = answer.extra as u32 & STATED;
        }
        if at > 0 {
            received.from = answers::address(&request, (answer.extra >> 32) & 0xffff, self.domain)?;
            received.control = answers::control(&request, answer.extra >> 48, control)?;
        }
        let discards = flags & msg::TRUNC != 0 && self.is_stream();
        if discards {
            // It counts as received all the same: no more than was asked for.
            to.truncate(to.len() - len);
        } else if len > 0 && space > 0 {
            request.get_into(at, to, len.min(space))?;
        }
        Ok(received)
    }

    /// What a receive says about what is left.
    fn note(&self, result: SysResult<usize>, space: usize, flags: u32, snapshot: u64) {
        let readiness = &self.link.readiness;
        let endings = ready::RDHUP | ready::HUP | ready::ERR | ready::PRI;
        match result {
            Ok(_) if flags & msg::PEEK != 0 => {}
            Ok(_) if flags & (msg::OOB | msg::ERRQUEUE) != 0 => readiness.doubt(ready::PRI | ready::ERR),
            Ok(0) if self.is_stream() => {}
            Ok(len)
                if len < space
                    && short_means_empty(self.domain, self.kind)
                    && snapshot as u32 & endings == 0 =>
            {
                readiness.clear(snapshot, ready::IN);
            }
            Ok(_) => readiness.doubt(ready::IN),
            Err(Errno::EAGAIN) => {} // the caller clears
            Err(_) => readiness.doubt(ready::IN | ready::ERR),
        }
    }
}

/// The bit that says that there is something to receive.
fn source(flags: u32) -> u32 {
    if flags & msg::ERRQUEUE != 0 {
        ready::ERR
    } else if flags & msg::OOB != 0 {
        ready::PRI
    } else {
        ready::IN
    }
}

/// EPIPE comes with a signal unless that is not wanted.
fn broken(error: Errno, flags: u32) -> Errno {
    if error == Errno::EPIPE && flags & msg::NOSIGNAL == 0 {
        signals::broken_pipe()
    } else {
        error
    }
}
