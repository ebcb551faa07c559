//! Further standard streams, handed over by the monitor.

use std::os::fd::{AsFd, OwnedFd};

use cloak_abi::hostop::HostOp;
use cloak_host::os::handed;
use rustix::io::Errno;

use crate::guest::Guest;

pub const TESTS: &[(&str, fn())] = &[
    ("streams_of_a_ticket_are_given_once", given_once),
    ("a_ticket_that_nobody_sent_gives_nothing", nobody),
    ("streams_that_nobody_asks_for_are_closed_at_last", never_asked_for),
];

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe")
}

/// Sends streams: gives the other ends of input and output.
fn send(guest: &Guest, ticket: u64) -> (OwnedFd, OwnedFd) {
    let ((theirs_in, input), (output, theirs_out)) = (pipe(), pipe());
    let errors = theirs_out.try_clone().expect("a copy");
    handed::send(guest.streams.as_fd(), ticket, &[theirs_in, theirs_out, errors]).expect("sent");
    (input, output)
}

fn take(guest: &mut Guest, ticket: u64) -> Result<[u64; 3], i32> {
    let (answer, out) = guest.call_out(HostOp::Streams, &[ticket], &[], 12);
    if answer.result < 0 {
        return Err(answer.err());
    }
    let word = |at: usize| u32::from_ne_bytes(out[4 * at..4 * at + 4].try_into().expect("four bytes"));
    Ok([0, 1, 2].map(|at| u64::from(word(at))))
}

fn given_once() {
    let mut guest = Guest::new(&std::env::temp_dir());
    let (first_in, first_out) = send(&guest, 7);
    let (_second_in, second_out) = send(&guest, 8);
    // In any order.
    let second = take(&mut guest, 8).expect("they were sent");
    let first = take(&mut guest, 7).expect("they were sent");
    let mut all = [first, second].concat();
    all.sort_unstable();
    all.dedup();
    assert!(all.len() == 6 && all[0] >= 3, "numbers of their own: {all:?}");
    for (streams, output) in [(first, first_out), (second, second_out)] {
        assert_eq!(guest.call(HostOp::Write, &[streams[1], 4], b"text").ok(), 4);
        let mut text = [0; 8];
        assert_eq!(rustix::io::read(&output, &mut text), Ok(4));
    }
    rustix::io::write(&first_in, b"typed").expect("written");
    let (answer, text) = guest.call_out(HostOp::Read, &[first[0], 100], &[], 5);
    assert_eq!((answer.ok(), text.as_slice()), (5, &b"typed"[..]));
    // Nothing to read waits for nobody.
    let empty = guest.call(HostOp::Read, &[first[0], 100], &[]);
    assert_eq!(empty.err(), Errno::AGAIN.raw_os_error());
    assert_eq!(
        take(&mut guest, 7),
        Err(Errno::AGAIN.raw_os_error()),
        "a ticket is good once"
    );
    drop(first_in);
    assert_eq!(guest.call(HostOp::Read, &[first[0], 100], &[]).ok(), 0);
    guest.call(HostOp::Close, &[first[0]], &[]).ok();
}

fn nobody() {
    let mut guest = Guest::new(&std::env::temp_dir());
    for ticket in [0, 1, u64::MAX] {
        assert_eq!(take(&mut guest, ticket), Err(Errno::AGAIN.raw_os_error()));
    }
    // What is no handing over is none.
    rustix::io::write(&guest.streams, &5u64.to_le_bytes()).expect("sent");
    assert_eq!(take(&mut guest, 5), Err(Errno::MFILE.raw_os_error()));
    let _ends = send(&guest, 6);
    take(&mut guest, 6).expect("the service goes on");
}

fn never_asked_for() {
    let mut guest = Guest::new(&std::env::temp_dir());
    let mut ends = Vec::new();
    for ticket in 0..100 {
        ends.push(send(&guest, ticket));
        // The service takes them when it is asked for any.
        let _none = take(&mut guest, 1000);
    }
    assert_eq!(
        take(&mut guest, 0),
        Err(Errno::AGAIN.raw_os_error()),
        "the oldest are gone"
    );
    take(&mut guest, 99).expect("the newest is not");
    let mut text = [0; 1];
    assert_eq!(
        rustix::io::read(&ends[0].1, &mut text),
        Ok(0),
        "nobody has the other end"
    );
}
