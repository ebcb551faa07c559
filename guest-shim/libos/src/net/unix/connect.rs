//! Binding, listening, connecting, accepting.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::names::{self, Target};
use super::{Listener, Peer, UnixSocket};
use crate::errno::{Errno, SysResult};
use crate::fs::file::ready;
use crate::fs::mount::Dir;
use crate::fs::{File, OpenFile};
use crate::net::address::{Address, family};
use crate::net::control::Sender;
use crate::net::host::HostSocket;
use crate::net::inbox::Relay;
use crate::net::mode::{self, Mode};
use crate::net::socket::{Kind, waited};

/// Most connections that may wait (`net.core.somaxconn`).
const BACKLOG_MAX: usize = 4096;

impl UnixSocket {
    pub(super) fn bind_to(&self, address: &Address) -> SysResult<()> {
        if self.state.lock().name.is_some() {
            return Err(Errno::EINVAL);
        }
        let this = self.this.upgrade().ok_or(Errno::EINVAL)?;
        let (binding, name) = names::bind(&this, address)?;
        let mut state = self.state.lock();
        state.binding = binding;
        state.name = Some(name);
        Ok(())
    }

    pub(super) fn start_listening(&self, backlog: i32) -> SysResult<()> {
        if self.kind == Kind::Datagram {
            return Err(Errno::EOPNOTSUPP);
        }
        let backlog = usize::try_from(backlog).unwrap_or(BACKLOG_MAX).min(BACKLOG_MAX);
        let mut state = self.state.lock();
        if state.name.is_none() || state.peer.is_some() {
            return Err(Errno::EINVAL);
        }
        match &mut state.listener {
            Some(listener) => listener.backlog = backlog,
            none => {
                *none = Some(Listener {
                    waiting: VecDeque::new(),
                    backlog,
                    who: Sender::current(),
                })
            }
        }
        Ok(())
    }

    pub(super) fn take_connection(&self, file: &OpenFile) -> SysResult<(Arc<dyn File>, Option<Address>)> {
        let next = || {
            let mut state = self.state.lock();
            match &mut state.listener {
                None => Some(Err(Errno::EINVAL)),
                Some(_) if self.inbox.has_ended() => Some(Err(Errno::EINVAL)),
                Some(listener) => listener.waiting.pop_front().map(Ok),
            }
        };
        let socket = match next() {
            Some(result) => result?,
            None if file.nonblocking() => return Err(Errno::EAGAIN),
            None => {
                let deadline = self.timeouts.receive_deadline();
                self.inbox
                    .readers
                    .wait(deadline, next)
                    .map_err(|e| waited(e, deadline))?
            }
        };
        self.inbox.writers.wake_all(0); // there is room in the backlog
        let from = socket
            .peer()
            .and_then(|peer| peer.name)
            .unwrap_or(Address::unnamed(family::UNIX));
        Ok((socket, Some(from)))
    }

    pub(super) fn connect_to(&self, file: &OpenFile, address: &Address) -> SysResult<()> {
        if let Some(outside) = self.outside.get() {
            return outside.connect_to(file, address, 0);
        }
        if self.kind == Kind::Datagram {
            return self.connect_datagram(address);
        }
        if self.state.lock().peer.is_some() {
            return Err(Errno::EISCONN);
        }
        match names::find(address)? {
            Target::Guest(target) => self.connect_inside(file, &target),
            Target::Host(directory, path) => self.connect_outside(file, &directory, &path),
        }
    }

    /// Datagrams go there from now on; an unspecified address ends that.
    fn connect_datagram(&self, address: &Address) -> SysResult<()> {
        if address.family() == family::UNSPEC {
            self.state.lock().peer = None;
            return Ok(());
        }
        let Target::Guest(target) = names::find(address)? else {
            return Err(Errno::ECONNREFUSED);
        };
        if target.kind != self.kind {
            return Err(Errno::EPROTOTYPE);
        }
        let name = target.state.lock().name;
        let peer = Peer {
            inbox: target.inbox.clone(),
            name,
            who: Sender::current(),
        };
        self.state.lock().peer = Some(peer);
        self.inbox.pollers.wake_all(ready::OUT);
        Ok(())
    }

    fn connect_inside(&self, file: &OpenFile, target: &Arc<Self>) -> SysResult<()> {
        if target.kind != self.kind {
            return Err(Errno::EPROTOTYPE);
        }
        let far = Self::new(self.kind);
        let deadline = self.timeouts.send_deadline();
        let offer = || target.offer(self, &far);
        let who = match offer() {
            Some(result) => result?,
            None if file.nonblocking() => return Err(Errno::EAGAIN),
            None => target
                .inbox
                .writers
                .wait(deadline, offer)
                .map_err(|e| waited(e, deadline))?,
        };
        let name = far.state.lock().name;
        self.state.lock().peer = Some(Peer {
            inbox: far.inbox.clone(),
            name,
            who,
        });
        target.inbox.readers.wake_one();
        target.inbox.pollers.wake_all(ready::IN | ready::RDNORM);
        self.inbox.pollers.wake_all(ready::OUT);
        Ok(())
    }

    /// Puts `far`, connected to `near`, among the waiting; gives who listens. None: no room.
    fn offer(&self, near: &Self, far: &Arc<Self>) -> Option<SysResult<Sender>> {
        let near_name = near.state.lock().name;
        let mut state = self.state.lock();
        let name = state.name;
        let Some(listener) = state.listener.as_mut().filter(|_| !self.inbox.has_ended()) else {
            return Some(Err(Errno::ECONNREFUSED));
        };
        if listener.waiting.len() > listener.backlog {
            return None;
        }
        {
            let mut far_state = far.state.lock();
            far_state.name = name;
            far_state.peer = Some(Peer {
                inbox: near.inbox.clone(),
                name: near_name,
                who: Sender::current(),
            });
        }
        listener.waiting.push_back(far.clone());
        Some(Ok(listener.who))
    }

    /// Becomes a socket of the host.
    fn connect_outside(&self, file: &OpenFile, directory: &Dir, path: &[u8]) -> SysResult<()> {
        if mode::get() == Mode::None {
            // As if nobody listened there.
            return Err(Errno::ECONNREFUSED);
        }
        let mut bytes: Vec<u8> = family::UNIX.to_ne_bytes().to_vec();
        bytes.extend_from_slice(path);
        bytes.push(0);
        let address = Address::new(&bytes).map_err(|_| Errno::ENAMETOOLONG)?;
        let host = HostSocket::create(family::UNIX, self.kind, 0)?;
        host.connect_to(file, &address, directory.number())?;
        if self.pass_credentials.load(Ordering::Relaxed) {
            // Credentials of the host mean nothing here, so none are asked for.
            self.pass_credentials.store(false, Ordering::Relaxed);
        }
        // Whoever polls this socket already waits on our queue.
        host.queue().add(Relay::to(&self.inbox));
        host.prepare_wait()?;
        self.outside.call_once(|| host);
        self.inbox.pollers.wake_all(ready::OUT | ready::IN);
        Ok(())
    }
}
