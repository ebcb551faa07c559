//! Directories of `tmpfs`.
//!
//! Each entry has a position that is given out once and only grows, so that a listing goes on where it was,
//! whatever is made or removed meanwhile.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use spin::Mutex;

use super::Inode;
use crate::errno::{Errno, SysResult};
use crate::fs::dirent::Entry;
use crate::fs::flags::{RENAME_EXCHANGE, RENAME_NOREPLACE, d_type};
use crate::fs::node::{self, New};
use crate::process::Credentials;

/// Positions of `.` and `..`; entries come after.
const FIRST: u64 = 2;
/// Bytes that an entry counts for in the directory's size.
const ENTRY_SIZE: u64 = 20;

/// The entries of a directory.
#[derive(Debug, Default)]
pub struct Directory {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_name: BTreeMap<Vec<u8>, (u64, Arc<Inode>)>,
    by_position: BTreeMap<u64, Vec<u8>>,
    next: u64,
    parent: Weak<Inode>,
    /// Taken out of the tree: nothing is made in it any more.
    removed: bool,
}

impl Directory {
    /// The entry of this name.
    pub fn find(&self, name: &[u8]) -> Option<Arc<Inode>> {
        self.inner
            .lock()
            .by_name
            .get(name)
            .map(|(_, inode)| inode.clone())
    }

    /// What `stat` says of its size.
    pub fn size(&self) -> u64 {
        (self.inner.lock().by_name.len() as u64 + 2) * ENTRY_SIZE
    }

    fn is_empty(&self) -> bool {
        self.inner.lock().by_name.is_empty()
    }

    fn parent(&self) -> Option<Arc<Inode>> {
        self.inner.lock().parent.upgrade()
    }

    fn insert(&self, name: &[u8], inode: Arc<Inode>) {
        let mut inner = self.inner.lock();
        let position = inner.next.max(FIRST);
        inner.next = position + 1;
        inner.by_position.insert(position, name.to_vec());
        inner.by_name.insert(name.to_vec(), (position, inode));
    }

    fn remove(&self, name: &[u8]) -> Option<Arc<Inode>> {
        let mut inner = self.inner.lock();
        let (position, inode) = inner.by_name.remove(name)?;
        inner.by_position.remove(&position);
        Some(inode)
    }

    /// Calls `each` for the entries from position `from` on until it says false.
    pub fn list(&self, this: &Inode, from: u64, each: &mut dyn FnMut(&Entry<'_>) -> bool) {
        let parent = self.parent().map_or(this.number, |p| p.number);
        let dots = [(0, &b"."[..], this.number), (1, b"..", parent)];
        for (position, name, ino) in dots {
            if position >= from
                && !each(&Entry {
                    ino,
                    next: position + 1,
                    kind: 4,
                    name,
                })
            {
                return;
            }
        }
        let inner = self.inner.lock();
        for (position, name) in inner.by_position.range(from.max(FIRST)..) {
            let Some((_, inode)) = inner.by_name.get(name) else {
                continue;
            };
            let kind = d_type(inode.meta.lock().mode);
            if !each(&Entry {
                ino: inode.number,
                next: position + 1,
                kind,
                name,
            }) {
                return;
            }
        }
    }
}

impl Inode {
    fn check_new(&self, name: &[u8]) -> SysResult<&Directory> {
        let directory = self.directory()?;
        if directory.inner.lock().removed {
            return Err(Errno::ENOENT);
        }
        if name.is_empty() || directory.find(name).is_some() {
            Err(Errno::EEXIST)
        } else {
            Ok(directory)
        }
    }

    /// Makes an entry.
    pub(super) fn make(
        &self,
        who: &Credentials,
        name: &[u8],
        new: New<'_>,
        mode: u32,
    ) -> SysResult<Arc<Inode>> {
        let fresh = self.child(who, new, mode)?;
        {
            let _tree = self.fs.tree.lock();
            let directory = self.check_new(name)?;
            if let Ok(below) = fresh.directory() {
                below.inner.lock().parent = self.this.clone();
                self.meta.lock().nlink += 1;
            }
            directory.insert(name, fresh.clone());
        }
        self.touch(true);
        Ok(fresh)
    }

    /// Takes an entry away.
    pub(super) fn take(&self, name: &[u8], directory: bool) -> SysResult<()> {
        let gone = {
            let _tree = self.fs.tree.lock();
            let entries = self.directory()?;
            let found = entries.find(name).ok_or(Errno::ENOENT)?;
            self.permit_removal(&found)?;
            match (directory, found.is_directory()) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !found.directory()?.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
            entries.remove(name);
            self.unlinked(&found);
            found
        };
        self.touch(true);
        drop(gone); // its pages go outside of the tree's lock
        Ok(())
    }

