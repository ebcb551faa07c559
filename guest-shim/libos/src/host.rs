//! Requests to the OS service.
//!
//! A [`Request`] owns a slot of the shared region from [`Request::new`] until it is dropped. The libos keeps
//! its own record of which slots are taken and what it asked; nothing in the shared region is believed: an
//! answer is copied once and checked by the caller ([`Errno::check`], lengths against what was asked).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use cloak_abi::hostop::HostOp;
use cloak_abi::layout::MAX_VCPUS;
use cloak_abi::ring::{
    BUFFER, EVENTS_AT, EventPage, QUEUE, QUEUE_PAGE, QUEUES_AT, QueuePage, SLOTS, SLOTS_AT, SharedHeader,
    Slot, buffer_at,
};
use spin::{Lazy, Mutex};

use crate::arch;
use crate::errno::{Errno, SysResult};
use crate::sched::{self, Thread, WaitQueue};
#[cfg(test)]
use crate::testing::weaken::{Protection, without};
use crate::user::Buf;

/// Bytes of a request's buffer.
pub const CAPACITY: usize = BUFFER;

/// How long a request's thread looks for the answer itself before it parks, in polls of some 40 ns; less where polling
/// brings nothing ([`sched::patience`]).
const SPIN: u32 = 400;
/// Polls in a microsecond.
const POLLS_IN_US: u64 = 25;

static SEQUENCE: AtomicU64 = AtomicU64::new(1);
static FREE: Lazy<Mutex<Vec<u8>>> = Lazy::new(|| Mutex::new((0..=255).rev().collect()));
static FREED: WaitQueue = WaitQueue::new();
static WAITERS: [Mutex<Option<Arc<Thread>>>; SLOTS] = [const { Mutex::new(None) }; SLOTS];
/// Who is told of the answer to a request, and its note.
type Follower = (Arc<dyn Answered>, usize);

/// Who is told of the answer to such a request.
static FOLLOWERS: [Mutex<Option<Follower>>; SLOTS] = [const { Mutex::new(None) }; SLOTS];
/// Sequence number of the request in each slot whose answer nobody waits for; 0 is none.
static UNAWAITED: [AtomicU64; SLOTS] = [const { AtomicU64::new(0) }; SLOTS];
/// Held by whoever drains the completion queues or the events.
static DRAIN: Mutex<()> = Mutex::new(());
/// Requests made, for `--stats`.
pub static REQUESTS: AtomicU64 = AtomicU64::new(0);
/// Doorbells rung, for `--stats`.
pub static DOORBELLS: AtomicU64 = AtomicU64::new(0);

const _: () = assert!(SLOTS == 256, "slot numbers are kept as bytes");

/// The shared header.
pub fn header() -> &'static SharedHeader {
    // SAFETY: the region is mapped for the life of the VM; the type is atomics only.
    unsafe { &*arch::shared_base().cast() }
}

/// Queue page of vCPU `index` (below [`cloak_abi::layout::MAX_VCPUS`]).
pub fn queue(index: usize) -> &'static QueuePage {
    assert!(index < MAX_VCPUS, "vCPU index");
    // SAFETY: in bounds; atomics only.
    unsafe { &*arch::shared_base().add(QUEUES_AT + index * QUEUE_PAGE).cast() }
}

/// The event page.
pub fn events() -> &'static EventPage {
    // SAFETY: a constant offset in the region; atomics only.
    unsafe { &*arch::shared_base().add(EVENTS_AT).cast() }
}

fn slot(index: u8) -> &'static Slot {
    // SAFETY: every u8 is a slot number; atomics only.
    unsafe {
        &*arch::shared_base()
            .add(SLOTS_AT + usize::from(index) * size_of::<Slot>())
            .cast()
    }
}

/// What the OS service answered, copied once.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// Result as it came: check it.
    pub result: i64,
    /// Second result as it came: check it.
    pub extra: u64,
}

