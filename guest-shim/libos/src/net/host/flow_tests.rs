//! Clients' connections that run ahead, against real loopback sockets.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use super::tests::{loopback, open, read};
use super::*;
use crate::fs::epoll::{Epoll, flag};
use crate::fs::fd::O_NONBLOCK;
use crate::host::CAPACITY;
use crate::net::socket::msg;
use crate::sched::clock;
use crate::testing::{self, count, lie};

/// The ring's slots, of which all tests of the process share one set: a connection runs ahead while there are some.
static SLOTS: RwLock<()> = RwLock::new(());

/// Nobody takes all of them meanwhile.
fn slots_to_spare() -> RwLockReadGuard<'static, ()> {
    SLOTS.read().unwrap_or_else(PoisonError::into_inner)
}

/// A guest's listener with its port.
fn listener() -> (Arc<OpenFile>, Arc<HostSocket>, u16) {
    testing::start();
    let (file, socket) = open(
        HostSocket::create(family::INET, Kind::Stream, 0).expect("creates"),
        0,
    );
    socket.bind(&loopback(0)).expect("binds");
    socket.listen(8).expect("listens");
    let port = socket.name().expect("named").port().expect("a port");
    (file, socket, port)
}

/// A client's connection that a guest has accepted, and the client.
fn accepted(flags: u32) -> (Arc<OpenFile>, TcpStream) {
    let (file, socket, port) = listener();
    let client = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    client.set_nodelay(true).expect("set");
    let (taken, _) = socket.accept(&file).expect("accepts");
    (OpenFile::new(taken, flags | 2, Vec::new()), client)
}

fn host(file: &OpenFile) -> &HostSocket {
    file.file.as_any().downcast_ref().expect("a host socket")
}

fn flow(file: &OpenFile) -> &Arc<Flow> {
    host(file).flow.as_ref().expect("it runs ahead")
}

fn receive(file: &OpenFile, len: usize, flags: u32) -> SysResult<Vec<u8>> {
    let mut out = vec![0; len];
    let got = host(file).receive(file, &mut Buf::own_mut(&mut out), Wanted::default(), flags)?;
    out.truncate(got.len);
    Ok(out)
}

fn write(file: &OpenFile, data: &[u8]) -> SysResult<usize> {
    file.file.write(file, &mut Buf::own(data))
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..60_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{what} has not come");
}

#[test]
fn questions_and_answers_take_no_request_that_is_waited_for() {
    let _slots = slots_to_spare();
    let (file, mut client) = accepted(O_NONBLOCK);
    let set = Epoll::new();
    set.add(3, &file, ready::IN, 7).expect("adds");
    let fd = host(&file).fd();
    let mut back = [0; 8];
    for _ in 0..20 {
        assert_eq!(read(&file, 100), Err(Errno::EAGAIN));
        client.write_all(b"question").expect("sends");
        let told = set
            .wait(8, clock::deadline_in(60_000_000_000))
            .expect("no failure");
        assert_eq!((told.len(), told[0].bits), (1, ready::IN));
        assert_eq!(read(&file, 100), Ok(b"question".to_vec()));
        assert_eq!(write(&file, b"answered"), Ok(8));
        client.read_exact(&mut back).expect("receives");
        assert_eq!(&back, b"answered");
    }
    let waited = [
        HostOp::Read,
        HostOp::RecvMsg,
        HostOp::Write,
        HostOp::SendMsg,
        HostOp::Watch,
    ];
    assert_eq!(waited.map(|op| count(fd, op)), [0; 5]);
}

