//! Socket calls with addresses, options and control data as bytes.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use cloak_abi::hostop::{ADDR_MAX, CONTROL_MAX};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::{check, check_int};
use crate::os::region::Buffer;

/// A socket address as bytes, aligned as the kernel's structures are.
#[derive(Debug, Clone, Copy)]
pub struct Address {
    words: [u64; ADDR_MAX / 8],
    len: usize,
}

impl Address {
    /// No address.
    pub const NONE: Self = Self {
        words: [0; ADDR_MAX / 8],
        len: 0,
    };

    /// Copies an address.
    ///
    /// # Errors
    /// `EINVAL` when it is too long.
    pub fn new(bytes: &[u8]) -> Result<Self, Errno> {
        let mut address = Self {
            len: bytes.len(),
            ..Self::NONE
        };
        address
            .words
            .as_mut_bytes()
            .get_mut(..bytes.len())
            .ok_or(Errno::INVAL)?
            .copy_from_slice(bytes);
        Ok(address)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.words.as_bytes()[..self.len]
    }

    /// What a call wrote: the kernel reports the whole length even when it cut the address.
    fn set_len(&mut self, len: libc::socklen_t) {
        self.len = (len as usize).min(ADDR_MAX);
    }

    fn as_ptr(&self) -> *const libc::sockaddr {
        self.words.as_ptr().cast()
    }

    fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        self.words.as_mut_ptr().cast()
    }
}

const ADDRESS_SPACE: libc::socklen_t = ADDR_MAX as libc::socklen_t;

/// bind(2).
pub fn bind(fd: BorrowedFd<'_>, address: &Address) -> Result<usize, Errno> {
    // SAFETY: the kernel reads len bytes of the address.
    check_int(unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr(), address.len as libc::socklen_t) })
}

/// connect(2).
pub fn connect(fd: BorrowedFd<'_>, address: &Address) -> Result<usize, Errno> {
    // SAFETY: the kernel reads len bytes of the address.
    check_int(unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr(), address.len as libc::socklen_t) })
}

/// accept4(2), without waiting as far as `fd` is non-blocking.
pub fn accept(fd: BorrowedFd<'_>) -> Result<(OwnedFd, Address), Errno> {
    let (mut address, mut len) = (Address::NONE, ADDRESS_SPACE);
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes at most ADDR_MAX bytes of address and the length.
    let new = check_int(unsafe { libc::accept4(fd.as_raw_fd(), address.as_mut_ptr(), &raw mut len, flags) })?;
    address.set_len(len);
    // SAFETY: the kernel just gave this descriptor to us.
    Ok((unsafe { OwnedFd::from_raw_fd(new as libc::c_int) }, address))
}

/// Which end's name to ask for.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// getsockname(2).
    Own,
    /// getpeername(2).
    Peer,
}

/// getsockname(2) or getpeername(2).
pub fn name(fd: BorrowedFd<'_>, end: End) -> Result<Address, Errno> {
    let (mut address, mut len) = (Address::NONE, ADDRESS_SPACE);
    let call = match end {
        End::Own => libc::getsockname,
        End::Peer => libc::getpeername,
    };
    // SAFETY: the kernel writes at most ADDR_MAX bytes of address and the length.
    check_int(unsafe { call(fd.as_raw_fd(), address.as_mut_ptr(), &raw mut len) })?;
    address.set_len(len);
    Ok(address)
}

/// getsockopt(2); result: the value's length.
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32, out: &mut [u8]) -> Result<usize, Errno> {
    let mut len = libc::socklen_t::try_from(out.len()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the kernel writes at most len bytes; the list of options holds none with addresses in it.
    check_int(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, out.as_mut_ptr().cast(), &raw mut len)
    })?;
    Ok((len as usize).min(out.len()))
}

/// setsockopt(2).
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<usize, Errno> {
    let len = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the kernel reads len bytes; the list of options holds none with addresses in it.
    check_int(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) })
}

/// Control data of a message, aligned as `struct cmsghdr`.
#[derive(Debug, Clone, Copy)]
pub struct Control {
    words: [u64; CONTROL_MAX / 8],
    len: usize,
}

impl Control {
    /// Space for `len` bytes.
    ///
    /// # Errors
    /// `EINVAL` when that is more than the contract has.
    pub fn space(len: usize) -> Result<Self, Errno> {
        if len > CONTROL_MAX {
            return Err(Errno::INVAL);
        }
        Ok(Self {
            words: [0; CONTROL_MAX / 8],
            len,
        })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.words.as_bytes()[..self.len]
    }

    /// The bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.words.as_mut_bytes()[..self.len]
    }
}

/// sendmsg(2) without waiting and without SIGPIPE.
pub fn send(
    fd: BorrowedFd<'_>,
    address: &Address,
    control: Option<&Control>,
    payload: &Buffer<'_>,
    flags: i32,
) -> Result<usize, Errno> {
    let mut part = libc::iovec {
        iov_base: payload.as_ptr().cast(),
        iov_len: payload.len(),
    };
    // SAFETY: an all-zero msghdr is valid: no name, no parts, no control.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if address.len > 0 {
        message.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_namelen = address.len as libc::socklen_t;
    }
    if let Some(control) = control {
        message.msg_control = control.words.as_ptr().cast_mut().cast();
        message.msg_controllen = control.len as _;
    }
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: everything the header points to lives through the call and is only read.
    check(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) })
}

/// What [`receive`] got, besides the payload.
#[derive(Debug)]
pub struct Received {
    /// Bytes of payload.
    pub len: usize,
    /// `msg_flags`.
    pub flags: i32,
    /// Bytes of control data.
    pub control_len: usize,
}

/// recvmsg(2) without waiting; descriptors that come along are closed on exec.
pub fn receive(
    fd: BorrowedFd<'_>,
    address: Option<&mut Address>,
    control: Option<&mut Control>,
    payload: &Buffer<'_>,
    flags: i32,
) -> Result<Received, Errno> {
    let mut part = libc::iovec {
        iov_base: payload.as_ptr().cast(),
        iov_len: payload.len(),
    };
    // SAFETY: an all-zero msghdr is valid: no name, no parts, no control.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let mut address = address;
    if let Some(address) = address.as_deref_mut() {
        message.msg_name = address.as_mut_ptr().cast();
        message.msg_namelen = ADDRESS_SPACE;
    }
    if let Some(control) = control {
        message.msg_control = control.words.as_mut_ptr().cast();
        message.msg_controllen = control.len as _;
    }
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: everything the header points to lives through the call and has the length it states.
    let len = check(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) })?;
    if let Some(address) = address {
        address.set_len(message.msg_namelen);
    }
    Ok(Received {
        len,
        flags: message.msg_flags,
        control_len: message.msg_controllen as usize,
    })
}

/// Takes ownership of descriptors that came in control data, in order to close them.
pub fn adopt(descriptors: impl Iterator<Item = i32>) -> Vec<OwnedFd> {
    // SAFETY: the caller read these numbers from control data that the kernel wrote into memory that only
    // this process sees, so each was installed for us a moment ago and belongs to nobody else.
    descriptors
        .filter(|fd| *fd >= 0)
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect()
}
