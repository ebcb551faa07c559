//! System calls on raw bytes: an unsafe island.
//!
//! Calls whose arguments are typed go through `rustix`. Those here take bytes that the guest chose
//! (socket addresses, options, control data) or write straight into the shared region, where no Rust
//! reference may point. Every function is safe to call with any value: lengths come from the slice or
//! [`super::region::Buffer`] that is passed, and nothing here stores an address.
#![allow(unsafe_code)]

mod files;
mod launch;
mod process;
mod sockets;

pub use files::*;
pub use launch::start;
pub use process::*;
pub use sockets::*;

use rustix::io::Errno;

/// `errno` of the call that just failed.
pub fn last_errno() -> Errno {
    Errno::from_raw_os_error(
        std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO),
    )
}

fn check(result: libc::ssize_t) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| last_errno())
}

fn check_int(result: libc::c_int) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| last_errno())
}

fn check_long(result: libc::c_long) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| last_errno())
}