#[test]
fn a_peek_leaves_what_it_shows_and_the_count_tells_of_it() {
    let _slots = slots_to_spare();
    let (file, mut client) = accepted(0);
    client.write_all(b"first second").expect("sends");
    assert_eq!(receive(&file, 5, msg::PEEK), Ok(b"first".to_vec()));
    assert_eq!(flow(&file).held(), 12);
    assert_eq!(receive(&file, 5, 0), Ok(b"first".to_vec()));
    assert_eq!(receive(&file, 1, msg::TRUNC), Ok(vec![0]), "counted and gone");
    assert_eq!(
        receive(&file, 100, msg::PEEK | msg::DONTWAIT),
        Ok(b"second".to_vec())
    );
    assert_eq!(receive(&file, 3, 0), Ok(b"sec".to_vec()));
    let sender = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(5));
        client.write_all(b" third").expect("sends");
        client
    });
    assert_eq!(receive(&file, 9, msg::WAITALL), Ok(b"ond third".to_vec()));
    assert_eq!(receive(&file, 9, msg::DONTWAIT), Err(Errno::EAGAIN));
    drop(sender.join().expect("sender"));
    assert_eq!(receive(&file, 9, 0), Ok(vec![]));
    assert_eq!(receive(&file, 9, 0), Ok(vec![]), "an end stays one");
}

#[test]
fn what_is_left_of_a_read_is_told_again_by_level_and_not_by_edge() {
    let _slots = slots_to_spare();
    let (file, mut client) = accepted(O_NONBLOCK);
    let (level, edge) = (Epoll::new(), Epoll::new());
    level.add(3, &file, ready::IN, 1).expect("adds");
    edge.add(3, &file, ready::IN | flag::ET, 1).expect("adds");
    client.write_all(b"0123456789").expect("sends");
    let told = |set: &Epoll, ms: u64| {
        set.wait(8, clock::deadline_in(ms * 1_000_000))
            .expect("no failure")
            .len()
    };
    assert_eq!((told(&level, 60_000), told(&edge, 60_000)), (1, 1));
    assert_eq!(read(&file, 4), Ok(b"0123".to_vec()));
    assert_eq!((told(&level, 60_000), told(&edge, 5)), (1, 0));
    assert_eq!(read(&file, 100), Ok(b"456789".to_vec()));
    assert_eq!((told(&level, 5), told(&edge, 5)), (0, 0));
}

#[test]
fn a_client_that_does_not_read_makes_the_writer_wait() {
    let _slots = slots_to_spare();
    let (file, mut client) = accepted(O_NONBLOCK);
    let block: Vec<u8> = (0..32 << 10).map(|n| (n % 251) as u8).collect();
    let mut sent = Vec::new();
    let mut full = 0;
    // What is on its way may still find no room, so the end is not seen at once.
    while full < 3 {
        match write(&file, &block) {
            Ok(len) => {
                sent.extend_from_slice(&block[..len]);
                full = 0;
            }
            Err(error) => {
                assert_eq!(error, Errno::EAGAIN);
                full += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        assert!(sent.len() < 1 << 30);
    }
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        client.read_to_end(&mut all).expect("receives");
        all
    });
    let set = Epoll::new();
    set.add(3, &file, ready::OUT, 1).expect("adds");
    let told = set
        .wait(8, clock::deadline_in(60_000_000_000))
        .expect("no failure");
    assert_eq!(told.len(), 1, "writable again");
    until("room", || match write(&file, b"the end") {
        Ok(len) => {
            sent.extend_from_slice(&b"the end"[..len]);
            true
        }
        Err(error) => error != Errno::EAGAIN,
    });
    drop(set);
    host(&file).shutdown(1).expect("shuts down");
    let all = reader.join().expect("reader");
    assert!(all == sent, "nothing is lost, and all is in order");
}

#[test]
fn a_close_comes_after_what_was_sent() {
    let _slots = slots_to_spare();
    for shuts in [false, true] {
        let (file, mut client) = accepted(O_NONBLOCK);
        for n in 0..50u8 {
            assert_eq!(write(&file, &[n; 1000]), Ok(1000));
        }
        if shuts {
            host(&file).shutdown(1).expect("shuts down");
            assert_eq!(write(&file, b"late"), Err(Errno::EPIPE));
        } else {
            drop(file);
        }
        let mut all = Vec::new();
        client.read_to_end(&mut all).expect("a clean end");
        let right: Vec<u8> = (0..50u8).flat_map(|n| [n; 1000]).collect();
        assert!(all == right);
    }
}

