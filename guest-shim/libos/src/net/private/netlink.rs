//! `NETLINK_ROUTE`: what interfaces, addresses and routes there are (`rtnetlink(7)`). Nothing can be changed.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::any::Any;

use spin::Mutex;

use super::interfaces::{self, Interface};
use super::network;
use crate::errno::{Errno, SysResult};
use crate::fs::anon::{self, FIONREAD, S_IFSOCK};
use crate::fs::file::{Stat, ready};
use crate::fs::{File, OpenFile};
use crate::net::address::{Address, family};
use crate::net::control::{Control, Sender};
use crate::net::inbox::{Inbox, Packet};
use crate::net::socket::{Kind, Received, Socket, Timeouts, Wanted, msg, waited};
use crate::sched::WaitQueue;
use crate::user::{self, Buf};

/// Bytes of `struct nlmsghdr` and of `struct sockaddr_nl`.
const HEADER: usize = 16;
const ADDRESS: usize = 12;
/// Most bytes of requests in one message.
const ASKED_MAX: usize = 32 << 10;
/// Bytes of answers after which a new message begins, as programs read with buffers of a page.
const ANSWER: usize = 3072;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
/// Flags: more follow, an answer is wanted, all are wanted (either bit).
const MULTI: u16 = 2;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;

/// The routing table `main`, of the kernel's own making, for all.
const MAIN: u8 = 254;

/// A netlink socket.
#[derive(Debug)]
pub struct NetlinkSocket {
    kind: Kind,
    inbox: Arc<Inbox>,
    /// Its own number, once it has one.
    port: Mutex<u32>,
    timeouts: Timeouts,
    inode: u64,
}

/// Its number is the process's for the first one, and one of these for others; nobody sends to it.
static NEXT: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0x8000_0000);

impl NetlinkSocket {
    /// A new one.
    #[must_use]
    pub fn new(kind: Kind) -> Arc<Self> {
        Arc::new(Self {
            kind,
            inbox: Arc::default(),
            port: Mutex::new(0),
            timeouts: Timeouts::default(),
            inode: anon::next_inode(),
        })
    }

    fn port(&self) -> u32 {
        let mut port = self.port.lock();
        if *port == 0 {
            *port = NEXT.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        }
        *port
    }

    fn serve(&self, mut asked: &[u8]) -> SysResult<()> {
        while let Some(request) = Request::first(asked) {
            let answers = request.answer(self.port());
            let mut message = Vec::new();
            for answer in answers {
                if !message.is_empty() && message.len() + answer.len() > ANSWER {
                    self.push(core::mem::take(&mut message))?;
                }
                message.extend(answer);
            }
            if !message.is_empty() {
                self.push(message)?;
            }
            asked = asked.get(request.len.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(())
    }

    fn push(&self, data: Vec<u8>) -> SysResult<()> {
        let packet = Packet {
            data,
            rights: Vec::new(),
            sender: Sender::current(),
            from: None,
        };
        match self.inbox.push(packet)? {
            None => Ok(()),
            Some(_) => Err(Errno::ENOBUFS),
        }
    }
}

/// One request.
struct Request<'a> {
    len: usize,
    kind: u16,
    flags: u16,
    sequence: u32,
    header: [u8; HEADER],
    body: &'a [u8],
}

impl<'a> Request<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let header = *bytes.first_chunk::<HEADER>()?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let len = word(0) as usize;
        Some(Self {
            len,
            kind: half(4),
            flags: half(6),
            sequence: word(8),
            header,
            body: bytes.get(HEADER..len)?,
        })
    }

    /// The messages that answer it.
    fn answer(&self, port: u32) -> Vec<Vec<u8>> {
        let dumps = self.flags & DUMP != 0;
        let wanted = self.body.first().copied().map_or(0, u16::from);
        let records: SysResult<Vec<(u16, Vec<u8>)>> = match self.kind {
            GET_LINK if dumps => Ok(interfaces::ALL.iter().map(link).collect()),
            GET_LINK => self.one_link().map(|one| vec![one]),
            GET_ADDRESS if dumps => Ok(interfaces::ALL
                .iter()
                .flat_map(|i| addresses(i, wanted))
                .collect()),
            GET_ROUTE if dumps => Ok(routes(wanted)),
            GET_ADDRESS | GET_ROUTE => Err(Errno::EOPNOTSUPP),
            NEW_LINK.. => Err(Errno::EPERM),
            _ => Ok(Vec::new()), // control messages
        };
        let part =
            |(kind, body): (u16, Vec<u8>)| self.message(port, kind, if dumps { MULTI } else { 0 }, &body);
        match records {
            Err(errno) => vec![self.told(port, -errno.number())],
            Ok(records) if dumps => {
                let end = self.message(port, DONE, MULTI, &0i32.to_ne_bytes());
                records.into_iter().map(part).chain([end]).collect()
            }
            Ok(records) => {
                let acknowledged = (self.flags & ACK != 0).then(|| self.told(port, 0));
                records.into_iter().map(part).chain(acknowledged).collect()
            }
        }
    }

    fn one_link(&self) -> SysResult<(u16, Vec<u8>)> {
        const NAME: u16 = 3;
        let index = self
            .body
            .get(4..8)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_ne_bytes);
        let name = attributes(self.body.get(16..).unwrap_or(&[])).find(|(kind, _)| *kind == NAME);
        let name = name.map(|(_, name)| name.split(|b| *b == 0).next().unwrap_or(&[]));
        let by_index = |i: &&Interface| index.is_some_and(|index| index == i.index);
        let by_name = |i: &&Interface| name.is_some_and(|name| name == i.name.as_bytes());
        let found = interfaces::ALL.iter().find(|i| by_index(i) || by_name(i));
        found.map(link).ok_or(Errno::ENODEV)
    }

    fn message(&self, port: u32, kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend(flags.to_ne_bytes());
        out.extend(self.sequence.to_ne_bytes());
        out.extend(port.to_ne_bytes());
        out.extend(body);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    /// `struct nlmsgerr`.
    fn told(&self, port: u32, error: i32) -> Vec<u8> {
        let body = [&error.to_ne_bytes()[..], &self.header].concat();
        self.message(port, ERROR, 0, &body)
    }
}

