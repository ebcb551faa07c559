//! Operations on sockets, by libc.

use std::ptr::{null, null_mut};

use cloak_abi::hostop::{ADDR_MAX, CONTROL_MAX, HostOp};

use super::{Asked, Reply, Service};

/// Where the payload is.
fn payload_at(address: bool, control: u64) -> usize {
    if address || control > 0 {
        ADDR_MAX + CONTROL_MAX
    } else {
        0
    }
}

fn result(value: i64) -> i64 {
    if value >= 0 {
        value
    } else {
        -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(5))
    }
}

/// Serves what is about sockets; others are not known.
pub fn serve(service: &mut Service, asked: &Asked) -> Reply {
    let a = asked.args;
    let fd = service.raw(a[0]);
    let buffer = asked.buffer();
    let at = buffer.as_mut_ptr();
    let mut len = ADDR_MAX as u32;
    // SAFETY: all pointers are into the slot's buffer and within it by the lengths that this process's own
    // libos asked for; results are checked.
    unsafe {
        match asked.op {
            HostOp::Socket => {
                let kind = a[1] as i32 | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
                match libc::socket(a[0] as i32, kind, a[2] as i32) {
                    raw @ 0.. => (service.insert(raw), 0),
                    _ => (result(-1), 0),
                }
            }
            HostOp::Accept => {
                let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
                match libc::accept4(fd, at.cast(), &raw mut len, flags) {
                    raw @ 0.. => (service.insert(raw), u64::from(len)),
                    _ => (result(-1), 0),
                }
            }
            HostOp::Bind => (result(libc::bind(fd, at.cast(), a[1] as u32).into()), 0),
            HostOp::Listen => (result(libc::listen(fd, a[1] as i32).into()), 0),
            HostOp::Connect => (result(libc::connect(fd, at.cast(), a[1] as u32).into()), 0),
            HostOp::Shutdown if a[1] > 0 && send_all(service, a[0]) => {
                (result(libc::shutdown(fd, a[1] as i32).into()), 0)
            }
            HostOp::Shutdown => (result(libc::shutdown(fd, a[1] as i32).into()), 0),
            HostOp::Fetch if a[1] == 0 => {
                service.cancel(a[0]);
                (0, 0)
            }
            HostOp::Fetch | HostOp::Read => (result(libc::read(fd, at.cast(), a[1] as usize) as i64), 0),
            HostOp::Deliver => {
                let data = &asked.buffer()[..a[1] as usize];
                let waits = service.kept.contains_key(&a[0]);
                let sent = match waits {
                    true => 0,
                    false => result(libc::send(fd, at.cast(), data.len(), libc::MSG_NOSIGNAL) as i64),
                };
                let sent = if sent == -i64::from(libc::EAGAIN) { 0 } else { sent };
                if let Ok(sent) = usize::try_from(sent)
                    && sent < data.len()
                {
                    let kept = service.kept.entry(a[0]).or_default();
                    kept.extend_from_slice(&data[sent..]);
                }
                (sent, 0)
            }
            HostOp::Write | HostOp::SendMsg if service.kept.contains_key(&a[0]) => {
                (-i64::from(libc::EAGAIN), 0)
            }
            HostOp::Write => (
                result(libc::send(fd, at.cast(), a[1] as usize, libc::MSG_NOSIGNAL) as i64),
                0,
            ),
            HostOp::SendMsg => {
                let (header, _segment) = message(asked, a[2], a[3], a[4], payload_at(a[2] > 0, a[3]));
                let sent = libc::sendmsg(fd, &raw const *header, a[1] as i32 | libc::MSG_NOSIGNAL);
                (result(sent as i64), 0)
            }
            HostOp::RecvMsg => {
                let space = if a[2] == 1 { ADDR_MAX as u64 } else { 0 };
                let (mut header, _segment) = message(asked, space, a[3], a[4], payload_at(a[2] == 1, a[3]));
                let got = libc::recvmsg(fd, &raw mut *header, a[1] as i32 | libc::MSG_DONTWAIT);
                let lengths = u64::from(header.msg_namelen) << 32 | (header.msg_controllen as u64) << 48;
                (result(got as i64), u64::from(header.msg_flags as u32) | lengths)
            }
            HostOp::GetSockOpt => {
                let mut len = a[3] as u32;
                let got = libc::getsockopt(fd, a[1] as i32, a[2] as i32, at.cast(), &raw mut len);
                (result(got.into()), u64::from(len))
            }
            HostOp::SetSockOpt => (
                result(libc::setsockopt(fd, a[1] as i32, a[2] as i32, at.cast(), a[3] as u32).into()),
                0,
            ),
            HostOp::SockName => {
                let name = if a[1] == 0 {
                    libc::getsockname
                } else {
                    libc::getpeername
                };
                let got = name(fd, at.cast(), &raw mut len);
                (result(got.into()), u64::from(len))
            }
            HostOp::Ioctl => (result(libc::ioctl(fd, a[1], at).into()), 0),
            HostOp::Watch => {
                let events =
                    libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLPRI | libc::EPOLLET;
                let mut event = libc::epoll_event {
                    events: events as u32,
                    u64: a[1],
                };
                (
                    result(libc::epoll_ctl(service.epoll(), libc::EPOLL_CTL_ADD, fd, &raw mut event).into()),
                    0,
                )
            }
            HostOp::Poll => {
                for record in buffer[..a[0] as usize * 8].chunks_exact_mut(8) {
                    let number = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
                    let raw = service.raw(u64::from(number));
                    let events = i16::from_ne_bytes([record[4], record[5]]);
                    let mut one = libc::pollfd {
                        fd: raw,
                        events,
                        revents: 0,
                    };
                    libc::poll(&raw mut one, 1, 0);
                    let revents = if raw < 0 { libc::POLLNVAL } else { one.revents };
                    record[6..].copy_from_slice(&revents.to_ne_bytes());
                }
                (0, 0)
            }
            _ => (-i64::from(libc::ENOSYS), 0),
        }
    }
}

