//! Directories with the entries of both layers.
//!
//! A listing is made when the first entry is read, and again after a rewind, as in the overlay of Linux: positions
//! are places in it. What the host listed is believed for a second, as all that it says of its tree.

use alloc::sync::{Arc, Weak};
use alloc::vec;
use alloc::vec::Vec;
use core::any::Any;

use cloak_abi::hostop::HostOp;
use hashbrown::{HashMap, HashSet};
use spin::{Lazy, Mutex};

use super::lower::Lower;
use super::{Entry, OverlayNode};
use crate::arch;
use crate::errno::{Errno, SysResult};
use crate::fs::file::{File, Stat};
use crate::fs::flags::{O_DIRECTORY, S_IFDIR, SEEK_CUR, SEEK_SET, d_type};
use crate::fs::hostfile::seek_from;
use crate::fs::node::Node;
use crate::fs::read_cache::believed_until;
use crate::fs::{OpenFile, dirent};
use crate::host::{CAPACITY, Request};
use crate::user::Buf;

/// Most bytes of records made for one call.
const RECORDS_MAX: usize = 64 << 10;

/// Most directories of the lower layer whose entries are kept: beyond that all are forgotten.
const KEPT: usize = 64;
/// Most entries of such a directory.
const KEPT_ENTRIES: usize = 1024;

/// Entries of a directory of the lower layer, as the host listed them.
struct Kept {
    /// While this is there, the address that is the key is no other node's.
    _of: Weak<OverlayNode>,
    until: u64,
    entries: Arc<Vec<Listed>>,
}

static LISTINGS: Lazy<Mutex<HashMap<usize, Kept>>> = Lazy::new(|| Mutex::new(HashMap::new()));

/// An entry of a listing.
#[derive(Clone)]
pub struct Listed {
    ino: u64,
    kind: u8,
    name: Vec<u8>,
}

impl OverlayNode {
    /// All entries, without `.` and `..`.
    pub(super) fn list(&self) -> SysResult<Vec<Listed>> {
        let mut all = Vec::clone(&*self.lower_entries()?);
        let own: Vec<(Vec<u8>, Option<Arc<OverlayNode>>)> = {
            let entries = self.entries.lock();
            let differs = entries.iter().filter_map(|(name, entry)| match entry {
                Entry::Whiteout => Some((name.clone(), None)),
                Entry::Node { node, .. } if node.is_pinned() => Some((name.clone(), Some(node.clone()))),
                _ => None,
            });
            differs.collect()
        };
        if own.is_empty() {
            return Ok(all);
        }
        let covered: HashSet<&[u8]> = own.iter().map(|(name, _)| &name[..]).collect();
        all.retain(|entry| !covered.contains(&entry.name[..]));
        drop(covered);
        for (name, node) in own {
            let Some(node) = node else { continue };
            let stat = node.identity();
            let (ino, kind) = (stat.ino, d_type(stat.mode));
            all.push(Listed { ino, kind, name });
        }
        Ok(all)
    }

    pub(super) fn is_empty(&self) -> SysResult<bool> {
        self.list().map(|all| all.is_empty())
    }

    /// The entries of the lower layer, as of a moment ago.
    fn lower_entries(&self) -> SysResult<Arc<Vec<Listed>>> {
        let Some(lower) = &self.lower else {
            return Ok(Arc::default());
        };
        let key = core::ptr::from_ref(self).addr();
        if let Some(kept) = LISTINGS.lock().get(&key)
            && arch::ticks() < kept.until
        {
            return Ok(kept.entries.clone());
        }
        let until = believed_until();
        let entries = Arc::new(Self::ask_entries(lower)?);
        if entries.len() <= KEPT_ENTRIES {
            let kept = Kept {
                _of: self.this.clone(),
                until,
                entries: entries.clone(),
            };
            let mut listings = LISTINGS.lock();
            if listings.len() >= KEPT {
                listings.clear();
            }
            listings.insert(key, kept);
        }
        Ok(entries)
    }