/// The attributes in `bytes`: type, value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    core::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend(((4 + value.len()) as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// `struct ifinfomsg` with its attributes.
fn link(interface: &Interface) -> (u16, Vec<u8>) {
    let mut out = vec![0, 0];
    out.extend(interface.kind.to_ne_bytes());
    out.extend(interface.index.to_ne_bytes());
    out.extend(interface.flags.to_ne_bytes());
    out.extend([0; 4]);
    let broadcast = if interface.is_loopback() {
        [0; 6]
    } else {
        [0xff; 6]
    };
    attribute(&mut out, 3, &terminated(interface.name));
    attribute(&mut out, 13, &interface.queue.to_ne_bytes());
    attribute(&mut out, 16, &[if interface.is_loopback() { 0 } else { 6 }]); // unknown, up
    attribute(&mut out, 4, &interface.mtu.to_ne_bytes());
    attribute(&mut out, 1, &interface.hardware);
    attribute(&mut out, 2, &broadcast);
    (NEW_LINK, out)
}

/// `struct ifaddrmsg` with attributes, for each address of `wanted`, or of any family.
fn addresses(interface: &Interface, wanted: u16) -> Vec<(u16, Vec<u8>)> {
    const PERMANENT: u8 = 0x80;
    let scope = if interface.is_loopback() { 254 } else { 0 };
    let head = |family: u16, bits: u8| {
        let mut out = vec![family as u8, bits, PERMANENT, scope];
        out.extend(interface.index.to_ne_bytes());
        out
    };
    let mut all = Vec::new();
    if wanted == 0 || wanted == family::INET {
        let mut out = head(family::INET, interface.four.1);
        attribute(&mut out, 1, &interface.four.0.octets());
        attribute(&mut out, 2, &interface.four.0.octets());
        if !interface.is_loopback() {
            attribute(&mut out, 4, &interface.broadcast().octets());
        }
        attribute(&mut out, 3, &terminated(interface.name));
        all.push((NEW_ADDRESS, out));
    }
    if let Some((ip, bits)) = interface.six.filter(|_| wanted == 0 || wanted == family::INET6) {
        let mut out = head(family::INET6, bits);
        attribute(&mut out, 1, &ip.octets());
        all.push((NEW_ADDRESS, out));
    }
    all
}

/// `struct rtmsg` with attributes: by the gateway, and to the subnet.
fn routes(wanted: u16) -> Vec<(u16, Vec<u8>)> {
    const LINK: u8 = 253;
    let Some(interface) = interfaces::ALL.iter().find(|i| !i.is_loopback()) else {
        return Vec::new();
    };
    if wanted != 0 && wanted != family::INET {
        return Vec::new();
    }
    let head = |bits: u8, protocol: u8, scope: u8| {
        let mut out = vec![family::INET as u8, bits, 0, 0, MAIN, protocol, scope, 1];
        out.extend([0; 4]);
        attribute(&mut out, 15, &u32::from(MAIN).to_ne_bytes());
        out
    };
    let mut default = head(0, 3, 0);
    attribute(&mut default, 5, &network::GATEWAY.octets());
    attribute(&mut default, 4, &interface.index.to_ne_bytes());
    let mut subnet = head(interface.four.1, 2, LINK);
    let base = u32::from(interface.four.0) & u32::from(interface.mask());
    attribute(&mut subnet, 1, &base.to_be_bytes());
    attribute(&mut subnet, 7, &interface.four.0.octets());
    attribute(&mut subnet, 4, &interface.index.to_ne_bytes());
    vec![(NEW_ROUTE, default), (NEW_ROUTE, subnet)]
}

