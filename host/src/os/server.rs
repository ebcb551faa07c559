//! The ring server: one thread that takes requests, carries them out and answers.
//!
//! ```text
//!            request                    idle for the spin time
//!  +-------> serving <-----> polling ------------------------> asleep
//!  |                            ^      flag set, queues empty     |
//!  |                            +---------------------------------+
//!  |                               doorbell or readiness event
//!  +-- worker answers by itself: completion queues have a lock each
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cloak_abi::hostop::HostOp;
use cloak_abi::ring::SLOTS;
use cloak_abi::vcpu::VcpuState;
use rustix::io::Errno;

use super::error::OsError;
use super::flow::{self, Flows};
use super::handed::Handed;
use super::ops;
use super::protocol;
use super::readiness::{self, Readiness, Turn};
use super::region::{Region, SlotIndex, VcpuIndex};
use super::request::{Answer, Call, Place, Refusal, Request, Scratch};
use super::share::{self, Meter, Share};
use super::spin::Spin;
use super::table::Table;
use super::workers::Workers;

/// Requests taken from one vCPU before the next has its turn.
const TURN: usize = 32;
/// Requests after which readiness is looked at even if more are waiting.
const EVENTS_AFTER: usize = 64;
/// Looks at the queues between two looks at readiness and the clock, while polling (about 1 us).
const LOOKS: u32 = 32;

/// Why a request has no answer after it was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    /// It is to be run on a worker.
    Here,
    /// What it waits for gives the answer.
    Yet,
}

/// What the ring's thread and the workers share.
#[derive(Debug)]
pub struct Shared {
    /// The shared region.
    pub region: Region,
    /// Files of the guest.
    pub table: Table,
    /// Where readiness is registered.
    pub readiness: Readiness,
    /// Standard streams that the monitor hands over.
    pub handed: Handed,
    /// The pool.
    pub workers: Workers,
    /// Streams that run ahead.
    pub flows: Flows,
    wakes: Vec<OwnedFd>,
    /// Our own count of each completion queue; the lock makes workers and the ring's thread take turns.
    completed: Vec<Mutex<u32>>,
    /// Slots that a worker has.
    in_progress: [AtomicBool; SLOTS],
}

impl Shared {
    fn vcpus(&self) -> usize {
        self.wakes.len()
    }

    fn vcpu_indices(&self) -> impl Iterator<Item = VcpuIndex> + use<> {
        let vcpus = self.vcpus();
        (0..cloak_abi::layout::MAX_VCPUS as u32).map_while(move |index| VcpuIndex::new(index, vcpus))
    }

    /// Carries out a request.
    pub fn execute(
        &self,
        request: &Request,
        place: Place,
        scratch: &mut Scratch,
    ) -> Result<Answer, NoAnswer> {
        let call = Call {
            request: *request,
            shared: self,
            place,
        };
        let reply = match HostOp::from_u32(request.op) {
            Some(op) => ops::carry_out(op, &call, scratch),
            None => Err(Refusal::Errno(Errno::NOSYS)),
        };
        match reply {
            Ok(answer) => Ok(answer),
            Err(Refusal::Later) => Err(NoAnswer::Yet),
            Err(refusal) => refusal.answer().ok_or(NoAnswer::Here),
        }
    }

    /// A worker is done with the slot.
    pub fn finish(&self, request: &Request) {
        self.in_progress[request.slot.index()].store(false, Ordering::Release);
    }

    /// Publishes an answer.
    pub fn complete(&self, request: &Request, answer: Answer) {
        let slot = self.region.slot(request.slot);
        slot.result.store(answer.result, Ordering::Relaxed);
        slot.extra.store(answer.extra, Ordering::Relaxed);
        slot.done.store(request.seq, Ordering::Release);
        let queue = self.region.queue(request.vcpu);
        let Some(count) = self.completed.get(request.vcpu.index()) else {
            return;
        };
        let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
        protocol::push(&mut count, &queue.cq_tail, &queue.cq, request.slot.index() as u32);
    }

    /// Rings a vCPU that has halted, after something was handed over to it.
    pub fn wake_if_halted(&self, vcpu: VcpuIndex) {
        if protocol::must_ring(&self.region.queue(vcpu).state, VcpuState::Halted as u32) {
            self.wake(vcpu.index());
        }
    }

    fn wake(&self, vcpu: usize) {
        if let Some(wake) = self.wakes.get(vcpu) {
            // The only failure is a full counter (EAGAIN), and then the vCPU is being woken as it is.
            let _full = rustix::io::write(wake, &1u64.to_ne_bytes());
        }
    }

