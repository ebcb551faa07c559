//! `/dev`: a memory file system with the devices that every program expects.

use alloc::sync::Arc;

use super::attributes::make_dev;
use super::flags::{S_IFCHR, S_IFDIR};
use super::node::{New, Node};
use super::special::{MEMORY_MAJOR, PTMX, TTY};
use super::tmpfs::Tmpfs;

/// Most bytes of files that a program may make in `/dev`.
const LIMIT: u64 = 16 << 20;

const DEVICES: &[(&[u8], u64)] = &[
    (b"null", make_dev(MEMORY_MAJOR, 3)),
    (b"zero", make_dev(MEMORY_MAJOR, 5)),
    (b"full", make_dev(MEMORY_MAJOR, 7)),
    (b"random", make_dev(MEMORY_MAJOR, 8)),
    (b"urandom", make_dev(MEMORY_MAJOR, 9)),
    (b"tty", TTY),
    (b"ptmx", PTMX),
];

const LINKS: &[(&[u8], &[u8])] = &[
    (b"fd", b"/proc/self/fd"),
    (b"stdin", b"/proc/self/fd/0"),
    (b"stdout", b"/proc/self/fd/1"),
    (b"stderr", b"/proc/self/fd/2"),
];

/// Its root directory.
#[must_use]
pub fn root() -> Arc<dyn Node> {
    let fs = Tmpfs::new(LIMIT, 0o755);
    let nodes = DEVICES
        .iter()
        .map(|&(name, rdev)| (name, New::Node(S_IFCHR, rdev), 0o666));
    let links = LINKS
        .iter()
        .map(|&(name, target)| (name, New::Link(target), 0o777));
    let places = [&b"shm"[..], b"mqueue", b"pts"].map(|name| (name, New::Node(S_IFDIR, 0), 0o755));
    for (name, new, mode) in nodes.chain(links).chain(places) {
        // An empty file system takes them all.
        let _ = fs.populate(name, new, mode);
    }
    fs.root()
}
