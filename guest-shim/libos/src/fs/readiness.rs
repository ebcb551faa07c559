//! Readiness of host files: the OS service reports changes by token, edge-triggered.
//!
//! A [`HostReadiness`] remembers what was reported. The program's calls are level-triggered, so what is
//! remembered must never be less than the truth, and where it may be more it must be known as doubtful.
//! Each bit (IN, OUT, ...) is in one of three states:
//!
//! ```text
//!              report                        consume (a read that may have taken the last)
//!   Clear ───────────────▶ Certain ──────────────────────────────▶ Doubtful
//!     ▲  ▲                   │  ▲                                   │   │
//!     │  └──── clear ────────┘  └────────── report, or confirmed ───┘   │
//!     └─────────────────── clear, or refuted by the host ───────────────┘
//! ```
//!
//! *Clear* follows from the file itself: EAGAIN, or a short read of a TCP stream on which no end, error or
//! urgent data was reported. The host makes a new edge for whatever comes later, so a clear bit needs no
//! asking. *Doubtful* bits are asked about ([`super::hostlink::verify`]) before they are shown to a program.
//!
//! Races: an operation takes a [`HostReadiness::snapshot`] first, and [`HostReadiness::clear`] and
//! [`HostReadiness::confirm`] do nothing when anything was reported or consumed since. So an error is always
//! to the side of *ready*: a bit too much costs one more question, a bit too little would hang the program.
//!
//! One report may still be late: posted by the service before a read took what it is about, and taken
//! from the queue after it. It makes a bit Certain that is not true. A program whose descriptor does not wait meets
//! EAGAIN, as it must expect to; for a descriptor that waits, [`super::hostlink`] asks even about certain bits.

use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use spin::{Lazy, Mutex};

use super::file::ready;
use crate::errno::SysResult;
use crate::sched::WaitQueue;

/// Bits that the service may report. Others are dropped.
pub const REPORTED: u32 = ready::IN | ready::PRI | ready::OUT | ready::ERR | ready::HUP | ready::RDHUP;

static WATCHED: Lazy<Mutex<HashMap<u32, Weak<HostReadiness>>>> = Lazy::new(|| Mutex::new(HashMap::new()));
static NEXT: AtomicU64 = AtomicU64::new(1);

/// What the OS side has reported of one host file.
#[derive(Debug)]
pub struct HostReadiness {
    /// Changes so far in the upper half, then 16 bits of doubt, then 16 ready bits.
    state: AtomicU64,
    /// Woken at every report.
    pub queue: WaitQueue,
    /// Under which the OS service reports.
    pub token: u32,
}

const READY: u64 = 0xffff;
const DOUBT_SHIFT: u32 = 16;

const fn bumped(state: u64) -> u64 {
    ((state >> 32).wrapping_add(1) << 32) | state & 0xffff_ffff
}

impl HostReadiness {
    /// Registers a new token. The bits in `initial` count as ready, with doubt.
    #[must_use]
    pub fn register(initial: u32) -> Arc<Self> {
        let token = NEXT.fetch_add(1, Ordering::Relaxed) as u32;
        let bits = u64::from(initial & REPORTED);
        let state = AtomicU64::new(bits | bits << DOUBT_SHIFT);
        let this = Arc::new(Self {
            state,
            queue: WaitQueue::new(),
            token,
        });
        WATCHED.lock().insert(token, Arc::downgrade(&this));
        this
    }

    /// Ready bits.
    #[must_use]
    pub fn ready(&self) -> u32 {
        (self.state.load(Ordering::SeqCst) & READY) as u32
    }

    /// Ready bits that may be out of date.
    #[must_use]
    pub fn doubtful(&self) -> u32 {
        let state = self.state.load(Ordering::SeqCst);
        ((state >> DOUBT_SHIFT) & state & READY) as u32
    }

    /// State to give to [`HostReadiness::clear`] and [`HostReadiness::confirm`].
    #[must_use]
    pub fn snapshot(&self) -> u64 {
        self.state.load(Ordering::SeqCst)
    }

    fn exchange(&self, snapshot: u64, new: u64) {
        // A failure means that something newer is known: keep that.
        let _ = self
            .state
            .compare_exchange(snapshot, new, Ordering::SeqCst, Ordering::SeqCst);
    }

