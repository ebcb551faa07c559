//! Nothing waits for something else: pipes, readiness, workers.

use std::time::{Duration, Instant};

use cloak_abi::hostop::{HostOp, ROOT_FD};
use cloak_abi::ring::EVENTS;
use cloak_abi::vcpu::VcpuState;

use crate::guest::{Guest, PATIENCE, Setup, readable};

pub const TESTS: &[(&str, fn())] = &[
    ("an_empty_pipe_holds_up_nobody", empty_pipe),
    ("a_full_pipe_holds_up_nobody", full_pipe),
    ("events_are_edges", edges),
    ("a_closed_file_is_forgotten", forgotten),
    ("too_many_events_are_noted", overflow),
    ("events_wake_one_halted_vcpu_unless_one_polls", wakes_for_events),
    ("poll_answers_at_once", polls),
    ("slow_requests_let_others_pass", slow),
    ("a_slot_in_progress_is_not_taken_twice", twice),
    ("clocks_and_system_information", machine),
];

const IN: u32 = libc::EPOLLIN as u32;
const OUT: u32 = libc::EPOLLOUT as u32;

fn guest() -> (tempfile::TempDir, Guest) {
    let directory = tempfile::tempdir().expect("tempdir");
    let guest = Guest::new(directory.path());
    (directory, guest)
}

fn pipe(guest: &mut Guest) -> (u64, u64) {
    let answer = guest.call(HostOp::Pipe, &[0], &[]);
    (answer.ok(), answer.extra)
}

fn empty_pipe() {
    let (_directory, mut guest) = guest();
    let (read, write) = pipe(&mut guest);
    assert_eq!(guest.call(HostOp::Read, &[read, 10], &[]).err(), libc::EAGAIN);
    guest.call(HostOp::Nop, &[], &[]).ok();
    guest.call(HostOp::Write, &[write, 3], b"abc").ok();
    let (answer, out) = guest.call_out(HostOp::Read, &[read, 10], &[], 3);
    assert_eq!((answer.ok(), &out[..]), (3, &b"abc"[..]));
    guest.call(HostOp::Close, &[write], &[]).ok();
    assert_eq!(guest.call(HostOp::Read, &[read, 10], &[]).ok(), 0);
    // A FIFO opens without its other end.
    guest
        .call(
            HostOp::MkNod,
            &[ROOT_FD.into(), u64::from(libc::S_IFIFO | 0o600), 0, 4],
            b"fifo",
        )
        .ok();
    assert_eq!(guest.open(0, "fifo", libc::O_WRONLY, 0).err(), libc::ENXIO);
    guest.open(0, "fifo", libc::O_RDONLY, 0).ok();
    guest.open(0, "fifo", libc::O_WRONLY, 0).ok();
}

fn full_pipe() {
    let (_directory, mut guest) = guest();
    let (read, write) = pipe(&mut guest);
    let block = vec![0u8; 100_000];
    let taken = guest
        .call(HostOp::Write, &[write, block.len() as u64], &block)
        .ok();
    assert_eq!(taken, 65536);
    assert_eq!(guest.call(HostOp::Write, &[write, 1], b"x").err(), libc::EAGAIN);
    guest.call(HostOp::Close, &[read], &[]).ok();
    assert_eq!(
        guest.call(HostOp::Write, &[write, 1], b"x").err(),
        libc::EPIPE,
        "and no signal"
    );
    guest.call(HostOp::Nop, &[], &[]).ok();
}

fn edges() {
    let (_directory, mut guest) = guest();
    let (read, write) = pipe(&mut guest);
    guest.call(HostOp::Watch, &[read, 1], &[]).ok();
    guest.call(HostOp::Watch, &[write, 2], &[]).ok();
    guest.event_with(2, OUT);
    for _ in 0..100 {
        guest.call(HostOp::Write, &[write, 1], b"x").ok();
        guest.event_with(1, IN);
    }
    guest.call(HostOp::Watch, &[read, 7], &[]).ok();
    guest.event_with(7, IN);
    guest.call(HostOp::Close, &[write], &[]).ok();
    guest.event_with(7, libc::EPOLLHUP as u32);
    let file = guest.open(0, "f", libc::O_CREAT | libc::O_RDWR, 0o600).ok();
    assert_eq!(guest.call(HostOp::Watch, &[file, 3], &[]).err(), libc::EPERM);
    assert_eq!(
        guest.call(HostOp::Watch, &[read, 1 << 32], &[]).err(),
        libc::EINVAL
    );
    assert_eq!(guest.call(HostOp::Watch, &[99, 1], &[]).err(), libc::EBADF);
}

fn forgotten() {
    let (_directory, mut guest) = guest();
    let (read, write) = pipe(&mut guest);
    let copy = guest.call(HostOp::Dup, &[read], &[]).ok();
    guest.call(HostOp::Watch, &[read, 1], &[]).ok();
    guest.call(HostOp::Close, &[read], &[]).ok();
    guest.call(HostOp::Write, &[write, 1], b"x").ok();
    guest.call(HostOp::Watch, &[copy, 2], &[]).ok();
    guest.event_with(2, IN);
    guest.call(HostOp::Write, &[write, 1], b"x").ok();
    std::thread::sleep(Duration::from_millis(20));
    while let Some((token, _)) = guest.event() {
        assert_ne!(token, 1, "an event for a closed file");
    }
}

