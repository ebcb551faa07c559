//! An OS service for tests: a thread of the test process that serves the ring with real host calls.
//!
//! There is one for all tests of a process, as there is one shared region. It serves sockets itself; what is
//! not about a socket goes to whom [`serve_others`] named. It finds requests by looking at the
//! slots (host threads share one vCPU here, so the submission queue is not theirs alone), and it can be told
//! to lie about a descriptor ([`lie`]).

mod hostile;
mod sockets;
pub mod weaken;

use std::alloc::{Layout, alloc_zeroed};
use std::collections::HashMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use cloak_abi::hostop::HostOp;
use cloak_abi::ring::{BUFFER, EVENTS, QUEUE, SHARED_LEN, SLOTS, SLOTS_AT, Slot, buffer_at};

use crate::{arch, host};

/// A request as the service sees it.
pub struct Asked {
    /// Operation.
    pub op: HostOp,
    /// Arguments.
    pub args: [u64; 6],
    index: usize,
}

impl Asked {
    /// The buffer. The guest side leaves it alone until it has its answer.
    #[allow(clippy::mut_from_ref)]
    pub fn buffer(&self) -> &mut [u8] {
        // SAFETY: a slot's buffer in the region; one request at a time has it.
        unsafe { std::slice::from_raw_parts_mut(arch::shared_base().add(buffer_at(self.index)), BUFFER) }
    }
}

/// Result and second result.
pub type Reply = (i64, u64);
/// Changes a true answer.
pub type Lie = dyn FnMut(&Asked, Reply) -> Reply + Send;

/// Sockets' numbers start here, beyond those of files.
const FIRST: u64 = 1 << 20;

struct Service {
    files: HashMap<u64, OwnedFd>,
    next: u64,
    served: [u64; SLOTS],
    completed: u32,
    posted: u32,
    epoll: OwnedFd,
    /// Fetches that wait: descriptor, slot, sequence number, length.
    fetches: Vec<(u64, usize, u64, usize)>,
    /// What a socket has not taken yet.
    kept: HashMap<u64, Vec<u8>>,
}

static LIES: Mutex<Option<HashMap<u64, Arc<Mutex<Lie>>>>> = Mutex::new(None);
static COUNTS: Mutex<Option<HashMap<(u64, u32), usize>>> = Mutex::new(None);

/// Serves what the service does not.
type Others = dyn FnMut(&Asked) -> Reply + Send;

static OTHERS: Mutex<Option<Box<Others>>> = Mutex::new(None);

/// Starts the service, and has requests that are not about sockets served by `others`.
pub fn serve_others(others: impl FnMut(&Asked) -> Reply + Send + 'static) {
    *OTHERS.lock().unwrap_or_else(|e| e.into_inner()) = Some(Box::new(others));
    start();
}

fn slot(index: usize) -> &'static Slot {
    assert!(index < SLOTS);
    // SAFETY: in the region by the assertion; atomics only.
    unsafe {
        &*arch::shared_base()
            .add(SLOTS_AT + index * size_of::<Slot>())
            .cast()
    }
}

/// Starts the service, once.
pub fn start() {
    static START: Once = Once::new();
    START.call_once(|| {
        let layout = Layout::from_size_align(SHARED_LEN, 4096).expect("a layout");
        // SAFETY: not a zero size.
        let base = unsafe { alloc_zeroed(layout) };
        assert!(!base.is_null());
        arch::set_shared_base(base);
        std::thread::spawn(|| {
            // SAFETY: a plain call; its result is checked.
            let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
            assert!(epoll >= 0);
            // SAFETY: it is ours alone.
            let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
            Service {
                files: HashMap::new(),
                next: FIRST,
                served: [0; SLOTS],
                completed: 0,
                posted: 0,
                epoll,
                fetches: Vec::new(),
                kept: HashMap::new(),
            }
            .run();
        });
    });
}

/// From now on answers to requests about host descriptor `fd` pass through `lie`.
pub fn lie(fd: u64, lie: impl FnMut(&Asked, Reply) -> Reply + Send + 'static) {
    let mut lies = LIES.lock().unwrap_or_else(|e| e.into_inner());
    lies.get_or_insert_default().insert(fd, Arc::new(Mutex::new(lie)));
}

/// How many requests of this kind there were about host descriptor `fd` (0 for those about none or several).
pub fn count(fd: u64, op: HostOp) -> usize {
    let counts = COUNTS.lock().unwrap_or_else(|e| e.into_inner());
    counts
        .as_ref()
        .and_then(|c| c.get(&(fd, op as u32)))
        .copied()
        .unwrap_or(0)
}

impl Service {
    fn run(mut self) {
        let mut idle = 0;
        loop {
            let busy = self.serve_slots() | self.serve_streams() | self.post_events();
            host::poll(0);
            idle = if busy { 0 } else { idle + 1 };
            if idle > 200 {
                std::thread::sleep(Duration::from_micros(100));
            } else {
                std::thread::yield_now();
            }
        }
    }