impl Answer {
    /// The result, if it is not an error.
    ///
    /// # Errors
    /// The error that the OS side reports.
    pub fn ok(self) -> SysResult<u64> {
        Errno::check(self.result)
    }

    /// The result as a length of at most `most`: more is a lie and gives EIO.
    ///
    /// # Errors
    /// The error that the OS side reports, or EIO.
    pub fn len(self, most: usize) -> SysResult<usize> {
        let len = self.ok()?;
        #[cfg(test)]
        if without(Protection::Length) {
            return Ok(len as usize);
        }
        usize::try_from(len).ok().filter(|&l| l <= most).ok_or(Errno::EIO)
    }
}

/// Is told of an answer that nobody waits for.
pub trait Answered: Send + Sync {
    /// `answer` to `request`, which was sent with `note`. Comes at most once for each; must not park.
    fn answered(&self, note: usize, request: Request, answer: Answer);
}

/// A slot taken for one request at a time.
#[derive(Debug)]
pub struct Request {
    index: u8,
}

impl Request {
    /// Takes a free slot; parks while there is none.
    #[must_use]
    pub fn new() -> Self {
        loop {
            if let Some(index) = FREE.lock().pop() {
                return Self { index };
            }
            FREED.wait_while(|| FREE.lock().is_empty());
        }
    }

    /// Takes a free slot if more than `left` are free.
    #[must_use]
    pub fn spare(left: usize) -> Option<Self> {
        let mut free = FREE.lock();
        if free.len() <= left {
            return None;
        }
        free.pop().map(|index| Self { index })
    }

    fn buffer(&self, at: usize, len: usize) -> *mut u8 {
        assert!(at <= BUFFER && len <= BUFFER - at, "inside the slot's buffer");
        // SAFETY: inside the region by the assertion.
        unsafe { arch::shared_base().add(buffer_at(usize::from(self.index)) + at) }
    }

