//! Host sockets against real loopback sockets.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::*;
use crate::errno::Errno;
use crate::fs::epoll::{Epoll, Event, flag};
use crate::fs::fd::O_NONBLOCK;
use crate::net::socket::msg;
use crate::sched::clock;
use crate::testing;

pub(super) fn open(socket: Arc<HostSocket>, flags: u32) -> (Arc<OpenFile>, Arc<HostSocket>) {
    (OpenFile::new(socket.clone(), flags | 2, Vec::new()), socket)
}

pub(super) fn loopback(port: u16) -> Address {
    let mut bytes = [0u8; 16];
    bytes[..2].copy_from_slice(&family::INET.to_ne_bytes());
    bytes[2..4].copy_from_slice(&port.to_be_bytes());
    bytes[4..8].copy_from_slice(&[127, 0, 0, 1]);
    Address::new(&bytes).expect("fits")
}

fn port_of(address: &Address) -> u16 {
    u16::from_be_bytes([address.bytes()[2], address.bytes()[3]])
}

/// A guest's socket connected to a host's.
pub(super) fn connected(flags: u32) -> (Arc<OpenFile>, Arc<HostSocket>, TcpStream) {
    testing::start();
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("bound").port();
    let (file, socket) = open(
        HostSocket::create(family::INET, Kind::Stream, 0).expect("creates"),
        0,
    );
    socket.connect(&file, &loopback(port)).expect("connects");
    file.set_flags(O_NONBLOCK, flags);
    let (peer, _) = listener.accept().expect("accepts");
    peer.set_nodelay(true).expect("set");
    (file, socket, peer)
}

pub(super) fn read(file: &OpenFile, len: usize) -> SysResult<Vec<u8>> {
    let mut out = vec![0; len];
    let n = file.file.read(file, &mut Buf::own_mut(&mut out))?;
    out.truncate(n);
    Ok(out)
}

fn write(file: &OpenFile, data: &[u8]) -> SysResult<usize> {
    file.file.write(file, &mut Buf::own(data))
}

fn events(set: &Epoll, ms: u64) -> Vec<Event> {
    set.wait(64, clock::deadline_in(ms * 1_000_000))
        .expect("no failure")
}

#[test]
fn bytes_go_both_ways_and_the_end_is_seen() {
    let (file, socket, mut peer) = connected(0);
    assert_eq!(write(&file, b"question"), Ok(8));
    let mut got = [0; 8];
    peer.read_exact(&mut got).expect("reads");
    assert_eq!(&got, b"question");
    let answer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(5));
        peer.write_all(b"answer").expect("writes");
    });
    assert_eq!(read(&file, 100), Ok(b"answer".to_vec()));
    answer.join().expect("peer");
    assert_eq!(read(&file, 100), Ok(vec![]));
    assert_eq!(socket.peer_name().map(|a| a.family()), Ok(family::INET));
    assert_eq!(file.file.stat().map(|s| s.mode & 0o170_000), Ok(S_IFSOCK));
}

#[test]
fn large_transfers_pass_in_parts() {
    let (file, _, mut peer) = connected(0);
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 253) as u8).collect();
    let echo = std::thread::spawn(move || {
        let mut all = vec![0; 3_000_000];
        peer.read_exact(&mut all).expect("reads");
        std::thread::sleep(Duration::from_millis(2));
        peer.write_all(&all).expect("writes");
    });
    assert_eq!(write(&file, &data), Ok(data.len()));
    let mut back = vec![0; data.len()];
    let socket = file.file.as_any().downcast_ref::<HostSocket>().expect("a socket");
    let got = socket.receive(
        &file,
        &mut Buf::own_mut(&mut back),
        Wanted::default(),
        msg::WAITALL,
    );
    assert_eq!(got.map(|r| r.len), Ok(data.len()));
    assert!(back == data);
    echo.join().expect("peer");
}

