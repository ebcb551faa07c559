//! The private network against the real one: what stays inside, what goes out, what comes in.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::LazyLock;
use std::time::Duration;

use cloak_abi::config::Published;

use super::network::{self, Settings};
use super::*;
use crate::errno::{Errno, SysResult};
use crate::fs::OpenFile;
use crate::fs::fd::O_NONBLOCK;
use crate::fs::file::ready;
use crate::net::address::{Address, family};
use crate::net::control::Control;
use crate::net::socket::{Kind, Socket, Wanted, msg, socket_of};
use crate::testing;
use crate::user::Buf;
use alloc::sync::Arc;

/// Ports of the guest that are published.
const STREAM: u16 = 1080;
const DATAGRAM: u16 = 1053;

/// Where they are on the host.
static HOST: LazyLock<(u16, u16)> = LazyLock::new(|| {
    testing::start();
    let stream = TcpListener::bind("127.0.0.1:0").expect("a port");
    let datagram = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let ports = (
        stream.local_addr().expect("bound").port(),
        datagram.local_addr().expect("bound").port(),
    );
    let published = |datagrams, port, host: u16| Published {
        datagrams,
        port,
        host: ([127, 0, 0, 1], host).into(),
    };
    network::set(Settings {
        published: vec![
            published(false, STREAM, ports.0),
            published(true, DATAGRAM, ports.1),
        ],
        ..Settings::default()
    });
    ports
});

struct Open(Arc<OpenFile>);

impl Open {
    fn new(domain: u16, kind: Kind, flags: u32) -> Self {
        LazyLock::force(&HOST);
        let socket = PrivateSocket::create(domain, kind, 0).expect("creates");
        Self(OpenFile::new(socket, flags | 2, Vec::new()))
    }

    fn socket(&self) -> &dyn Socket {
        socket_of(&self.0).expect("a socket")
    }

    fn name(&self) -> String {
        endpoint::parse(&self.socket().name().expect("named"))
            .expect("an end")
            .to_string()
    }

    fn peer(&self) -> SysResult<String> {
        Ok(endpoint::parse(&self.socket().peer_name()?)
            .expect("an end")
            .to_string())
    }

    fn bind(&self, at: &str) -> SysResult<()> {
        self.socket().bind(&end(at))
    }

    fn connect(&self, to: &str) -> SysResult<()> {
        self.socket().connect(&self.0, &end(to))
    }

    fn accept(&self) -> SysResult<Self> {
        let (file, _) = self.socket().accept(&self.0)?;
        Ok(Self(OpenFile::new(file, 2, Vec::new())))
    }

    fn write(&self, data: &[u8]) -> SysResult<usize> {
        let mut from = Buf::own(data);
        self.socket()
            .send(&self.0, &mut from, None, Control::default(), msg::NOSIGNAL)
    }

    fn send(&self, data: &[u8], to: &str) -> SysResult<usize> {
        let mut from = Buf::own(data);
        self.socket()
            .send(&self.0, &mut from, Some(&end(to)), Control::default(), 0)
    }

    fn read(&self) -> SysResult<Vec<u8>> {
        self.receive().map(|(data, _)| data)
    }

    fn receive(&self) -> SysResult<(Vec<u8>, Option<String>)> {
        let mut out = vec![0; 100];
        let wanted = Wanted {
            address: true,
            control: 0,
        };
        let got = self
            .socket()
            .receive(&self.0, &mut Buf::own_mut(&mut out), wanted, 0)?;
        out.truncate(got.len);
        let from = got
            .from
            .map(|from| endpoint::parse(&from).expect("an end").to_string());
        Ok((out, from))
    }

    fn error(&self) -> i32 {
        let value = self.socket().option(1, 4, 4).expect("SO_ERROR");
        i32::from_ne_bytes(value.try_into().expect("four bytes"))
    }
}

fn end(text: &str) -> Address {
    let end: core::net::SocketAddr = text.parse().expect("an address");
    endpoint::shown(end, endpoint::family_of(end)).expect("fits")
}

fn listener(at: &str) -> Open {
    let listener = Open::new(
        endpoint::family_of(at.parse().expect("an address")),
        Kind::Stream,
        0,
    );
    listener.bind(at).expect("free");
    listener.socket().listen(5).expect("listens");
    listener
}

