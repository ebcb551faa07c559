//! How long to poll before going to sleep.
//!
//! Sleeping costs the next request a doorbell and a thread wake-up (10-40 us); polling costs a core that
//! vCPUs could use. So the time polled follows what polling has brought lately: it doubles when a sleep
//! ended so soon that polling on would have caught the request, and halves when the sleep was long. (The
//! same policy as KVM's `halt_poll_ns`.)

use std::time::Duration;

/// Longest time polled.
pub const MOST: Duration = Duration::from_micros(200);
/// Shortest time polled, even for a guest that has been quiet for long.
pub const LEAST: Duration = Duration::from_micros(20);

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
    pub fn goes_on(&self, idle: Duration) -> bool {
        idle < self.now
    }

    /// A sleep of `slept` ended.
    pub fn slept(&mut self, slept: Duration) {
        self.now = if slept < self.most {
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
        assert!(spin.goes_on(MOST - Duration::from_nanos(1)));
        for _ in 0..10 {
            spin.slept(Duration::from_millis(10));
        }
        assert!(!spin.goes_on(LEAST));
        for _ in 0..10 {
            spin.slept(Duration::from_micros(50));
        }
        assert!(!spin.goes_on(MOST));
        assert!(spin.goes_on(MOST / 2));
    }

    #[test]
    fn never_polls_when_told_so() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.slept(Duration::from_micros(1));
        spin.slept(Duration::from_secs(1));
        assert!(!spin.goes_on(Duration::ZERO));
    }
}
