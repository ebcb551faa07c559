//! TLB shoot-down: making every vCPU forget translations before a frame or a right is really gone.
//!
//! A generation counter says how often rights were taken away. A vCPU that enters the kernel by a kick
//! reloads its root table and publishes the generation that it has seen. Whoever takes rights away raises
//! the counter, kicks the others and waits for them. Two that wait for each other make progress because
//! the wait itself acknowledges ([`Generation::acknowledge`]); one that waits for the kernel's lock does the same.

use core::sync::atomic::{AtomicU64, Ordering};

use cloak_abi::layout::MAX_VCPUS;

/// The counter and what each vCPU has seen of it.
#[derive(Debug)]
pub struct Generation {
    current: AtomicU64,
    seen: [AtomicU64; MAX_VCPUS],
}

impl Default for Generation {
    fn default() -> Self {
        Self::new()
    }
}

impl Generation {
    /// Nothing taken away yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            current: AtomicU64::new(0),
            seen: [const { AtomicU64::new(0) }; MAX_VCPUS],
        }
    }

    /// Rights were taken away: the generation that others must see.
    pub fn raise(&self) -> u64 {
        self.current.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// vCPU `index` reloads its translations by `reload`, if it has not seen the newest generation.
    pub fn acknowledge(&self, index: usize, reload: impl FnOnce()) {
        let now = self.current.load(Ordering::SeqCst);
        if self.seen[index].load(Ordering::Relaxed) != now {
            reload();
            self.seen[index].store(now, Ordering::SeqCst);
        }
    }

    /// Whether vCPU `index` has seen `generation`.
    pub fn has_seen(&self, index: usize, generation: u64) -> bool {
        self.seen[index].load(Ordering::SeqCst) >= generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_wait_for_each_other_finish() {
        static G: Generation = Generation::new();
        let shoot = |me: usize, other: usize| {
            for _ in 0..1000 {
                let mine = G.raise();
                while !G.has_seen(other, mine) {
                    G.acknowledge(me, || {});
                    std::hint::spin_loop();
                }
            }
            // Keep acknowledging until the other is done too.
            while G.current.load(Ordering::SeqCst) < 2000 || !G.has_seen(other, 2000) {
                G.acknowledge(me, || {});
                std::hint::spin_loop();
            }
            G.acknowledge(me, || {});
        };
        std::thread::scope(|s| {
            s.spawn(|| shoot(0, 1));
            s.spawn(|| shoot(1, 0));
        });
        assert!(G.has_seen(0, 2000) && G.has_seen(1, 2000));
    }
}