#[test]
fn a_close_with_something_unread_resets() {
    let _slots = slots_to_spare();
    let (file, mut client) = accepted(0);
    client.write_all(b"unread").expect("sends");
    until("the data", || flow(&file).held() > 0);
    drop(file);
    let error = client.read(&mut [0; 10]).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_reset_is_an_error_once_and_an_end_after_it() {
    let _slots = slots_to_spare();
    let reset = || {
        let (file, client) = accepted(O_NONBLOCK);
        // Unread data at the client makes its close a reset.
        assert_eq!(write(&file, b"unread"), Ok(6));
        until("the data", || client.peek(&mut [0; 8]).is_ok_and(|len| len == 6));
        drop(client);
        until("the reset", || flow(&file).has_news());
        file
    };
    let file = reset();
    assert_eq!(read(&file, 10), Err(Errno::ECONNRESET));
    assert_eq!(read(&file, 10), Ok(vec![]));
    let file = reset();
    assert_eq!(
        write(&file, b"answer"),
        Err(Errno::ECONNRESET),
        "whoever calls first is told"
    );
    assert_eq!(write(&file, b"answer"), Err(Errno::EPIPE));
    let file = reset();
    let value = host(&file).option(1, 4, 4).expect("SO_ERROR");
    assert_eq!(value, Errno::ECONNRESET.number().to_ne_bytes());
    assert_eq!(host(&file).option(1, 4, 4), Ok(vec![0; 4]));
}

#[test]
fn a_client_that_ended_its_sending_still_gets_answers() {
    let _slots = slots_to_spare();
    let (file, mut client) = accepted(0);
    client.write_all(b"question").expect("sends");
    client.shutdown(Shutdown::Write).expect("shuts down");
    assert_eq!(receive(&file, 100, msg::WAITALL), Ok(b"question".to_vec()));
    assert_eq!(write(&file, b"answer"), Ok(6));
    drop(file);
    let mut text = String::new();
    client.read_to_string(&mut text).expect("receives");
    assert_eq!(text, "answer");
}

#[test]
fn urgent_data_and_options_of_reception_are_the_hosts_business() {
    let _slots = slots_to_spare();
    let (file, mut client) = accepted(O_NONBLOCK);
    client.write_all(b"before").expect("sends");
    until("the data", || flow(&file).held() == 6);
    // SO_RCVLOWAT
    host(&file).set_option(1, 18, &4i32.to_ne_bytes()).expect("sets");
    assert_eq!(
        read(&file, 100),
        Ok(b"before".to_vec()),
        "what is here comes first"
    );
    assert!(!flow(&file).covers());
    client.write_all(b"after").expect("sends");
    let set = Epoll::new();
    set.add(3, &file, ready::IN, 1).expect("adds");
    assert_eq!(
        set.wait(8, clock::deadline_in(60_000_000_000))
            .expect("no failure")
            .len(),
        1
    );
    assert_eq!(read(&file, 100), Ok(b"after".to_vec()));

    let (file, client) = accepted(O_NONBLOCK);
    host(&file)
        .set_option(1, 18, &1i32.to_ne_bytes())
        .expect("ends a fetch that waits");
    assert!(!flow(&file).covers());
    assert_eq!(read(&file, 100), Err(Errno::EAGAIN));
    drop(client);
}

#[test]
fn what_connects_from_here_does_not_run_ahead() {
    let _slots = slots_to_spare();
    let (file, socket, port) = listener();
    let (ours, near) = open(
        HostSocket::create(family::INET, Kind::Stream, 0).expect("creates"),
        0,
    );
    near.connect(&ours, &loopback(port)).expect("connects");
    let (taken, _) = socket.accept(&file).expect("accepts");
    let far = OpenFile::new(taken, O_NONBLOCK | 2, Vec::new());
    assert!(host(&far).flow.is_none());
    // Who has written at one end finds it at the other.
    for n in 0..50u8 {
        assert_eq!(write(&ours, &[n; 10]), Ok(10));
        assert_eq!(read(&far, 100), Ok(vec![n; 10]));
    }
    drop((ours, near, far));
    let client = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    let (taken, _) = socket.accept(&file).expect("accepts");
    assert!(host(&OpenFile::new(taken, 2, Vec::new())).flow.is_some());
    drop(client);
}

#[test]
fn more_connections_than_the_ring_has_slots_are_served_all_the_same() {
    let _all = SLOTS.write().unwrap_or_else(PoisonError::into_inner);
    let (file, socket, port) = listener();
    let set = Epoll::new();
    let mut all = Vec::new();
    for n in 0..300u64 {
        let client = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        let (taken, _) = socket.accept(&file).expect("accepts");
        let server = OpenFile::new(taken, O_NONBLOCK | 2, Vec::new());
        set.add(n as i32, &server, ready::IN, n).expect("adds");
        all.push((server, client));
    }
    let ahead = all.iter().filter(|(server, _)| flow(server).covers()).count();
    assert!((1..200).contains(&ahead), "{ahead} run ahead");
    for (n, (_, client)) in all.iter_mut().enumerate() {
        client.write_all(&[n as u8; 3]).expect("sends");
    }
    let mut answered = 0;
    while answered < all.len() {
        for event in set
            .wait(64, clock::deadline_in(60_000_000_000))
            .expect("no failure")
        {
            let (server, _) = &all[event.data as usize];
            match read(server, 100) {
                Ok(bytes) => {
                    assert_eq!(bytes, [event.data as u8; 3]);
                    assert_eq!(write(server, &bytes), Ok(3));
                    answered += 1;
                }
                // Told of what a read before took.
                Err(error) => assert_eq!(error, Errno::EAGAIN),
            }
        }
    }
    for (n, (_, client)) in all.iter_mut().enumerate() {
        let mut back = [0; 3];
        client.read_exact(&mut back).expect("receives");
        assert_eq!(back, [n as u8; 3]);
    }
}

#[test]
fn what_the_host_has_told_of_is_read_also_when_slots_come_free_in_between() {
    let _all = SLOTS.write().unwrap_or_else(PoisonError::into_inner);
    testing::start();
    // More than that, as other tests give theirs back meanwhile.
    let taken: Vec<Request> = std::iter::from_fn(|| Request::spare(flow::SPARE_FETCH / 2)).collect();
    let (file, mut client) = accepted(O_NONBLOCK);
    let set = Epoll::new();
    set.add(3, &file, ready::IN, 1).expect("adds");
    client.write_all(b"question").expect("sends");
    let told = set
        .wait(8, clock::deadline_in(60_000_000_000))
        .expect("no failure");
    assert_eq!(told.len(), 1);
    assert!(!flow(&file).covers(), "the host was asked");
    drop(taken);
    assert_eq!(read(&file, 100), Ok(b"question".to_vec()));
}

#[test]
fn answers_that_are_lies_are_errors() {
    let _slots = slots_to_spare();
    for wrong in [CAPACITY as i64 + 1, i64::MAX, i64::MIN, -5000] {
        let (listening, socket, port) = listener();
        let mut client = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        let (taken, _) = socket.accept(&listening).expect("accepts");
        let file = OpenFile::new(taken, O_NONBLOCK | 2, Vec::new());
        lie(host(&file).fd(), move |asked, reply| {
            if asked.op == HostOp::Fetch && asked.args[1] > 0 || asked.op == HostOp::Deliver {
                (wrong, 0)
            } else {
                reply
            }
        });
        assert_eq!(write(&file, b"abc"), Ok(3));
        until("the lie", || flow(&file).settle().is_ok());
        assert_eq!(write(&file, b"abc"), Err(Errno::EIO));
        client.write_all(b"question").expect("sends");
        until("the lie", || flow(&file).has_news());
        assert_eq!(read(&file, 100), Err(Errno::EIO));
    }
}

#[test]
fn a_service_that_never_says_what_became_of_data_is_an_error_at_the_end() {
    let _slots = slots_to_spare();
    let (file, _client) = accepted(O_NONBLOCK);
    flow(&file).pretend_in_flight(1);
    assert_eq!(host(&file).shutdown(1), Err(Errno::EIO));
    flow(&file).pretend_in_flight(0);
    assert_eq!(host(&file).shutdown(1), Ok(()));
}
