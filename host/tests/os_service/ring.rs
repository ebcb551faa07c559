//! The ring itself: answers, sleeping, waking, starting and ending.

use std::time::{Duration, Instant};

use cloak_abi::hostop::HostOp;

use crate::guest::{Guest, PATIENCE, Setup, readable};

pub const TESTS: &[(&str, fn())] = &[
    ("nop_is_answered", nop_is_answered),
    ("an_unknown_operation_is_refused", unknown),
    ("a_sleeping_service_wakes_by_the_doorbell", sleeps_and_wakes),
    ("a_halted_vcpu_is_woken", halted_is_woken),
    ("the_monitor_learns_of_the_end", ends),
];

fn guest() -> Guest {
    Guest::with(Setup {
        vcpus: 2,
        ..Setup::new()
    })
}

fn nop_is_answered() {
    let mut guest = guest();
    for _ in 0..10_000 {
        assert_eq!(guest.call(HostOp::Nop, &[], &[]).ok(), 0);
    }
}

fn unknown() {
    let mut guest = guest();
    let ticket = guest.submit_on(0, 9999, &[], &[]);
    assert_eq!(guest.wait(ticket).err(), libc::ENOSYS);
}

fn sleeps_and_wakes() {
    let mut guest = guest();
    for _ in 0..20 {
        let start = Instant::now();
        while guest
            .region
            .header()
            .service_asleep
            .load(std::sync::atomic::Ordering::SeqCst)
            == 0
        {
            assert!(start.elapsed() < PATIENCE, "does not go to sleep");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(guest.call(HostOp::Nop, &[], &[]).ok(), 0);
    }
}

fn halted_is_woken() {
    let mut guest = guest();
    for _ in 0..2000 {
        let ticket = guest.submit_on(1, HostOp::Nop as u32, &[], &[]);
        loop {
            if guest.completion(1) == Some(ticket.slot.index() as u32) {
                break;
            }
            assert!(guest.halt(1, PATIENCE), "lost wake-up");
        }
        assert_eq!(guest.answer(ticket).expect("completed").ok(), 0);
    }
}

fn ends() {
    let mut guest = guest();
    guest.call(HostOp::Nop, &[], &[]).ok();
    assert_eq!(guest.service.try_wait().expect("waits"), None);
    let pidfd = guest.service.pidfd().try_clone_to_owned().expect("dup");
    drop(guest);
    assert!(readable(pidfd, PATIENCE));
}
