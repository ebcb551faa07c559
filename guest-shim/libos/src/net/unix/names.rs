//! Names of Unix sockets: who is bound where.
//!
//! Sockets that a program of the context binds live here, inside the guest, whatever the name: abstract
//! ones by their bytes, those in the file system by the node that stands for them (so that renaming and
//! unlinking mean what they mean on Linux) and by the path they were bound at (so that a host that lies about
//! nodes can't draw a conversation of the guest to itself).

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use hashbrown::HashMap;
use spin::{Lazy, Mutex, Once};

use super::UnixSocket;
use crate::errno::{Errno, SysResult};
use crate::fs::mount::Dir;
use crate::net::address::{Address, family};

/// A socket's node in the file system.
#[derive(Debug, Clone)]
pub struct Place {
    /// Device and inode.
    pub node: (u64, u64),
    /// Absolute normalised path in the guest's name space.
    pub path: Vec<u8>,
    /// On a host mount: the directory to start from, and the path from there.
    pub host: Option<(Dir, Vec<u8>)>,
}

/// The file system's side, installed at boot. Paths are as the program gave them, for the calling process.
pub trait Paths: Sync {
    /// Makes a node of type socket.
    ///
    /// # Errors
    /// EADDRINUSE when something is there, and those of making a node.
    fn create(&self, path: &[u8]) -> SysResult<Place>;
    /// Finds one.
    ///
    /// # Errors
    /// ENOENT, EACCES, ECONNREFUSED when it is no socket.
    fn find(&self, path: &[u8]) -> SysResult<Place>;
}

static PATHS: Once<&'static dyn Paths> = Once::new();

/// Installs the file system's side. Without it paths are names and nothing more.
pub fn install(paths: &'static dyn Paths) {
    PATHS.call_once(|| paths);
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Abstract(Vec<u8>),
    Node(u64, u64),
    Path(Vec<u8>),
}

static BOUND: Lazy<Mutex<HashMap<Key, Weak<UnixSocket>>>> = Lazy::new(|| Mutex::new(HashMap::new()));

/// What an address of a Unix socket says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name<'a> {
    /// Nothing: bind chooses an abstract name.
    None,
    /// Bytes after the leading NUL.
    Abstract(&'a [u8]),
    /// A path.
    Path(&'a [u8]),
}

/// Parses an address.
///
/// # Errors
/// EINVAL for another family or too many bytes.
pub fn parse(address: &Address) -> SysResult<Name<'_>> {
    if address.family() != family::UNIX || address.bytes().len() > 110 {
        return Err(Errno::EINVAL);
    }
    Ok(match address.body() {
        [] => Name::None,
        [0, name @ ..] => Name::Abstract(name),
        path => Name::Path(path.split(|&b| b == 0).next().unwrap_or(path)),
    })
}

/// Keys under which a socket was bound; taken out again by [`release`].
#[derive(Debug, Default)]
pub struct Binding(Vec<Key>);

/// Binds `socket` to `address`; gives the name that it has now.
///
/// # Errors
/// EADDRINUSE, EINVAL, and those of making a node.
pub fn bind(socket: &Arc<UnixSocket>, address: &Address) -> SysResult<(Binding, Address)> {
    match parse(address)? {
        Name::None => choose(socket),
        Name::Abstract(name) => {
            let key = Key::Abstract(name.to_vec());
            claim(socket, &key)?;
            Ok((Binding(alloc::vec![key]), *address))
        }
        Name::Path(path) => {
            let keys = match PATHS.get() {
                Some(paths) => {
                    // The node is new, so nobody else can be bound to it: older entries are of what was
                    // unlinked.
                    let place = paths.create(path)?;
                    let keys = [Key::Node(place.node.0, place.node.1), Key::Path(place.path)];
                    let mut bound = BOUND.lock();
                    keys.iter()
                        .for_each(|key| drop(bound.insert(key.clone(), Arc::downgrade(socket))));
                    keys.to_vec()
                }
                None => {
                    let key = Key::Path(path.to_vec());
                    claim(socket, &key)?;
                    alloc::vec![key]
                }
            };
            Ok((Binding(keys), terminated(path)?))
        }
    }
}

/// A path as its address: with the NUL.
fn terminated(path: &[u8]) -> SysResult<Address> {
    let mut bytes = family::UNIX.to_ne_bytes().to_vec();
    bytes.extend_from_slice(path);
    bytes.push(0);
    Address::new(&bytes)
}

fn claim(socket: &Arc<UnixSocket>, key: &Key) -> SysResult<()> {
    let mut bound = BOUND.lock();
    if bound.get(key).is_some_and(|other| other.strong_count() > 0) {
        return Err(Errno::EADDRINUSE);
    }
    bound.insert(key.clone(), Arc::downgrade(socket));
    Ok(())
}

/// A free abstract name of five hexadecimal digits.
fn choose(socket: &Arc<UnixSocket>) -> SysResult<(Binding, Address)> {
    let start = crate::fs::anon::next_inode();
    for n in start..start + 0x1000 {
        let name = alloc::format!("{:05x}", n & 0xf_ffff).into_bytes();
        let key = Key::Abstract(name.clone());
        if claim(socket, &key).is_ok() {
            let mut bytes = family::UNIX.to_ne_bytes().to_vec();
            bytes.push(0);
            bytes.extend_from_slice(&name);
            return Ok((Binding(alloc::vec![key]), Address::new(&bytes)?));
        }
    }
    Err(Errno::ENOSPC)
}

/// Forgets a binding of a socket that is going.
pub fn release(binding: &Binding, socket: *const UnixSocket) {
    let mut bound = BOUND.lock();
    for key in &binding.0 {
        // Another socket may have the path by now.
        if bound.get(key).is_some_and(|weak| weak.as_ptr() == socket) {
            bound.remove(key);
        }
    }
}

/// Where an address leads.
#[derive(Debug)]
pub enum Target {
    /// To a socket of the guest.
    Guest(Arc<UnixSocket>),
    /// To one of the host: directory and path from there.
    Host(Dir, Vec<u8>),
}

/// Follows an address.
///
/// # Errors
/// ECONNREFUSED when nobody is there, EINVAL, and those of the path.
pub fn find(address: &Address) -> SysResult<Target> {
    let bound = |key: &Key| BOUND.lock().get(key).and_then(Weak::upgrade);
    match parse(address)? {
        Name::None => Err(Errno::EINVAL),
        Name::Abstract(name) => bound(&Key::Abstract(name.to_vec()))
            .map(Target::Guest)
            .ok_or(Errno::ECONNREFUSED),
        Name::Path(path) => {
            let Some(paths) = PATHS.get() else {
                return bound(&Key::Path(path.to_vec()))
                    .map(Target::Guest)
                    .ok_or(Errno::ENOENT);
            };
            let place = paths.find(path)?;
            let socket =
                bound(&Key::Path(place.path)).or_else(|| bound(&Key::Node(place.node.0, place.node.1)));
            match (socket, place.host) {
                (Some(socket), _) => Ok(Target::Guest(socket)),
                (None, Some((directory, path))) => Ok(Target::Host(directory, path)),
                (None, None) => Err(Errno::ECONNREFUSED),
            }
        }
    }
}
