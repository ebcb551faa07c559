//! The queue protocol: how entries are handed over and how neither side sleeps through one.
//!
//! Heads and tails count freely and wrap at 2^32; entry `n` lives at `n % QUEUE`. Each side keeps its own
//! count in private memory and publishes it; it never reads its own count back.
//!
//! Handing over is release/acquire: an entry (and the slot behind it) is written before the tail is stored
//! with `Release`, and read after the tail was loaded with `Acquire`.
//!
//! Sleeping has one shape in both directions, Dekker's: *each side writes its own word, fences, and reads
//! the other's*.
//!
//! ```text
//! going to sleep              handing over
//! flag = asleep               entry, tail = n + 1
//! fence(SeqCst)               fence(SeqCst)
//! if queue not empty: stay    if flag == asleep: ring
//! sleep                       
//! ```
//!
//! The two fences are totally ordered. If the sleeper's comes first, the other side reads the flag and
//! rings; if the other's comes first, the sleeper sees the entry and stays. Ring and sleep meet in an
//! eventfd, which counts, so a ring between the check and the sleep is not lost. Release/acquire alone
//! would allow both sides to read the old value (store buffering), and both would wait for ever.
//!
//! The service's flag is `SharedHeader::service_asleep`, its bell the doorbell; a vCPU's flag is
//! `QueuePage::state == Halted`, its bell its wake eventfd. Readiness events are handed to no vCPU in
//! particular: the service rings only when no vCPU is `Polling`. A vCPU that goes from `Polling` to
//! `Halted` passes the fence and looks at the event queue again; one that goes from `Polling` to `Running`
//! must look at it once more as well, and those `Running` look at their next entry or time slice.
//!
//! `cfg(loom)` runs these very functions through every interleaving.

use std::sync::atomic::Ordering;

use cloak_abi::vcpu::VcpuState;

#[cfg(loom)]
use loom::sync::atomic::fence;
#[cfg(not(loom))]
use std::sync::atomic::fence;

/// An atomic `u32`: the real one, or loom's.
pub trait Word {
    /// Loads the value.
    fn load(&self, order: Ordering) -> u32;
    /// Stores a value.
    fn store(&self, value: u32, order: Ordering);
}

impl Word for std::sync::atomic::AtomicU32 {
    fn load(&self, order: Ordering) -> u32 {
        self.load(order)
    }
    fn store(&self, value: u32, order: Ordering) {
        self.store(value, order);
    }
}

#[cfg(loom)]
impl Word for loom::sync::atomic::AtomicU32 {
    fn load(&self, order: Ordering) -> u32 {
        self.load(order)
    }
    fn store(&self, value: u32, order: Ordering) {
        self.store(value, order);
    }
}

/// Position `count` of a queue.
fn entry<W>(entries: &[W], count: u32) -> Option<&W> {
    entries.get(count as usize % entries.len())
}

/// Takes the next entry. `head` is the taker's own count.
///
/// A tail that is further ahead than the queue is long is a lie: everything up to it is forgotten.
pub fn take<W: Word>(head: &mut u32, tail: &W, entries: &[W]) -> Option<u32> {
    let tail = tail.load(Ordering::Acquire);
    let waiting = tail.wrapping_sub(*head) as usize;
    if waiting > entries.len() {
        *head = tail;
        return None;
    }
    if waiting == 0 {
        return None;
    }
    let value = entry(entries, *head)?.load(Ordering::Relaxed);
    *head = head.wrapping_add(1);
    Some(value)
}

/// Whether there is something to take.
pub fn has_entries<W: Word>(head: u32, tail: &W) -> bool {
    tail.load(Ordering::Acquire) != head
}

/// Appends an entry. `count` is the writer's own tail. The queue holds every slot, so it is never full.
pub fn push<W: Word>(count: &mut u32, tail: &W, entries: &[W], value: u32) {
    if let Some(place) = entry(entries, *count) {
        place.store(value, Ordering::Relaxed);
    }
    *count = count.wrapping_add(1);
    tail.store(*count, Ordering::Release);
}

/// Announces sleep with `flag = asleep`; true when the caller may now sleep, false when there is work
/// after all and the announcement was taken back (`flag = awake`).
pub fn fall_asleep<W: Word>(flag: &W, asleep: u32, awake: u32, has_work: impl FnOnce() -> bool) -> bool {
    flag.store(asleep, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    if has_work() {
        flag.store(awake, Ordering::Relaxed);
        return false;
    }
    true
}

/// Whether the other side must be rung, after something was handed over.
pub fn must_ring<W: Word>(flag: &W, asleep: u32) -> bool {
    fence(Ordering::SeqCst);
    flag.load(Ordering::Relaxed) == asleep
}

/// The vCPU to ring after an event was posted: none while one polls, else the first that is halted.
pub fn event_target<'w, W: Word + 'w>(states: impl Iterator<Item = &'w W>) -> Option<usize> {
    fence(Ordering::SeqCst);
    let mut halted = None;
    for (vcpu, state) in states.enumerate() {
        let state = state.load(Ordering::Relaxed);
        if state == VcpuState::Polling as u32 {
            return None;
        }
        if state == VcpuState::Halted as u32 && halted.is_none() {
            halted = Some(vcpu);
        }
    }
    halted
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn queue() -> Vec<AtomicU32> {
        (0..4).map(|_| AtomicU32::new(0)).collect()
    }

    #[test]
    fn entries_come_out_in_order_across_the_wrap() {
        let (entries, tail) = (queue(), AtomicU32::new(u32::MAX - 1));
        let (mut head, mut count) = (u32::MAX - 1, u32::MAX - 1);
        for round in 0..10 {
            push(&mut count, &tail, &entries, round);
            push(&mut count, &tail, &entries, round + 100);
            assert_eq!(take(&mut head, &tail, &entries), Some(round));
            assert_eq!(take(&mut head, &tail, &entries), Some(round + 100));
            assert_eq!(take(&mut head, &tail, &entries), None);
        }
    }

    #[test]
    fn a_lying_tail_is_skipped() {
        let (entries, tail) = (queue(), AtomicU32::new(77));
        let mut head = 3;
        assert_eq!(take(&mut head, &tail, &entries), None);
        assert_eq!(head, 77);
        assert!(!has_entries(head, &tail));
    }

    #[test]
    fn events_ring_the_first_halted_unless_one_polls() {
        let states = |values: &[VcpuState]| {
            values
                .iter()
                .map(|s| AtomicU32::new(*s as u32))
                .collect::<Vec<_>>()
        };
        let halted = states(&[VcpuState::Running, VcpuState::Halted, VcpuState::Halted]);
        assert_eq!(event_target(halted.iter()), Some(1));
        let polling = states(&[VcpuState::Halted, VcpuState::Polling]);
        assert_eq!(event_target(polling.iter()), None);
        assert_eq!(event_target(states(&[VcpuState::Running]).iter()), None);
    }
}

#[cfg(all(test, loom))]
#[path = "protocol_models.rs"]
mod models;
