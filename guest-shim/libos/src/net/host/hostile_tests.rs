//! Answers that are lies: the call fails with EIO and everything stays whole.

use super::tests::{connected, loopback, open, read};
use super::*;
use crate::errno::Errno;
use crate::fs::fd::O_NONBLOCK;
use crate::net::socket::msg;
use crate::testing::{self, lie};

#[test]
fn a_read_never_gives_more_than_was_asked() {
    for wrong in [9i64, 1 << 20, i64::MAX, i64::from(u32::MAX), -4096, i64::MIN] {
        let (file, socket, _peer) = connected(O_NONBLOCK);
        lie(socket.fd(), move |asked, reply| {
            if asked.op == HostOp::Read {
                (wrong, 0)
            } else {
                reply
            }
        });
        let mut out = [7u8; 16];
        let result = file.file.read(&file, &mut Buf::own_mut(&mut out[..8]));
        assert_eq!((result, &out[8..]), (Err(Errno::EIO), &[7; 8][..]));
    }
}

#[test]
fn a_write_is_never_more_than_was_sent() {
    for wrong in [4i64, 1 << 40, i64::MIN] {
        let (file, socket, _peer) = connected(0);
        lie(socket.fd(), move |asked, reply| {
            if asked.op == HostOp::Write {
                (wrong, 0)
            } else {
                reply
            }
        });
        assert_eq!(file.file.write(&file, &mut Buf::own(b"abc")), Err(Errno::EIO));
    }
}

#[test]
fn a_descriptor_in_use_is_not_given_out_again() {
    testing::start();
    let (file, socket) = open(
        HostSocket::create(family::INET, Kind::Stream, 0).expect("creates"),
        O_NONBLOCK,
    );
    let own = socket.fd() as i64;
    for wrong in [own, 0, 1, 2, i64::from(u32::MAX), i64::MAX, 0x4000_0000] {
        lie(socket.fd(), move |asked, reply| {
            if asked.op == HostOp::Accept {
                (wrong, 16)
            } else {
                reply
            }
        });
        assert_eq!(socket.accept(&file).err(), Some(Errno::EIO), "{wrong}");
    }
    // The one in use is still the one that it was.
    assert!(socket.name().is_ok());
}

#[test]
fn addresses_of_wrong_lengths_and_families_are_refused() {
    testing::start();
    let (_, socket) = open(
        HostSocket::create(family::INET, Kind::Datagram, 0).expect("creates"),
        0,
    );
    socket.bind(&loopback(0)).expect("binds");
    for wrong in [1u64, 15, 17, 28, 128, 129, 1 << 32, u64::MAX] {
        lie(socket.fd(), move |asked, (result, extra)| {
            (
                result,
                if asked.op == HostOp::SockName {
                    wrong
                } else {
                    extra
                },
            )
        });
        assert_eq!(socket.name(), Err(Errno::EIO), "{wrong}");
    }
    lie(socket.fd(), |asked, reply| {
        asked.buffer()[0] = 10;
        reply
    });
    assert_eq!(socket.name(), Err(Errno::EIO));
}

#[test]
fn messages_with_wrong_parts_are_refused() {
    testing::start();
    let (file, socket) = open(
        HostSocket::create(family::INET, Kind::Datagram, 0).expect("creates"),
        O_NONBLOCK,
    );
    let receive = |flags| {
        let mut out = [0u8; 64];
        let wanted = Wanted {
            address: true,
            control: 64,
        };
        socket
            .receive(&file, &mut Buf::own_mut(&mut out), wanted, flags)
            .map(|r| r.len)
    };
    let cases: [(i64, u64, u32); 6] = [
        (65, 0, 0),
        (64, 129 << 32, 0),
        (64, 65 << 48, 0),
        (64, 16 << 32, 0), // the family is not that of the socket
        (1 << 30, 0, msg::TRUNC),
        (-5000, 0, 0),
    ];
    for (result, extra, flags) in cases {
        lie(socket.fd(), move |asked, reply| {
            if asked.op == HostOp::RecvMsg {
                asked.buffer()[..2].copy_from_slice(&99u16.to_ne_bytes());
                (result, extra)
            } else {
                reply
            }
        });
        assert_eq!(receive(flags), Err(Errno::EIO), "{result} {extra:x}");
    }
}

#[test]
fn lying_about_options_and_errors_is_seen() {
    let (_file, socket, _peer) = connected(0);
    lie(socket.fd(), |asked, reply| {
        if asked.op == HostOp::GetSockOpt {
            (0, 1 << 33)
        } else {
            reply
        }
    });
    assert_eq!(socket.option(6, 1, 4), Err(Errno::EIO));
    lie(socket.fd(), |asked, reply| {
        asked.buffer()[..4].copy_from_slice(&(-17i32).to_ne_bytes());
        reply
    });
    assert_eq!(socket.take_error(), Err(Errno::EIO));
}

#[test]
fn random_answers_to_everything_leave_the_guest_whole() {
    let (file, socket, _peer) = connected(O_NONBLOCK);
    let mut seed = 99u64;
    let mut next = move || {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        seed >> 20
    };
    lie(socket.fd(), move |asked, _| {
        let n = next();
        asked.buffer()[..256].iter_mut().for_each(|b| *b = next() as u8);
        let result = match n % 5 {
            0 => (n >> 8) as i64,
            1 => -((n >> 8) as i64),
            2 => (n >> 8) as i64 % 200,
            3 => -((n >> 8) as i64 % 140),
            _ => 0,
        };
        let extra = if n % 3 == 0 { next() << 24 } else { next() % 64 };
        // EAGAIN to a nonblocking call and EINPROGRESS are honest enough.
        (result, extra)
    });
    for round in 0..3000u32 {
        let mut out = [7u8; 96];
        let wanted = Wanted {
            address: round % 2 == 0,
            control: 32 * (round as usize % 3),
        };
        let flags = [0, msg::PEEK, msg::TRUNC, msg::OOB][round as usize % 4];
        if let Ok(received) = socket.receive(&file, &mut Buf::own_mut(&mut out[..64]), wanted, flags) {
            assert!(received.len <= 64 && received.control.network.len() <= 64);
        }
        assert_eq!(out[64..], [7; 32]);
        let _ = socket.name();
        let _ = socket.option(1, 4, 4).map(|v| assert!(v.len() <= 4));
        let _ = socket.accept(&file);
        let _ = socket
            .send(&file, &mut Buf::own(b"data"), None, Control::default(), 0)
            .map(|n| assert!(n <= 4));
        let _ = socket.shutdown(0);
    }
    let (file, _, mut peer) = connected(0);
    std::io::Write::write_all(&mut peer, b"fine").expect("writes");
    assert_eq!(read(&file, 10), Ok(b"fine".to_vec()));
}
