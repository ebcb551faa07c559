//! Unix sockets inside the guest.

use std::time::Duration;

use super::*;
use crate::fs::eventfd::EventFd;
use crate::fs::fd::{self, O_NONBLOCK};
use crate::fs::mount::Dir;
use crate::net::messages;
use crate::net::socket::msg;
use crate::process::Process;
use crate::syscall::Args;

type Open = (Arc<OpenFile>, Arc<UnixSocket>);

fn open(socket: Arc<UnixSocket>, flags: u32) -> Open {
    (OpenFile::new(socket.clone(), flags | 2, Vec::new()), socket)
}

fn pair(kind: Kind, flags: u32) -> (Open, Open) {
    let (one, other) = UnixSocket::pair(kind);
    (open(one, flags), open(other, flags))
}

fn send(of: &Open, data: &[u8]) -> SysResult<usize> {
    of.1.send(&of.0, &mut Buf::own(data), None, Control::default(), 0)
}

fn receive(of: &Open, len: usize, flags: u32) -> SysResult<(Vec<u8>, u32)> {
    let mut out = vec![0; len];
    let got =
        of.1.receive(&of.0, &mut Buf::own_mut(&mut out), Wanted::default(), flags)?;
    out.truncate(got.len);
    Ok((out, got.flags))
}

fn abstract_name(name: &str) -> Address {
    let mut bytes = vec![1, 0, 0];
    bytes.extend_from_slice(name.as_bytes());
    Address::new(&bytes).expect("fits")
}

#[test]
fn streams_join_writes_and_messages_keep_borders() {
    let (a, b) = pair(Kind::Stream, O_NONBLOCK);
    assert_eq!((send(&a, b"one"), send(&a, b"two")), (Ok(3), Ok(3)));
    assert_eq!(receive(&b, 4, msg::PEEK), Ok((b"onet".to_vec(), 0)));
    assert_eq!(receive(&b, 4, 0), Ok((b"onet".to_vec(), 0)));
    assert_eq!(receive(&b, 40, 0), Ok((b"wo".to_vec(), 0)));
    assert_eq!(receive(&b, 40, 0), Err(Errno::EAGAIN));
    let (a, b) = pair(Kind::SeqPacket, O_NONBLOCK);
    assert_eq!(
        (send(&a, b"one"), send(&a, b"two"), send(&a, b"")),
        (Ok(3), Ok(3), Ok(0))
    );
    assert_eq!(receive(&b, 2, 0), Ok((b"on".to_vec(), msg::TRUNC)));
    assert_eq!(receive(&b, 20, 0), Ok((b"two".to_vec(), msg::EOR)));
    assert_eq!(receive(&b, 20, 0), Ok((b"".to_vec(), msg::EOR)));
}

#[test]
fn the_end_comes_after_the_data_and_writing_then_breaks() {
    let (a, b) = pair(Kind::Stream, 0);
    assert_eq!(send(&a, b"last"), Ok(4));
    drop(a);
    assert_eq!(
        b.1.poll() & (ready::IN | ready::RDHUP | ready::HUP),
        ready::IN | ready::RDHUP | ready::HUP
    );
    assert_eq!(receive(&b, 10, 0), Ok((b"last".to_vec(), 0)));
    assert_eq!(receive(&b, 10, 0), Ok((vec![], 0)));
    assert_eq!(send(&b, b"x"), Err(Errno::EPIPE));
    let (a, b) = pair(Kind::Stream, 0);
    assert_eq!(send(&a, b"unread"), Ok(6));
    drop(b);
    assert_eq!(receive(&a, 1, 0), Err(Errno::ECONNRESET));
    assert_eq!(receive(&a, 1, 0), Ok((vec![], 0)));
}

#[test]
fn an_ended_socket_has_nothing_left_of_what_was_half_read() {
    let (a, b) = pair(Kind::Stream, 0);
    assert_eq!(send(&a, b"question"), Ok(8));
    assert_eq!(receive(&b, 5, 0), Ok((b"quest".to_vec(), 0)));
    assert_eq!(b.1.inbox.readable_bytes(true), 3);
    b.1.end(false);
    assert_eq!(b.1.inbox.readable_bytes(true), 0);
}

