//! The message queues of the context: messages with a type, taken in order or by type.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use spin::Mutex;

use super::table::{About, Caller, NO_WAIT, Object, READ, Table, WRITE};
use crate::errno::{Errno, SysResult};
use crate::sched::WaitQueue;

/// Most queues (`MSGMNI`).
pub const MOST: usize = 4096;
/// Most bytes of a message (`MSGMAX`).
pub const LARGEST: usize = 8192;
/// Most bytes in a queue, unless the superuser allowed more (`MSGMNB`).
pub const CAPACITY: u64 = 16_384;

/// `MSG_NOERROR`: a message that is too long is cut.
pub const CUT: u32 = 0o10_000;
/// `MSG_EXCEPT`: any type but this.
pub const EXCEPT: u32 = 0o20_000;
/// `MSG_COPY`: the message at this place, which stays.
pub const COPY: u32 = 0o40_000;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its type, above 0.
    pub kind: i64,
    /// What it says.
    pub text: Vec<u8>,
}

/// Who waits at a queue.
#[derive(Debug, Default)]
pub struct Waiting {
    /// For room.
    pub senders: WaitQueue,
    /// For a message.
    pub receivers: WaitQueue,
}

impl Waiting {
    /// All of them.
    pub fn wake(&self) {
        self.senders.wake_all(0);
        self.receivers.wake_all(0);
    }
}

/// Which message to take, and how.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// As msgrcv(2) has it: a type, 0, a negative number, or a place.
    pub kind: i64,
    /// Most bytes.
    pub size: usize,
    /// `IPC_NOWAIT`, [`CUT`], [`EXCEPT`], [`COPY`].
    pub flags: u32,
}

/// A queue.
#[derive(Debug)]
pub struct Queue {
    about: About,
    messages: VecDeque<Message>,
    /// Bytes in it.
    bytes: u64,
    /// Most of them, and also most messages.
    capacity: u64,
    /// Seconds since 1970 of the last message sent, taken, and of the last change; 0: never.
    times: [i64; 3],
    /// Process that sent and that took last; 0: none.
    processes: [i32; 2],
    waiting: Arc<Waiting>,
}

impl Object for Queue {
    fn about(&self) -> &About {
        &self.about
    }
}

/// What `msgctl` says of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// Key, number, owner, rights.
    pub about: About,
    /// Seconds since 1970 of the last message sent, taken, and of the last change; 0: never.
    pub times: [i64; 3],
    /// Bytes in it.
    pub bytes: u64,
    /// Messages in it.
    pub messages: u64,
    /// Most bytes.
    pub capacity: u64,
    /// Process that sent and that took last; 0: none.
    pub processes: [i32; 2],
}

impl Queue {
    fn new(about: About, caller: &Caller<'_>) -> Self {
        Self {
            about,
            messages: VecDeque::new(),
            bytes: 0,
            capacity: CAPACITY,
            times: [0, 0, caller.now],
            processes: [0; 2],
            waiting: Arc::new(Waiting::default()),
        }
    }

    /// What `msgctl` says.
    #[must_use]
    pub fn describe(&self) -> Description {
        Description {
            about: self.about,
            times: self.times,
            bytes: self.bytes,
            messages: self.messages.len() as u64,
            capacity: self.capacity,
            processes: self.processes,
        }
    }

    fn has_room(&self, len: usize) -> bool {
        self.bytes + len as u64 <= self.capacity && (self.messages.len() as u64) < self.capacity
    }

    /// Place of the message that is wanted.
    fn place(&self, wanted: &Wanted) -> Option<usize> {
        let kinds = || self.messages.iter().map(|m| m.kind);
        if wanted.flags & COPY != 0 {
            return usize::try_from(wanted.kind)
                .ok()
                .filter(|&n| n < self.messages.len());
        }
        match wanted.kind {
            0 => (!self.messages.is_empty()).then_some(0),
            kind if kind < 0 => {
                let (place, lowest) = kinds().enumerate().min_by_key(|&(_, kind)| kind)?;
                (lowest <= kind.saturating_neg()).then_some(place)
            }
            kind if wanted.flags & EXCEPT != 0 => kinds().position(|k| k != kind),
            kind => kinds().position(|k| k == kind),
        }
    }
}

