//! How much each address space has in memory, now and at most: counted as its entries are made and removed, so that who
//! asks (`top` does for each process, a Redis server ten times a second) goes through no tables.

use core::sync::atomic::{AtomicU64, Ordering};

use cloak_abi::kcall::MAX_SPACES;

/// Bytes that entries of one address space map. Changed under its lock, read by anybody.
#[derive(Debug)]
struct Held {
    now: AtomicU64,
    most: AtomicU64,
}

static HELD: [Held; MAX_SPACES] = [const {
    Held {
        now: AtomicU64::new(0),
        most: AtomicU64::new(0),
    }
}; MAX_SPACES];

/// Another address space takes the number over, with so much in it.
pub fn begin(number: u32, bytes: u64) {
    let held = &HELD[number as usize];
    held.now.store(bytes, Ordering::Relaxed);
    held.most.store(bytes, Ordering::Relaxed);
}

/// Entries for `more` bytes were made, and those for `less` removed.
pub fn change(number: u32, more: u64, less: u64) {
    let held = &HELD[number as usize];
    let now = (held.now.load(Ordering::Relaxed) + more).saturating_sub(less);
    held.now.store(now, Ordering::Relaxed);
    held.most.fetch_max(now, Ordering::Relaxed);
}

/// Bytes now, and at most.
#[must_use]
pub fn by(number: u32) -> (u64, u64) {
    let held = &HELD[number as usize];
    (
        held.now.load(Ordering::Relaxed),
        held.most.load(Ordering::Relaxed),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_stays_until_the_number_is_anothers() {
        begin(7, 100);
        change(7, 50, 0);
        change(7, 10, 120);
        assert_eq!(by(7), (40, 150));
        begin(7, 40);
        assert_eq!(by(7), (40, 40));
    }
}