#[test]
fn a_connection_inside_has_two_names_and_carries_bytes_both_ways() {
    let listener = listener("0.0.0.0:2001");
    for to in [
        "127.0.0.1:2001",
        "192.0.0.2:2001",
        "0.0.0.0:2001",
        "127.9.9.9:2001",
    ] {
        let near = Open::new(family::INET, Kind::Stream, 0);
        near.connect(to).expect("connects");
        let far = listener.accept().expect("accepts");
        assert_eq!(
            (near.peer(), far.peer()),
            (Ok(far.name()), Ok(near.name())),
            "{to}"
        );
        assert_eq!((near.write(b"ping"), far.read()), (Ok(4), Ok(b"ping".to_vec())));
        assert_eq!((far.write(b"pong"), near.read()), (Ok(4), Ok(b"pong".to_vec())));
        far.socket().shutdown(1).expect("connected");
        assert_eq!(near.read(), Ok(Vec::new()));
        assert_eq!((near.write(b"still"), far.read()), (Ok(5), Ok(b"still".to_vec())));
        drop(near);
        assert_eq!(far.read(), Ok(Vec::new()));
        assert_eq!(far.write(b"x"), Err(Errno::EPIPE));
    }
    let six = Open::new(family::INET6, Kind::Stream, 0);
    assert_eq!(
        six.connect("[::1]:2001"),
        Err(Errno::ECONNREFUSED),
        "it listens for IPv4 only"
    );
    six.connect("[::ffff:127.0.0.1]:2001").expect("connects");
    assert_eq!(
        six.socket().peer_name().expect("connected").family(),
        family::INET6
    );
}

#[test]
fn who_does_not_wait_is_told_afterwards() {
    let listener = listener("127.0.0.1:2002");
    let near = Open::new(family::INET, Kind::Stream, O_NONBLOCK);
    assert_eq!(near.connect("127.0.0.1:2002"), Err(Errno::EINPROGRESS));
    assert_eq!(near.0.file.poll() & (ready::OUT | ready::ERR), ready::OUT);
    assert_eq!(near.connect("127.0.0.1:2002"), Ok(()));
    assert_eq!(near.connect("127.0.0.1:2002"), Err(Errno::EISCONN));
    drop(listener);
    let refused = Open::new(family::INET, Kind::Stream, O_NONBLOCK);
    assert_eq!(refused.connect("127.0.0.1:2002"), Err(Errno::EINPROGRESS));
    assert_ne!(refused.0.file.poll() & ready::ERR, 0);
    assert_eq!(
        (refused.error(), refused.error()),
        (Errno::ECONNREFUSED.number(), 0)
    );
    let empty = self::listener("127.0.0.1:2003");
    empty.0.set_flags(O_NONBLOCK, O_NONBLOCK);
    assert!(matches!(empty.accept(), Err(Errno::EAGAIN)));
    assert_eq!(
        near.write(b"unread"),
        Err(Errno::EPIPE),
        "its listener went before it was accepted"
    );
}

#[test]
fn a_lingering_end_without_time_is_a_reset() {
    let listener = listener("127.0.0.1:2004");
    let near = Open::new(family::INET, Kind::Stream, 0);
    near.connect("127.0.0.1:2004").expect("connects");
    let far = listener.accept().expect("accepts");
    let linger = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
    near.socket().set_option(1, 13, &linger).expect("an option");
    drop(near);
    assert_eq!(far.read(), Err(Errno::ECONNRESET));
}