/// All queues.
#[derive(Debug, Default)]
pub struct Queues(pub Table<Queue>);

/// The queues of the context.
pub static QUEUES: Mutex<Queues> = Mutex::new(Queues(Table::new()));

impl Queues {
    /// `msgget`.
    ///
    /// # Errors
    /// As msgget(2): ENOENT, EEXIST, EACCES, ENOSPC.
    pub fn find_or_make(&mut self, key: i32, flags: u32, caller: &Caller<'_>) -> SysResult<i32> {
        let make = |about| Ok(Queue::new(about, caller));
        self.0.find_or_make((key, flags, MOST), caller, |_| Ok(()), make)
    }

    /// Where to wait, for somebody who may send (or else take).
    ///
    /// # Errors
    /// EINVAL, EACCES.
    pub fn begin(&mut self, id: i32, sends: bool, caller: &Caller<'_>) -> SysResult<Arc<Waiting>> {
        let want = if sends { WRITE } else { READ };
        Ok(self.0.find_for(id, want, caller.who)?.waiting.clone())
    }

    /// Puts in the message, which is then gone from `message`; nothing: it has to wait.
    ///
    /// # Errors
    /// EAGAIN (`IPC_NOWAIT`); EIDRM: the queue was removed meanwhile.
    pub fn send(
        &mut self,
        id: i32,
        message: &mut Option<Message>,
        flags: u32,
        caller: &Caller<'_>,
    ) -> Option<SysResult<()>> {
        let Ok(queue) = self.0.find(id) else {
            return Some(Err(Errno::EIDRM));
        };
        let len = message.as_ref().map_or(0, |m| m.text.len());
        if !queue.has_room(len) {
            return (flags & NO_WAIT != 0).then_some(Err(Errno::EAGAIN));
        }
        queue.messages.extend(message.take());
        queue.bytes += len as u64;
        queue.times[0] = caller.now;
        queue.processes[0] = caller.pid;
        Some(Ok(()))
    }

    /// Takes out a message; nothing: there is none yet.
    ///
    /// # Errors
    /// ENOMSG (`IPC_NOWAIT`), E2BIG; EIDRM: the queue was removed meanwhile.
    pub fn receive(&mut self, id: i32, wanted: &Wanted, caller: &Caller<'_>) -> Option<SysResult<Message>> {
        let Ok(queue) = self.0.find(id) else {
            return Some(Err(Errno::EIDRM));
        };
        let Some(place) = queue.place(wanted) else {
            return (wanted.flags & NO_WAIT != 0).then_some(Err(Errno::ENOMSG));
        };
        if queue.messages[place].text.len() > wanted.size && wanted.flags & CUT == 0 {
            return Some(Err(Errno::E2BIG));
        }
        let message = if wanted.flags & COPY != 0 {
            queue.messages.get(place).cloned()
        } else {
            let taken = queue.messages.remove(place);
            queue.bytes -= taken.as_ref().map_or(0, |m| m.text.len() as u64);
            queue.times[1] = caller.now;
            queue.processes[1] = caller.pid;
            taken
        };
        message.map(|mut message| {
            message.text.truncate(wanted.size);
            Ok(message)
        })
    }

    /// `IPC_SET`; gives whom to wake.
    ///
    /// # Errors
    /// EINVAL, EPERM.
    pub fn change(
        &mut self,
        id: i32,
        owner: (u32, u32),
        mode: u32,
        capacity: u64,
        caller: &Caller<'_>,
    ) -> SysResult<Arc<Waiting>> {
        let queue = self.0.find_owned(id, caller.who)?;
        if capacity > CAPACITY && caller.who.uid[1] != 0 {
            return Err(Errno::EPERM);
        }
        queue.about.change(owner, mode);
        queue.capacity = capacity;
        queue.times[2] = caller.now;
        Ok(queue.waiting.clone())
    }

