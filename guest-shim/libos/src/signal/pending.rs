//! Pending signals: a set, and a queue for each number. Ordinary signals queue once, real-time signals each time, the
//! signals of timers once for each timer.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Mutex;

use super::{bit, number};

/// First real-time signal as the kernel counts.
const REALTIME: u32 = 32;
/// Most queued real-time signals (`RLIMIT_SIGPENDING`).
const MAX_QUEUED: usize = 4096;

/// `siginfo_t`, as far as the kernel fills it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Info {
    /// Signal number.
    pub signal: u32,
    /// `si_errno`.
    pub errno: i32,
    /// `si_code`.
    pub code: i32,
    /// The union, as words: pid and uid, value, address...
    pub fields: [u64; 3],
}

/// `si_code` values.
#[allow(missing_docs)]
pub mod code {
    pub const SI_USER: i32 = 0;
    pub const SI_KERNEL: i32 = 0x80;
    pub const SI_QUEUE: i32 = -1;
    pub const SI_TIMER: i32 = -2;
    pub const SI_TKILL: i32 = -6;
}

impl Info {
    /// Sent by a process.
    #[must_use]
    pub fn user(signal: u32, code: i32, pid: i32, uid: u32) -> Self {
        Self {
            signal,
            errno: 0,
            code,
            fields: [u64::from(pid as u32) | u64::from(uid) << 32, 0, 0],
        }
    }

    /// Raised by an exception at `address`.
    #[must_use]
    pub fn fault(signal: u32, code: i32, address: u64) -> Self {
        Self {
            signal,
            errno: 0,
            code,
            fields: [address, 0, 0],
        }
    }

    /// As the program finds it (128 bytes).
    #[must_use]
    pub fn bytes(&self) -> [u8; 128] {
        let mut out = [0; 128];
        out[0..4].copy_from_slice(&self.signal.to_le_bytes());
        out[4..8].copy_from_slice(&self.errno.to_le_bytes());
        out[8..12].copy_from_slice(&self.code.to_le_bytes());
        for (i, word) in self.fields.iter().enumerate() {
            out[16 + 8 * i..24 + 8 * i].copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// From the program (`rt_sigqueueinfo`).
    #[must_use]
    pub fn from_bytes(signal: u32, bytes: &[u8; 128]) -> Self {
        let word = |at: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(w)
        };
        Self {
            signal,
            errno: (word(0) >> 32) as i32,
            code: word(8) as i32,
            fields: [word(16), word(24), word(32)],
        }
    }
}

/// Signals that an instruction raised: they go before all others, or the handler of another one would run first.
const SYNCHRONOUS: u64 = bit(number::SIGSEGV)
    | bit(number::SIGBUS)
    | bit(number::SIGILL)
    | bit(number::SIGTRAP)
    | bit(number::SIGFPE)
    | bit(number::SIGSYS);

/// The one signal that a timer of `timer_create` has: it is pending once at most, and counts what it missed.
#[derive(Debug, Default)]
pub struct TimerSignal {
    queued: AtomicBool,
    /// Expiries that found it pending.
    missed: AtomicU32,
    /// What `timer_getoverrun` tells: missed before the last delivery.
    overrun: AtomicU32,
}

impl TimerSignal {
    /// Expiries that the signal delivered last does not stand for.
    pub fn overrun(&self) -> u32 {
        self.overrun.load(Ordering::Relaxed).min(i32::MAX as u32)
    }

    /// Forgets what was missed: the timer is set anew.
    pub fn reset(&self) {
        self.missed.store(0, Ordering::Relaxed);
        self.overrun.store(0, Ordering::Relaxed);
    }

    /// Adds expiries; gives whether the signal is to be queued for them.
    fn expire(&self, count: u32) -> bool {
        let queues = !self.queued.swap(true, Ordering::Relaxed);
        let missed = count.saturating_sub(u32::from(queues));
        let _ = self
            .missed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                Some(n.saturating_add(missed))
            });
        queues
    }

    fn deliver(&self, info: &mut Info) {
        let overrun = self.missed.swap(0, Ordering::Relaxed);
        self.overrun.store(overrun, Ordering::Relaxed);
        self.queued.store(false, Ordering::Relaxed);
        info.fields[0] |= u64::from(self.overrun()) << 32;
    }
}

#[derive(Debug)]
struct Queued {
    info: Info,
    timer: Option<Arc<TimerSignal>>,
}

#[derive(Debug, Default)]
struct Queues {
    by_signal: BTreeMap<u32, VecDeque<Queued>>,
    /// Real-time signals that no timer sent.
    realtime: usize,
}

impl Queues {
    fn push(&mut self, queued: Queued) {
        self.realtime += usize::from(counts(&queued));
        self.by_signal
            .entry(queued.info.signal)
            .or_default()
            .push_back(queued);
    }
}

/// Whether it takes a place of [`MAX_QUEUED`]: a timer has one of its own.
fn counts(queued: &Queued) -> bool {
    queued.info.signal >= REALTIME && queued.timer.is_none()
}

/// The signals pending for a thread or a process.
#[derive(Debug, Default)]
pub struct Pending {
    bits: AtomicU64,
    queues: Mutex<Queues>,
}

impl Pending {
    /// The set.
    pub fn bits(&self) -> u64 {
        self.bits.load(Ordering::SeqCst)
    }

    /// Adds a signal. An ordinary one that is pending already stays as it is; gives whether it was added
    /// (`false` for a real-time one means that the queue is full).
    pub fn add(&self, info: Info) -> bool {
        let mut queues = self.queues.lock();
        let mask = bit(info.signal);
        if info.signal < REALTIME {
            if self.bits.load(Ordering::Relaxed) & mask != 0 {
                return true;
            }
        } else if queues.realtime >= MAX_QUEUED {
            return false;
        }
        queues.push(Queued { info, timer: None });
        self.bits.fetch_or(mask, Ordering::SeqCst);
        true
    }

