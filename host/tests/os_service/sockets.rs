//! Sockets and messages.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use cloak_abi::hostop::{ADDR_MAX, CONTROL_MAX, HostOp, ROOT_FD};

use crate::guest::Guest;

pub const TESTS: &[(&str, fn())] = &[
    ("tcp_both_ways", tcp),
    ("a_connection_is_made_without_waiting", connects),
    ("datagrams_carry_addresses", datagrams),
    ("unix_sockets_live_in_the_mount", unix),
    ("unix_names_do_not_lead_out", unix_stays),
    ("descriptors_do_not_pass", descriptors),
    ("only_plain_options_are_known", options),
    ("only_known_sockets_are_made", shapes),
];

const ROOT: u64 = ROOT_FD as u64;
const IN: u32 = libc::EPOLLIN as u32;
const OUT: u32 = libc::EPOLLOUT as u32;
const PAYLOAD: usize = ADDR_MAX + CONTROL_MAX;

fn guest() -> (tempfile::TempDir, Guest) {
    let directory = tempfile::tempdir().expect("tempdir");
    let guest = Guest::new(directory.path());
    (directory, guest)
}

fn socket(guest: &mut Guest, domain: i32, kind: i32) -> u64 {
    guest
        .call(HostOp::Socket, &[domain as u64, kind as u64, 0], &[])
        .ok()
}

