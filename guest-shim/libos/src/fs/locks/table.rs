//! Who holds what, on every file: what is decided among the processes of the context.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use spin::{Lazy, Mutex};

use super::{F_RDLCK, F_WRLCK};
use crate::fs::file::Stat;
use crate::sched::WaitQueue;

/// Who holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// A process: POSIX locks.
    Process(i32),
    /// An open file, by its address.
    Open(usize),
}

/// A lock on the bytes `[start, end)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub owner: Owner,
    pub write: bool,
    pub start: u64,
    pub end: u64,
}

impl Held {
    /// All of a file.
    pub const fn whole(owner: Owner, write: bool) -> Self {
        Self {
            owner,
            write,
            start: 0,
            end: u64::MAX,
        }
    }

    /// As `l_type`.
    pub const fn kind(&self) -> i16 {
        if self.write { F_WRLCK } else { F_RDLCK }
    }

    /// As `l_len`: 0 is up to the end, wherever that is.
    pub const fn len(&self) -> i64 {
        if self.end == u64::MAX {
            0
        } else {
            (self.end - self.start) as i64
        }
    }

    /// Whether they have bytes in common.
    pub const fn meets(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// A file: device and inode.
pub(super) type Key = (u64, u64);
/// Locks by file.
pub(super) type Table = Mutex<HashMap<Key, Vec<Held>>>;

/// Record locks, of processes and of open files.
pub(super) static RECORDS: Lazy<Table> = Lazy::new(Table::default);
/// Those of `flock`.
pub(super) static WHOLE: Lazy<Table> = Lazy::new(Table::default);
pub(super) static CHANGED: WaitQueue = WaitQueue::new();
/// Changes so far: a waiter looks whether there were any since its attempt.
pub(super) static CHANGES: AtomicU64 = AtomicU64::new(0);

/// Some lock went, or became smaller.
pub(super) fn changed() {
    CHANGES.fetch_add(1, Ordering::SeqCst);
    CHANGED.wake_all(0);
}

pub(super) fn key(stat: &Stat) -> Key {
    (stat.dev, stat.ino)
}

/// The lock in the way of `wanted`.
pub(super) fn conflict(held: &[Held], wanted: &Held) -> Option<Held> {
    held.iter()
        .filter(|h| h.owner != wanted.owner && (h.write || wanted.write))
        .find(|h| h.meets(wanted))
        .copied()
}

/// Replaces what the owner holds in the range by `wanted`, or by nothing.
pub(super) fn replace(held: &mut Vec<Held>, wanted: &Held, unlock: bool) {
    let mut next = Vec::with_capacity(held.len() + 2);
    for lock in held.drain(..) {
        if lock.owner != wanted.owner || !lock.meets(wanted) {
            next.push(lock);
            continue;
        }
        if lock.start < wanted.start {
            next.push(Held {
                end: wanted.start,
                ..lock
            });
        }
        if wanted.end < lock.end {
            next.push(Held {
                start: wanted.end,
                ..lock
            });
        }
    }
    if !unlock {
        next.push(*wanted);
    }
    *held = next;
}

/// The owner holds what it held `before`; what others did meanwhile stays.
pub(super) fn restore(key: Key, owner: Owner, before: Vec<Held>) {
    let mut records = RECORDS.lock();
    let held = records.entry(key).or_default();
    held.retain(|h| h.owner != owner);
    held.extend(before.into_iter().filter(|h| h.owner == owner));
    if held.is_empty() {
        records.remove(&key);
    }
    drop(records);
    changed();
}

/// The owner holds nothing in the table any more; whether it did.
pub(super) fn forget(table: &Table, owner: Owner) -> bool {
    let mut table = table.lock();
    let mut any = false;
    table.retain(|_, held| {
        let before = held.len();
        held.retain(|h| h.owner != owner);
        any |= held.len() != before;
        !held.is_empty()
    });
    any
}

/// `/proc/locks`.
#[must_use]
pub fn listing() -> String {
    let mut text = String::new();
    let mut number = 0;
    for (table, whole) in [(&RECORDS, false), (&WHOLE, true)] {
        for (&(dev, ino), held) in &*table.lock() {
            for lock in held {
                number += 1;
                let (kind, pid) = match lock.owner {
                    _ if whole => ("FLOCK ", -1),
                    Owner::Process(pid) => ("POSIX ", pid),
                    Owner::Open(_) => ("OFDLCK", -1),
                };
                let access = if lock.write { "WRITE" } else { "READ" };
                let (major, minor) = (dev >> 8 & 0xfff, dev & 0xff | dev >> 12 & 0xf_ff00);
                // Writing to a string can't fail.
                let _ = write!(
                    text,
                    "{number}: {kind} ADVISORY  {access} {pid} {major:02x}:{minor:02x}:{ino}"
                );
                let _ = match lock.end {
                    u64::MAX => writeln!(text, " {} EOF", lock.start),
                    end => writeln!(text, " {} {}", lock.start, end - 1),
                };
            }
        }
    }
    text
}
