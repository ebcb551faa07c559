//! Streams that run ahead of the guest.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use cloak_abi::hostop::HostOp;
use cloak_abi::vcpu::VcpuState;

use crate::guest::{Guest, PATIENCE, Ticket, readable};

pub const TESTS: &[(&str, fn())] = &[
    ("a_fetch_waits_for_data_and_one_at_a_time", fetches),
    (
        "a_fetch_ends_with_its_file_when_told_so_or_for_urgent_data",
        fetches_end,
    ),
    ("a_halted_vcpu_is_woken_by_what_was_fetched", wakes),
    ("what_is_delivered_arrives_whole_and_in_order", delivers),
    ("a_close_and_a_shutdown_come_after_what_is_kept", closes),
    ("a_peer_that_is_gone_frees_what_was_kept", forgets),
];

const TOKEN: u64 = 6;
const BLOCK: usize = 128 << 10;

/// A connection of the guest's, and its peer.
fn connected() -> (tempfile::TempDir, Guest, u64, TcpStream) {
    let directory = tempfile::tempdir().expect("tempdir");
    let mut guest = Guest::new(directory.path());
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let fd = guest
        .call(
            HostOp::Socket,
            &[libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0],
            &[],
        )
        .ok();
    let mut address = (libc::AF_INET as u16).to_ne_bytes().to_vec();
    address.extend_from_slice(&listener.local_addr().expect("name").port().to_be_bytes());
    address.extend_from_slice(&[127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let answer = guest.call(HostOp::Connect, &[fd, 16], &address);
    assert!(answer.result == 0 || answer.err() == libc::EINPROGRESS);
    let (peer, _) = listener.accept().expect("accept");
    (directory, guest, fd, peer)
}

fn fetch(guest: &mut Guest, fd: u64) -> Ticket {
    guest.submit(HostOp::Fetch, &[fd, 100, TOKEN], &[])
}

/// Everything that was asked before has been looked at.
fn settled(guest: &mut Guest) {
    guest.call(HostOp::Nop, &[], &[]).ok();
}

fn fetches() {
    let (_directory, mut guest, fd, mut peer) = connected();
    let first = fetch(&mut guest, fd);
    settled(&mut guest);
    assert_eq!(guest.answer(first), None);
    let second = fetch(&mut guest, fd);
    assert_eq!(guest.wait(second).err(), libc::EBUSY);
    peer.write_all(b"question").expect("send");
    assert_eq!(guest.wait(first).ok(), 8);
    let mut out = vec![0; 8];
    guest.buffer(first).read(&mut out);
    assert_eq!(&out, b"question");
    // More than one fetch takes is there for the next one at once, and the end is an answer, too.
    peer.write_all(&[7; 150]).expect("send");
    drop(peer);
    for expected in [100, 50, 0] {
        let ticket = fetch(&mut guest, fd);
        assert_eq!(guest.wait(ticket).ok(), expected);
    }
    guest.event_with(TOKEN as u32, libc::EPOLLRDHUP as u32);
    // Only streams of the guest's own.
    assert_eq!(guest.call(HostOp::Fetch, &[0, 100, 9], &[]).err(), libc::EINVAL);
    assert_eq!(
        guest.call(HostOp::Fetch, &[fd, 1 << 20, TOKEN], &[]).err(),
        libc::EINVAL
    );
    assert_eq!(
        guest.call(HostOp::Fetch, &[fd, 10, 1 << 32], &[]).err(),
        libc::EINVAL
    );
    assert_eq!(guest.call(HostOp::Deliver, &[0, 1], b"x").err(), libc::EINVAL);
}

fn fetches_end() {
    let (_directory, mut guest, fd, peer) = connected();
    let ticket = fetch(&mut guest, fd);
    assert_eq!(guest.call(HostOp::Fetch, &[fd, 0, TOKEN], &[]).ok(), 0);
    assert_eq!(guest.wait(ticket).err(), libc::ECANCELED);
    let ticket = fetch(&mut guest, fd);
    // SAFETY: one byte of this frame.
    let sent = unsafe {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&peer);
        libc::send(fd, b"!".as_ptr().cast(), 1, libc::MSG_OOB)
    };
    assert_eq!(sent, 1);
    assert_eq!(guest.wait(ticket).err(), libc::ECANCELED);
    guest.event_with(TOKEN as u32, libc::EPOLLPRI as u32);
    let (_directory, mut guest, fd, _peer) = connected();
    let ticket = fetch(&mut guest, fd);
    settled(&mut guest);
    guest.call(HostOp::Close, &[fd], &[]).ok();
    assert_eq!(guest.wait(ticket).err(), libc::ECANCELED);
}

fn wakes() {
    let (_directory, mut guest, fd, mut peer) = connected();
    let ticket = fetch(&mut guest, fd);
    settled(&mut guest);
    while guest.completion(0).is_some() {}
    while guest.event().is_some() {}
    guest
        .state(0)
        .store(VcpuState::Halted as u32, std::sync::atomic::Ordering::SeqCst);
    peer.write_all(b"question").expect("send");
    assert!(readable(&guest.wakes[0], PATIENCE), "it was rung");
    assert_eq!(guest.wait(ticket).ok(), 8);
}

/// Blocks until the socket takes no more; bytes delivered.
fn fill(guest: &mut Guest, fd: u64) -> Vec<u8> {
    let mut all = Vec::new();
    for n in 0.. {
        let block = vec![n as u8; BLOCK];
        let taken = guest.call(HostOp::Deliver, &[fd, BLOCK as u64], &block).ok() as usize;
        all.extend_from_slice(&block);
        if taken < BLOCK {
            break;
        }
        assert!(all.len() < 1 << 30);
    }
    all
}

fn delivers() {
    let (_directory, mut guest, fd, mut peer) = connected();
    guest.call(HostOp::Watch, &[fd, TOKEN], &[]).ok();
    let mut all = fill(&mut guest, fd);
    assert!(guest.call(HostOp::Undelivered, &[], &[]).ok() > 0);
    // What comes behind waits behind, and other ways of writing don't overtake.
    assert_eq!(guest.call(HostOp::Deliver, &[fd, 4], b"then").ok(), 0);
    all.extend_from_slice(b"then");
    assert_eq!(guest.call(HostOp::Write, &[fd, 4], b"over").err(), libc::EAGAIN);
    assert_eq!(
        guest.call(HostOp::SendMsg, &[fd, 0, 0, 0, 4], b"over").err(),
        libc::EAGAIN
    );
    while guest.event().is_some() {}
    let mut received = vec![0; all.len()];
    peer.read_exact(&mut received).expect("receive");
    assert!(received == all);
    guest.event_with(TOKEN as u32, libc::EPOLLOUT as u32);
    assert_eq!(guest.call(HostOp::Undelivered, &[], &[]).ok(), 0);
    assert_eq!(guest.call(HostOp::Write, &[fd, 4], b"last").ok(), 4);
    // No more is kept for one file than there is a reason for.
    fill(&mut guest, fd);
    let block = vec![0; BLOCK];
    let refused = (0..16).find_map(|_| {
        let answer = guest.call(HostOp::Deliver, &[fd, BLOCK as u64], &block);
        (answer.result < 0).then(|| answer.err())
    });
    assert_eq!(refused, Some(libc::ENOBUFS));
}

fn closes() {
    for shuts in [true, false] {
        let (_directory, mut guest, fd, mut peer) = connected();
        guest.call(HostOp::Watch, &[fd, TOKEN], &[]).ok();
        let all = fill(&mut guest, fd);
        if shuts {
            guest.call(HostOp::Shutdown, &[fd, 1], &[]).ok();
        } else {
            guest.call(HostOp::Close, &[fd], &[]).ok();
            assert_eq!(guest.call(HostOp::Read, &[fd, 1], &[]).err(), libc::EBADF);
        }
        let mut received = Vec::new();
        peer.read_to_end(&mut received).expect("receive");
        assert!(received == all, "{} of {}", received.len(), all.len());
        assert_eq!(guest.call(HostOp::Undelivered, &[], &[]).ok(), 0);
    }
}

fn forgets() {
    let (_directory, mut guest, fd, peer) = connected();
    guest.call(HostOp::Watch, &[fd, TOKEN], &[]).ok();
    fill(&mut guest, fd);
    guest.call(HostOp::Close, &[fd], &[]).ok();
    drop(peer);
    let start = std::time::Instant::now();
    while guest.call(HostOp::Undelivered, &[], &[]).ok() > 0 {
        assert!(start.elapsed() < PATIENCE, "it is kept for ever");
        std::thread::yield_now();
    }
}