    fn update(&self, change: impl Fn(u64) -> u64) {
        // The closure never gives None.
        let _ = self
            .state
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| {
                Some(bumped(change(old)))
            });
    }

    /// Nothing is there for `bits`: forget them, unless something changed since `snapshot`.
    pub fn clear(&self, snapshot: u64, bits: u32) {
        let bits = u64::from(bits & REPORTED);
        self.exchange(snapshot, snapshot & !(bits | bits << DOUBT_SHIFT));
    }

    /// After an attempt that began at `snapshot` found nothing: forgets `bits` and parks until something
    /// changed, or has changed already, and `wake` bits are ready.
    ///
    /// # Errors
    /// EINTR, ETIMEDOUT.
    pub fn wait_after(&self, snapshot: u64, bits: u32, wake: u32, deadline: u64) -> SysResult<()> {
        self.clear(snapshot, bits);
        let gone = u64::from(bits & REPORTED);
        let cleared = snapshot & !(gone | gone << DOUBT_SHIFT);
        let changed = || self.snapshot() != cleared && self.ready() & wake != 0;
        self.queue.wait(deadline, || changed().then_some(Ok(())))
    }

    /// The host was asked for `asked` and had `found`: both are certain now, unless something changed since
    /// `snapshot`.
    pub fn confirm(&self, snapshot: u64, asked: u32, found: u32) {
        let (asked, found) = (u64::from(asked & REPORTED), u64::from(found & REPORTED));
        let rest = snapshot & !(asked | asked << DOUBT_SHIFT | found << DOUBT_SHIFT);
        self.exchange(snapshot, rest | found);
    }

    /// Something was consumed: `bits`, where ready, are doubtful from now on.
    pub fn doubt(&self, bits: u32) {
        let bits = u64::from(bits & REPORTED);
        self.update(|old| old | (old & bits) << DOUBT_SHIFT);
    }

    /// `bits` may have become ready by what was just done.
    pub fn suspect(&self, bits: u32) {
        let bits = u64::from(bits & REPORTED);
        self.update(|old| old | bits | bits << DOUBT_SHIFT);
        self.queue.wake_all(bits as u32);
    }

    /// A report: `bits` became ready.
    pub fn report(&self, bits: u32) {
        let bits = u64::from(bits & REPORTED);
        self.update(|old| (old | bits) & !(bits << DOUBT_SHIFT));
        self.queue.wake_all(bits as u32);
    }
}

impl Drop for HostReadiness {
    fn drop(&mut self) {
        WATCHED.lock().remove(&self.token);
    }
}

/// The OS service reported `bits` for `token`. Unknown tokens are late reports for closed files, or lies.
pub fn event(token: u32, bits: u32) {
    let watched = WATCHED.lock().get(&token).and_then(Weak::upgrade);
    if let Some(readiness) = watched {
        readiness.report(bits);
    }
}

/// Reports were lost: everything may be ready.
pub fn all_ready() {
    let all: alloc::vec::Vec<_> = WATCHED.lock().values().filter_map(Weak::upgrade).collect();
    all.iter().for_each(|readiness| readiness.suspect(REPORTED));
}

/// Files that may be reported of.
#[cfg(test)]
pub(crate) fn watched() -> usize {
    WATCHED.lock().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_between_snapshot_and_clear_is_kept() {
        let r = HostReadiness::register(0);
        event(r.token, 1);
        assert_eq!(r.ready(), 1);
        let snapshot = r.snapshot();
        event(r.token, 1);
        r.clear(snapshot, 1);
        assert_eq!(r.ready(), 1);
        r.clear(r.snapshot(), 1);
        assert_eq!(r.ready(), 0);
    }

    #[test]
    fn an_answer_that_a_read_overtook_does_not_count() {
        let r = HostReadiness::register(1);
        assert_eq!(r.doubtful(), 1);
        let snapshot = r.snapshot();
        r.doubt(1);
        r.confirm(snapshot, 1, 1);
        assert_eq!(r.doubtful(), 1);
        r.confirm(r.snapshot(), 1, 1);
        assert_eq!((r.ready(), r.doubtful()), (1, 0));
        r.doubt(1);
        r.confirm(r.snapshot(), 1, 0);
        assert_eq!(r.ready(), 0);
    }

    /// A model of a host stream and of a reader that works in steps, so that reports, reads, questions and
    /// their effects on the memory interleave in every order.
    #[derive(Default)]
    struct Model {
        /// Bytes in the host's buffer.
        bytes: u32,
        /// Edges that the host made and the guest has not taken.
        edges: u32,
        /// A read between the host's part and the guest's: snapshot, asked, got.
        read: Option<(u64, u32, u32)>,
        /// A question likewise: snapshot, answer.
        question: Option<(u64, bool)>,
    }

    #[test]
    fn ready_data_is_never_forgotten() {
        let mut seed = 7u64;
        let mut next = move |below: u64| {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for _ in 0..500 {
            let r = HostReadiness::register(0);
            let mut m = Model::default();
            let mut read_snapshot = None;
            let mut question_snapshot = None;
            for _ in 0..200 {
                match next(7) {
                    0 => {
                        m.bytes += next(6) as u32 + 1;
                        m.edges += 1;
                    }
                    1 if m.edges > 0 => {
                        m.edges -= 1;
                        event(r.token, ready::IN);
                    }
                    2 if read_snapshot.is_none() && m.read.is_none() => read_snapshot = Some(r.snapshot()),
                    3 => {
                        if let Some(snapshot) = read_snapshot.take() {
                            let asked = next(4) as u32 + 1;
                            let got = asked.min(m.bytes);
                            m.bytes -= got;
                            m.read = Some((snapshot, asked, got));
                        }
                    }
                    4 => match m.read.take() {
                        Some((snapshot, asked, got)) if got < asked => r.clear(snapshot, ready::IN),
                        Some(_) => r.doubt(ready::IN),
                        None => {}
                    },
                    5 if question_snapshot.is_none() && m.question.is_none() => {
                        question_snapshot = Some(r.snapshot());
                    }
                    6 => {
                        if let Some(snapshot) = question_snapshot.take() {
                            m.question = Some((snapshot, m.bytes > 0));
                        } else if let Some((snapshot, answer)) = m.question.take() {
                            r.confirm(snapshot, ready::IN, u32::from(answer));
                        }
                    }
                    _ => {}
                }
                assert!(
                    m.bytes == 0 || m.edges > 0 || r.ready() & ready::IN != 0,
                    "data forgotten"
                );
            }
        }
    }
}