fn overflow() {
    let (_directory, mut guest) = guest();
    let (read, write) = pipe(&mut guest);
    guest.call(HostOp::Watch, &[read, 1], &[]).ok();
    let page_overflow = |guest: &Guest| {
        guest
            .region
            .events()
            .overflow
            .load(std::sync::atomic::Ordering::Acquire)
    };
    let start = Instant::now();
    while page_overflow(&guest) == 0 {
        // Each new byte is a new edge; the events are never taken.
        guest.call(HostOp::Write, &[write, 1], b"x").ok();
        guest.call(HostOp::Read, &[read, 1], &[]).ok();
        assert!(start.elapsed() < PATIENCE);
    }
    let mut count = 0;
    while guest.event().is_some() {
        count += 1;
    }
    assert_eq!(count, EVENTS);
    guest.call(HostOp::Write, &[write, 1], b"x").ok();
    guest.event_with(1, IN);
}

fn wakes_for_events() {
    let directory = tempfile::tempdir().expect("tempdir");
    let mounts = vec![(directory.path(), cloak_host::os::Access::ReadWrite)];
    let mut guest = Guest::with(Setup {
        vcpus: 2,
        mounts,
        ..Setup::new()
    });
    let (read, write) = pipe(&mut guest);
    guest.call(HostOp::Watch, &[read, 1], &[]).ok();
    let set = |guest: &Guest, vcpu, state: VcpuState| {
        guest
            .state(vcpu)
            .store(state as u32, std::sync::atomic::Ordering::SeqCst);
    };
    set(&guest, 1, VcpuState::Halted);
    guest.call(HostOp::Write, &[write, 1], b"x").ok();
    assert!(readable(&guest.wakes[1], PATIENCE), "the halted vCPU is woken");
    guest.event_with(1, IN);
    let mut count = [0; 8];
    rustix::io::read(&guest.wakes[1], &mut count).expect("woken");
    set(&guest, 0, VcpuState::Polling);
    guest.call(HostOp::Write, &[write, 1], b"x").ok();
    guest.event_with(1, IN);
    assert!(
        !readable(&guest.wakes[1], Duration::from_millis(20)),
        "one polls, so none is woken"
    );
}

fn pollfd(fd: i32, events: i16) -> Vec<u8> {
    [&fd.to_ne_bytes()[..], &events.to_ne_bytes(), &[0xff, 0xff]].concat()
}

fn polls() {
    let (_directory, mut guest) = guest();
    let (read, write) = pipe(&mut guest);
    let input = [
        pollfd(read as i32, libc::POLLIN),
        pollfd(-1, libc::POLLIN),
        pollfd(write as i32, libc::POLLOUT),
        pollfd(1000, libc::POLLIN),
    ]
    .concat();
    let (answer, out) = guest.call_out(HostOp::Poll, &[4], &input, 32);
    let revents: Vec<i16> = out.chunks(8).map(|r| i16::from_ne_bytes([r[6], r[7]])).collect();
    assert_eq!(answer.ok(), 2);
    assert_eq!(revents, [0, 0, libc::POLLOUT, libc::POLLNVAL]);
    assert_eq!(guest.call(HostOp::Poll, &[0], &[]).ok(), 0);
    assert_eq!(guest.call(HostOp::Poll, &[1 << 20], &[]).err(), libc::EINVAL);
}

fn slow() {
    let (_directory, mut guest) = guest();
    let fd = guest.open(0, "f", libc::O_CREAT | libc::O_RDWR, 0o600).ok();
    let block = vec![1u8; 128 << 10];
    for n in 0..64u64 {
        guest
            .call(
                HostOp::PWrite,
                &[fd, block.len() as u64, n * block.len() as u64],
                &block,
            )
            .ok();
    }
    let syncs: Vec<_> = (0..8)
        .map(|_| guest.submit(HostOp::Sync, &[fd, 0], &[]))
        .collect();
    let start = Instant::now();
    guest.call(HostOp::Nop, &[], &[]).ok();
    assert!(start.elapsed() < Duration::from_secs(1));
    for ticket in syncs {
        guest.wait(ticket).ok();
    }
}

fn twice() {
    let (_directory, mut guest) = guest();
    let fd = guest.open(0, "f", libc::O_CREAT | libc::O_RDWR, 0o600).ok();
    // An answer can be seen before its completion is. All are waited for before the slot, the same each time, is used
    // again: what comes late would else be taken for what comes early.
    completions(&mut guest, 1);
    for _ in 0..50 {
        guest.call(HostOp::PWrite, &[fd, 4, 0], b"data").ok();
        let ticket = guest.submit(HostOp::Sync, &[fd, 0], &[]);
        guest.push(0, ticket.slot.index() as u32);
        let answer = guest.wait(ticket);
        assert!(answer.result == 0 || answer.err() == libc::EBUSY);
        completions(&mut guest, 3);
    }
}

fn completions(guest: &mut Guest, count: usize) {
    let start = Instant::now();
    let mut seen = 0;
    while seen < count {
        match guest.completion(0) {
            Some(_) => seen += 1,
            None => std::thread::yield_now(),
        }
        assert!(start.elapsed() < PATIENCE);
    }
}

fn machine() {
    let (_directory, mut guest) = guest();
    let value = |bytes: &[u8], at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight"));
    let (answer, one) = guest.call_out(HostOp::Clock, &[], &[], 24);
    answer.ok();
    let (_, two) = guest.call_out(HostOp::Clock, &[], &[], 24);
    assert!(value(&two, 0) >= value(&one, 0) && value(&one, 0) > 0);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    assert!(now.as_nanos().abs_diff(u128::from(value(&two, 8))) < 5_000_000_000);
    assert!(value(&two, 16) >= value(&two, 0));
    let (answer, info) = guest.call_out(HostOp::SysInfo, &[], &[], 136);
    answer.ok();
    assert!(
        value(&info, 32) > value(&info, 112),
        "total memory is more than available memory"
    );
    assert!(value(&info, 112) > 0 && value(&info, 120) > 0);
    assert_eq!(
        guest.call(HostOp::Stop, &[libc::SIGKILL as u64], &[]).err(),
        libc::EINVAL
    );
}