#[test]
fn a_full_socket_gives_eagain_and_becomes_writable_again() {
    let (file, _, mut peer) = connected(O_NONBLOCK);
    let chunk = vec![1u8; 1 << 20];
    let mut total = 0;
    let error = loop {
        match write(&file, &chunk) {
            Ok(n) => total += n,
            Err(e) => break e,
        }
    };
    assert_eq!(error, Errno::EAGAIN);
    let set = Epoll::new();
    set.add(3, &file, ready::OUT, 1).expect("adds");
    assert_eq!(events(&set, 5), []);
    let reader = std::thread::spawn(move || {
        let mut sink = vec![0; total];
        peer.read_exact(&mut sink).expect("reads");
        peer
    });
    assert_eq!(
        events(&set, 5000),
        [Event {
            bits: ready::OUT,
            data: 1
        }]
    );
    drop(reader.join());
}

#[test]
fn a_request_and_its_answer_cost_two_requests() {
    let (file, socket, mut peer) = connected(O_NONBLOCK);
    let set = Epoll::new();
    set.add(3, &file, ready::IN, 1).expect("adds");
    assert_eq!(events(&set, 1), [], "doubt is cleared up first");
    let number = socket.fd();
    let turns = 20;
    let before = [HostOp::Read, HostOp::Write, HostOp::RecvMsg].map(|op| testing::count(number, op));
    for _ in 0..turns {
        peer.write_all(b"get").expect("writes");
        assert_eq!(
            events(&set, 5000),
            [Event {
                bits: ready::IN,
                data: 1
            }]
        );
        assert_eq!(
            socket.link.readiness.doubtful() & ready::IN,
            0,
            "no question needed"
        );
        assert_eq!(read(&file, 16384), Ok(b"get".to_vec()));
        assert_eq!(write(&file, b"value"), Ok(5));
        let mut got = [0; 5];
        peer.read_exact(&mut got).expect("reads");
    }
    let after = [HostOp::Read, HostOp::Write, HostOp::RecvMsg].map(|op| testing::count(number, op));
    assert_eq!([0, 1, 2].map(|i| after[i] - before[i]), [turns, turns, 0]);
    assert_eq!(events(&set, 2), []);
}

#[test]
fn level_triggered_waiting_is_exact_after_full_reads() {
    let (file, _, mut peer) = connected(O_NONBLOCK);
    let set = Epoll::new();
    set.add(3, &file, ready::IN | ready::RDHUP, 1).expect("adds");
    peer.write_all(b"12345678").expect("writes");
    let told = [Event {
        bits: ready::IN,
        data: 1,
    }];
    assert_eq!(events(&set, 5000), told);
    assert_eq!(read(&file, 4), Ok(b"1234".to_vec()));
    assert_eq!(events(&set, 5000), told);
    assert_eq!(read(&file, 4), Ok(b"5678".to_vec()));
    assert_eq!(events(&set, 3), [], "a full read that took the last");
    assert_eq!(read(&file, 4), Err(Errno::EAGAIN));
    drop(peer);
    assert_eq!(
        events(&set, 5000),
        [Event {
            bits: ready::IN | ready::RDHUP,
            data: 1
        }]
    );
    assert_eq!(read(&file, 4), Ok(vec![]));
    assert_eq!(events(&set, 5000).len(), 1, "the end stays");
}

#[test]
fn edge_triggered_waiting_tells_of_new_data_only() {
    let (file, _, mut peer) = connected(O_NONBLOCK);
    let set = Epoll::new();
    set.add(3, &file, ready::IN | flag::ET, 1).expect("adds");
    assert_eq!(events(&set, 2), []);
    peer.write_all(b"abc").expect("writes");
    assert_eq!(events(&set, 5000).len(), 1);
    assert_eq!(events(&set, 3), []);
    peer.write_all(b"d").expect("writes");
    assert_eq!(events(&set, 5000).len(), 1);
    assert_eq!(read(&file, 100), Ok(b"abcd".to_vec()));
}