/// `struct sockaddr_nl`.
fn address(port: u32) -> SysResult<Address> {
    let mut bytes = [0; ADDRESS];
    bytes[..2].copy_from_slice(&family::NETLINK.to_ne_bytes());
    bytes[4..8].copy_from_slice(&port.to_ne_bytes());
    Address::new(&bytes)
}

impl File for NetlinkSocket {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        self.receive(file, to, Wanted::default(), 0).map(|r| r.len)
    }

    fn write(&self, file: &OpenFile, from: &mut Buf) -> SysResult<usize> {
        self.send(file, from, None, Control::default(), 0)
    }

    fn stat(&self) -> SysResult<Stat> {
        Ok(anon::stat(S_IFSOCK | 0o777, self.inode))
    }

    fn poll(&self) -> u32 {
        let read = if self.inbox.has_data() {
            ready::IN | ready::RDNORM
        } else {
            0
        };
        read | ready::OUT | ready::WRNORM
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.inbox.pollers)
    }

    fn ioctl(&self, _: &OpenFile, request: u32, argument: u64) -> SysResult {
        if request != FIONREAD {
            return interfaces::ioctl(request, argument);
        }
        let bytes = self.inbox.readable_bytes(false);
        user::write(argument, &i32::try_from(bytes).unwrap_or(i32::MAX)).map(|()| 0)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Socket for NetlinkSocket {
    fn bind(&self, address: &Address) -> SysResult<()> {
        let bytes = address.bytes();
        if address.family() != family::NETLINK || bytes.len() < ADDRESS {
            return Err(Errno::EINVAL);
        }
        let wanted = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let mut port = self.port.lock();
        if wanted != 0 {
            if *port != 0 && *port != wanted {
                return Err(Errno::EINVAL);
            }
            *port = wanted;
        }
        drop(port);
        self.port();
        Ok(())
    }

    fn listen(&self, _backlog: i32) -> SysResult<()> {
        Err(Errno::EOPNOTSUPP)
    }

    fn accept(&self, _file: &OpenFile) -> SysResult<(Arc<dyn File>, Option<Address>)> {
        Err(Errno::EOPNOTSUPP)
    }

    fn connect(&self, _file: &OpenFile, _address: &Address) -> SysResult<()> {
        Ok(()) // there is nobody but the kernel
    }

    fn shutdown(&self, _how: i32) -> SysResult<()> {
        Err(Errno::EOPNOTSUPP)
    }

    fn name(&self) -> SysResult<Address> {
        address(*self.port.lock())
    }

    fn peer_name(&self) -> SysResult<Address> {
        address(0)
    }

    fn send(
        &self,
        _file: &OpenFile,
        from: &mut Buf,
        _to: Option<&Address>,
        control: Control,
        _flags: u32,
    ) -> SysResult<usize> {
        control.network_only()?;
        let len = from.len();
        if len > ASKED_MAX {
            return Err(Errno::EMSGSIZE);
        }
        let mut asked = vec![0; len];
        if from.take(&mut asked)? < len {
            return Err(Errno::EFAULT);
        }
        self.serve(&asked)?;
        Ok(len)
    }

    fn receive(&self, file: &OpenFile, to: &mut Buf, wanted: Wanted, flags: u32) -> SysResult<Received> {
        let space = to.len();
        let attempt = || self.inbox.take_message(space, flags & msg::PEEK != 0).map(Ok);
        let taken = match attempt() {
            Some(taken) => taken?,
            None if file.nonblocking() || flags & msg::DONTWAIT != 0 => return Err(Errno::EAGAIN),
            None => {
                let deadline = self.timeouts.receive_deadline();
                let waiting = self.inbox.readers.wait(deadline, attempt);
                waiting.map_err(|e| waited(e, deadline))?
            }
        };
        let len = to.put(&taken.data)?;
        let cut = taken.whole > len;
        Ok(Received {
            len: if cut && flags & msg::TRUNC != 0 {
                taken.whole
            } else {
                len
            },
            flags: if cut { msg::TRUNC } else { 0 },
            from: if wanted.address { Some(address(0)?) } else { None },
            control: Control::default(),
        })
    }

    fn option(&self, level: i32, name: i32, _space: usize) -> SysResult<Vec<u8>> {
        if let Some(value) = self.timeouts.option(level, name) {
            return Ok(value);
        }
        let value = match (level, name) {
            (1, 3) => self.kind as i32,
            (1, 39) => i32::from(family::NETLINK),
            (1, 4 | 38) => 0,
            (1, 7 | 8) => crate::net::inbox::CAPACITY as i32,
            _ => return Err(Errno::ENOPROTOOPT),
        };
        Ok(value.to_ne_bytes().to_vec())
    }

    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> SysResult<()> {
        if let Some(result) = self.timeouts.set_option(level, name, value) {
            return result;
        }
        match (level, name) {
            // Sizes, and how answers are told: taken, and without effect.
            (1, 7 | 8 | 32 | 33) | (270, 1 | 2 | 5 | 10 | 11) => Ok(()),
            _ => Err(Errno::ENOPROTOOPT),
        }
    }
}