    /// Adds the signal of a timer that expired `count` times; pending already, it only counts them.
    pub fn add_timer(&self, info: Info, timer: &Arc<TimerSignal>, count: u32) {
        let mut queues = self.queues.lock();
        if timer.expire(count) {
            let timer = Some(timer.clone());
            queues.push(Queued { info, timer });
            self.bits.fetch_or(bit(info.signal), Ordering::SeqCst);
        }
    }

    /// Takes the first of `wanted`: synchronous faults and lower numbers first, each number in order of arrival.
    pub fn take(&self, wanted: u64) -> Option<Info> {
        if self.bits() & wanted == 0 {
            return None;
        }
        let mut queues = self.queues.lock();
        let bits = self.bits.load(Ordering::Relaxed) & wanted;
        let first = if bits & SYNCHRONOUS != 0 {
            bits & SYNCHRONOUS
        } else {
            bits
        };
        if first == 0 {
            return None;
        }
        let signal = first.trailing_zeros() + 1;
        let queue = queues.by_signal.get_mut(&signal)?;
        let mut queued = queue.pop_front()?;
        if queue.is_empty() {
            queues.by_signal.remove(&signal);
            self.bits.fetch_and(!bit(signal), Ordering::SeqCst);
        }
        queues.realtime -= usize::from(counts(&queued));
        if let Some(timer) = &queued.timer {
            timer.deliver(&mut queued.info);
        }
        Some(queued.info)
    }

    /// Forgets signals.
    pub fn discard(&self, set: u64) {
        let mut queues = self.queues.lock();
        let gone = queues
            .by_signal
            .extract_if(.., |signal, _| bit(*signal) & set != 0)
            .flat_map(|(_, queue)| queue)
            .collect::<Vec<_>>();
        for queued in gone {
            queues.realtime -= usize::from(counts(&queued));
            if let Some(timer) = &queued.timer {
                timer.queued.store(false, Ordering::Relaxed);
            }
        }
        self.bits.fetch_and(!set, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_signals_collapse_and_real_time_ones_queue_in_order() {
        let pending = Pending::default();
        let info = |signal, value| Info {
            signal,
            fields: [0, value, 0],
            ..Info::default()
        };
        assert!(pending.add(info(10, 1)) && pending.add(info(10, 2)));
        assert!(pending.add(info(40, 1)) && pending.add(info(40, 2)) && pending.add(info(35, 3)));
        let order: Vec<_> = std::iter::from_fn(|| pending.take(!0))
            .map(|i| (i.signal, i.fields[1]))
            .collect();
        assert_eq!(order, [(10, 1), (35, 3), (40, 1), (40, 2)]);
        assert_eq!(pending.bits(), 0);
    }

    #[test]
    fn only_wanted_signals_are_taken() {
        let pending = Pending::default();
        pending.add(Info {
            signal: 12,
            ..Info::default()
        });
        assert_eq!(pending.take(bit(11)), None);
        pending.discard(bit(12));
        assert_eq!(pending.take(!0), None);
    }

    #[test]
    fn faults_go_before_lower_numbers() {
        let pending = Pending::default();
        for signal in [number::SIGHUP, number::SIGSEGV] {
            pending.add(Info {
                signal,
                ..Info::default()
            });
        }
        let order: Vec<_> = std::iter::from_fn(|| pending.take(!0))
            .map(|i| i.signal)
            .collect();
        assert_eq!(order, [number::SIGSEGV, number::SIGHUP]);
    }

    #[test]
    fn each_timer_queues_its_signal_once_and_counts_the_rest() {
        let pending = Pending::default();
        let timers = [Arc::new(TimerSignal::default()), Arc::new(TimerSignal::default())];
        let info = |id| Info {
            signal: 40,
            fields: [id, 0, 0],
            ..Info::default()
        };
        for _ in 0..3 {
            pending.add_timer(info(0), &timers[0], 1);
            pending.add_timer(info(1), &timers[1], 2);
        }
        let taken: Vec<_> = std::iter::from_fn(|| pending.take(!0))
            .map(|i| i.fields[0])
            .collect();
        assert_eq!(taken, [2 << 32, 1 | 5 << 32]);
        assert_eq!(timers.each_ref().map(|t| t.overrun()), [2, 5]);
        pending.add_timer(info(0), &timers[0], 1);
        pending.discard(bit(40));
        assert_eq!(pending.take(!0), None);
        pending.add_timer(info(0), &timers[0], 1);
        assert_eq!(pending.take(!0).map(|i| i.fields[0]), Some(0));
        assert_eq!(timers[0].overrun(), 0);
    }

    #[test]
    fn real_time_signals_have_a_limit_that_timers_do_not_use() {
        let pending = Pending::default();
        let info = Info {
            signal: 40,
            ..Info::default()
        };
        let timer = Arc::default();
        pending.add_timer(info, &timer, 1);
        assert!((0..MAX_QUEUED).all(|_| pending.add(info)) && !pending.add(info));
        assert!(pending.take(!0).is_some() && !pending.add(info)); // that was the timer's
        assert!(pending.take(!0).is_some() && pending.add(info));
    }

    #[test]
    fn infos_survive_their_bytes() {
        let info = Info {
            signal: 40,
            errno: 3,
            code: -1,
            fields: [1, 2, 3],
        };
        assert_eq!(Info::from_bytes(40, &info.bytes()), info);
    }
}