    /// Rings one vCPU for an event, if none polls.
    fn wake_for_events(&self) {
        let awake = self.region.header().awake_of(self.wakes.len());
        let vcpus = self.vcpu_indices().take(awake);
        let states = vcpus.map(|vcpu| &self.region.queue(vcpu).state);
        if let Some(vcpu) = protocol::event_target(states) {
            self.wake(vcpu);
        }
    }
}

/// What the server works with.
#[derive(Debug)]
pub struct Parts {
    /// The shared region.
    pub region: Region,
    /// Files of the guest.
    pub table: Table,
    /// Rung by the guest while the service sleeps.
    pub doorbell: OwnedFd,
    /// Hangs up when the monitor is gone.
    pub lifeline: OwnedFd,
    /// Standard streams that the monitor hands over.
    pub handed: Handed,
    /// One eventfd for each vCPU.
    pub wakes: Vec<OwnedFd>,
    /// Longest time to poll.
    pub spin: Duration,
}

/// The ring's thread.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    taken: Vec<u32>,
    events_posted: u32,
    spin: Spin,
    share: Share,
    meter: Meter,
    cores: usize,
    scratch: Scratch,
    // Kept open for the epoll set.
    _bells: (OwnedFd, OwnedFd),
}

impl Server {
    /// Sets up the epoll set.
    ///
    /// # Errors
    /// When that fails, or the header is of another build.
    pub fn new(parts: Parts) -> Result<Self, OsError> {
        parts.region.check_header()?;
        let readiness = Readiness::new(parts.doorbell.as_fd(), parts.lifeline.as_fd())
            .map_err(OsError::at("setting up epoll"))?;
        let vcpus = parts.wakes.len();
        let shared = Shared {
            region: parts.region,
            table: parts.table,
            readiness,
            handed: parts.handed,
            workers: Workers::default(),
            flows: Flows::default(),
            wakes: parts.wakes,
            completed: (0..vcpus).map(|_| Mutex::new(0)).collect(),
            in_progress: [const { AtomicBool::new(false) }; SLOTS],
        };
        Ok(Self {
            shared: Arc::new(shared),
            taken: vec![0; vcpus],
            events_posted: 0,
            spin: Spin::new(parts.spin),
            share: Share::new(vcpus as u32),
            meter: Meter::new(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            scratch: Scratch::new(),
            _bells: (parts.doorbell, parts.lifeline),
        })
    }

    /// Serves until the monitor is gone.
    ///
    /// # Errors
    /// When epoll itself fails.
    pub fn run(mut self) -> Result<(), OsError> {
        let mut idle_since = Instant::now();
        let mut looks = 0u32;
        let mut served = 0;
        loop {
            let taken = self.sweep();
            served += taken;
            if taken > 0 && served < EVENTS_AFTER {
                looks = 0;
                continue;
            }
            looks += 1;
            if taken == 0 && looks < LOOKS {
                std::hint::spin_loop();
                continue;
            }
            let now = Instant::now();
            if served > 0 {
                idle_since = now;
            }
            self.meter.served(served as u64);
            self.advise(now);
            (looks, served) = (0, 0);
            match self.look_at_events(Some(Duration::ZERO))? {
                Turn::Gone => return Ok(()),
                Turn::Events(0) => {}
                Turn::Events(_) => idle_since = now,
            }
            // A vCPU thread may wait for this very core.
            std::thread::yield_now();
            if !self
                .spin
                .goes_on(now.duration_since(idle_since), || self.is_crowded())
            {
                if self.sleep(now)? == Turn::Gone {
                    return Ok(());
                }
                idle_since = Instant::now();
            }
        }
    }

    /// Serves up to a turn of requests of each vCPU, then rings those that wait.
    fn sweep(&mut self) -> usize {
        let mut served = 0;
        let shared = Arc::clone(&self.shared);
        for vcpu in shared.vcpu_indices() {
            let queue = shared.region.queue(vcpu);
            let mut answered = 0u64;
            let before = served;
            while served - before < TURN
                && let Some(index) = protocol::take(&mut self.taken[vcpu.index()], &queue.sq_tail, &queue.sq)
            {
                served += 1;
                if let Some(target) = self.serve(index, vcpu) {
                    answered |= 1 << target.index();
                }
            }
            if served > before {
                queue.sq_head.store(self.taken[vcpu.index()], Ordering::Release);
                self.ring(answered);
            }
        }
        served
    }

    /// Rings each vCPU of a bit set once for the whole batch.
    fn ring(&self, mut answered: u64) {
        while answered != 0 {
            if let Some(vcpu) = VcpuIndex::new(answered.trailing_zeros(), self.shared.vcpus()) {
                self.shared.wake_if_halted(vcpu);
            }
            answered &= answered - 1;
        }
    }

    /// Serves one entry of a submission queue; the vCPU that got an answer, if one was given at once.
    fn serve(&mut self, index: u32, submitter: VcpuIndex) -> Option<VcpuIndex> {
        let shared = &self.shared;
        let slot = SlotIndex::new(index)?;
        let request = Request::copy(slot, shared.region.slot(slot), submitter, shared.vcpus());
        let answer = self.answer(&request)?;
        if request.asks_for_reports() {
            // They are there before the answer. What goes wrong here goes wrong again where the ring's thread looks itself.
            let _seen_again = self.look_at_events(Some(Duration::ZERO));
        }
        self.shared.complete(&request, answer);
        // What became of delivered data is for the next look that is taken anyway.
        (request.op != HostOp::Deliver as u32).then_some(request.vcpu)
    }

    fn answer(&mut self, request: &Request) -> Option<Answer> {
        let shared = &self.shared;
        let in_progress = &shared.in_progress[request.slot.index()];
        if in_progress.load(Ordering::Acquire) {
            // Only a guest that breaks the contract submits a slot twice.
            return Refusal::Errno(Errno::BUSY).answer();
        }
        // First of all: what answers later may do so at once.
        in_progress.store(true, Ordering::Relaxed);
        match shared.execute(request, Place::Ring, &mut self.scratch) {
            Ok(answer) => {
                in_progress.store(false, Ordering::Relaxed);
                return Some(answer);
            }
            Err(NoAnswer::Yet) => return None,
            Err(NoAnswer::Here) => {}
        }
        if shared.workers.submit(shared, *request) {
            return None;
        }
        // No thread to be had: better late than never.
        in_progress.store(false, Ordering::Relaxed);
        shared.execute(request, Place::Worker, &mut self.scratch).ok()
    }

    /// Tells the guest how many vCPUs it should keep awake, when a window is over.
    fn advise(&mut self, now: Instant) {
        if let Some(window) = self.meter.end(now) {
            let awake = self.share.after(window);
            let before = self.shared.region.header().awake.swap(awake, Ordering::SeqCst);
            // Threads may have waited for it all the time.
            for vcpu in self
                .shared
                .vcpu_indices()
                .take(awake as usize)
                .skip(before as usize)
            {
                self.shared.wake_if_halted(vcpu);
            }
        }
    }

    /// Whether the guest's vCPUs have work for every core.
    fn is_crowded(&self) -> bool {
        let running = |vcpu: &VcpuIndex| {
            self.shared.region.queue(*vcpu).state.load(Ordering::Relaxed) == VcpuState::Running as u32
        };
        self.shared.vcpu_indices().filter(running).count() >= self.cores
    }

    fn has_requests(&self) -> bool {
        self.shared.vcpu_indices().any(|vcpu| {
            protocol::has_entries(self.taken[vcpu.index()], &self.shared.region.queue(vcpu).sq_tail)
        })
    }

    fn sleep(&mut self, now: Instant) -> Result<Turn, OsError> {
        let shared = Arc::clone(&self.shared);
        let flag = &shared.region.header().service_asleep;
        if !protocol::fall_asleep(flag, 1, 0, || self.has_requests()) {
            return Ok(Turn::Events(0));
        }
        let turn = self.look_at_events(self.share.is_short().then_some(share::WINDOW));
        flag.store(0, Ordering::Relaxed);
        let slept = now.elapsed();
        self.spin.slept(slept);
        self.meter.slept(slept);
        turn
    }

    /// Posts what has become ready, waiting at most `timeout`.
    fn look_at_events(&mut self, timeout: Option<Duration>) -> Result<Turn, OsError> {
        let shared = &self.shared;
        let posted = &mut self.events_posted;
        let page = shared.region.events();
        let tell = |number, token, flags| {
            let news = flow::event(shared, number, token, flags);
            if let Some(bits) = news.bits {
                readiness::post(page, posted, u64::from(token) << 32 | u64::from(bits));
            }
            news.answered || news.bits.is_some()
        };
        let turn = shared
            .readiness
            .turn(timeout, tell)
            .map_err(OsError::at("epoll_wait"))?;
        if let Turn::Events(1..) = turn {
            shared.wake_for_events();
        }
        Ok(turn)
    }
}