#[test]
fn connections_are_accepted_and_refused() {
    testing::start();
    let (file, socket) = open(
        HostSocket::create(family::INET, Kind::Stream, 0).expect("creates"),
        0,
    );
    socket.bind(&loopback(0)).expect("binds");
    socket.listen(5).expect("listens");
    let port = port_of(&socket.name().expect("named"));
    let client = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(5));
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        stream.write_all(b"hello").expect("writes");
    });
    let (accepted, from) = socket.accept(&file).expect("accepts");
    assert_eq!(from.map(|a| a.family()), Some(family::INET));
    let conn = OpenFile::new(accepted, 2, Vec::new());
    assert_eq!(read(&conn, 10), Ok(b"hello".to_vec()));
    client.join().expect("client");
    file.set_flags(O_NONBLOCK, O_NONBLOCK);
    assert_eq!(socket.accept(&file).err(), Some(Errno::EAGAIN));
    drop(file);
    drop(socket);
    let (file, socket) = open(
        HostSocket::create(family::INET, Kind::Stream, 0).expect("creates"),
        0,
    );
    assert_eq!(socket.poll(), ready::OUT | ready::WRNORM | ready::HUP);
    assert_eq!(socket.connect(&file, &loopback(port)), Err(Errno::ECONNREFUSED));
}

#[test]
fn a_listener_never_takes_data() {
    testing::start();
    let socket = HostSocket::create(family::INET, Kind::Stream, 0).expect("creates");
    let (file, socket) = open(socket, O_NONBLOCK);
    socket.bind(&loopback(0)).expect("binds");
    socket.listen(5).expect("listens");
    let set = Epoll::new();
    set.add(3, &file, ready::OUT, 1).expect("adds");
    assert_eq!(events(&set, 2), []);
    let port = port_of(&socket.name().expect("named"));
    let _client = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    assert_eq!(
        events(&set, 2),
        [],
        "a connection that waits changes nothing about that"
    );
    set.modify(3, &file, ready::IN | ready::OUT, 1).expect("modifies");
    let told = Event {
        bits: ready::IN,
        data: 1,
    };
    assert_eq!(events(&set, 5000), [told]);
}