#[test]
fn datagrams_inside_go_to_who_is_meant() {
    let (all, one) = (
        Open::new(family::INET6, Kind::Datagram, O_NONBLOCK),
        Open::new(family::INET, Kind::Datagram, O_NONBLOCK),
    );
    all.bind("[::]:2005").expect("free");
    one.bind("127.0.0.1:0").expect("free");
    assert_eq!(one.send(b"hello", "127.0.0.1:2005"), Ok(5));
    assert_eq!(all.receive(), Ok((b"hello".to_vec(), Some(one.name()))));
    one.connect("127.0.0.1:2005").expect("named");
    assert_eq!((one.write(b"again"), all.read()), (Ok(5), Ok(b"again".to_vec())));
    // Another peer gives it another address, as the C library relies on when it sorts addresses.
    let both = Open::new(family::INET6, Kind::Datagram, 0);
    for (to, own) in [
        ("[::1]:9", "[::1]"),
        ("127.0.0.1:9", "127.0.0.1"),
        ("192.0.0.2:9", "192.0.0.2"),
    ] {
        both.connect(to).expect("named");
        assert!(both.name().starts_with(own), "{to}: {}", both.name());
        both.socket()
            .connect(&both.0, &Address::unnamed(family::UNSPEC))
            .expect("dissolved");
    }
    let stranger = Open::new(family::INET, Kind::Datagram, 0);
    assert_eq!(stranger.send(b"psst", &one.name()), Ok(4));
    assert_eq!(one.read(), Err(Errno::EAGAIN), "only its peer is heard");
    drop(all);
    assert_eq!(one.write(b"lost"), Ok(4));
    assert_eq!(one.write(b"told"), Err(Errno::ECONNREFUSED));
}

/// The attack: a server on the host's loopback interface, which the program must not reach by any name.
#[test]
fn the_hosts_loopback_interface_is_not_ours() {
    let real = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = real.local_addr().expect("bound").port();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok(), "it is there");
    for ip in ["127.0.0.1", "127.1.2.3", "0.0.0.0", "192.0.0.2"] {
        let socket = Open::new(family::INET, Kind::Stream, 0);
        assert_eq!(
            socket.connect(&format!("{ip}:{port}")),
            Err(Errno::ECONNREFUSED),
            "{ip}"
        );
    }
    for (ip, errno) in [
        ("192.0.0.1", Errno::EHOSTUNREACH),
        ("224.0.0.1", Errno::ENETUNREACH),
    ] {
        let socket = Open::new(family::INET, Kind::Stream, 0);
        assert_eq!(socket.connect(&format!("{ip}:{port}")), Err(errno));
    }
    for ip in ["[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:0.0.0.0]"] {
        let socket = Open::new(family::INET6, Kind::Stream, 0);
        assert_eq!(
            socket.connect(&format!("{ip}:{port}")),
            Err(Errno::ECONNREFUSED),
            "{ip}"
        );
    }
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    udp.set_nonblocking(true).expect("set");
    let socket = Open::new(family::INET, Kind::Datagram, 0);
    let to = udp.local_addr().expect("bound");
    assert_eq!(socket.send(b"x", &to.to_string()), Ok(1));
    assert!(udp.recv(&mut [0; 9]).is_err(), "it came out");
    // And nobody there reaches a port that is bound here.
    let inside = listener("0.0.0.0:0");
    let bound = inside
        .name()
        .rsplit(':')
        .next()
        .expect("a port")
        .parse::<u16>()
        .expect("a port");
    assert!(TcpStream::connect(("127.0.0.1", bound)).is_err());
}

#[test]
fn a_published_port_is_reached_from_the_host_and_from_inside() {
    let port = HOST.0;
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "nobody has bound it yet"
    );
    let listener = listener("0.0.0.0:1080");
    let client = std::thread::spawn(move || {
        let mut client = TcpStream::connect(("127.0.0.1", port)).expect("published");
        client
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("set");
        client.write_all(b"from outside").expect("sent");
        let mut answer = [0; 6];
        client.read_exact(&mut answer).expect("answered");
        (client.local_addr().expect("bound").port(), answer)
    });
    let taken = listener.accept().expect("accepts");
    assert_eq!(taken.read(), Ok(b"from outside".to_vec()));
    assert_eq!(taken.write(b"answer"), Ok(6));
    let (port, answer) = client.join().expect("no panic");
    assert_eq!(&answer, b"answer");
    assert_eq!(
        (taken.name(), taken.peer()),
        ("192.0.0.2:1080".into(), Ok(format!("192.0.0.1:{port}")))
    );
    let near = Open::new(family::INET, Kind::Stream, 0);
    near.connect("127.0.0.1:1080").expect("connects");
    assert_eq!(listener.accept().expect("accepts").peer(), Ok(near.name()));
}

