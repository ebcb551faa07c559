//! Names of Unix sockets in the file system.
//!
//! A name that the guest gives is relative to a directory of the guest's, like any path, but bind(2) and
//! connect(2) know only this process's own root. So the directory (to bind) or the socket itself (to
//! connect) is opened as a place first, and named by its magic link. A link that the guest made can't lead
//! to a socket of the host's.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::paths::{self, Last, Leaf, Resolve};
use super::request::{Call, Refusal, Scratch};
use super::sys::Address;
use super::table::Entry;

/// Bytes of `sun_family`.
const FAMILY: usize = 2;
/// Bytes of `sun_path`.
const PATH: usize = 108;
/// Where the magic links of this process are.
const MAGIC: &[u8] = b"/proc/self/fd/";

/// An address for the kernel, with what must stay open while it is used.
#[derive(Debug)]
pub struct Named {
    /// The address.
    pub address: Address,
    _place: Option<OwnedFd>,
    _dir: Option<Arc<Entry>>,
}

impl Named {
    fn as_is(address: Address) -> Self {
        Self {
            address,
            _place: None,
            _dir: None,
        }
    }
}

/// The path in an address, if it is one of a Unix socket in the file system.
fn path_of(address: &Address) -> Option<&[u8]> {
    let (family, path) = address.bytes().split_first_chunk::<FAMILY>()?;
    if u16::from_ne_bytes(*family) != libc::AF_UNIX as u16 || matches!(path.first(), None | Some(0)) {
        return None;
    }
    path.split(|b| *b == 0).next()
}

fn with_path(path: &[u8]) -> Result<Address, Errno> {
    if path.len() >= PATH {
        return Err(Errno::NAMETOOLONG);
    }
    let mut bytes = [0u8; FAMILY + PATH];
    bytes[..FAMILY].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
    bytes[FAMILY..FAMILY + path.len()].copy_from_slice(path);
    Address::new(&bytes[..FAMILY + path.len() + 1])
}

fn c_path<'s>(path: &[u8], into: &'s mut Vec<u8>) -> Result<&'s std::ffi::CStr, Errno> {
    into.clear();
    into.extend_from_slice(path);
    into.push(0);
    std::ffi::CStr::from_bytes_with_nul(into).map_err(|_| Errno::INVAL)
}

/// An address to bind to; a path is relative to the directory `args[dir_arg]`.
pub fn to_bind(
    call: &Call<'_>,
    dir_arg: usize,
    address: Address,
    scratch: &mut Scratch,
) -> Result<Named, Refusal> {
    let Some(path) = path_of(&address) else {
        return Ok(Named::as_is(address));
    };
    let dir = call.file(dir_arg)?;
    call.may_be_remote(&dir)?;
    dir.writable()?;
    let leaf: Leaf<'_> = paths::leaf(call, dir.as_fd(), c_path(path, &mut scratch.path)?)?;
    let mut full = paths::magic_path(leaf.as_fd()).into_bytes();
    full.push(b'/');
    full.extend_from_slice(leaf.name.to_bytes());
    let address = with_path(&full)?;
    let place = leaf.into_opened();
    Ok(Named {
        address,
        _place: place,
        _dir: Some(dir),
    })
}

/// An address to connect or send to; a path is relative to the directory `args[dir_arg]`.
pub fn to_reach(
    call: &Call<'_>,
    dir_arg: usize,
    address: Address,
    scratch: &mut Scratch,
) -> Result<Named, Refusal> {
    let Some(path) = path_of(&address) else {
        return Ok(Named::as_is(address));
    };
    let dir = call.file(dir_arg)?;
    call.may_be_remote(&dir)?;
    let path = c_path(path, &mut scratch.path)?;
    let place = paths::object(call, dir.as_fd(), path, Last::Follow, Resolve::Rooted)?;
    let address = with_path(paths::magic_path(place.as_fd()).as_bytes())?;
    Ok(Named {
        address,
        _place: Some(place),
        _dir: None,
    })
}

/// An address as the guest is to see it: what [`to_bind`] put before a name is taken off again.
pub fn as_seen(address: Address) -> Address {
    let name = path_of(&address).and_then(|path| {
        let rest = path.strip_prefix(MAGIC)?;
        let slash = rest.iter().position(|b| *b == b'/')?;
        rest.get(slash + 1..)
    });
    name.and_then(|name| with_path(name).ok()).unwrap_or(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_are_paths() {
        let abstract_name = Address::new(b"\x01\x00\x00name").expect("fits");
        assert_eq!(path_of(&abstract_name), None);
        assert_eq!(path_of(&Address::new(b"\x01\x00").expect("fits")), None);
        assert_eq!(path_of(&Address::new(b"\x01").expect("fits")), None);
        assert_eq!(path_of(&Address::new(b"\x02\x00abc").expect("fits")), None);
        assert_eq!(
            path_of(&Address::new(b"\x01\x00abc\0junk").expect("fits")),
            Some(&b"abc"[..])
        );
    }

    #[test]
    fn bound_names_lose_the_magic_link() {
        let bound = with_path(b"/proc/self/fd/57/s.sock").expect("fits");
        assert_eq!(path_of(&as_seen(bound)), Some(&b"s.sock"[..]));
        let other = with_path(b"/run/x").expect("fits");
        assert_eq!(path_of(&as_seen(other)), Some(&b"/run/x"[..]));
    }

    #[test]
    fn long_paths_are_refused() {
        assert_eq!(with_path(&[b'a'; 108]).err(), Some(Errno::NAMETOOLONG));
        assert!(with_path(&[b'a'; 107]).is_ok());
    }
}
