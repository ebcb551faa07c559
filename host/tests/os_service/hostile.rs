//! A guest that breaks every rule: the service answers, does not die, keeps no descriptors, and touches
//! nothing outside of the mount.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use cloak_abi::hostop::{HostOp, ROOT_FD};
use cloak_abi::ring::SLOTS;
use cloak_host::os::region::SlotIndex;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::guest::{Answer, Guest, Setup, Ticket};

pub const TESTS: &[(&str, fn())] = &[
    ("random_requests_are_answered_and_leak_nothing", random_requests),
    ("random_indices_and_tails_do_no_harm", random_queues),
    ("slots_rewritten_while_served_do_no_harm", rewritten),
];

/// Largest file that a random request may make.
const FILE_MOST: u64 = 8 << 20;

#[derive(Debug, Clone)]
struct Request {
    op: u32,
    args: Vec<u64>,
    input: Vec<u8>,
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..64u64,
        4 => Just(u64::from(ROOT_FD)),
        2 => Just(u64::from(ROOT_FD) + 1),
        2 => 3..300u64,
        1 => (0..64u32).prop_map(|bit| 1 << bit),
        1 => (0..64u32).prop_map(|bit| (1u64 << bit).wrapping_sub(1)),
        1 => Just(131_072u64),
        1 => Just((-1i64) as u64),
        1 => any::<u64>(),
    ]
}

fn input() -> impl Strategy<Value = Vec<u8>> {
    let words: Vec<&'static [u8]> = vec![
        b"a",
        b"b",
        b"dir",
        b"/",
        b"..",
        b"../..",
        b".",
        b"link",
        b"dir/a",
        b"\0",
        b"user.x",
        b"\x01\0",
        b"\x02\0",
        b"\x14\0\0\0\0\0\0\0\x01\0\0\0\x01\0\0\0\x03\0\0\0",
        b"\x03\0\0\0\x01\0\0\0",
    ];
    vec(prop_oneof![4 => proptest::sample::select(words).prop_map(<[u8]>::to_vec), 1 => vec(any::<u8>(), 0..64)], 0..6)
        .prop_map(|parts| parts.concat())
}

fn request() -> impl Strategy<Value = Request> {
    let op = prop_oneof![
        20 => (0..HostOp::ALL.len()).prop_map(|n| HostOp::ALL[n].0 as u32),
        // Files and sockets, so that there is something to do harm to.
        6 => Just(HostOp::Open as u32),
        3 => proptest::sample::select(vec![HostOp::Socket as u32, HostOp::Pipe as u32, HostOp::SocketPair as u32]),
        1 => any::<u32>(),
    ];
    let free = (op, vec(number(), 6), input()).prop_map(|(op, args, input)| Request { op, args, input });
    let open = (
        proptest::sample::select(vec![0u64, 0x42, 0x41, 0x20_0000, 0x1_0000]),
        "(a|b|dir|link|dir/a)",
    )
        .prop_map(|(flags, path): (u64, String)| Request {
            op: HostOp::Open as u32,
            args: vec![ROOT_FD.into(), flags, 0o777, path.len() as u64, 0, 0],
            input: path.into_bytes(),
        });
    prop_oneof![6 => free, 1 => open]
}

/// Stop would stop this test's own process group, and the standard streams are the developer's.
fn is_safe(request: &Request) -> bool {
    request.op != HostOp::Stop as u32
        && ![0, 2]
            .iter()
            .any(|n| request.args[*n] < 3 || request.args[*n] as u32 == 0)
}

/// The service's process.
pub fn process(guest: &Guest) -> Pid {
    let info = format!("/proc/self/fdinfo/{}", guest.service.pidfd().as_raw_fd());
    let info = std::fs::read_to_string(info).expect("fdinfo");
    let pid = info
        .lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .expect("a pidfd");
    Pid::from_raw(pid.trim().parse().expect("a number")).expect("alive")
}

/// Open descriptors of the service; none when we may not look (it is not dumpable: only root may).
fn open_files(pid: Pid) -> Option<usize> {
    let directory = format!("/proc/{}/fd", pid.as_raw_nonzero());
    std::fs::read_dir(directory).ok().map(Iterator::count)
}

/// Keeps the book of what was given out.
fn note(given: &mut BTreeSet<u64>, request: &Request, answer: Answer) {
    let Ok(result) = u64::try_from(answer.result) else {
        return;
    };
    match HostOp::from_u32(request.op) {
        Some(HostOp::Open | HostOp::Dup | HostOp::Socket | HostOp::Accept) => {
            given.insert(result);
        }
        Some(HostOp::SocketPair | HostOp::Pipe) => {
            given.extend([result, answer.extra]);
        }
        _ => {}
    }
}

