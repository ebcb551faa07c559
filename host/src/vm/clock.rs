//! Deadlines of halted vCPUs: from guest TSC ticks to host time.

use std::arch::x86_64::_rdtsc;
use std::time::Duration;

/// Guest TSC to host nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    khz: u64,
    /// Guest TSC minus host TSC.
    offset: u64,
}

impl Clock {
    /// For a guest whose TSC runs at `khz` and is `offset` ahead of the host's.
    #[must_use]
    pub fn new(khz: u64, offset: u64) -> Self {
        Self {
            khz: khz.max(1),
            offset,
        }
    }

    /// The guest's TSC now.
    #[must_use]
    pub fn guest_now(&self) -> u64 {
        // SAFETY: every x86-64 has it.
        unsafe { _rdtsc() }.wrapping_add(self.offset)
    }

    /// The time that `ticks` take.
    #[must_use]
    pub fn duration(&self, ticks: u64) -> Duration {
        let ns = u128::from(ticks) * 1_000_000 / u128::from(self.khz);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// Time left until the guest's TSC reaches `deadline`; `None` for never.
    #[must_use]
    pub fn until(&self, deadline: u64) -> Option<libc::timespec> {
        if deadline == u64::MAX {
            return None;
        }
        let now = self.guest_now();
        let ns = u128::from(deadline.saturating_sub(now)) * 1_000_000 / u128::from(self.khz);
        // A year is as good as any longer time; the guest looks again.
        let ns = ns.min(365 * 86_400 * 1_000_000_000);
        Some(libc::timespec {
            tv_sec: (ns / 1_000_000_000) as i64,
            tv_nsec: (ns % 1_000_000_000) as i64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_deadlines_are_now_and_the_last_one_is_never() {
        let clock = Clock::new(2_000_000, 0);
        assert!(clock.until(u64::MAX).is_none());
        let now = clock.until(1).expect("a time");
        assert_eq!((now.tv_sec, now.tv_nsec), (0, 0));
        let year = clock.until(u64::MAX - 1).expect("a time");
        assert_eq!(year.tv_sec, 365 * 86_400);
    }
}
