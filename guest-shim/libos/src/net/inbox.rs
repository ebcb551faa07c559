//! What has been sent to a socket inside the guest and not yet read.
//!
//! Each socket has one; a peer holds the other's. Its owner reads, others write. Copies to and from programs
//! happen outside the lock: a writer brings its message as bytes, a reader takes bytes away.

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use spin::Mutex;

use crate::errno::{Errno, SysResult};
use crate::fs::OpenFile;
use crate::fs::file::ready;
use crate::net::address::Address;
use crate::net::control::{Control, Sender};
use crate::sched::{WaitQueue, Waker};

/// Bytes that may wait in one, as `net.core.wmem_default`.
pub const CAPACITY: usize = 212_992;
/// What a message that waits costs, about as on Linux (`truesize`): its bytes with a tail, as allocated, and a header.
/// A socket can't take much more memory by many small ones than by few large ones.
fn cost(bytes: usize) -> usize {
    const HEADER: usize = 256;
    const TAIL: usize = 320;
    let allocated = match bytes + TAIL {
        small @ ..=8192 => small.next_power_of_two(),
        large => large.next_multiple_of(4096),
    };
    HEADER + allocated
}

/// One message, or one write to a stream.
#[derive(Debug)]
pub struct Packet {
    /// Payload.
    pub data: Vec<u8>,
    /// Open files that go with it.
    pub rights: Vec<Arc<OpenFile>>,
    /// Who sent it.
    pub sender: Sender,
    /// The name of the socket that it came from.
    pub from: Option<Address>,
}

#[derive(Debug, Default)]
struct State {
    packets: VecDeque<Packet>,
    /// Bytes of the first packet that are gone already (streams).
    taken: usize,
    used: usize,
    /// Nothing more will come.
    ended: bool,
    /// Nobody will read.
    closed: bool,
    /// The peer closed while it had unread data: the next read is told once.
    reset: bool,
    /// Sockets that found no room; they poll for it.
    blocked: Vec<Weak<Inbox>>,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Inbox {
    state: Mutex<State>,
    /// Threads that read.
    pub readers: WaitQueue,
    /// Threads that write to it.
    pub writers: WaitQueue,
    /// Whoever polls the socket that owns it.
    pub pollers: WaitQueue,
}

/// What a read took.
#[derive(Debug)]
pub struct Taken {
    /// Payload.
    pub data: Vec<u8>,
    /// Length of the whole message.
    pub whole: usize,
    /// Open files and sender.
    pub control: Control,
    /// Where it came from.
    pub from: Option<Address>,
}

impl Inbox {
    /// Appends a packet, or gives it back: there is no room now.
    ///
    /// # Errors
    /// EPIPE when nobody will read it.
    pub fn push(&self, packet: Packet) -> SysResult<Option<Packet>> {
        {
            let mut state = self.state.lock();
            if state.closed || state.ended {
                return Err(Errno::EPIPE);
            }
            let cost = cost(packet.data.len());
            if state.used > 0 && state.used + cost > CAPACITY {
                return Ok(Some(packet));
            }
            state.used += cost;
            state.packets.push_back(packet);
        }
        self.readers.wake_one();
        self.pollers.wake_all(ready::IN | ready::RDNORM);
        Ok(None)
    }

    /// Whether a small write would find room, or an error: then `asker` is told when that changes.
    pub fn writable(&self, asker: &Arc<Self>) -> bool {
        let mut state = self.state.lock();
        let room = state.closed || state.ended || state.used + cost(0) < CAPACITY / 2;
        if !room
            && !state
                .blocked
                .iter()
                .any(|w| core::ptr::eq(w.as_ptr(), Arc::as_ptr(asker)))
        {
            state.blocked.retain(|w| w.strong_count() > 0);
            state.blocked.push(Arc::downgrade(asker));
        }
        room
    }

    /// Takes one message, of at most `space` bytes; the rest of it is lost. None: nothing is there.
    /// `peek` leaves it there.
    pub fn take_message(&self, space: usize, peek: bool) -> Option<Taken> {
        let (taken, gone) = {
            let mut state = self.state.lock();
            let packet = state.packets.front()?;
            let mut taken = Taken {
                whole: packet.data.len(),
                data: Vec::new(),
                control: control_of(packet),
                from: packet.from,
            };
            if peek {
                taken
                    .data
                    .extend_from_slice(&packet.data[..space.min(packet.data.len())]);
                return Some(taken);
            }
            let mut packet = state.packets.pop_front()?;
            state.used -= cost(packet.data.len());
            taken.data = core::mem::take(&mut packet.data);
            taken.data.truncate(space);
            (taken, packet)
        };
        drop(gone);
        self.made_room();
        Some(taken)
    }