fn random_requests() {
    let outer = tempfile::tempdir().expect("tempdir");
    let inner = outer.path().join("mount");
    std::fs::create_dir_all(inner.join("dir")).expect("mkdir");
    std::os::unix::fs::symlink("../outside", inner.join("link")).expect("symlink");
    std::fs::write(outer.path().join("outside"), b"untouched").expect("write");
    let mut guest = Guest::new(&inner);
    let pid = process(&guest);
    let limit = Rlimit {
        current: Some(FILE_MOST),
        maximum: Some(FILE_MOST),
    };
    prlimit(Some(pid), Resource::Fsize, limit).expect("limit on file sizes");
    guest.call(HostOp::Sync, &[0, 9], &[]);
    let before = open_files(pid);
    let mut runner = TestRunner::new(Config {
        cases: 150,
        failure_persistence: None,
        ..Config::default()
    });
    let guest = std::cell::RefCell::new(&mut guest);
    runner
        .run(&vec(request().prop_filter("safe", is_safe), 1..80), |requests| {
            let guest = &mut **guest.borrow_mut();
            let mut given = BTreeSet::new();
            let sent: Vec<Ticket> = requests
                .iter()
                .map(|r| guest.submit_on(0, r.op, &r.args, &r.input))
                .collect();
            for (request, ticket) in requests.iter().zip(sent) {
                let answer = guest.wait(ticket);
                prop_assert!(
                    answer.result >= -4095,
                    "not an error number: {answer:?} for {request:?}"
                );
                note(&mut given, request, answer);
            }
            while guest.completion(0).is_some() {}
            while guest.event().is_some() {}
            for fd in given {
                guest.call(HostOp::Close, &[fd], &[]);
            }
            prop_assert_eq!(guest.service.try_wait().expect("waits"), None);
            Ok(())
        })
        .expect("holds");
    assert_eq!(
        std::fs::read(outer.path().join("outside")).expect("still there"),
        b"untouched"
    );
    let names = std::fs::read_dir(outer.path()).expect("list").count();
    assert_eq!(names, 2, "nothing new beside the mount");
    match (before, open_files(pid)) {
        (Some(before), Some(after)) => assert_eq!(after, before, "descriptors left"),
        _ => eprintln!("skipped: counting the service's descriptors needs root"),
    }
}

fn random_queues() {
    let mut guest = Guest::with(Setup {
        vcpus: 2,
        ..Setup::new()
    });
    let mut runner = TestRunner::new(Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    });
    let cell = std::cell::RefCell::new(&mut guest);
    runner
        .run(
            &vec(
                (0..2usize, prop_oneof![0..SLOTS as u32 * 2, any::<u32>()]),
                0..200,
            ),
            |entries| {
                let guest = &mut **cell.borrow_mut();
                for (vcpu, index) in entries {
                    guest.push(vcpu, index);
                }
                guest.call(HostOp::Nop, &[], &[]).ok();
                // An entry that named the call's own slot may have answered it early: without this, what is left
                // adds up until the queue has more than it holds, and is rightly forgotten.
                guest.drained();
                Ok(())
            },
        )
        .expect("holds");
    // A tail from nowhere, then one that is right again.
    let queue = guest.region.queue(guest.vcpu(1));
    for tail in [1u32 << 31, 12345, u32::MAX] {
        queue.sq_tail.store(tail, Ordering::SeqCst);
        guest.ring();
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    guest.region.header().service_asleep.store(77, Ordering::SeqCst);
    for _ in 0..10 {
        guest.ring();
        guest.call(HostOp::Nop, &[], &[]).ok();
    }
}

fn rewritten() {
    let directory = tempfile::tempdir().expect("tempdir");
    let mut guest = Guest::new(directory.path());
    let region = guest.region_again();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // Slots are taken from the end, so all requests below are in one of these two.
                let slot = SlotIndex::new(SLOTS as u32 - 1 - (n >> 63) as u32).expect("exists");
                let fields = region.slot(slot);
                fields.args[(n >> 40) as usize % 6].store(n >> 33 & 0x1ff, Ordering::Relaxed);
                region.buffer(slot).write(&n.to_ne_bytes());
            }
        });
        for n in 0..20_000u64 {
            let op = [
                HostOp::Open,
                HostOp::MkDir,
                HostOp::Unlink,
                HostOp::Poll,
                HostOp::RecvMsg,
            ][n as usize % 5];
            let ticket = guest.submit(op, &[ROOT_FD.into(), 0x42, 0o700, 3, 0], b"a/b/c");
            let answer = guest.wait(ticket);
            if op == HostOp::Open && answer.result > 2 {
                let ticket = guest.submit(HostOp::Close, &[answer.result as u64], b"");
                guest.wait(ticket);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    guest.call(HostOp::Nop, &[], &[]).ok();
    assert_eq!(guest.service.try_wait().expect("waits"), None);
}