    /// Copies bytes into the buffer.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        let to = self.buffer(at, bytes.len());
        // SAFETY: in bounds; the other side may read or write it meanwhile, which harms only itself.
        unsafe { arch::copy_own(to, bytes.as_ptr(), bytes.len()) };
    }

    /// Copies bytes out of the buffer, once.
    pub fn get(&self, at: usize, bytes: &mut [u8]) {
        let from = self.buffer(at, bytes.len());
        // SAFETY: in bounds; what is copied is whatever stands there now.
        unsafe { arch::copy_own(bytes.as_mut_ptr(), from, bytes.len()) };
    }

    /// Copies out a whole array, once.
    #[must_use]
    pub fn get_array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.get(at, &mut bytes);
        bytes
    }

    /// Fills the buffer from `from`; gives the bytes copied.
    ///
    /// # Errors
    /// EFAULT.
    pub fn put_from(&mut self, at: usize, from: &mut Buf, len: usize) -> SysResult<usize> {
        from.take_raw(self.buffer(at, len), len)
    }

    /// Copies from the buffer into `to`; gives the bytes copied.
    ///
    /// # Errors
    /// EFAULT.
    pub fn get_into(&self, at: usize, to: &mut Buf, len: usize) -> SysResult<usize> {
        to.put_raw(self.buffer(at, len), len)
    }

    /// Submits and waits for the answer.
    pub fn call(&mut self, op: HostOp, args: [u64; 6]) -> Answer {
        let seq = self.submit(op, args);
        self.answer(seq)
    }

    /// Submits; the answer is waited for later.
    #[must_use]
    pub fn begin(self, op: HostOp, args: [u64; 6]) -> Pending {
        let seq = self.submit(op, args);
        Pending {
            request: ManuallyDrop::new(self),
            seq,
        }
    }

    /// Waits for the answer to request `seq`.
    fn answer(&self, seq: u64) -> Answer {
        let shared = slot(self.index);
        if !spin(shared, seq) {
            self.park(shared, seq);
        }
        if !answers(shared, seq) {
            return Answer {
                result: -i64::from(Errno::EIO.number()),
                extra: 0,
            };
        }
        Answer {
            result: shared.result.load(Ordering::Relaxed),
            extra: shared.extra.load(Ordering::Relaxed),
        }
    }

    /// Submits without waiting: the answer does not matter. The slot is free again when it has come.
    pub fn send(self, op: HostOp, args: [u64; 6]) {
        let request = ManuallyDrop::new(self);
        let seq = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        // Before the answer can come.
        UNAWAITED[usize::from(request.index)].store(seq, Ordering::SeqCst);
        request.submit_as(seq, op, args);
    }

    /// The same, but `who` is told of the answer, and given the slot.
    pub fn send_for(self, op: HostOp, args: [u64; 6], who: Arc<dyn Answered>, note: usize) {
        *FOLLOWERS[usize::from(self.index)].lock() = Some((who, note));
        self.send(op, args);
    }

    fn submit(&self, op: HostOp, args: [u64; 6]) -> u64 {
        let seq = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        self.submit_as(seq, op, args);
        seq
    }

    fn submit_as(&self, seq: u64, op: HostOp, args: [u64; 6]) {
        REQUESTS.fetch_add(1, Ordering::Relaxed);
        let vcpu = arch::vcpu_index();
        let shared = slot(self.index);
        shared.op.store(op as u32, Ordering::Relaxed);
        shared.vcpu.store(vcpu as u32, Ordering::Relaxed);
        for (to, from) in shared.args.iter().zip(args) {
            to.store(from, Ordering::Relaxed);
        }
        shared.seq.store(seq, Ordering::Release);
        let queue = queue(vcpu);
        let tail = TAILS[vcpu].load(Ordering::Relaxed);
        queue.sq[tail as usize % QUEUE].store(u32::from(self.index), Ordering::Relaxed);
        TAILS[vcpu].store(tail.wrapping_add(1), Ordering::Relaxed);
        queue.sq_tail.store(tail.wrapping_add(1), Ordering::Release);
        // The service says that it sleeps, then looks at the queues; we submit, then look whether it sleeps.
        fence(Ordering::SeqCst);
        // One ring wakes it, however many requests there are until it does.
        let asleep = &header().service_asleep;
        if asleep.load(Ordering::Relaxed) != 0 && asleep.swap(0, Ordering::Relaxed) != 0 {
            DOORBELLS.fetch_add(1, Ordering::Relaxed);
            arch::doorbell(0);
        }
    }

    fn park(&self, shared: &Slot, seq: u64) {
        let cell = &WAITERS[usize::from(self.index)];
        *cell.lock() = Some(sched::current_arc());
        while !answers(shared, seq) && header().service_gone.load(Ordering::Relaxed) == 0 {
            sched::park(u64::MAX);
        }
        *cell.lock() = None;
    }
}

/// A request on its way. The slot stays taken until the answer has come, also when nobody waits for it any more: the
/// service may be working on its buffer.
#[derive(Debug)]
pub struct Pending {
    request: ManuallyDrop<Request>,
    seq: u64,
}

impl Pending {
    /// Waits for the answer, and gives the slot back.
    pub fn finish(self) -> (Request, Answer) {
        let answer = self.request.answer(self.seq);
        let index = self.request.index;
        core::mem::forget(self);
        (Request { index }, answer)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let index = self.request.index;
        UNAWAITED[usize::from(index)].store(self.seq, Ordering::SeqCst);
        // It may have been answered before this was noted.
        answered(index);
    }
}

impl Default for Request {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        FREE.lock().push(self.index);
        FREED.wake_one();
    }
}

/// The guest's own idea of each submission queue's tail: the shared one may be overwritten. A vCPU's entry
/// is used by that vCPU only, and no thread leaves its vCPU between the two accesses of [`Request::submit`].
static TAILS: [AtomicU32; MAX_VCPUS] = [const { AtomicU32::new(0) }; MAX_VCPUS];

/// Whether what stands in the slot answers request `seq`.
fn answers(shared: &Slot, seq: u64) -> bool {
    let done = shared.done.load(Ordering::SeqCst);
    #[cfg(test)]
    if without(Protection::Sequence) {
        return done != 0;
    }
    done == seq
}

