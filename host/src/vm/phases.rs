//! Where the time of a run goes, for `--stats`.

use std::time::{Duration, Instant};

/// Named stretches of time, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phases {
    last: Instant,
    done: Vec<(&'static str, Duration)>,
}

impl Default for Phases {
    fn default() -> Self {
        Self {
            last: Instant::now(),
            done: Vec::new(),
        }
    }
}

impl Phases {
    /// What was done since the last call (or the start) has this name.
    pub fn done(&mut self, name: &'static str) {
        let now = Instant::now();
        self.done.push((name, now - self.last));
        self.last = now;
    }

    /// As [`Phases::done`], in two parts: the first took `first`, or all of it.
    pub fn done_in_two(&mut self, name: &'static str, first: Duration, rest: &'static str) {
        let all = self.last.elapsed();
        self.done.push((name, first.min(all)));
        self.done.push((rest, all.saturating_sub(first)));
        self.last += all;
    }

    /// Names and times so far.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        self.done.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other() {
        let start = Instant::now();
        let mut phases = Phases::default();
        std::thread::sleep(Duration::from_millis(2));
        phases.done("one");
        phases.done_in_two("two", Duration::from_secs(9), "three");
        let all: Vec<_> = phases.iter().collect();
        assert_eq!(
            all.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            ["one", "two", "three"]
        );
        assert!(all[0].1 >= Duration::from_millis(2));
        assert_eq!(all[2].1, Duration::ZERO, "the first part took all of it");
        assert!(all.iter().map(|(_, time)| *time).sum::<Duration>() <= start.elapsed());
    }
}