    fn permit_removal(&self, entry: &Inode) -> SysResult<()> {
        use crate::fs::node::Node;
        node::permit_removal(&self.stat()?, &entry.stat()?, &node::credentials())
    }

    /// Counts the links after `gone` lost its entry in this directory.
    fn unlinked(&self, gone: &Inode) {
        if let Ok(below) = gone.directory() {
            below.inner.lock().removed = true;
            gone.meta.lock().nlink = 0;
            self.meta.lock().nlink -= 1;
        } else {
            gone.change(|meta| meta.nlink = meta.nlink.saturating_sub(1));
        }
    }

    /// Another name for `inode`.
    pub(super) fn add_link(&self, name: &[u8], inode: &Inode) -> SysResult<()> {
        if !Arc::ptr_eq(&self.fs, &inode.fs) {
            return Err(Errno::EXDEV);
        }
        if inode.is_directory() {
            return Err(Errno::EPERM);
        }
        let this = inode.this.upgrade().ok_or(Errno::ENOENT)?;
        {
            let _tree = self.fs.tree.lock();
            self.check_new(name)?.insert(name, this);
        }
        inode.change(|meta| meta.nlink += 1);
        self.touch(true);
        Ok(())
    }

    /// Moves the entry `name` to `new_name` in `to`.
    pub(super) fn move_entry(&self, name: &[u8], to: &Inode, new_name: &[u8], flags: u32) -> SysResult<()> {
        if !Arc::ptr_eq(&self.fs, &to.fs) {
            return Err(Errno::EXDEV);
        }
        let replaced = {
            let _tree = self.fs.tree.lock();
            self.move_in_tree(name, to, new_name, flags)?
        };
        self.touch(true);
        to.touch(true);
        drop(replaced);
        Ok(())
    }

    fn move_in_tree(
        &self,
        name: &[u8],
        to: &Inode,
        new_name: &[u8],
        flags: u32,
    ) -> SysResult<Option<Arc<Inode>>> {
        let (from_entries, to_entries) = (self.directory()?, to.directory()?);
        let moved = from_entries.find(name).ok_or(Errno::ENOENT)?;
        let there = to_entries.find(new_name);
        if new_name.is_empty() || to_entries.inner.lock().removed {
            return Err(Errno::ENOENT);
        }
        self.permit_removal(&moved)?;
        match &there {
            Some(_) if flags & RENAME_NOREPLACE != 0 => return Err(Errno::EEXIST),
            Some(there) => to.permit_removal(there)?,
            None if flags & RENAME_EXCHANGE != 0 => return Err(Errno::ENOENT),
            None => {
                use crate::fs::node::Node;
                node::permit_entries(&to.stat()?, &node::credentials())?;
            }
        }
        if moved.is_above(to) {
            return Err(Errno::EINVAL);
        }
        if let Some(there) = &there {
            if Arc::ptr_eq(there, &moved) {
                return Ok(None);
            }
            if flags & RENAME_EXCHANGE != 0 {
                return self.exchange(name, &moved, to, new_name, there);
            }
            if there.is_above(self) {
                return Err(Errno::ENOTEMPTY);
            }
            match (moved.is_directory(), there.is_directory()) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !there.directory()?.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
            to_entries.remove(new_name);
            to.unlinked(there);
        }
        from_entries.remove(name);
        moved.settle_below(self, to);
        moved.touch(false);
        to_entries.insert(new_name, moved);
        Ok(there)
    }

    fn exchange(
        &self,
        name: &[u8],
        moved: &Arc<Inode>,
        to: &Inode,
        new_name: &[u8],
        there: &Arc<Inode>,
    ) -> SysResult<Option<Arc<Inode>>> {
        if there.is_above(self) {
            return Err(Errno::EINVAL);
        }
        let (from_entries, to_entries) = (self.directory()?, to.directory()?);
        from_entries.remove(name);
        to_entries.remove(new_name);
        moved.settle_below(self, to);
        there.settle_below(to, self);
        moved.touch(false);
        there.touch(false);
        from_entries.insert(name, there.clone());
        to_entries.insert(new_name, moved.clone());
        Ok(None)
    }

    /// After a move from one directory to another: its `..`, and their counts of links.
    fn settle_below(&self, from: &Inode, to: &Inode) {
        if let Ok(directory) = self.directory() {
            directory.inner.lock().parent = to.this.clone();
            from.meta.lock().nlink -= 1;
            to.meta.lock().nlink += 1;
        }
    }

    /// Whether it is `other` or a directory above it. The tree stands still.
    fn is_above(&self, other: &Inode) -> bool {
        if !self.is_directory() {
            return false;
        }
        let mut at = other.this.upgrade();
        while let Some(inode) = at {
            if core::ptr::eq(&*inode, self) {
                return true;
            }
            at = inode.directory().ok().and_then(Directory::parent);
        }
        false
    }
}