#[test]
fn a_nonblocking_connect_is_told_by_epoll() {
    testing::start();
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("bound").port();
    let socket = HostSocket::create(family::INET, Kind::Stream, 0).expect("creates");
    let (file, socket) = open(socket, O_NONBLOCK);
    let set = Epoll::new();
    set.add(3, &file, ready::OUT | flag::ET, 1).expect("adds");
    assert_eq!(
        events(&set, 1),
        [Event {
            bits: ready::OUT | ready::HUP,
            data: 1
        }]
    );
    match socket.connect(&file, &loopback(port)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(
        events(&set, 5000),
        [Event {
            bits: ready::OUT,
            data: 1
        }]
    );
    assert_eq!(socket.option(1, 4, 4), Ok(vec![0; 4]));
    assert!(socket.peer_name().is_ok());
}

#[test]
fn datagrams_keep_their_borders_and_senders() {
    testing::start();
    let peer = UdpSocket::bind("127.0.0.1:0").expect("binds");
    let (file, socket) = open(
        HostSocket::create(family::INET, Kind::Datagram, 0).expect("creates"),
        0,
    );
    socket.bind(&loopback(0)).expect("binds");
    let port = port_of(&socket.name().expect("named"));
    for data in [&b"first"[..], b"", b"third message"] {
        peer.send_to(data, ("127.0.0.1", port)).expect("sends");
    }
    let receive = |len: usize, flags: u32| {
        let mut out = vec![0; len];
        let wanted = Wanted {
            address: true,
            control: 0,
        };
        let got = socket
            .receive(&file, &mut Buf::own_mut(&mut out), wanted, flags)
            .expect("receives");
        (got.len, got.flags, got.from.map(|a| port_of(&a)), out)
    };
    let sender = peer.local_addr().expect("bound").port();
    let from = Some(sender);
    assert_eq!(receive(5, msg::PEEK), (5, 0, from, b"first".to_vec()));
    assert_eq!(receive(5, 0), (5, 0, from, b"first".to_vec()));
    assert_eq!(receive(5, 0).0, 0);
    assert_eq!(receive(5, msg::TRUNC), (13, msg::TRUNC, from, b"third".to_vec()));
    let to = loopback(sender);
    assert_eq!(
        socket.send(&file, &mut Buf::own(b"back"), Some(&to), Control::default(), 0),
        Ok(4)
    );
    let mut got = [0; 10];
    assert_eq!(peer.recv(&mut got).expect("receives"), 4);
    let huge = vec![0; 200_000];
    let sent = socket.send(&file, &mut Buf::own(&huge), Some(&to), Control::default(), 0);
    assert_eq!(sent, Err(Errno::EMSGSIZE));
}

#[test]
fn timeouts_and_signals_end_a_wait() {
    let (file, socket, _peer) = connected(0);
    let time: Vec<u8> = [0u64, 5000].iter().flat_map(|w| w.to_ne_bytes()).collect();
    socket.set_option(1, 20, &time).expect("sets");
    assert_eq!(socket.option(1, 20, 16), Ok(time));
    assert_eq!(read(&file, 1), Err(Errno::EAGAIN));
    socket.set_option(1, 20, &[0; 16]).expect("sets");
    crate::sched::current().signal.store(true, Ordering::SeqCst);
    assert_eq!(read(&file, 1), Err(Errno::ERESTARTSYS));
    crate::sched::current().signal.store(false, Ordering::SeqCst);
}

#[test]
fn options_pass_by_list() {
    let (_file, socket, _peer) = connected(0);
    socket.set_option(6, 1, &1i32.to_ne_bytes()).expect("TCP_NODELAY");
    assert_eq!(socket.option(6, 1, 4), Ok(vec![1, 0, 0, 0]));
    assert_eq!(socket.option(1, 3, 4), Ok(vec![1, 0, 0, 0]));
    assert_eq!(socket.set_option(1, 3, &[0; 4]), Err(Errno::ENOPROTOOPT));
    assert_eq!(
        socket.set_option(1, 26, &[0; 16]),
        Err(Errno::ENOPROTOOPT),
        "no filters"
    );
    assert!(socket.option(6, 11, 1000).expect("TCP_INFO").len() > 100);
}

#[test]
fn a_broken_connection_is_told_and_a_waiting_poll_is_exact() {
    let (file, _, peer) = connected(0);
    let watch = |file: &Arc<OpenFile>| crate::fs::poll::Watch {
        open: Some(file.clone()),
        events: ready::IN | ready::HUP | ready::ERR,
        found: 0,
    };
    // The descriptor waits, so what it shows was asked of the host.
    let mut watches = [watch(&file)];
    assert_eq!(
        crate::fs::poll::wait_any(&mut watches, clock::deadline_in(2_000_000)),
        Ok(0)
    );
    drop(peer);
    assert_eq!(crate::fs::poll::wait_any(&mut watches, u64::MAX), Ok(1));
    assert_eq!(read(&file, 10), Ok(vec![]));
    let error = (0..1000).find_map(|_| {
        std::thread::sleep(Duration::from_millis(1));
        write(&file, b"x").err()
    });
    assert!(matches!(error, Some(Errno::EPIPE | Errno::ECONNRESET)));
}

/// Whatever is written and read in whatever pieces: while data is there, waiting finds it; when none is, a
/// descriptor that waits is never told of any.
#[test]
fn waiting_agrees_with_the_data_in_random_runs() {
    for (seed, flags) in [(1u64, 0), (2, 0), (3, O_NONBLOCK)] {
        let (file, _, mut peer) = connected(flags);
        let set = Epoll::new();
        set.add(3, &file, ready::IN, 1).expect("adds");
        let mut state = seed;
        let mut next = move |below: u64| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let mut there = 0usize;
        for _ in 0..250 {
            match next(3) {
                0 => {
                    let len = next(3000) as usize + 1;
                    peer.write_all(&vec![1; len]).expect("writes");
                    there += len;
                }
                1 if there > 0 => {
                    let asked = next(4000) as usize + 1;
                    there -= read(&file, asked).expect("reads").len();
                }
                _ if there > 0 => assert_eq!(events(&set, 5000).len(), 1, "{there} bytes are there"),
                _ if flags == 0 => assert_eq!(events(&set, 0), [], "nothing is there"),
                _ => assert_eq!(read(&file, 10), Err(Errno::EAGAIN)),
            }
        }
    }
}
