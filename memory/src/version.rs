//! The counter that versions come from, and with them nonces.
//!
//! One counter per context, so a version is drawn once and never again, for no page. It is never set back and
//! never wraps: when it is at its end it refuses, and the context can seal nothing any more. At ten million pages
//! a second that is after 228 years; a restart begins with new keys and a counter at one.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::page::Version;

/// Draws versions.
#[derive(Debug)]
pub struct VersionCounter {
    next: AtomicU64,
    end: u64,
}

/// Every version has been drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("every version of this context's pages has been used; restart it, which gives it new keys")]
pub struct Exhausted;

impl VersionCounter {
    /// A counter for a new key: versions from 1 on.
    #[must_use]
    pub const fn new() -> Self {
        Self::ending_at(Version::END)
    }

    const fn ending_at(end: u64) -> Self {
        Self {
            next: AtomicU64::new(1),
            end,
        }
    }

    /// Draws `count` versions in a row.
    ///
    /// # Errors
    /// [`Exhausted`] when fewer are left; then none is drawn.
    pub fn draw(&self, count: u64) -> Result<Range<u64>, Exhausted> {
        let advance = |next: u64| next.checked_add(count).filter(|&after| after <= self.end);
        // Relaxed is enough: what matters is that each draw sees a different value, and a read-modify-write does.
        let first = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance)
            .map_err(|_| Exhausted)?;
        Ok(first..first + count)
    }
}

impl Default for VersionCounter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Every possible counter of up to 64 versions, drawn from by four threads in every batch size until it is
    /// empty: each version comes once, and an empty counter stays empty.
    #[test]
    fn each_version_is_drawn_once_until_the_end() {
        for end in 1..=64 {
            for batch in 1..=9 {
                let counter = VersionCounter::ending_at(end);
                let mut drawn: Vec<u64> = thread::scope(|scope| {
                    let work = || {
                        let mut mine = Vec::new();
                        while let Ok(versions) = counter.draw(batch) {
                            mine.extend(versions);
                        }
                        mine
                    };
                    let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
                    workers
                        .into_iter()
                        .flat_map(|w| w.join().expect("no panic"))
                        .collect()
                });
                drawn.sort_unstable();
                let whole = (end - 1) / batch * batch;
                assert_eq!(drawn, (1..=whole).collect::<Vec<_>>(), "end {end}, batch {batch}");
                assert_eq!(counter.draw(batch), Err(Exhausted));
                // What a batch was too large for is still there for smaller ones.
                assert_eq!(counter.draw(end - 1 - whole).map(|r| r.end), Ok(end));
                assert_eq!(counter.draw(1), Err(Exhausted));
            }
        }
    }

    #[test]
    fn the_end_is_refused_and_does_not_wrap() {
        let counter = VersionCounter::new();
        assert_eq!(counter.draw(Version::END - 2), Ok(1..Version::END - 1));
        assert_eq!(counter.draw(2), Err(Exhausted));
        assert_eq!(counter.draw(1), Ok(Version::END - 1..Version::END));
        for count in [1, 2, u64::MAX - Version::END, u64::MAX] {
            assert_eq!(counter.draw(count), Err(Exhausted));
        }
    }
}
