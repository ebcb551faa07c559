//! Clocks: nanoseconds from the time-stamp counter.
//!
//! The monitor says at boot (and after a restore) what the clocks show at one value of the counter
//! ([`init`]); from then on time is computed, and nobody is asked. [`monotonic`] never goes back, even
//! where the counters of two vCPUs differ: what was shown once is a floor for all.
//!
//! A nanosecond count is `base + (ticks - base_ticks) * scale / 2^32` in 128 bits. [`deadline`] is its
//! exact inverse, rounded up: a thread that wakes at a deadline finds that the time has come.

use core::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::arch;
use crate::errno::{Errno, SysResult};

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;

/// Clock numbers (`include/uapi/linux/time.h`).
#[allow(missing_docs)]
pub mod id {
    pub const REALTIME: i32 = 0;
    pub const MONOTONIC: i32 = 1;
    pub const PROCESS_CPUTIME: i32 = 2;
    pub const THREAD_CPUTIME: i32 = 3;
    pub const MONOTONIC_RAW: i32 = 4;
    pub const REALTIME_COARSE: i32 = 5;
    pub const MONOTONIC_COARSE: i32 = 6;
    pub const BOOTTIME: i32 = 7;
    pub const REALTIME_ALARM: i32 = 8;
    pub const BOOTTIME_ALARM: i32 = 9;
    pub const TAI: i32 = 11;
}

/// Linux's `struct timespec`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Timespec {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, below a second.
    pub nsec: i64,
}

impl Timespec {
    /// From nanoseconds.
    #[must_use]
    pub const fn from_ns(ns: u64) -> Self {
        Self {
            sec: (ns / SECOND) as i64,
            nsec: (ns % SECOND) as i64,
        }
    }

    /// In nanoseconds; times beyond 584 years count as the end of time.
    ///
    /// # Errors
    /// EINVAL for a negative time or a fraction that is none.
    pub fn to_ns(self) -> SysResult<u64> {
        let sec = u64::try_from(self.sec).map_err(|_| Errno::EINVAL)?;
        let nsec = u64::try_from(self.nsec)
            .ok()
            .filter(|&n| n < SECOND)
            .ok_or(Errno::EINVAL)?;
        Ok(sec.saturating_mul(SECOND).saturating_add(nsec))
    }
}

/// What the clocks show at one value of the counter.
#[derive(Debug, Clone, Copy)]
pub struct Base {
    /// Time-stamp counter.
    pub tsc: u64,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub mono_ns: u64,
    /// CLOCK_REALTIME, nanoseconds since 1970.
    pub real_ns: u64,
    /// CLOCK_BOOTTIME, nanoseconds.
    pub boot_ns: u64,
}

static TSC: AtomicU64 = AtomicU64::new(0);
static MONO: AtomicU64 = AtomicU64::new(0);
static REAL_OFFSET: AtomicU64 = AtomicU64::new(0);
static BOOT_OFFSET: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds in a tick, times 2^32; 0 until first used.
static SCALE: AtomicU64 = AtomicU64::new(0);
/// The latest monotonic time shown.
static FLOOR: AtomicU64 = AtomicU64::new(0);

/// Sets the clocks. At boot, and after a restore while no thread of the program runs.
pub fn init(base: Base) {
    TSC.store(base.tsc, Ordering::SeqCst);
    MONO.store(base.mono_ns, Ordering::SeqCst);
    REAL_OFFSET.store(base.real_ns.wrapping_sub(base.mono_ns), Ordering::SeqCst);
    BOOT_OFFSET.store(base.boot_ns.wrapping_sub(base.mono_ns), Ordering::SeqCst);
    SCALE.store(scale_of(arch::ticks_per_second()), Ordering::SeqCst);
}

/// What the vDSO computes with: counter base, scale (nanoseconds in a tick times 2^32), and what the
/// monotonic, real-time and boot-time clocks showed at the base.
#[must_use]
pub fn parameters() -> [u64; 5] {
    let mono = MONO.load(Ordering::Relaxed);
    let real = mono.wrapping_add(REAL_OFFSET.load(Ordering::Relaxed));
    let boot = mono.wrapping_add(BOOT_OFFSET.load(Ordering::Relaxed));
    [TSC.load(Ordering::Relaxed), scale(), mono, real, boot]
}

fn scale_of(ticks_per_second: u64) -> u64 {
    ((u128::from(SECOND) << 32) / u128::from(ticks_per_second.max(1))).max(1) as u64
}