    /// Takes up to `space` bytes of the stream: of several writes, but not across a border where other open
    /// files or (where the reader is told of them) another sender begin.
    pub fn take_bytes(&self, space: usize, peek: bool, tells_sender: bool) -> Option<Taken> {
        let mut gone = Vec::new();
        let taken = {
            let mut state = self.state.lock();
            let first = state.packets.front()?;
            let mut taken = Taken {
                whole: 0,
                data: Vec::new(),
                control: control_of(first),
                from: first.from,
            };
            let sender = first.sender;
            let (mut at, mut index) = (state.taken, 0);
            while let Some(packet) = state.packets.get(index) {
                let border = !packet.rights.is_empty() || (tells_sender && packet.sender != sender);
                if taken.data.len() == space || (index > 0 && border) {
                    break;
                }
                let left = &packet.data[at..];
                let len = left.len().min(space - taken.data.len());
                taken.data.extend_from_slice(&left[..len]);
                if len < left.len() {
                    at += len;
                    break;
                }
                (at, index) = (0, index + 1);
            }
            if !peek {
                for _ in 0..index {
                    if let Some(packet) = state.packets.pop_front() {
                        state.used -= cost(packet.data.len());
                        gone.push(packet);
                    }
                }
                state.taken = at;
                if let Some(packet) = state.packets.front_mut().filter(|_| at > 0) {
                    packet.rights.clear(); // `taken` holds them: no last owner goes here
                }
            }
            taken
        };
        drop(gone);
        if !peek {
            self.made_room();
        }
        Some(Taken {
            whole: taken.data.len(),
            ..taken
        })
    }

    fn made_room(&self) {
        self.writers.wake_all(0);
        self.tell_blocked();
        self.readers.wake_one(); // more may be there for another
    }

    fn tell_blocked(&self) {
        let blocked = {
            let mut state = self.state.lock();
            if state.used + cost(0) >= CAPACITY / 2 && !state.closed {
                return;
            }
            core::mem::take(&mut state.blocked)
        };
        for inbox in blocked.iter().filter_map(Weak::upgrade) {
            inbox.pollers.wake_all(ready::OUT | ready::WRNORM);
        }
    }

    /// Nothing more will come: readers see the end after what is there.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.wake(ready::IN | ready::RDHUP | ready::HUP);
    }

    /// The peer closed and what was sent to it was never read.
    pub fn reset(&self) {
        self.state.lock().reset = true;
    }

    /// Whether an error waits to be told.
    pub fn is_reset(&self) -> bool {
        self.state.lock().reset
    }

    /// Nobody will read: writers get EPIPE. Gives whether something was left unread.
    pub fn close(&self) -> bool {
        let left = {
            let mut state = self.state.lock();
            state.closed = true;
            (state.taken, state.used) = (0, 0);
            core::mem::take(&mut state.packets)
        };
        self.wake(ready::OUT | ready::HUP);
        self.tell_blocked();
        !left.is_empty()
    }

    fn wake(&self, bits: u32) {
        self.readers.wake_all(0);
        self.writers.wake_all(0);
        self.pollers.wake_all(bits);
    }

    /// Takes the note of a reset.
    pub fn take_reset(&self) -> bool {
        core::mem::take(&mut self.state.lock().reset)
    }

    /// Whether something can be read.
    pub fn has_data(&self) -> bool {
        !self.state.lock().packets.is_empty()
    }

    /// Whether nothing more will come.
    pub fn has_ended(&self) -> bool {
        let state = self.state.lock();
        state.ended || state.closed
    }

    /// FIONREAD: all bytes of a stream, or those of the first message.
    pub fn readable_bytes(&self, stream: bool) -> usize {
        let state = self.state.lock();
        if stream {
            state.packets.iter().map(|p| p.data.len()).sum::<usize>() - state.taken
        } else {
            state.packets.front().map_or(0, |p| p.data.len())
        }
    }
}

/// Tells whoever waits for a socket inside what the host reports of the one behind it.
pub struct Relay(Weak<Inbox>);

impl Relay {
    /// One to the queues of `inbox`.
    #[must_use]
    pub fn to(inbox: &Arc<Inbox>) -> Arc<Self> {
        Arc::new(Self(Arc::downgrade(inbox)))
    }
}

impl Waker for Relay {
    fn wake(&self, bits: u32) {
        if let Some(inbox) = self.0.upgrade() {
            inbox.readers.wake_all(bits);
            inbox.pollers.wake_all(bits);
        }
    }
}

fn control_of(packet: &Packet) -> Control {
    Control {
        network: Vec::new(),
        rights: packet.rights.clone(),
        sender: Some(packet.sender),
    }
}
