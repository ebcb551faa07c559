//! Socket addresses: bytes whose length and family have been checked.

use cloak_abi::hostop::ADDR_MAX;

use crate::errno::{Errno, SysResult};
use crate::user;

/// Address families (`include/linux/socket.h`).
#[allow(missing_docs)]
pub mod family {
    pub const UNSPEC: u16 = 0;
    pub const UNIX: u16 = 1;
    pub const INET: u16 = 2;
    pub const INET6: u16 = 10;
    pub const NETLINK: u16 = 16;
}

/// Bytes of the family.
const FAMILY: usize = 2;
/// Longest `struct sockaddr_un`.
const UNIX_MAX: usize = 110;

/// An address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address {
    bytes: [u8; ADDR_MAX],
    len: usize,
}

impl core::fmt::Debug for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Address").field(&self.bytes()).finish()
    }
}

impl Address {
    /// From bytes that are at most [`ADDR_MAX`] long.
    ///
    /// # Errors
    /// EINVAL.
    pub fn new(from: &[u8]) -> SysResult<Self> {
        let mut bytes = [0; ADDR_MAX];
        bytes
            .get_mut(..from.len())
            .ok_or(Errno::EINVAL)?
            .copy_from_slice(from);
        Ok(Self {
            bytes,
            len: from.len(),
        })
    }

    /// Only a family: an end without a name.
    #[must_use]
    pub fn unnamed(family: u16) -> Self {
        let mut bytes = [0; ADDR_MAX];
        bytes[..FAMILY].copy_from_slice(&family.to_ne_bytes());
        Self { bytes, len: FAMILY }
    }

    /// The program's, of `len` bytes.
    ///
    /// # Errors
    /// EINVAL for a length that none has, EFAULT.
    pub fn from_user(address: u64, len: usize) -> SysResult<Self> {
        if !(FAMILY..=ADDR_MAX).contains(&len) {
            return Err(Errno::EINVAL);
        }
        let mut bytes = [0; ADDR_MAX];
        user::copy_in(&mut bytes[..len], address)?;
        Ok(Self { bytes, len })
    }

    /// What the OS side answered for a socket of `domain`: of that family and of a length it can have, or a
    /// lie. None: it gave none.
    ///
    /// # Errors
    /// EIO.
    pub fn from_host(bytes: &[u8], domain: u16) -> SysResult<Option<Self>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let address = Self::new(bytes).map_err(|_| Errno::EIO)?;
        let fits = match domain {
            family::INET => address.len == 16,
            family::INET6 => address.len == 28,
            family::NETLINK => address.len == 12,
            family::UNIX => (FAMILY..=UNIX_MAX).contains(&address.len),
            _ => false,
        };
        if fits && address.family() == domain {
            Ok(Some(address))
        } else {
            Err(Errno::EIO)
        }
    }

    /// Writes it to the program, as much as `*len_address` says there is space for, and its real length
    /// there.
    ///
    /// # Errors
    /// EINVAL for a negative length, EFAULT.
    pub fn to_user(&self, address: u64, len_address: u64) -> SysResult<()> {
        let space: i32 = user::read(len_address)?;
        let space = usize::try_from(space).map_err(|_| Errno::EINVAL)?;
        user::copy_out(address, &self.bytes()[..self.len.min(space)])?;
        user::write(len_address, &(self.len as u32))
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The family; unspecified when it is too short to have one.
    #[must_use]
    pub fn family(&self) -> u16 {
        u16::from_ne_bytes([self.bytes[0], self.bytes[1]])
    }

    /// The port, if it is an address of the Internet.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match (self.family(), self.bytes()) {
            (family::INET | family::INET6, [_, _, high, low, ..]) => Some(u16::from_be_bytes([*high, *low])),
            _ => None,
        }
    }

    /// What follows the family.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.bytes().get(FAMILY..).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_a_wrong_family_or_length_are_lies() {
        let inet = |len: usize| {
            let mut bytes = vec![0; len];
            bytes[0] = 2;
            bytes
        };
        assert!(
            Address::from_host(&inet(16), family::INET)
                .expect("fits")
                .is_some()
        );
        assert_eq!(Address::from_host(&[], family::INET), Ok(None));
        for (bytes, domain) in [
            (inet(15), family::INET),
            (inet(17), family::INET),
            (inet(16), family::INET6),
            (inet(28), family::INET6),
            (inet(200), family::INET),
            (vec![1], family::UNIX),
        ] {
            assert_eq!(Address::from_host(&bytes, domain), Err(Errno::EIO));
        }
    }

    #[test]
    fn a_short_space_gets_the_beginning_and_the_real_length() {
        let address = Address::new(&[2, 0, 1, 2, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]).expect("fits");
        let (mut out, mut len) = ([9u8; 16], 4i32);
        address
            .to_user(out.as_mut_ptr() as u64, &raw mut len as u64)
            .expect("writable");
        assert_eq!((len, &out[..5]), (16, &[2, 0, 1, 2, 9][..]));
        len = -1;
        assert_eq!(
            address.to_user(out.as_mut_ptr() as u64, &raw mut len as u64),
            Err(Errno::EINVAL)
        );
    }
}