fn spin(shared: &Slot, seq: u64) -> bool {
    let most = (sched::patience() * POLLS_IN_US).min(u64::from(SPIN));
    let mut is_far = None;
    for _ in 0..most {
        if answers(shared, seq) {
            return true;
        }
        // Another thread of the same address space runs at once. To switch to another one takes longer than an answer
        // takes that is on its way.
        if sched::others_wait() && !*is_far.get_or_insert_with(sched::next_is_far) {
            return false;
        }
        core::hint::spin_loop();
    }
    false
}

/// Takes completions of vCPU `vcpu` and all readiness events; unparks whom they concern. Cheap when there
/// is nothing.
pub fn poll(vcpu: usize) {
    take_completions(vcpu);
    look_at_events();
}

fn look_at_events() {
    let page = events();
    if page.tail.load(Ordering::Acquire) != EVENT_HEAD.load(Ordering::Relaxed)
        || page.overflow.load(Ordering::Relaxed) != 0
    {
        take_events(page);
    }
}

/// The same for the completions of all of `count` vCPUs: whoever has nothing to do takes those, too, whose vCPU
/// computes.
pub fn poll_all(count: usize) {
    (0..count).for_each(take_completions);
    look_at_events();
}

/// The same for all vCPUs that there may be.
pub fn poll_every() {
    poll_all(MAX_VCPUS);
}

fn take_completions(vcpu: usize) {
    let page = queue(vcpu);
    let tail = page.cq_tail.load(Ordering::Acquire);
    if tail != HEADS[vcpu].load(Ordering::Relaxed) {
        complete(page, vcpu, tail);
    }
}

/// Whether completions of `count` vCPUs or readiness events wait.
pub fn has_news(count: usize) -> bool {
    let completed = |vcpu| queue(vcpu).cq_tail.load(Ordering::SeqCst) != HEADS[vcpu].load(Ordering::Relaxed);
    (0..count).any(completed)
        || events().tail.load(Ordering::SeqCst) != EVENT_HEAD.load(Ordering::Relaxed)
        || events().overflow.load(Ordering::SeqCst) != 0
}

/// The guest's own idea of each completion queue's head.
static HEADS: [AtomicU32; MAX_VCPUS] = [const { AtomicU32::new(0) }; MAX_VCPUS];
static EVENT_HEAD: AtomicU32 = AtomicU32::new(0);
/// Threads that have taken events and not yet passed them on.
static TAKING: AtomicU32 = AtomicU32::new(0);

fn complete(page: &QueuePage, vcpu: usize, tail: u32) {
    let Some(_guard) = DRAIN.try_lock() else { return };
    let head = HEADS[vcpu].load(Ordering::Relaxed);
    // Answers that were found by looking at the slot leave their entries behind, so this is no lie.
    let mut whole = tail.wrapping_sub(head) > QUEUE as u32;
    let mut at = if whole { tail } else { head };
    while at != tail {
        let index = page.cq[at as usize % QUEUE].load(Ordering::Relaxed);
        if let Ok(index) = u8::try_from(index) {
            answered(index);
        }
        at = at.wrapping_add(1);
    }
    // The queue may have gone round while this vCPU was kept from reading it: first the entries, then the tail again.
    fence(Ordering::Acquire);
    whole |= page.cq_tail.load(Ordering::Relaxed).wrapping_sub(head) >= QUEUE as u32;
    if whole {
        (0..=u8::MAX).for_each(answered);
    }
    HEADS[vcpu].store(tail, Ordering::Relaxed);
    page.cq_head.store(tail, Ordering::Release);
}