fn scale() -> u64 {
    match SCALE.load(Ordering::Relaxed) {
        0 => {
            let scale = scale_of(arch::ticks_per_second());
            SCALE.store(scale, Ordering::Relaxed);
            scale
        }
        scale => scale,
    }
}

fn to_ns(ticks: u64, scale: u64) -> u64 {
    u64::try_from((u128::from(ticks) * u128::from(scale)) >> 32).unwrap_or(u64::MAX)
}

fn to_ticks_up(ns: u64, scale: u64) -> u64 {
    u64::try_from((u128::from(ns) << 32).div_ceil(u128::from(scale))).unwrap_or(u64::MAX)
}

/// CLOCK_MONOTONIC in nanoseconds.
#[must_use]
pub fn monotonic() -> u64 {
    let ticks = arch::ticks().saturating_sub(TSC.load(Ordering::Relaxed));
    let now = MONO.load(Ordering::Relaxed).saturating_add(to_ns(ticks, scale()));
    FLOOR.fetch_max(now, Ordering::Relaxed).max(now)
}

/// CLOCK_REALTIME in nanoseconds.
#[must_use]
pub fn realtime() -> u64 {
    monotonic().wrapping_add(REAL_OFFSET.load(Ordering::Relaxed))
}

/// CLOCK_BOOTTIME in nanoseconds.
#[must_use]
pub fn boottime() -> u64 {
    monotonic().wrapping_add(BOOT_OFFSET.load(Ordering::Relaxed))
}

/// The first tick at which [`monotonic`] is at least `mono_ns`. Never `u64::MAX` (which means never).
#[must_use]
pub fn deadline(mono_ns: u64) -> u64 {
    let left = mono_ns.saturating_sub(MONO.load(Ordering::Relaxed));
    TSC.load(Ordering::Relaxed)
        .saturating_add(to_ticks_up(left, scale()))
        .min(u64::MAX - 1)
}

/// The tick that is `ns` nanoseconds from now.
#[must_use]
pub fn deadline_in(ns: u64) -> u64 {
    deadline(monotonic().saturating_add(ns))
}

/// What to subtract from a time of `clock` to have the monotonic one. None: not a clock that runs so.
#[must_use]
pub fn offset(clock: i32) -> Option<u64> {
    match clock {
        id::MONOTONIC | id::MONOTONIC_RAW | id::MONOTONIC_COARSE => Some(0),
        id::REALTIME | id::REALTIME_COARSE | id::REALTIME_ALARM | id::TAI => {
            Some(REAL_OFFSET.load(Ordering::Relaxed))
        }
        id::BOOTTIME | id::BOOTTIME_ALARM => Some(BOOT_OFFSET.load(Ordering::Relaxed)),
        _ => None,
    }
}

/// The monotonic time at which `clock` shows `ns`.
#[must_use]
pub fn to_monotonic(clock: i32, ns: u64) -> Option<u64> {
    offset(clock).map(|offset| {
        // An offset may be "negative" (wrapped) where a clock is behind the monotonic one.
        if (offset as i64) < 0 {
            ns.saturating_add(offset.wrapping_neg())
        } else {
            ns.saturating_sub(offset)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_the_exact_inverse_of_time() {
        for tps in [
            1_000_000,
            999_999_937,
            2_000_000_000,
            3_123_456_789,
            5_000_000_000,
        ] {
            let scale = scale_of(tps);
            for ns in [0, 1, 2, 3, 999, SECOND, 86_400 * SECOND + 7, 1 << 61] {
                let ticks = to_ticks_up(ns, scale);
                assert!(to_ns(ticks, scale) >= ns);
                assert!(ticks == 0 || to_ns(ticks - 1, scale) < ns);
            }
        }
    }

    #[test]
    fn the_end_of_time_does_not_overflow() {
        assert_eq!(to_ns(u64::MAX, scale_of(1)), u64::MAX);
        assert_eq!(
            Timespec {
                sec: i64::MAX,
                nsec: 5
            }
            .to_ns(),
            Ok(u64::MAX)
        );
        assert_eq!(Timespec { sec: -1, nsec: 0 }.to_ns(), Err(Errno::EINVAL));
        assert_eq!(
            Timespec {
                sec: 0,
                nsec: 1_000_000_000
            }
            .to_ns(),
            Err(Errno::EINVAL)
        );
        assert!(deadline(u64::MAX) < u64::MAX);
    }

    #[test]
    fn time_is_monotonic_across_threads() {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    let mut last = 0;
                    for _ in 0..20_000 {
                        let now = monotonic();
                        assert!(now >= last);
                        last = now;
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().expect("monotonic"));
    }
}