#[test]
fn half_of_a_connection_can_be_shut_down() {
    let (a, b) = pair(Kind::Stream, 0);
    a.1.shutdown(1).expect("shuts down");
    assert_eq!(receive(&b, 1, 0), Ok((vec![], 0)));
    assert_eq!(send(&a, b"x"), Err(Errno::EPIPE));
    assert_eq!(send(&b, b"still"), Ok(5));
    assert_eq!(receive(&a, 10, 0), Ok((b"still".to_vec(), 0)));
    assert_eq!(b.1.poll() & (ready::HUP | ready::RDHUP), ready::RDHUP);
    b.1.shutdown(1).expect("shuts down");
    assert_eq!(
        b.1.poll() & (ready::HUP | ready::RDHUP),
        ready::HUP | ready::RDHUP
    );
}

#[test]
fn a_full_socket_makes_its_writer_wait_and_tells_pollers_of_room() {
    let (a, b) = pair(Kind::Stream, O_NONBLOCK);
    let mut total = 0;
    while let Ok(n) = send(&a, &[5; 10_000]) {
        total += n;
    }
    assert!(total > 100_000 && total <= CAPACITY);
    assert_eq!(a.1.poll() & ready::OUT, 0);
    let set = crate::fs::epoll::Epoll::new();
    set.add(1, &a.0, ready::OUT | crate::fs::epoll::flag::ET, 1)
        .expect("adds");
    assert_eq!(set.wait(1, 0).map(|e| e.len()), Ok(0));
    a.0.set_flags(O_NONBLOCK, 0);
    let writer = std::thread::spawn(move || send(&a, &[6; 300_000]).map(|n| (n, a)));
    let mut got = 0;
    while got < total + 300_000 {
        match receive(&b, 7_000, 0) {
            Ok((data, _)) => got += data.len(),
            Err(e) => {
                assert_eq!(e, Errno::EAGAIN);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    let (n, a) = writer.join().expect("writer").expect("writes");
    assert_eq!((n, a.1.poll() & ready::OUT), (300_000, ready::OUT));
    assert_eq!(set.wait(1, 0).map(|e| e.len()), Ok(1));
}

#[test]
fn names_connect_with_credentials_and_are_free_after_the_close() {
    let name = abstract_name("cloak-test-names");
    let server = open(UnixSocket::new(Kind::Stream), 0);
    assert_eq!(
        open(UnixSocket::new(Kind::Stream), 0).1.connect(&server.0, &name),
        Err(Errno::ECONNREFUSED)
    );
    server.1.bind(&name).expect("binds");
    assert_eq!(server.1.bind(&name), Err(Errno::EINVAL));
    assert_eq!(UnixSocket::new(Kind::Stream).bind(&name), Err(Errno::EADDRINUSE));
    server.1.listen(1).expect("listens");
    let client = open(UnixSocket::new(Kind::Stream), 0);
    client.1.connect(&client.0, &name).expect("connects");
    assert_eq!(server.1.poll(), ready::IN | ready::RDNORM);
    assert_eq!(send(&client, b"early"), Ok(5));
    let (accepted, from) = server.1.accept(&server.0).expect("accepts");
    assert_eq!(from, Some(Address::unnamed(1)));
    let file = OpenFile::new(accepted, 2, Vec::new());
    let mut out = [0; 9];
    assert_eq!(file.file.read(&file, &mut Buf::own_mut(&mut out)), Ok(5));
    assert_eq!((client.1.peer_name(), server.1.name()), (Ok(name), Ok(name)));
    let own = Sender::current().bytes().to_vec();
    assert_eq!(client.1.option(1, 17, 12), Ok(own));
    let wrong = open(UnixSocket::new(Kind::SeqPacket), 0);
    assert_eq!(wrong.1.connect(&wrong.0, &name), Err(Errno::EPROTOTYPE));
    drop(server);
    UnixSocket::new(Kind::Stream).bind(&name).expect("free again");
}

#[test]
fn a_full_backlog_makes_clients_wait_until_it_moves_or_closes() {
    let name = abstract_name("cloak-test-backlog");
    let server = open(UnixSocket::new(Kind::Stream), 0);
    server.1.bind(&name).expect("binds");
    server.1.listen(0).expect("listens");
    let connect = |flags| {
        let client = open(UnixSocket::new(Kind::Stream), flags);
        client.1.connect(&client.0, &name).map(|()| client)
    };
    let _first = connect(0).expect("connects");
    assert_eq!(connect(O_NONBLOCK).err(), Some(Errno::EAGAIN));
    let waits = || {
        std::thread::spawn(move || {
            let client = open(UnixSocket::new(Kind::Stream), 0);
            client
                .1
                .connect(&client.0, &abstract_name("cloak-test-backlog"))
                .map(|()| client)
        })
    };
    let second = waits();
    std::thread::sleep(Duration::from_millis(5));
    server.1.accept(&server.0).expect("accepts");
    assert!(second.join().expect("client").is_ok());
    let third = waits();
    std::thread::sleep(Duration::from_millis(5));
    drop(server);
    assert_eq!(third.join().expect("client").err(), Some(Errno::ECONNREFUSED));
}

#[test]
fn a_connection_that_nobody_accepted_is_reset() {
    let name = abstract_name("reset");
    let server = open(UnixSocket::new(Kind::Stream), 0);
    server.1.bind(&name).expect("binds");
    server.1.listen(4).expect("listens");
    let clients = [(); 2].map(|()| open(UnixSocket::new(Kind::Stream), O_NONBLOCK));
    for client in &clients {
        client.1.connect(&client.0, &name).expect("connects");
    }
    let (accepted, _) = server.1.accept(&server.0).expect("accepts");
    assert_eq!(clients[1].1.poll() & (ready::ERR | ready::HUP), 0);
    server.1.closed(&server.0);
    let reset = Errno::ECONNRESET.number().to_ne_bytes().to_vec();
    assert_ne!(clients[1].1.poll() & ready::ERR, 0);
    assert_eq!(clients[1].1.option(1, 4, 4), Ok(reset));
    assert_eq!(clients[1].1.option(1, 4, 4), Ok(vec![0; 4]), "told once");
    assert_eq!(clients[1].1.poll() & (ready::ERR | ready::HUP), ready::HUP);
    // The one that was accepted goes on, and ends without an error.
    assert_eq!(send(&clients[0], b"x"), Ok(1));
    drop(accepted);
    assert_eq!(receive(&clients[0], 4, 0), Err(Errno::ECONNRESET), "unread");
    assert_eq!(receive(&clients[0], 4, 0), Ok((vec![], 0)));
}

#[test]
fn shutting_a_listener_down_ends_its_accepts() {
    let name = abstract_name("cloak-test-shut");
    let server = open(UnixSocket::new(Kind::Stream), 0);
    server.1.bind(&name).expect("binds");
    server.1.listen(1).expect("listens");
    let other = server.1.clone();
    let waiter = std::thread::spawn(move || {
        let file = OpenFile::new(Arc::new(EventFd::new(0, false)), 2, Vec::new());
        other.accept(&file).err()
    });
    std::thread::sleep(Duration::from_millis(3));
    server.1.shutdown(2).expect("shuts down");
    assert_eq!(waiter.join().expect("waiter"), Some(Errno::EINVAL));
    let client = open(UnixSocket::new(Kind::Stream), 0);
    assert_eq!(client.1.connect(&client.0, &name), Err(Errno::ECONNREFUSED));
}

#[test]
fn datagrams_go_to_names_and_say_where_they_come_from() {
    let (here, there) = (
        abstract_name("cloak-test-here"),
        abstract_name("cloak-test-there"),
    );
    let (a, b) = (
        open(UnixSocket::new(Kind::Datagram), O_NONBLOCK),
        open(UnixSocket::new(Kind::Datagram), O_NONBLOCK),
    );
    a.1.bind(&here).expect("binds");
    b.1.bind(&there).expect("binds");
    assert_eq!(
        a.1.send(&a.0, &mut Buf::own(b"hi"), Some(&there), Control::default(), 0),
        Ok(2)
    );
    let mut out = [0; 9];
    let wanted = Wanted {
        address: true,
        control: 0,
    };
    let got =
        b.1.receive(&b.0, &mut Buf::own_mut(&mut out), wanted, 0)
            .expect("receives");
    assert_eq!((got.len, got.from), (2, Some(here)));
    b.1.connect(&b.0, &here).expect("connects");
    assert_eq!(send(&b, b"back"), Ok(4));
    assert_eq!(receive(&a, 9, 0), Ok((b"back".to_vec(), 0)));
    let stranger = open(UnixSocket::new(Kind::Datagram), O_NONBLOCK);
    let sent = stranger.1.send(
        &stranger.0,
        &mut Buf::own(b"x"),
        Some(&there),
        Control::default(),
        0,
    );
    assert_eq!(sent, Err(Errno::EPERM), "it is connected to another");
    drop(a);
    assert_eq!(send(&b, b"gone"), Err(Errno::ECONNREFUSED));
    assert_eq!(send(&stranger, b"x"), Err(Errno::ENOTCONN));
    assert_eq!(
        b.1.send(
            &b.0,
            &mut Buf::own(&vec![0; 300_000]),
            None,
            Control::default(),
            0
        ),
        Err(Errno::EMSGSIZE)
    );
}

#[test]
fn a_bind_without_a_name_chooses_one() {
    let socket = open(UnixSocket::new(Kind::Datagram), 0).1;
    socket.bind(&Address::unnamed(1)).expect("binds");
    let name = socket.name().expect("named");
    assert_eq!((name.bytes().len(), name.body()[0]), (8, 0));
}

#[test]
fn open_files_and_credentials_travel_with_messages() {
    let files = &Process::current().files;
    let mut numbers = [0i32; 2];
    let args = Args([1, 1, 0, numbers.as_mut_ptr() as u64, 0, 0]);
    assert_eq!(super::super::calls::socketpair(&args), Ok(0));
    let event = OpenFile::new(Arc::new(EventFd::new(5, false)), 2, Vec::new());
    let carried = files.insert(event.clone(), false, 0).expect("inserts");
    fd::get(numbers[1]).map(|o| socket_on(&o)).expect("open");
    let mut control = Vec::new();
    crate::net::control::append(&mut control, 1, 1, &carried.to_ne_bytes());
    let payload = *b"with";
    let segment = [payload.as_ptr() as u64, 4];
    let header = messages::header_for_tests(&segment, &mut [], &mut control);
    let at = header.as_ptr() as u64;
    assert_eq!(
        messages::sendmsg(&Args([numbers[0] as u64, at, 0, 0, 0, 0])),
        Ok(4)
    );
    drop(files.remove(carried));

    let (mut space, mut into) = ([0u8; 128], [0u8; 16]);
    let segment = [into.as_mut_ptr() as u64, 16];
    let header = messages::header_for_tests(&segment, &mut [], &mut space);
    let at = header.as_ptr() as u64;
    assert_eq!(
        messages::recvmsg(&Args([numbers[1] as u64, at, 0, 0, 0, 0])),
        Ok(4)
    );
    let word = |at: usize| i32::from_ne_bytes([space[at], space[at + 1], space[at + 2], space[at + 3]]);
    // Credentials come first (28 bytes, padded to 32), then the descriptor.
    assert_eq!((word(12), word(16)), (2, Sender::current().pid));
    assert_eq!((word(32), word(44)), (20, 1));
    let received = fd::get(word(48)).expect("a descriptor");
    assert!(Arc::ptr_eq(&received, &event));
}

fn socket_on(open: &OpenFile) {
    let socket = open
        .file
        .as_any()
        .downcast_ref::<UnixSocket>()
        .expect("a Unix socket");
    socket
        .set_option(1, 16, &1i32.to_ne_bytes())
        .expect("SO_PASSCRED");
}

#[test]
fn many_threads_lose_and_tear_nothing() {
    let (a, b) = pair(Kind::SeqPacket, 0);
    let a = Arc::new(a);
    let senders: Vec<_> = (1..=3u8)
        .map(|tag| {
            let a = a.clone();
            std::thread::spawn(move || {
                (0..400).for_each(|i| assert_eq!(send(&a, &vec![tag; 1 + i * 7]), Ok(1 + i * 7)))
            })
        })
        .collect();
    drop(a);
    let mut seen = [0usize; 4];
    loop {
        let (data, _) = receive(&b, 10_000, 0).expect("data or the end");
        let Some(&tag) = data.first() else { break };
        assert!(data.iter().all(|&byte| byte == tag));
        assert_eq!(data.len(), 1 + seen[tag as usize] * 7, "in order");
        seen[tag as usize] += 1;
    }
    assert_eq!(seen, [0, 400, 400, 400]);
    senders.into_iter().for_each(|t| t.join().expect("sender"));
}

/// A file system with made-up nodes: what is created exists, and what lies below the host's temporary
/// directory is on a host mount.
struct TestPaths(Mutex<Vec<Vec<u8>>>);

impl names::Paths for TestPaths {
    fn create(&self, path: &[u8]) -> SysResult<names::Place> {
        let mut made = self.0.lock();
        if made.iter().any(|p| p == path) {
            return Err(Errno::EADDRINUSE);
        }
        made.push(path.to_vec());
        Ok(names::Place {
            node: (1, made.len() as u64),
            path: path.to_vec(),
            host: None,
        })
    }

    fn find(&self, path: &[u8]) -> SysResult<names::Place> {
        let made = self.0.lock();
        if let Some(at) = made.iter().position(|p| p == path) {
            return Ok(names::Place {
                node: (1, at as u64 + 1),
                path: path.to_vec(),
                host: None,
            });
        }
        let outside = path.starts_with(std::env::temp_dir().as_os_str().as_encoded_bytes());
        let host = outside.then(|| (Dir::Root(0x4000_0000), path.to_vec()));
        Ok(names::Place {
            node: (2, 1),
            path: path.to_vec(),
            host,
        })
    }
}

fn path_name(path: &[u8]) -> Address {
    let mut bytes = vec![1, 0];
    bytes.extend_from_slice(path);
    bytes.push(0);
    Address::new(&bytes).expect("fits")
}

#[test]
fn paths_lead_to_sockets_inside_first_and_then_to_the_host() {
    static PATHS: TestPaths = TestPaths(Mutex::new(Vec::new()));
    crate::testing::start();
    names::install(&PATHS);
    let server = open(UnixSocket::new(Kind::Stream), 0);
    server.1.bind(&path_name(b"/run/inside")).expect("binds");
    assert_eq!(
        UnixSocket::new(Kind::Stream).bind(&path_name(b"/run/inside")),
        Err(Errno::EADDRINUSE)
    );
    server.1.listen(1).expect("listens");
    let client = open(UnixSocket::new(Kind::Stream), 0);
    client
        .1
        .connect(&client.0, &path_name(b"/run/inside"))
        .expect("connects");
    assert_eq!(
        client.1.connect(&client.0, &path_name(b"/run/inside")),
        Err(Errno::EISCONN)
    );
    let client = open(UnixSocket::new(Kind::Stream), 0);
    assert_eq!(
        client.1.connect(&client.0, &path_name(b"/run/nobody")),
        Err(Errno::ECONNREFUSED)
    );

    let path = std::env::temp_dir().join(format!("cloak-test-{}", std::process::id()));
    drop(std::fs::remove_file(&path));
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("binds");
    let set = crate::fs::epoll::Epoll::new();
    set.add(1, &client.0, ready::IN | crate::fs::epoll::flag::ET, 1)
        .expect("adds");
    client
        .1
        .connect(&client.0, &path_name(path.as_os_str().as_encoded_bytes()))
        .expect("connects");
    let (mut peer, _) = listener.accept().expect("accepts");
    drop(std::fs::remove_file(&path));
    std::io::Write::write_all(&mut peer, b"from outside").expect("writes");
    let deadline = || crate::sched::clock::deadline_in(5_000_000_000);
    let told = (0..3).find_map(|_| {
        let events = set.wait(1, deadline()).expect("no failure");
        events.into_iter().find(|e| e.bits & ready::IN != 0)
    });
    assert!(told.is_some(), "who polled before the connection is told");
    assert_eq!(receive(&client, 40, 0), Ok((b"from outside".to_vec(), 0)));
    let event = OpenFile::new(Arc::new(EventFd::new(5, false)), 2, Vec::new());
    let control = Control {
        rights: vec![event],
        ..Control::default()
    };
    let sent = client.1.send(&client.0, &mut Buf::own(b"x"), None, control, 0);
    assert_eq!(sent, Err(Errno::EINVAL), "no descriptors to the outside");
}