    fn serve_slots(&mut self) -> bool {
        // In the order in which they were made, as from a queue: the second look finds all that came before what the first
        // one found, also in slots that it had passed by then.
        let newest = self.new_requests().map(|(seq, _)| seq).max();
        let mut asked: Vec<(u64, usize)> = self
            .new_requests()
            .filter(|&(seq, _)| Some(seq) <= newest)
            .collect();
        asked.sort_unstable();
        for &(seq, index) in &asked {
            self.served[index] = seq;
            let args = std::array::from_fn(|i| slot(index).args[i].load(Ordering::Relaxed));
            let op = HostOp::from_u32(slot(index).op.load(Ordering::Relaxed)).expect("a known operation");
            let asked = Asked { op, args, index };
            if op == HostOp::Fetch && asked.args[1] > 0 && self.files.contains_key(&args[0]) {
                self.fetches.push((args[0], index, seq, args[1] as usize));
                self.watch(&asked);
            } else {
                let reply = self.answer(&asked);
                self.complete(index, seq, reply);
            }
        }
        !asked.is_empty()
    }

    fn new_requests(&self) -> impl Iterator<Item = (u64, usize)> {
        let all = (0..SLOTS).map(|index| (slot(index).seq.load(Ordering::Acquire), index));
        all.filter(|&(seq, index)| seq != 0 && seq != self.served[index])
    }

    fn complete(&mut self, index: usize, seq: u64, (result, extra): Reply) {
        slot(index).result.store(result, Ordering::Relaxed);
        slot(index).extra.store(extra, Ordering::Relaxed);
        slot(index).done.store(seq, Ordering::SeqCst);
        let queue = host::queue(0);
        queue.cq[self.completed as usize % QUEUE].store(index as u32, Ordering::Relaxed);
        self.completed = self.completed.wrapping_add(1);
        queue.cq_tail.store(self.completed, Ordering::Release);
    }

    /// Fetches that find something, and bytes for which there is room.
    fn serve_streams(&mut self) -> bool {
        let mut busy = false;
        for (fd, index, seq, len) in std::mem::take(&mut self.fetches) {
            let asked = Asked {
                op: HostOp::Fetch,
                args: [fd, len as u64, 0, 0, 0, 0],
                index,
            };
            if self.files.contains_key(&fd) && sockets::would_wait(self, &asked) {
                self.fetches.push((fd, index, seq, len));
                continue;
            }
            busy = true;
            let reply = if self.files.contains_key(&fd) {
                self.answer(&asked)
            } else {
                (-i64::from(libc::ECANCELED), 0)
            };
            self.complete(index, seq, reply);
        }
        for fd in self.kept.keys().copied().collect::<Vec<_>>() {
            busy |= sockets::send_kept(self, fd);
        }
        busy
    }

    /// Ends the fetches of a descriptor.
    fn cancel(&mut self, fd: u64) {
        let (ended, left) = std::mem::take(&mut self.fetches)
            .into_iter()
            .partition(|f| f.0 == fd);
        self.fetches = left;
        let ended: Vec<(u64, usize, u64, usize)> = ended;
        for (_, index, seq, _) in ended {
            self.complete(index, seq, (-i64::from(libc::ECANCELED), 0));
        }
    }

    fn watch(&mut self, fetch: &Asked) {
        // The second time it is registered already.
        let _ = sockets::serve(
            self,
            &Asked {
                op: HostOp::Watch,
                args: [fetch.args[0], fetch.args[2], 0, 0, 0, 0],
                index: fetch.index,
            },
        );
    }

    fn answer(&mut self, asked: &Asked) -> Reply {
        let about = if asked.op == HostOp::Poll {
            0
        } else {
            asked.args[0]
        };
        {
            let mut counts = COUNTS.lock().unwrap_or_else(|e| e.into_inner());
            *counts
                .get_or_insert_default()
                .entry((about, asked.op as u32))
                .or_default() += 1;
        }
        let reply = if asked.op == HostOp::Undelivered {
            (self.kept.values().map(Vec::len).sum::<usize>() as i64, 0)
        } else if asked.op == HostOp::Nop {
            (0, 0)
        } else if matches!(asked.op, HostOp::Socket | HostOp::Poll) {
            sockets::serve(self, asked)
        } else if !self.files.contains_key(&about) {
            let mut others = OTHERS.lock().unwrap_or_else(|e| e.into_inner());
            others
                .as_mut()
                .map_or((-i64::from(libc::EBADF), 0), |others| others(asked))
        } else if asked.op == HostOp::Close {
            self.cancel(about);
            sockets::send_all(self, about);
            self.files.remove(&about);
            (0, 0)
        } else {
            sockets::serve(self, asked)
        };
        let lie = LIES
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .as_ref()
            .and_then(|l| l.get(&about).cloned());
        match lie {
            Some(lie) => lie.lock().unwrap_or_else(|e| e.into_inner())(asked, reply),
            None => reply,
        }
    }

    fn raw(&self, fd: u64) -> RawFd {
        self.files.get(&fd).map_or(-1, AsRawFd::as_raw_fd)
    }

    fn insert(&mut self, raw: RawFd) -> i64 {
        self.next += 1;
        // SAFETY: just made, owned by nobody else.
        self.files.insert(self.next, unsafe { OwnedFd::from_raw_fd(raw) });
        self.next as i64
    }

    fn epoll(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn post_events(&mut self) -> bool {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        // SAFETY: as long as it says.
        let count = unsafe { libc::epoll_wait(self.epoll(), events.as_mut_ptr(), 64, 0) };
        let page = host::events();
        for event in events.iter().take(count.max(0) as usize) {
            let entry = event.u64 << 32 | u64::from(event.events);
            page.entries[self.posted as usize % EVENTS].store(entry, Ordering::Relaxed);
            self.posted = self.posted.wrapping_add(1);
            page.tail.store(self.posted, Ordering::Release);
        }
        count > 0
    }
}
