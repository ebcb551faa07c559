//! Reading what the OS side left in a request's buffer.

use alloc::vec;

use cloak_abi::hostop::ADDR_MAX;

use crate::errno::{Errno, SysResult};
use crate::host::Request;
use crate::net::address::Address;
use crate::net::control::Control;

/// The address at the buffer's start, of a length that was answered.
pub fn address(request: &Request, len: u64, domain: u16) -> SysResult<Option<Address>> {
    let len = usize::try_from(len)
        .ok()
        .filter(|&l| l <= ADDR_MAX)
        .ok_or(Errno::EIO)?;
    let mut bytes = [0; ADDR_MAX];
    request.get(0, &mut bytes[..len]);
    Address::from_host(&bytes[..len], domain)
}

/// The control data, of a length that was answered, at most `space`.
pub fn control(request: &Request, len: u64, space: usize) -> SysResult<Control> {
    let len = usize::try_from(len)
        .ok()
        .filter(|&l| l <= space)
        .ok_or(Errno::EIO)?;
    let mut bytes = vec![0; len];
    request.get(ADDR_MAX, &mut bytes);
    Control::from_host(&bytes)
}
