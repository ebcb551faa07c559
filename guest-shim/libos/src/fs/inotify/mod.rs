//! `inotify`: what happens to files, told to who asked.
//!
//! What a watch is of is known by its path in the guest: [`happened`] and its like are told the path at which a call did
//! something, and look who watches it or the directory that it is in. So a watch sees what programs of the context do,
//! on every file system, and a renamed directory takes its watches along; what is done to a file by another of its hard
//! links is told to the directory of that link only, and what others do to a host's volume is not told.
//!
//! Nothing is done, and no path is looked at, while nobody watches ([`watched`]).

mod calls;
mod queue;
#[cfg(test)]
mod tests;

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use spin::Mutex;

pub use self::calls::SYSCALLS;
pub use self::queue::Inotify;
use super::OpenFile;
use super::fd::O_PATH;

/// Events and flags (`include/uapi/linux/inotify.h`).
#[allow(missing_docs)]
pub mod event {
    pub const ACCESS: u32 = 1;
    pub const MODIFY: u32 = 2;
    pub const ATTRIB: u32 = 4;
    pub const CLOSE_WRITE: u32 = 8;
    pub const CLOSE_NOWRITE: u32 = 0x10;
    pub const OPEN: u32 = 0x20;
    pub const MOVED_FROM: u32 = 0x40;
    pub const MOVED_TO: u32 = 0x80;
    pub const CREATE: u32 = 0x100;
    pub const DELETE: u32 = 0x200;
    pub const DELETE_SELF: u32 = 0x400;
    pub const MOVE_SELF: u32 = 0x800;
    pub const ALL: u32 = 0xfff;
    pub const OVERFLOW: u32 = 0x4000;
    pub const IGNORED: u32 = 0x8000;
    pub const ONLY_DIRECTORY: u32 = 0x0100_0000;
    pub const DONT_FOLLOW: u32 = 0x0200_0000;
    pub const EXCLUDE_UNLINKED: u32 = 0x0400_0000;
    pub const MASK_CREATE: u32 = 0x1000_0000;
    pub const MASK_ADD: u32 = 0x2000_0000;
    pub const IS_DIRECTORY: u32 = 0x4000_0000;
    pub const ONCE: u32 = 0x8000_0000;
}

/// Flag of a file that is opened for a call that Linux carries out without opening it.
pub const UNNOTICED: u32 = 1 << 30;

/// All that were made and are not closed.
static INSTANCES: Mutex<Vec<Weak<Inotify>>> = Mutex::new(Vec::new());
/// Watches of all of them.
static WATCHES: AtomicUsize = AtomicUsize::new(0);
/// Numbers that hold the two halves of a rename together.
static COOKIE: AtomicU32 = AtomicU32::new(1);

/// Whether somebody watches anything.
#[inline]
#[must_use]
pub fn watched() -> bool {
    WATCHES.load(Ordering::Relaxed) > 0
}

fn all() -> Vec<Arc<Inotify>> {
    INSTANCES.lock().iter().filter_map(Weak::upgrade).collect()
}

fn parent(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(0) => (b"/", path.get(1..).unwrap_or(&[])),
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (path, &[]),
    }
}

/// Something happened to what is at `path`: its own watches and those of its directory are told.
pub fn happened(path: &[u8], mask: u32) {
    if watched() {
        let (directory, name) = parent(path);
        for instance in all() {
            instance.tell(directory, Some(name), mask, 0);
            instance.tell(path, None, mask, 0);
        }
    }
}

/// The same of an open file.
pub fn happened_to(open: &OpenFile, mask: u32) {
    if watched() {
        let path = open.path.lock().clone();
        if path.first() == Some(&b'/') {
            happened(&path, mask);
        }
    }
}

/// The last descriptor of an open file was closed.
pub fn closed(open: &OpenFile) {
    if open.flags() & (O_PATH | UNNOTICED) == 0 {
        let writes = open.writable();
        happened_to(
            open,
            if writes {
                event::CLOSE_WRITE
            } else {
                event::CLOSE_NOWRITE
            },
        );
    }
}

/// A name was made.
pub fn made(path: &[u8], directory: bool) {
    if watched() {
        named(path, event::CREATE, 0, directory);
    }
}

/// What is at `from` got another name.
pub fn linked(from: &[u8], to: &[u8]) {
    if watched() {
        for instance in all() {
            instance.tell(from, None, event::ATTRIB, 0);
        }
        made(to, false);
    }
}

/// A name was removed, and what it was of with it.
pub fn removed(path: &[u8], directory: bool) {
    if watched() {
        gone(path, directory);
        named(path, event::DELETE, 0, directory);
    }
}

/// What was at `from` is at `to` now; what was there is gone, unless the two were exchanged.
pub fn renamed(from: &[u8], to: &[u8], directory: bool, exchanged: bool) {
    if !watched() || from == to {
        return;
    }
    let cookie = COOKIE.fetch_add(1, Ordering::Relaxed);
    named(from, event::MOVED_FROM, cookie, directory);
    named(to, event::MOVED_TO, cookie, directory);
    if !exchanged {
        gone(to, directory);
    }
    for instance in all() {
        instance.tell(from, None, event::MOVE_SELF, 0);
        instance.follow(from, to, exchanged);
    }
}

fn named(path: &[u8], mask: u32, cookie: u32, directory: bool) {
    let (above, name) = parent(path);
    let kind = if directory { event::IS_DIRECTORY } else { 0 };
    for instance in all() {
        instance.tell(above, Some(name), mask | kind, cookie);
    }
}

fn gone(path: &[u8], directory: bool) {
    for instance in all() {
        if !directory {
            instance.tell(path, None, event::ATTRIB, 0); // it has one link less
        }
        instance.forget(path);
    }
}