    fn ask_entries(lower: &Lower) -> SysResult<Vec<Listed>> {
        let mut all = Vec::new();
        let (fd, _) = lower.open(O_DIRECTORY)?;
        fd.set_unnoticed(true);
        let mut request = Request::new();
        loop {
            let room = CAPACITY.min(RECORDS_MAX);
            let args = [fd.number(), room as u64, 0, 0, 0, 0];
            let mut records = vec![0; request.call(HostOp::GetDents, args).len(room)?];
            if records.is_empty() {
                return Ok(all);
            }
            request.get(0, &mut records);
            let mut rest = &records[..];
            while !rest.is_empty() {
                let entry = dirent::take(&mut rest)?;
                if entry.name != b"." && entry.name != b".." {
                    all.push(Listed {
                        ino: entry.ino,
                        kind: entry.kind,
                        name: entry.name.to_vec(),
                    });
                }
            }
        }
    }

    /// The same with `.` and `..`.
    pub(super) fn list_all(&self) -> SysResult<Vec<Listed>> {
        let own = self.identity().ino;
        let above = self
            .home
            .lock()
            .as_ref()
            .and_then(|(directory, _)| directory.upgrade());
        let parent = above.map_or(own, |directory| directory.identity().ino);
        let kind = d_type(S_IFDIR);
        let dot = |ino: u64, name: &[u8]| Listed {
            ino,
            kind,
            name: name.to_vec(),
        };
        let mut all = vec![dot(own, b"."), dot(parent, b"..")];
        if !self.is_removed() {
            all.append(&mut self.list()?);
        }
        Ok(all)
    }
}

/// An open directory; the position of its open file is the place of the next entry.
pub struct OverlayDir {
    directory: Arc<OverlayNode>,
    node: Arc<dyn Node>,
    listing: Mutex<Option<Arc<Vec<Listed>>>>,
}

impl OverlayDir {
    /// Opens it.
    pub fn new(directory: Arc<OverlayNode>) -> Self {
        Self {
            node: directory.clone(),
            directory,
            listing: Mutex::new(None),
        }
    }

    fn listing(&self, position: u64) -> SysResult<Arc<Vec<Listed>>> {
        let known = self.listing.lock().clone();
        match known {
            Some(listing) if position > 0 => Ok(listing),
            _ => {
                let listing = Arc::new(self.directory.list_all()?);
                *self.listing.lock() = Some(listing.clone());
                Ok(listing)
            }
        }
    }
}

/// Calls `each` for the entries from `from` on, until it says false.
pub fn entries(listing: &[Listed], from: u64, each: &mut dyn FnMut(&dirent::Entry<'_>) -> bool) {
    let skip = usize::try_from(from).unwrap_or(usize::MAX);
    for (place, entry) in (1..).zip(listing).skip(skip) {
        let entry = dirent::Entry {
            ino: entry.ino,
            next: place,
            kind: entry.kind,
            name: &entry.name,
        };
        if !each(&entry) {
            return;
        }
    }
}

impl File for OverlayDir {
    fn read(&self, _file: &OpenFile, _to: &mut Buf) -> SysResult<usize> {
        Err(Errno::EISDIR)
    }

    fn read_at(&self, _offset: u64, _to: &mut Buf) -> SysResult<usize> {
        Err(Errno::EISDIR)
    }

    fn stat(&self) -> SysResult<Stat> {
        self.node.stat()
    }

    fn seek(&self, file: &OpenFile, offset: i64, whence: u32) -> SysResult<u64> {
        file.position.with(|position| {
            *position = match whence {
                SEEK_SET => seek_from(0, offset)?,
                SEEK_CUR => seek_from(*position, offset)?,
                _ => return Err(Errno::EINVAL),
            };
            Ok(*position)
        })
    }

    fn read_dir(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        file.position.with(|position| {
            let listing = self.listing(*position)?;
            let room = to.len().min(RECORDS_MAX);
            let mut records = Vec::new();
            let (mut next, mut full) = (*position, false);
            entries(&listing, *position, &mut |entry| {
                full = !dirent::put(&mut records, room, entry);
                if !full {
                    next = entry.next;
                }
                !full
            });
            if full && records.is_empty() {
                return Err(Errno::EINVAL);
            }
            let given = dirent::give(&records, to)?;
            *position = next;
            Ok(given)
        })
    }

    fn sync(&self, _data_only: bool) -> SysResult<()> {
        Ok(())
    }

    fn node(&self) -> Option<&Arc<dyn Node>> {
        Some(&self.node)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
