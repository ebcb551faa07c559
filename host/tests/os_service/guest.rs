//! A guest in miniature: the libos's half of the ring, in this process.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cloak_abi::hostop::HostOp;
use cloak_abi::ring::{EVENTS, QUEUE, SHARED_LEN, SHARED_MAGIC};
use cloak_abi::vcpu::VcpuState;
use cloak_host::os::protocol;
use cloak_host::os::region::{Buffer, Region, SlotIndex, VcpuIndex};
use cloak_host::os::{Access, OsService, Root, SpawnConfig, spawn};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use rustix::fs::{MemfdFlags, Mode, OFlags};

/// Longest that an answer may take in a test: a loaded machine is slow, not dead.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// An answer: the result, and the second one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub result: i64,
    pub extra: u64,
}

impl Answer {
    /// The result, which must not be an error.
    #[track_caller]
    pub fn ok(self) -> u64 {
        assert!(self.result >= 0, "error {}", -self.result);
        self.result as u64
    }

    /// The error number, which must be one.
    #[track_caller]
    pub fn err(self) -> i32 {
        assert!(self.result < 0, "not an error: {}", self.result);
        i32::try_from(-self.result).expect("an error number")
    }
}

/// A request on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    pub slot: SlotIndex,
    pub seq: u64,
}

/// The VM: region, bells, and the service itself.
pub struct Guest {
    pub region: Region,
    file: OwnedFd,
    pub streams: OwnedFd,
    pub service: OsService,
    pub doorbell: OwnedFd,
    pub wakes: Vec<OwnedFd>,
    sq_tail: Vec<u32>,
    cq_head: Vec<u32>,
    event_head: u32,
    seq: u64,
    free: Vec<u32>,
}

/// How a guest is set up.
pub struct Setup<'s> {
    pub vcpus: usize,
    pub spin: Duration,
    pub mounts: Vec<(&'s Path, Access)>,
}

impl Setup<'_> {
    pub fn new() -> Self {
        Self {
            vcpus: 1,
            spin: SpawnConfig::SPIN,
            mounts: Vec::new(),
        }
    }
}

fn event_descriptor() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd")
}

impl Guest {
    pub fn new(directory: &Path) -> Self {
        Self::with(Setup {
            mounts: vec![(directory, Access::ReadWrite)],
            ..Setup::new()
        })
    }

    pub fn with(setup: Setup<'_>) -> Self {
        let file = rustix::fs::memfd_create("shared", MemfdFlags::CLOEXEC).expect("memfd");
        rustix::fs::ftruncate(&file, SHARED_LEN as u64).expect("size");
        let region = Region::map(file.as_fd()).expect("map");
        region
            .header()
            .version
            .store(cloak_abi::VERSION, Ordering::Relaxed);
        region.header().magic.store(SHARED_MAGIC, Ordering::Release);
        let doorbell = event_descriptor();
        let wakes: Vec<OwnedFd> = (0..setup.vcpus).map(|_| event_descriptor()).collect();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directories: Vec<OwnedFd> = setup
            .mounts
            .iter()
            .map(|(path, _)| rustix::fs::open(*path, flags, Mode::empty()).expect("mount"))
            .collect();
        let roots = directories.iter().zip(&setup.mounts);
        let streams = cloak_host::os::handed::channel().expect("a socket");
        let service = spawn(&SpawnConfig {
            region: file.as_fd(),
            doorbell: doorbell.as_fd(),
            streams: streams.1.as_fd(),
            wakes: wakes.iter().map(AsFd::as_fd).collect(),
            roots: roots
                .map(|(d, (_, access))| Root {
                    directory: d.as_fd(),
                    access: *access,
                })
                .collect(),
            withheld: Vec::new(),
            spin: setup.spin,
            network: true,
            user: None,
        })
        .expect("service");
        Self {
            region,
            file,
            streams: streams.0,
            service,
            doorbell,
            wakes,
            sq_tail: vec![0; setup.vcpus],
            cq_head: vec![0; setup.vcpus],
            event_head: 0,
            seq: 0,
            free: (0..QUEUE as u32).collect(),
        }
    }

    /// The region mapped once more, for another thread.
    pub fn region_again(&self) -> Region {
        Region::map(self.file.as_fd()).expect("map")
    }

    pub fn vcpu(&self, index: usize) -> VcpuIndex {
        VcpuIndex::new(index as u32, self.wakes.len()).expect("vcpu")
    }