    /// `IPC_RMID`: gone at once, with its messages; gives whom to wake.
    ///
    /// # Errors
    /// EINVAL, EPERM.
    pub fn remove(&mut self, id: i32, caller: &Caller<'_>) -> SysResult<Arc<Waiting>> {
        Ok(self.0.remove(id, caller.who)?.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::PRIVATE;
    use super::super::table::testing::{by, user};
    use super::*;

    fn message(kind: i64, text: &[u8]) -> Message {
        Message {
            kind,
            text: text.to_vec(),
        }
    }

    fn take(all: &mut Queues, id: i32, kind: i64, flags: u32) -> SysResult<Vec<u8>> {
        let wanted = Wanted {
            kind,
            size: 3,
            flags: flags | NO_WAIT,
        };
        let taken = all.receive(id, &wanted, &by(&user(1)));
        taken.expect("no waiting").map(|m| m.text)
    }

    fn filled(all: &mut Queues, messages: &[(i64, &[u8])]) -> i32 {
        let me = user(1);
        let id = all.find_or_make(PRIVATE, 0o600, &by(&me)).expect("made");
        for &(kind, text) in messages {
            let sent = all.send(id, &mut Some(message(kind, text)), 0, &by(&me));
            assert_eq!(sent, Some(Ok(())));
        }
        id
    }

    #[test]
    fn messages_are_taken_in_order_and_by_type() {
        let mut all = Queues::default();
        let all = &mut all;
        let id = filled(
            all,
            &[(3, b"a"), (2, b"b"), (1, b"c"), (2, b"d"), (1, b"e"), (9, b"f")],
        );
        assert_eq!(take(all, id, 0, 0), Ok(b"a".to_vec()));
        assert_eq!(take(all, id, 2, 0), Ok(b"b".to_vec()));
        assert_eq!(take(all, id, 7, 0), Err(Errno::ENOMSG));
        // The lowest type first, and of one type the oldest.
        assert_eq!(take(all, id, 1, COPY), Ok(b"d".to_vec()));
        assert_eq!(take(all, id, -2, 0), Ok(b"c".to_vec()));
        assert_eq!(take(all, id, i64::MIN, 0), Ok(b"e".to_vec()));
        assert_eq!(take(all, id, -1, 0), Err(Errno::ENOMSG));
        assert_eq!(take(all, id, 2, EXCEPT), Ok(b"f".to_vec()));
        assert_eq!(take(all, id, 1, COPY), Err(Errno::ENOMSG));
        assert_eq!(take(all, id, 0, 0), Ok(b"d".to_vec()));
        assert_eq!(all.0.find(id).map(|q| q.describe().bytes), Ok(0));
    }

    #[test]
    fn a_message_that_is_too_long_stays_or_is_cut() {
        let mut all = Queues::default();
        let id = filled(&mut all, &[(1, b"long")]);
        assert_eq!(take(&mut all, id, 0, 0), Err(Errno::E2BIG));
        assert_eq!(take(&mut all, id, 0, CUT), Ok(b"lon".to_vec()));
        assert_eq!(all.0.find(id).map(|q| q.describe().bytes), Ok(0));
    }

    #[test]
    fn a_full_queue_takes_no_more() {
        let (mut all, me) = (Queues::default(), user(1));
        let text = alloc::vec![b'x'; LARGEST];
        let id = filled(&mut all, &[(1, &text), (1, &text)]);
        let mut more = Some(message(1, b"y"));
        assert_eq!(all.send(id, &mut more, 0, &by(&me)), None);
        assert_eq!(
            all.send(id, &mut more, NO_WAIT, &by(&me)),
            Some(Err(Errno::EAGAIN))
        );
        assert!(more.is_some());
        assert_eq!(
            all.change(id, (1, 1), 0o600, CAPACITY + 1, &by(&me)).map(|_| ()),
            Err(Errno::EPERM)
        );
        all.change(id, (1, 1), 0o600, CAPACITY + 1, &by(&user(0)))
            .expect("the superuser may");
        assert_eq!(all.send(id, &mut more, 0, &by(&me)), Some(Ok(())));
        assert!(more.is_none());
        all.remove(id, &by(&me)).expect("removed");
        assert_eq!(
            all.send(id, &mut Some(message(1, b"")), 0, &by(&me)),
            Some(Err(Errno::EIDRM))
        );
    }

    #[test]
    fn empty_messages_fill_a_queue_too() {
        let mut all = Queues::default();
        let id = filled(&mut all, &[]);
        let queue = all.0.find(id).expect("there");
        queue.capacity = 2;
        queue.messages.extend([message(1, b""), message(1, b"")]);
        assert!(!queue.has_room(0));
    }
}