fn loopback(port: u16) -> Vec<u8> {
    let mut address = (libc::AF_INET as u16).to_ne_bytes().to_vec();
    address.extend_from_slice(&port.to_be_bytes());
    address.extend_from_slice(&[127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    address
}

fn unix_address(path: &str) -> Vec<u8> {
    let mut address = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    address.extend_from_slice(path.as_bytes());
    address.push(0);
    address
}

fn port_of(address: &[u8]) -> u16 {
    u16::from_be_bytes([address[2], address[3]])
}

fn tcp() {
    let (_directory, mut guest) = guest();
    let listener = socket(&mut guest, libc::AF_INET, libc::SOCK_STREAM);
    let address = loopback(0);
    guest
        .call(HostOp::Bind, &[listener, address.len() as u64], &address)
        .ok();
    guest.call(HostOp::Listen, &[listener, 16], &[]).ok();
    let (answer, name) = guest.call_out(HostOp::SockName, &[listener, 0], &[], 16);
    assert_eq!((answer.ok(), answer.extra), (0, 16));
    assert_eq!(guest.call(HostOp::Accept, &[listener], &[]).err(), libc::EAGAIN);
    guest.call(HostOp::Watch, &[listener, 5], &[]).ok();
    let mut peer = TcpStream::connect(("127.0.0.1", port_of(&name))).expect("connect");
    guest.event_with(5, IN);
    let (accepted, from) = guest.call_out(HostOp::Accept, &[listener], &[], 16);
    assert_eq!(port_of(&from), peer.local_addr().expect("name").port());
    assert_eq!(accepted.extra, 16);
    let fd = accepted.ok();
    assert_eq!(
        guest.call(HostOp::RecvMsg, &[fd, 0, 0, 0, 100], &[]).err(),
        libc::EAGAIN
    );
    peer.write_all(b"question").expect("send");
    guest.call(HostOp::Watch, &[fd, 6], &[]).ok();
    guest.event_with(6, IN);
    let (answer, out) = guest.call_out(HostOp::RecvMsg, &[fd, 0, 0, 0, 100], &[], 8);
    assert_eq!((answer.ok(), &out[..]), (8, &b"question"[..]));
    assert_eq!(guest.call(HostOp::SendMsg, &[fd, 0, 0, 0, 6], b"answer").ok(), 6);
    guest.call(HostOp::Shutdown, &[fd, 1], &[]).ok();
    let mut text = String::new();
    peer.read_to_string(&mut text).expect("receive");
    assert_eq!(text, "answer");
    drop(peer);
    guest.event_with(6, libc::EPOLLRDHUP as u32);
    assert_eq!(guest.call(HostOp::Read, &[fd, 10], &[]).ok(), 0);
    assert_eq!(guest.call(HostOp::Shutdown, &[fd, 9], &[]).err(), libc::EINVAL);
    guest.call(HostOp::Close, &[fd], &[]).ok();
}

fn connects() {
    let (_directory, mut guest) = guest();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let fd = socket(&mut guest, libc::AF_INET, libc::SOCK_STREAM);
    guest.call(HostOp::Watch, &[fd, 9], &[]).ok();
    let address = loopback(listener.local_addr().expect("name").port());
    let answer = guest.call(HostOp::Connect, &[fd, 16], &address);
    assert!(answer.result == 0 || answer.err() == libc::EINPROGRESS);
    let (mut peer, _) = listener.accept().expect("accept");
    guest.event_with(9, OUT);
    let (answer, error) = guest.call_out(
        HostOp::GetSockOpt,
        &[fd, libc::SOL_SOCKET as u64, libc::SO_ERROR as u64, 4],
        &[],
        4,
    );
    assert_eq!((answer.ok(), answer.extra, error), (0, 4, vec![0; 4]));
    // A peer that does not read makes the sender see EAGAIN, not a service that waits.
    let block = vec![1u8; 128 << 10];
    let mut sent = 0;
    loop {
        match guest
            .call(HostOp::Write, &[fd, block.len() as u64], &block)
            .result
        {
            n if n > 0 => sent += n as usize,
            e => break assert_eq!(e, -i64::from(libc::EAGAIN)),
        }
        assert!(sent < 1 << 30);
    }
    let mut received = vec![0; sent];
    peer.read_exact(&mut received).expect("all arrives");
    guest.event_with(9, OUT);
    drop(peer);
}

fn datagrams() {
    let (_directory, mut guest) = guest();
    let (one, two) = (
        socket(&mut guest, libc::AF_INET, libc::SOCK_DGRAM),
        socket(&mut guest, libc::AF_INET, libc::SOCK_DGRAM),
    );
    let mut ports = Vec::new();
    for fd in [one, two] {
        guest.call(HostOp::Bind, &[fd, 16], &loopback(0)).ok();
        ports.push(port_of(&guest.call_out(HostOp::SockName, &[fd, 0], &[], 16).1));
    }
    let on = 1i32.to_ne_bytes();
    let pktinfo = [two, libc::IPPROTO_IP as u64, libc::IP_PKTINFO as u64, 4];
    guest.call(HostOp::SetSockOpt, &pktinfo, &on).ok();
    let mut message = loopback(ports[1]);
    message.resize(PAYLOAD, 0);
    message.extend_from_slice(b"datagram");
    assert_eq!(guest.call(HostOp::SendMsg, &[one, 0, 16, 0, 8], &message).ok(), 8);
    let (answer, out) = guest.call_out(HostOp::RecvMsg, &[two, 0, 1, 256, 1000], &[], PAYLOAD + 8);
    assert_eq!(answer.ok(), 8);
    assert_eq!(&out[PAYLOAD..], b"datagram");
    assert_eq!(answer.extra >> 32 & 0xffff, 16);
    assert_eq!(port_of(&out), ports[0]);
    let control = (answer.extra >> 48) as usize;
    assert_eq!(control, 32, "one struct in_pktinfo");
    assert_eq!(out[ADDR_MAX + 12], libc::IP_PKTINFO as u8);
    // Cut datagrams say so.
    guest.call(HostOp::SendMsg, &[one, 0, 16, 0, 8], &message).ok();
    let cut = guest.call(HostOp::RecvMsg, &[two, libc::MSG_TRUNC as u64, 0, 0, 3], &[]);
    assert_eq!(
        (cut.ok(), cut.extra as i32 & libc::MSG_TRUNC),
        (8, libc::MSG_TRUNC)
    );
    assert_eq!(
        guest.call(HostOp::SendMsg, &[one, 0, 129, 0, 0], &[]).err(),
        libc::EINVAL
    );
    assert_eq!(
        guest
            .call(HostOp::SendMsg, &[one, 0, 16, 1025, 0], &message)
            .err(),
        libc::EINVAL
    );
    assert_eq!(
        guest
            .call(HostOp::SendMsg, &[one, 0, 16, 0, 128 << 10], &message)
            .err(),
        libc::EINVAL
    );
}

fn unix() {
    let (directory, mut guest) = guest();
    std::fs::create_dir(directory.path().join("run")).expect("mkdir");
    let listener = socket(&mut guest, libc::AF_UNIX, libc::SOCK_STREAM);
    let address = unix_address("run/s.sock");
    let len = address.len() as u64;
    guest.call(HostOp::Bind, &[listener, len, ROOT], &address).ok();
    guest.call(HostOp::Listen, &[listener, 4], &[]).ok();
    let (answer, name) = guest.call_out(HostOp::SockName, &[listener, 0], &[], 32);
    assert_eq!(&name[2..answer.extra as usize], b"s.sock\0");
    let client = socket(&mut guest, libc::AF_UNIX, libc::SOCK_STREAM);
    guest.call(HostOp::Connect, &[client, len, ROOT], &address).ok();
    let server = guest.call(HostOp::Accept, &[listener], &[]).ok();
    guest.call(HostOp::Write, &[client, 2], b"hi").ok();
    assert_eq!(guest.call(HostOp::Read, &[server, 10], &[]).ok(), 2);
    let outside = std::os::unix::net::UnixStream::connect(directory.path().join("run/s.sock"));
    assert!(outside.is_ok(), "the host reaches it too");
    // Datagrams by name.
    let (one, two) = (
        socket(&mut guest, libc::AF_UNIX, libc::SOCK_DGRAM),
        socket(&mut guest, libc::AF_UNIX, libc::SOCK_DGRAM),
    );
    let inbox = unix_address("inbox");
    guest
        .call(HostOp::Bind, &[one, inbox.len() as u64, ROOT], &inbox)
        .ok();
    let mut message = inbox.clone();
    message.resize(PAYLOAD, 0);
    message.extend_from_slice(b"post");
    guest
        .call(
            HostOp::SendMsg,
            &[two, 0, inbox.len() as u64, 0, 4, ROOT],
            &message,
        )
        .ok();
    assert_eq!(guest.call(HostOp::Read, &[one, 10], &[]).ok(), 4);
    assert_eq!(
        guest
            .call(HostOp::Bind, &[two, inbox.len() as u64, ROOT], &inbox)
            .err(),
        libc::EADDRINUSE
    );
    // Abstract names have no directory.
    let abstract_name = [
        &(libc::AF_UNIX as u16).to_ne_bytes()[..],
        b"\0cloak-test-",
        &std::process::id().to_ne_bytes(),
    ]
    .concat();
    let third = socket(&mut guest, libc::AF_UNIX, libc::SOCK_DGRAM);
    guest
        .call(
            HostOp::Bind,
            &[third, abstract_name.len() as u64, u64::MAX],
            &abstract_name,
        )
        .ok();
}

fn unix_stays() {
    let outer = tempfile::tempdir().expect("tempdir");
    let inner = outer.path().join("in");
    std::fs::create_dir(&inner).expect("mkdir");
    let _host = std::os::unix::net::UnixListener::bind(outer.path().join("host.sock")).expect("bind");
    std::os::unix::fs::symlink("../host.sock", inner.join("link")).expect("symlink");
    let mut guest = Guest::new(&inner);
    let absolute = outer.path().join("host.sock");
    for path in ["link", "../host.sock", absolute.to_str().expect("text")] {
        let fd = socket(&mut guest, libc::AF_UNIX, libc::SOCK_STREAM);
        let address = unix_address(path);
        let answer = guest.call(HostOp::Connect, &[fd, address.len() as u64, ROOT], &address);
        assert_eq!(answer.err(), libc::ENOENT, "{path}");
    }
    let fd = socket(&mut guest, libc::AF_UNIX, libc::SOCK_STREAM);
    let address = unix_address("../escaped");
    guest
        .call(HostOp::Bind, &[fd, address.len() as u64, ROOT], &address)
        .ok();
    assert!(inner.join("escaped").exists() && !outer.path().join("escaped").exists());
}

fn rights(fd: i32) -> Vec<u8> {
    let mut control = 20u64.to_ne_bytes().to_vec();
    control.extend_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    control.extend_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
    control.extend_from_slice(&fd.to_ne_bytes());
    control.resize(24, 0);
    control
}

fn descriptors() {
    let (directory, mut guest) = guest();
    let pair = guest.call(
        HostOp::SocketPair,
        &[libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0],
        &[],
    );
    let mut message = vec![0; ADDR_MAX];
    message.extend(rights(3));
    message.resize(PAYLOAD, 0);
    message.push(b'x');
    let answer = guest.call(HostOp::SendMsg, &[pair.ok(), 0, 0, 24, 1], &message);
    assert_eq!(answer.err(), libc::EOPNOTSUPP);
    // From outside: the descriptor is dropped and the message marked.
    let path = directory.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    let fd = socket(&mut guest, libc::AF_UNIX, libc::SOCK_STREAM);
    let address = unix_address("s");
    guest
        .call(HostOp::Connect, &[fd, address.len() as u64, ROOT], &address)
        .ok();
    let (peer, _) = listener.accept().expect("accept");
    let (sent, kept) = rustix::pipe::pipe().expect("pipe");
    {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        use std::os::fd::AsFd;
        let mut space = [std::mem::MaybeUninit::uninit(); 64];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [kept.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(
            &peer,
            &[std::io::IoSlice::new(b"y")],
            &mut control,
            SendFlags::empty(),
        )
        .expect("sendmsg");
    }
    drop(kept);
    let answer = guest.call(HostOp::RecvMsg, &[fd, 0, 0, 256, 10], &[]);
    assert_eq!(answer.ok(), 1);
    assert_eq!(answer.extra as i32 & libc::MSG_CTRUNC, libc::MSG_CTRUNC);
    assert_eq!(answer.extra >> 48, 0);
    // Nobody has the other end of the pipe any more.
    let mut end = [0; 1];
    assert_eq!(rustix::io::read(&sent, &mut end), Ok(0));
}

fn options() {
    let (_directory, mut guest) = guest();
    let fd = socket(&mut guest, libc::AF_INET, libc::SOCK_STREAM);
    let on = 1i32.to_ne_bytes();
    let nodelay = [fd, libc::IPPROTO_TCP as u64, libc::TCP_NODELAY as u64, 4];
    guest.call(HostOp::SetSockOpt, &nodelay, &on).ok();
    let (answer, value) = guest.call_out(HostOp::GetSockOpt, &nodelay, &[], 4);
    assert_eq!((answer.ok(), answer.extra, value), (0, 4, on.to_vec()));
    let linger = [1i32.to_ne_bytes(), 1i32.to_ne_bytes()].concat();
    let args = [fd, libc::SOL_SOCKET as u64, libc::SO_LINGER as u64, 8];
    guest.call(HostOp::SetSockOpt, &args, &linger).ok();
    let filter = [fd, libc::SOL_SOCKET as u64, libc::SO_ATTACH_FILTER as u64, 16];
    assert_eq!(
        guest.call(HostOp::SetSockOpt, &filter, &[0xff; 16]).err(),
        libc::ENOPROTOOPT
    );
    assert_eq!(
        guest.call(HostOp::SetSockOpt, &[fd, 6, 1, 128 << 10], &[]).err(),
        libc::EINVAL
    );
    guest.call(HostOp::Close, &[fd], &[]).ok();
}

fn shapes() {
    let (_directory, mut guest) = guest();
    for (domain, kind, protocol, expected) in [
        (libc::AF_PACKET, libc::SOCK_RAW, 0, libc::EAFNOSUPPORT),
        (libc::AF_VSOCK, libc::SOCK_STREAM, 0, libc::EAFNOSUPPORT),
        (libc::AF_ALG, libc::SOCK_SEQPACKET, 0, libc::EAFNOSUPPORT),
        (libc::AF_INET, libc::SOCK_STREAM, 132, libc::EPROTONOSUPPORT),
        (libc::AF_NETLINK, libc::SOCK_RAW, 9, libc::EPROTONOSUPPORT),
        (-1, 1, 0, libc::EAFNOSUPPORT),
    ] {
        let args = [domain as u64, kind as u64, protocol];
        assert_eq!(
            guest.call(HostOp::Socket, &args, &[]).err(),
            expected,
            "{domain} {kind} {protocol}"
        );
    }
    guest
        .call(
            HostOp::Socket,
            &[libc::AF_NETLINK as u64, libc::SOCK_RAW as u64, 0],
            &[],
        )
        .ok();
    let file = guest.open(0, "f", libc::O_CREAT | libc::O_RDWR, 0o600).ok();
    assert_eq!(guest.call(HostOp::Listen, &[file, 1], &[]).err(), libc::ENOTSOCK);
    assert_eq!(
        guest.call(HostOp::SendMsg, &[file, 0, 0, 0, 0], &[]).err(),
        libc::ENOTSOCK
    );
}