/// There may be an answer in slot `index`: lets its thread look, or frees a slot for which none waits.
fn answered(index: u8) {
    let at = usize::from(index);
    let thread = WAITERS[at].lock().clone();
    if let Some(thread) = thread {
        thread.unpark();
    }
    let seq = UNAWAITED[at].load(Ordering::SeqCst);
    // An entry may be of an earlier request in this slot.
    if seq != 0
        && slot(index).done.load(Ordering::Acquire) == seq
        && UNAWAITED[at]
            .compare_exchange(seq, 0, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    {
        let follower = FOLLOWERS[at].lock().take();
        let request = Request { index };
        if let Some((who, note)) = follower {
            let answer = Answer {
                result: slot(index).result.load(Ordering::Relaxed),
                extra: slot(index).extra.load(Ordering::Relaxed),
            };
            who.answered(note, request, answer);
        }
    }
}

fn take_events(page: &EventPage) {
    let Some(guard) = DRAIN.try_lock() else { return };
    TAKING.fetch_add(1, Ordering::SeqCst);
    let tail = page.tail.load(Ordering::Acquire);
    let mut head = EVENT_HEAD.load(Ordering::Relaxed);
    let len = page.entries.len() as u32;
    let overflow = page.overflow.swap(0, Ordering::AcqRel) != 0 || tail.wrapping_sub(head) > len;
    let mut ready = Vec::new();
    if overflow {
        head = tail;
    }
    while head != tail {
        ready.push(page.entries[(head % len) as usize].load(Ordering::Relaxed));
        head = head.wrapping_add(1);
    }
    EVENT_HEAD.store(head, Ordering::Relaxed);
    page.head.store(head, Ordering::Release);
    drop(guard);
    if overflow {
        crate::fs::readiness::all_ready();
    }
    for entry in ready {
        crate::fs::readiness::event((entry >> 32) as u32, entry as u32);
    }
    TAKING.fetch_sub(1, Ordering::SeqCst);
}

/// Until whoever is taking events has passed them on. Not for long: that thread's vCPU may have been kept from running, and
/// then its reports are late, which a report may be.
pub fn let_events_pass() {
    for _ in 0..SPIN {
        if TAKING.load(Ordering::SeqCst) == 0 {
            return;
        }
        core::hint::spin_loop();
    }
}

/// The slots that no request has.
#[cfg(test)]
pub(crate) fn free_slots() -> Vec<u8> {
    FREE.lock().clone()
}

/// Threads that are noted as waiting for an answer or for a slot.
#[cfg(test)]
pub(crate) fn waiting() -> usize {
    WAITERS.iter().filter(|w| w.lock().is_some()).count() + FREED.len()
}

/// Writes to the host's standard error. What can't be written is lost: there is nobody else to tell.
pub fn tell(text: &str) {
    let mut request = Request::new();
    let len = text.len().min(4096);
    request.put(0, &text.as_bytes()[..len]);
    let _ = request.call(HostOp::Write, [2, len as u64, 0, 0, 0, 0]);
}

/// One operation without a buffer.
///
/// # Errors
/// The error that the OS side reports.
pub fn call(op: HostOp, args: [u64; 6]) -> SysResult<u64> {
    Request::new().call(op, args).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vCPU that no test has.
    const VCPU: usize = cloak_abi::layout::MAX_VCPUS - 1;

    #[test]
    fn an_answer_is_noticed_whose_entry_was_overwritten_while_it_was_to_be_read() {
        crate::testing::start();
        let request = core::mem::ManuallyDrop::new(Request::new());
        let index = usize::from(request.index);
        let seq = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        slot(request.index).done.store(seq, Ordering::SeqCst);
        UNAWAITED[index].store(seq, Ordering::SeqCst);
        // Its entry was the first. The queue has gone round since the tail was read, and it is another's.
        let page = queue(VCPU);
        page.cq[0].store(u32::MAX, Ordering::Relaxed);
        page.cq_tail.store(QUEUE as u32, Ordering::Release);
        // Another test's thread may be draining.
        while HEADS[VCPU].load(Ordering::Relaxed) != 1 {
            complete(page, VCPU, 1);
        }
        assert_eq!(
            UNAWAITED[index].load(Ordering::SeqCst),
            0,
            "the slot is free again"
        );
    }
}
