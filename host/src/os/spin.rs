//! How long to poll before going to sleep.
//!
//! Sleeping costs the next request a doorbell and a thread wake-up (0.2-0.4 ms here, the guest's exit
//! included); polling costs a core that vCPUs could use. So the time polled follows what polling has brought
//! lately: it doubles when a sleep was shorter than [`WORTH`], and halves when it was longer (the policy of
//! KVM's `halt_poll_ns`). While the guest's vCPUs have work for every core, it stays below [`CROWDED`].

use std::time::Duration;

/// Longest time polled.
pub const MOST: Duration = Duration::from_millis(1);
/// Longest time polled while the vCPUs could use every core.
pub const CROWDED: Duration = Duration::from_micros(100);
/// Shortest time polled, even for a guest that has been quiet for long.
pub const LEAST: Duration = Duration::from_micros(20);
/// A sleep shorter than this cost more than polling on would have.
pub const WORTH: Duration = Duration::from_millis(2);

/// The current time to poll.
#[derive(Debug, Clone, Copy)]
pub struct Spin {
    most: Duration,
    now: Duration,
}

impl Spin {
    /// Starts with the longest time: a guest that starts up is busy.
    pub fn new(most: Duration) -> Self {
        Self { most, now: most }
    }

    /// Whether to go on polling after `idle` without a request.
    pub fn goes_on(&self, idle: Duration, crowded: impl FnOnce() -> bool) -> bool {
        idle < self.now && (idle < CROWDED || !crowded())
    }

    /// A sleep of `slept` ended.
    pub fn slept(&mut self, slept: Duration) {
        self.now = if slept < WORTH {
            (self.now * 2).max(LEAST).min(self.most)
        } else {
            (self.now / 2).max(LEAST.min(self.most))
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_sleeps_shorten_and_short_ones_lengthen() {
        let mut spin = Spin::new(MOST);
        assert!(spin.goes_on(MOST - Duration::from_nanos(1), || false));
        for _ in 0..10 {
            spin.slept(Duration::from_millis(10));
        }
        assert!(!spin.goes_on(LEAST, || false));
        for _ in 0..10 {
            spin.slept(Duration::from_micros(50));
        }
        assert!(!spin.goes_on(MOST, || false));
        assert!(spin.goes_on(MOST / 2, || false));
    }

    #[test]
    fn never_polls_when_told_so() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.slept(Duration::from_micros(1));
        spin.slept(Duration::from_secs(1));
        assert!(!spin.goes_on(Duration::ZERO, || false));
    }

    #[test]
    fn leaves_the_cores_to_busy_vcpus() {
        let spin = Spin::new(MOST);
        assert!(spin.goes_on(CROWDED / 2, || true));
        assert!(!spin.goes_on(CROWDED, || true));
    }
}