/// Whether a fetch would find nothing.
pub fn would_wait(service: &Service, asked: &Asked) -> bool {
    let mut one = libc::pollfd {
        fd: service.raw(asked.args[0]),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&raw mut one, 1, 0) == 0 }
}

/// Sends what is kept for a socket as far as there is room. Whether something has changed.
pub fn send_kept(service: &mut Service, fd: u64) -> bool {
    let raw = service.raw(fd);
    let Some(kept) = service.kept.get_mut(&fd) else {
        return false;
    };
    // SAFETY: the bytes live through the call.
    let sent = unsafe { libc::send(raw, kept.as_ptr().cast(), kept.len(), libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(sent) => drop(kept.drain(..sent)),
        Err(_) if result(-1) == -i64::from(libc::EAGAIN) => return false,
        Err(_) => kept.clear(),
    }
    if kept.is_empty() {
        service.kept.remove(&fd);
    }
    true
}

/// Sends all that is kept for a socket, if something is.
pub fn send_all(service: &mut Service, fd: u64) -> bool {
    let keeps = service.kept.contains_key(&fd);
    while service.kept.contains_key(&fd) {
        if !send_kept(service, fd) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    keeps
}

/// A message header over the slot's buffer, and what it points to.
fn message(
    asked: &Asked,
    name: u64,
    control: u64,
    len: u64,
    at: usize,
) -> (Box<libc::msghdr>, Box<libc::iovec>) {
    let buffer = asked.buffer();
    let base = buffer.as_mut_ptr();
    let mut segment = Box::new(libc::iovec {
        iov_base: buffer[at..].as_mut_ptr().cast(),
        iov_len: len as usize,
    });
    // SAFETY: all zeros are a valid header.
    let mut header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
    header.msg_name = if name > 0 { base.cast() } else { null_mut() };
    header.msg_namelen = name as u32;
    header.msg_control = if control > 0 {
        buffer[ADDR_MAX..].as_mut_ptr().cast()
    } else {
        null::<u8>().cast_mut().cast()
    };
    header.msg_controllen = control as usize;
    header.msg_iov = &raw mut *segment;
    header.msg_iovlen = 1;
    (header, segment)
}
