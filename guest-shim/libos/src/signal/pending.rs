//! Pending signals: a set for the ordinary ones, a queue for the real-time ones.

use alloc::collections::VecDeque;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

use super::bit;

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

/// The signals pending for a thread or a process.
#[derive(Debug, Default)]
pub struct Pending {
    bits: AtomicU64,
    infos: Mutex<VecDeque<Info>>,
}

impl Pending {
    /// The set.
    pub fn bits(&self) -> u64 {
        self.bits.load(Ordering::SeqCst)
    }

    /// Adds a signal. An ordinary one that is pending already stays as it is; gives whether it was added
    /// (`false` for a real-time one means that the queue is full).
    pub fn add(&self, info: Info) -> bool {
        let mut infos = self.infos.lock();
        let mask = bit(info.signal);
        if info.signal < REALTIME {
            if self.bits.load(Ordering::Relaxed) & mask != 0 {
                return true;
            }
        } else if infos.len() >= MAX_QUEUED {
            return false;
        }
        infos.push_back(info);
        self.bits.fetch_or(mask, Ordering::SeqCst);
        true
    }

    /// Takes the first of `wanted`: synchronous faults and lower numbers first, each number in order of arrival.
    pub fn take(&self, wanted: u64) -> Option<Info> {
        if self.bits() & wanted == 0 {
            return None;
        }
        let mut infos = self.infos.lock();
        let bits = self.bits.load(Ordering::Relaxed) & wanted;
        if bits == 0 {
            return None;
        }
        let signal = bits.trailing_zeros() + 1;
        let at = infos.iter().position(|i| i.signal == signal)?;
        let info = infos.remove(at)?;
        if !infos.iter().any(|i| i.signal == signal) {
            self.bits.fetch_and(!bit(signal), Ordering::SeqCst);
        }
        Some(info)
    }

    /// Forgets signals.
    pub fn discard(&self, set: u64) {
        let mut infos = self.infos.lock();
        infos.retain(|i| bit(i.signal) & set == 0);
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
