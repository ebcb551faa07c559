//! Models of the queue protocol:
//! `RUSTFLAGS="--cfg loom" cargo test --release -p cloak-host --lib os::protocol`.
//!
//! The small models go through every interleaving, the larger ones through all with up to three
//! preemptions (the rest would take hours).
//!
//! A sleeper waits on a bell that remembers a ring, as an eventfd does. A lost wake-up is a deadlock, which
//! loom reports.

use loom::sync::atomic::AtomicU32;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::*;

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;

#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().expect("not poisoned") = true;
        self.heard.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().expect("not poisoned");
        while !*rung {
            rung = self.heard.wait(rung).expect("not poisoned");
        }
        *rung = false;
    }

    fn was_rung(&self) -> bool {
        *self.rung.lock().expect("not poisoned")
    }
}

/// A queue with its sleeper's flag and bell.
struct Side {
    tail: AtomicU32,
    entries: [AtomicU32; 2],
    flag: AtomicU32,
    bell: Bell,
}

impl Side {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            tail: AtomicU32::new(0),
            entries: [AtomicU32::new(0), AtomicU32::new(0)],
            flag: AtomicU32::new(AWAKE),
            bell: Bell::default(),
        })
    }

    fn hand_over(&self, count: &mut u32, value: u32) {
        push(count, &self.tail, &self.entries, value);
        if must_ring(&self.flag, ASLEEP) {
            self.bell.ring();
        }
    }

    /// Takes the next entry, sleeping as long as there is none.
    fn take_or_sleep(&self, head: &mut u32) -> u32 {
        loop {
            if let Some(value) = take(head, &self.tail, &self.entries) {
                return value;
            }
            if fall_asleep(&self.flag, ASLEEP, AWAKE, || has_entries(*head, &self.tail)) {
                self.bell.wait();
                self.flag.store(AWAKE, Ordering::Relaxed);
            }
        }
    }
}

/// Interleavings with at most three preemptions.
fn bounded(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn a_sleeper_gets_an_entry() {
    loom::model(|| {
        let side = Side::new();
        let writer = {
            let side = Arc::clone(&side);
            thread::spawn(move || side.hand_over(&mut 0, 7))
        };
        assert_eq!(side.take_or_sleep(&mut 0), 7);
        writer.join().expect("writer");
    });
}

#[test]
fn a_sleeper_gets_every_entry() {
    bounded(|| {
        let side = Side::new();
        let writer = {
            let side = Arc::clone(&side);
            thread::spawn(move || {
                let mut count = 0;
                side.hand_over(&mut count, 7);
                side.hand_over(&mut count, 8);
            })
        };
        let mut head = 0;
        assert_eq!(side.take_or_sleep(&mut head), 7);
        assert_eq!(side.take_or_sleep(&mut head), 8);
        writer.join().expect("writer");
    });
}

#[test]
fn two_writers_share_a_completion_queue() {
    bounded(|| {
        let side = Side::new();
        let count = Arc::new(Mutex::new(0u32));
        let writers = [7, 8].map(|value| {
            let (side, count) = (Arc::clone(&side), Arc::clone(&count));
            thread::spawn(move || {
                // As `Shared::complete` does: the lock around the push, the look at the flag after it.
                push(
                    &mut count.lock().expect("not poisoned"),
                    &side.tail,
                    &side.entries,
                    value,
                );
                if must_ring(&side.flag, ASLEEP) {
                    side.bell.ring();
                }
            })
        });
        let mut head = 0;
        let got = [side.take_or_sleep(&mut head), side.take_or_sleep(&mut head)];
        assert!(got == [7, 8] || got == [8, 7]);
        for writer in writers {
            writer.join().expect("writer");
        }
    });
}

#[test]
fn an_event_is_seen_by_a_poller_or_rings_somebody() {
    loom::model(|| {
        let side = Side::new();
        let states = Arc::new([
            AtomicU32::new(VcpuState::Polling as u32),
            AtomicU32::new(VcpuState::Halted as u32),
        ]);
        let bells = Arc::new([Bell::default(), Bell::default()]);
        let poller = {
            let (side, states) = (Arc::clone(&side), Arc::clone(&states));
            thread::spawn(move || {
                let (halted, running) = (VcpuState::Halted as u32, VcpuState::Running as u32);
                // Polled until now; halts unless there is something.
                !fall_asleep(&states[0], halted, running, || has_entries(0, &side.tail))
            })
        };
        let mut count = 0;
        push(&mut count, &side.tail, &side.entries, 7);
        if let Some(vcpu) = event_target(states.iter()) {
            bells[vcpu].ring();
        }
        let seen = poller.join().expect("poller");
        assert!(
            seen || bells.iter().any(Bell::was_rung),
            "nobody will look at the event"
        );
    });
}