    pub fn buffer(&self, ticket: Ticket) -> Buffer<'_> {
        self.region.buffer(ticket.slot)
    }

    /// Sends a request on vCPU 0.
    pub fn submit(&mut self, op: HostOp, args: &[u64], input: &[u8]) -> Ticket {
        self.submit_on(0, op as u32, args, input)
    }

    pub fn submit_on(&mut self, vcpu: usize, op: u32, args: &[u64], input: &[u8]) -> Ticket {
        let index = self.free.pop().expect("a free slot");
        let slot = SlotIndex::new(index).expect("in range");
        self.seq += 1;
        let fields = self.region.slot(slot);
        fields.op.store(op, Ordering::Relaxed);
        fields.vcpu.store(vcpu as u32, Ordering::Relaxed);
        for (n, field) in fields.args.iter().enumerate() {
            field.store(args.get(n).copied().unwrap_or(0), Ordering::Relaxed);
        }
        fields.seq.store(self.seq, Ordering::Relaxed);
        self.region.buffer(slot).write(input);
        self.push(vcpu, index);
        Ticket { slot, seq: self.seq }
    }

    /// Puts an index on a submission queue and rings if the service sleeps.
    pub fn push(&mut self, vcpu: usize, index: u32) {
        let queue = self.region.queue(self.vcpu(vcpu));
        protocol::push(&mut self.sq_tail[vcpu], &queue.sq_tail, &queue.sq, index);
        if protocol::must_ring(&self.region.header().service_asleep, 1) {
            self.ring();
        }
    }

    /// Waits until the service has taken all that was pushed.
    #[track_caller]
    pub fn drained(&self) {
        let start = Instant::now();
        let waits = |vcpu: usize| {
            self.region.queue(self.vcpu(vcpu)).sq_head.load(Ordering::Acquire) != self.sq_tail[vcpu]
        };
        while (0..self.sq_tail.len()).any(waits) {
            assert!(start.elapsed() < PATIENCE, "entries were left");
            std::thread::yield_now();
        }
    }

    pub fn ring(&self) {
        rustix::io::write(&self.doorbell, &1u64.to_ne_bytes()).expect("doorbell");
    }

    /// The answer, if it has come.
    pub fn answer(&mut self, ticket: Ticket) -> Option<Answer> {
        let slot = self.region.slot(ticket.slot);
        if slot.done.load(Ordering::Acquire) != ticket.seq {
            return None;
        }
        let answer = Answer {
            result: slot.result.load(Ordering::Relaxed),
            extra: slot.extra.load(Ordering::Relaxed),
        };
        self.free.push(ticket.slot.index() as u32);
        Some(answer)
    }

    /// Polls for the answer.
    #[track_caller]
    pub fn wait(&mut self, ticket: Ticket) -> Answer {
        let start = Instant::now();
        let mut looks = 0u32;
        loop {
            if let Some(answer) = self.answer(ticket) {
                return answer;
            }
            looks += 1;
            if looks.is_multiple_of(64) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
            assert!(
                start.elapsed() < PATIENCE,
                "no answer: {ticket:?}, service {:?}",
                self.service.try_wait()
            );
        }
    }

    /// A request and its answer.
    #[track_caller]
    pub fn call(&mut self, op: HostOp, args: &[u64], input: &[u8]) -> Answer {
        self.call_out(op, args, input, 0).0
    }

    /// The same, with `len` bytes of the buffer after the answer.
    #[track_caller]
    pub fn call_out(&mut self, op: HostOp, args: &[u64], input: &[u8], len: usize) -> (Answer, Vec<u8>) {
        let ticket = self.submit(op, args, input);
        let answer = self.wait(ticket);
        let mut out = vec![0; len];
        self.buffer(ticket).read(&mut out);
        (answer, out)
    }

    /// The next completion of a vCPU.
    pub fn completion(&mut self, vcpu: usize) -> Option<u32> {
        let queue = self.region.queue(self.vcpu(vcpu));
        protocol::take(&mut self.cq_head[vcpu], &queue.cq_tail, &queue.cq)
    }

    /// The next readiness event: token and epoll bits.
    pub fn event(&mut self) -> Option<(u32, u32)> {
        let page = self.region.events();
        if page.tail.load(Ordering::Acquire) == self.event_head {
            return None;
        }
        let value = page.entries[self.event_head as usize % EVENTS].load(Ordering::Relaxed);
        self.event_head = self.event_head.wrapping_add(1);
        page.head.store(self.event_head, Ordering::Release);
        Some(((value >> 32) as u32, value as u32))
    }

    /// Waits for an event of a token that has all of `bits`; events of other tokens and bits are dropped.
    #[track_caller]
    pub fn event_with(&mut self, token: u32, bits: u32) {
        let start = Instant::now();
        loop {
            match self.event() {
                Some((t, b)) if t == token && b & bits == bits => return,
                Some(_) => {}
                None => std::thread::yield_now(),
            }
            assert!(start.elapsed() < PATIENCE, "no event {bits:#x} for token {token}");
        }
    }

    pub fn state(&self, vcpu: usize) -> &AtomicU32 {
        &self.region.queue(self.vcpu(vcpu)).state
    }

    /// Halts as a vCPU does, until there is a completion or an event, or `timeout` is over (false).
    pub fn halt(&mut self, vcpu: usize, timeout: Duration) -> bool {
        let queue = self.region.queue(self.vcpu(vcpu));
        let (head, events) = (self.cq_head[vcpu], self.event_head);
        let page = self.region.events();
        let has_work =
            || protocol::has_entries(head, &queue.cq_tail) || page.tail.load(Ordering::Acquire) != events;
        let (halted, running) = (VcpuState::Halted as u32, VcpuState::Running as u32);
        if !protocol::fall_asleep(&queue.state, halted, running, has_work) {
            return true;
        }
        let woken = readable(&self.wakes[vcpu], timeout);
        queue.state.store(running, Ordering::Relaxed);
        let mut count = [0; 8];
        let _none = rustix::io::read(&self.wakes[vcpu], &mut count);
        woken
    }

    /// Opens a path of a mount.
    #[track_caller]
    pub fn open(&mut self, mount: u32, path: &str, flags: i32, mode: u32) -> Answer {
        let dir = u64::from(cloak_abi::hostop::ROOT_FD + mount);
        self.call(
            HostOp::Open,
            &[dir, flags as u64, u64::from(mode), path.len() as u64, 0],
            path.as_bytes(),
        )
    }
}

/// Whether a descriptor becomes readable in time.
pub fn readable(fd: impl AsFd, timeout: Duration) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: timeout.as_secs() as i64,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    rustix::event::poll(&mut fds, Some(&timeout)).expect("poll") > 0
}