#[test]
fn a_published_port_of_datagrams_answers_whom_it_heard_and_nobody_else() {
    let port = HOST.1;
    let server = Open::new(family::INET, Kind::Datagram, 0);
    server.bind("0.0.0.0:1053").expect("free");
    let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
    client
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("set");
    client.send_to(b"asked", ("127.0.0.1", port)).expect("sent");
    let own = client.local_addr().expect("bound").port();
    assert_eq!(
        server.receive(),
        Ok((b"asked".to_vec(), Some(format!("192.0.0.1:{own}"))))
    );
    assert_eq!(server.send(b"answer", &format!("192.0.0.1:{own}")), Ok(6));
    let mut answer = [0; 9];
    let (len, from) = client.recv_from(&mut answer).expect("answered");
    assert_eq!((&answer[..len], from.port()), (&b"answer"[..], port));
    let other = UdpSocket::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("bound")
        .port();
    assert_eq!(
        server.send(b"x", &format!("192.0.0.1:{other}")),
        Err(Errno::EHOSTUNREACH)
    );
    let inside = Open::new(family::INET, Kind::Datagram, 0);
    assert_eq!(inside.send(b"inside", "127.0.0.1:1053"), Ok(6));
    assert_eq!(server.read(), Ok(b"inside".to_vec()));
}

#[test]
fn only_own_addresses_can_be_bound() {
    let socket = Open::new(family::INET, Kind::Stream, 0);
    for ip in ["192.0.0.1", "192.0.0.3", "10.0.0.1", "1.2.3.4"] {
        assert_eq!(socket.bind(&format!("{ip}:0")), Err(Errno::EADDRNOTAVAIL), "{ip}");
    }
    assert_eq!(socket.bind("192.0.0.2:2010"), Ok(()));
    assert_eq!(socket.bind("192.0.0.2:2011"), Err(Errno::EINVAL));
    let other = Open::new(family::INET, Kind::Stream, 0);
    assert_eq!(other.bind("0.0.0.0:2010"), Err(Errno::EADDRINUSE));
    drop(socket);
    assert_eq!(other.bind("0.0.0.0:2010"), Ok(()));
}

#[test]
fn netlink_tells_of_interfaces_and_refuses_changes() {
    let open = Open(OpenFile::new(
        NetlinkSocket::new(Kind::Raw),
        O_NONBLOCK | 2,
        Vec::new(),
    ));
    let ask = |kind: u16, flags: u16, body: &[u8]| {
        let mut request = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
        request.extend(kind.to_ne_bytes());
        request.extend(flags.to_ne_bytes());
        request.extend([7, 0, 0, 0, 0, 0, 0, 0]);
        request.extend(body);
        open.write(&request).expect("taken");
        let mut all = Vec::new();
        let mut part = vec![0; 8192];
        let wanted = Wanted::default();
        while let Ok(got) = open
            .socket()
            .receive(&open.0, &mut Buf::own_mut(&mut part), wanted, 0)
        {
            all.extend_from_slice(&part[..got.len]);
        }
        all
    };
    let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|w| w == part);
    let links = ask(18, 0x301, &[0; 16]);
    assert!(has(&links, b"lo\0") && has(&links, b"eth0\0"));
    let addresses = ask(22, 0x301, &[2, 0, 0, 0, 0, 0, 0, 0]);
    assert!(has(&addresses, &[192, 0, 0, 2]) && has(&addresses, &[127, 0, 0, 1]));
    let routes = ask(26, 0x301, &[2; 12]);
    assert!(has(&routes, &[192, 0, 0, 1]));
    let refused = ask(20, 5, &[2, 0, 0, 0, 1, 0, 0, 0]);
    assert!(has(&refused, &(-1i32).to_ne_bytes()), "EPERM: {refused:?}");
    // No bytes make it stumble.
    let mut seed = 5u64;
    for _ in 0..5000 {
        let bytes: Vec<u8> = (0..60)
            .map(|at| {
                seed = seed
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                if at % 4 == 0 {
                    (seed >> 60) as u8 * 3
                } else {
                    (seed >> 62) as u8
                }
            })
            .collect();
        let _ = open.write(&bytes);
        let mut out = [0; 8192];
        while open.0.file.read(&open.0, &mut Buf::own_mut(&mut out)).is_ok() {}
    }
}
