//! Entries of directories.
//!
//! A change first looks up what it is about, which may ask the host, then takes the tree's lock and looks whether the
//! entries are still what it saw; if not, it begins anew.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::copy_up::Content;
use super::{Entry, OverlayNode, paths};
use crate::arch;
use crate::errno::{Errno, SysResult};
use crate::fs::file::Stat;
use crate::fs::flags::*;
use crate::fs::node::{self, New, Node};
use crate::fs::providers;
use crate::fs::read_cache::believed_until;
use crate::process::Credentials;

/// What a directory had of a name when it was looked up.
type Seen = Option<Arc<OverlayNode>>;

impl OverlayNode {
    /// The entry of this name.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR; ESTALE when the host's tree is another one by now; what the host reports.
    pub(super) fn find(&self, name: &[u8]) -> SysResult<Arc<OverlayNode>> {
        match (self.entries.lock().get(name), &self.lower) {
            (Some(Entry::Node { node, .. }), _) if node.is_settled() => return Ok(node.clone()),
            (Some(Entry::Whiteout), _) => return Err(Errno::ENOENT),
            (Some(Entry::Absent(until)), _) if arch::ticks() < *until => return Err(Errno::ENOENT),
            (None, None) if self.is_directory() => return Err(Errno::ENOENT),
            _ => {}
        }
        let lower = self.lower.as_ref().ok_or(Errno::ENOTDIR)?;
        if !self.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        let until = believed_until();
        let found = match lower.look_up(name) {
            Ok(found) => Some(found),
            Err(Errno::ENOENT) => None,
            Err(Errno::ESTALE) => return Err(self.fs.stale()),
            Err(e) => return Err(e),
        };
        let fresh = found.map(|(lower, stat)| {
            let home = Some((self.this.clone(), name.to_vec()));
            (OverlayNode::of_lower(&self.fs, lower, stat, home), stat)
        });
        self.settle(name, fresh, until)
    }

    /// Puts into the table what the host said of a name, which is believed `until` then.
    fn settle(
        &self,
        name: &[u8],
        fresh: Option<(Arc<OverlayNode>, Stat)>,
        until: u64,
    ) -> SysResult<Arc<OverlayNode>> {
        let mut replaced = None; // dropped outside of the lock
        let result = {
            let mut entries = self.entries.lock();
            match (entries.get(name), fresh) {
                (Some(Entry::Whiteout), _) => Err(Errno::ENOENT),
                (Some(Entry::Node { node, .. }), _) if node.is_pinned() => Ok(node.clone()),
                (Some(Entry::Node { node, .. }), Some((_, stat))) if node.is_same(&stat) => {
                    node.learn(stat, until);
                    Ok(node.clone())
                }
                (_, Some((node, _))) => {
                    let entry = Entry::Node {
                        node: node.clone(),
                        covers: true,
                    };
                    replaced = entries.insert(name.to_vec(), entry);
                    Ok(node)
                }
                (_, None) => {
                    let entry = Entry::Absent(believed_until());
                    replaced = entries.insert(name.to_vec(), entry);
                    Err(Errno::ENOENT)
                }
            }
        };
        match replaced {
            None => self.fs.count_cached(),
            Some(Entry::Node { .. }) => paths::changed(),
            Some(_) => {}
        }
        result
    }

    /// What there is of a name, for a change.
    fn see(&self, name: &[u8]) -> SysResult<Seen> {
        match self.find(name) {
            Ok(node) => Ok(Some(node)),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether the table still has what was seen. The tree stands still.
    fn still(&self, name: &[u8], seen: &Seen) -> bool {
        match (self.entries.lock().get(name), seen) {
            (Some(Entry::Node { node, .. }), Some(seen)) => Arc::ptr_eq(node, seen),
            (Some(Entry::Whiteout | Entry::Absent(_)), None) => true,
            (None, None) => self.lower.is_none(),
            _ => false,
        }
    }

    /// Puts a node into the table. The tree stands still.
    fn enter(&self, name: &[u8], node: Arc<OverlayNode>) -> Option<Entry> {
        let mut entries = self.entries.lock();
        let covers = match entries.get(name) {
            Some(Entry::Node { covers, .. }) => *covers,
            Some(Entry::Whiteout) => true,
            Some(Entry::Absent(_)) => false,
            None => self.lower.is_some(),
        };
        entries.insert(name.to_vec(), Entry::Node { node, covers })
    }

    /// Takes a node out of the table. The tree stands still.
    fn leave(&self, name: &[u8]) -> Option<Entry> {
        let mut entries = self.entries.lock();
        match entries.remove(name) {
            Some(Entry::Node { node, covers }) => {
                if covers {
                    entries.insert(name.to_vec(), Entry::Whiteout);
                }
                Some(Entry::Node { node, covers })
            }
            other => other,
        }
    }

    /// Its table of entries has changed.
    fn touched(&self) -> SysResult<()> {
        self.copy_up(Content::Whole)?.entries_changed();
        Ok(())
    }

    /// One of its names was taken away. The tree stands still.
    fn lost_name(&self) {
        let left = match self.upper.get() {
            Some(upper) if !self.is_directory() => {
                upper.count_name(false);
                upper.stat().is_ok_and(|stat| stat.nlink > 0)
            }
            _ => false,
        };
        if !left {
            self.removed.store(true, Ordering::Release);
            *self.home.lock() = None;
        }
    }

    fn check_directory(&self) -> SysResult<()> {
        if !self.is_directory() {
            Err(Errno::ENOTDIR)
        } else if self.is_removed() {
            Err(Errno::ENOENT)
        } else {
            Ok(())
        }
    }

    /// Attributes of what is made in this directory by `who`.
    fn attributes_of_new(&self, who: &Credentials, new: New<'_>, mode: u32) -> SysResult<Stat> {
        let parent = self.stat()?;
        let inherits = parent.mode & S_ISGID != 0;
        let (kind, rdev, bits) = match new {
            New::Link(_) => (S_IFLNK, 0, 0o777),
            New::Node(kind, rdev) => (kind & S_IFMT, rdev, mode & 0o7777),
        };
        let inherited = if kind == S_IFDIR && inherits { S_ISGID } else { 0 };
        let now = providers::get().now();
        Ok(Stat {
            dev: self.fs.device,
            ino: self.fs.next_number(),
            nlink: if kind == S_IFDIR { 2 } else { 1 },
            mode: kind | bits | inherited,
            uid: who.uid[3],
            gid: if inherits { parent.gid } else { who.gid[3] },
            rdev,
            atime: now,
            mtime: now,
            ctime: now,
            ..Stat::default()
        })
    }

    /// Makes an entry.
    pub(super) fn make(&self, name: &[u8], new: New<'_>, mode: u32) -> SysResult<Arc<OverlayNode>> {
        self.check_directory()?;
        let node = loop {
            let seen = self.see(name)?;
            if seen.is_some() || name.is_empty() {
                return Err(Errno::EEXIST);
            }
            self.copy_up(Content::Whole)?;
            let stat = self.attributes_of_new(&node::credentials(), new, mode)?;
            let inode = self.fs.upper.detached(&stat, new)?;
            let home = Some((self.this.clone(), name.to_vec()));
            let node = OverlayNode::of_upper(&self.fs, inode, home)?;
            let _tree = self.fs.tree.lock();
            self.check_directory()?;
            if self.still(name, &None) {
                self.enter(name, node.clone());
                break node;
            }
        };
        paths::made();
        self.touched()?;
        Ok(node)
    }

    /// Makes a file without a name.
    pub(super) fn make_unnamed(&self, mode: u32) -> SysResult<Arc<OverlayNode>> {
        self.check_directory()?;
        let new = New::Node(S_IFREG, 0);
        let stat = self.attributes_of_new(&node::credentials(), new, mode)?;
        let inode = self.fs.upper.detached(&Stat { nlink: 0, ..stat }, new)?;
        OverlayNode::of_upper(&self.fs, inode, None)
    }

    /// Takes an entry away; `directory`: as `rmdir`.
    pub(super) fn take(&self, name: &[u8], directory: bool) -> SysResult<()> {
        let gone = loop {
            self.check_directory()?;
            let found = self.find(name)?;
            node::permit_removal(&self.stat()?, &found.stat()?, &node::credentials())?;
            match (directory, found.is_directory()) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !found.is_empty()? => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
            self.copy_up(Content::Whole)?;
            let seen = Some(found);
            let _tree = self.fs.tree.lock();
            if self.still(name, &seen) {
                if let Some(found) = seen {
                    if directory && found.has_own_entries() {
                        return Err(Errno::ENOTEMPTY);
                    }
                    found.lost_name();
                }
                break self.leave(name);
            }
        };
        paths::changed();
        drop(gone);
        self.touched()
    }

    /// Whether its table has entries that are not just cached: made since one looked.
    fn has_own_entries(&self) -> bool {
        self.entries
            .lock()
            .values()
            .any(|entry| matches!(entry, Entry::Node { node, .. } if node.is_pinned()))
    }

    /// Another name for `node`.
    pub(super) fn add_link(&self, name: &[u8], node: &OverlayNode) -> SysResult<()> {
        if !Arc::ptr_eq(&self.fs, &node.fs) {
            return Err(Errno::EXDEV);
        }
        if node.is_directory() {
            return Err(Errno::EPERM);
        }
        let this = node.this.upgrade().ok_or(Errno::ENOENT)?;
        let inode = node.copy_up(Content::Whole)?;
        loop {
            self.check_directory()?;
            if self.see(name)?.is_some() || name.is_empty() {
                return Err(Errno::EEXIST);
            }
            self.copy_up(Content::Whole)?;
            let _tree = self.fs.tree.lock();
            self.check_directory()?;
            if self.still(name, &None) {
                self.enter(name, this.clone());
                inode.count_name(true);
                node.removed.store(false, Ordering::Release);
                break;
            }
        }
        paths::made();
        self.touched()
    }

    /// Moves the entry `name` to `new_name` in `to`.
    pub(super) fn move_entry(
        &self,
        name: &[u8],
        to: &OverlayNode,
        new_name: &[u8],
        flags: u32,
    ) -> SysResult<()> {
        if !Arc::ptr_eq(&self.fs, &to.fs) {
            return Err(Errno::EXDEV);
        }
        let replaced = loop {
            self.check_directory()?;
            to.check_directory()?;
            let moved = self.find(name)?;
            let there = to.see(new_name)?;
            if new_name.is_empty() {
                return Err(Errno::ENOENT);
            }
            permit_move((self, &moved), (to, &there), flags)?;
            if there.as_ref().is_some_and(|there| Arc::ptr_eq(there, &moved)) {
                return Ok(());
            }
            if let Some(there) = &there
                && flags & RENAME_EXCHANGE == 0
            {
                match (moved.is_directory(), there.is_directory()) {
                    (true, false) => return Err(Errno::ENOTDIR),
                    (false, true) => return Err(Errno::EISDIR),
                    (true, true) if !there.is_empty()? => return Err(Errno::ENOTEMPTY),
                    _ => {}
                }
            }
            self.copy_up(Content::Whole)?;
            to.copy_up(Content::Whole)?;
            let _tree = self.fs.tree.lock();
            to.check_directory()?;
            if !to.still(new_name, &there) || !self.still(name, &Some(moved.clone())) {
                continue;
            }
            break self.move_in_tree((name, &moved), to, (new_name, there.as_ref()), flags)?;
        };
        paths::changed();
        drop(replaced);
        self.touched()?;
        to.touched()
    }

    /// The tree stands still.
    fn move_in_tree(
        &self,
        (name, moved): (&[u8], &Arc<OverlayNode>),
        to: &OverlayNode,
        (new_name, there): (&[u8], Option<&Arc<OverlayNode>>),
        flags: u32,
    ) -> SysResult<Vec<Entry>> {
        if moved.is_above(to) {
            return Err(Errno::EINVAL);
        }
        let mut gone = Vec::new();
        if let Some(there) = there {
            if flags & RENAME_EXCHANGE != 0 {
                if there.is_above(self) {
                    return Err(Errno::EINVAL);
                }
                gone.extend(self.enter(name, there.clone()));
                gone.extend(to.enter(new_name, moved.clone()));
                there.settle_at(self, name);
                moved.settle_at(to, new_name);
                return Ok(gone);
            }
            if there.is_above(self) || there.is_directory() && there.has_own_entries() {
                return Err(Errno::ENOTEMPTY);
            }
            there.lost_name();
        }
        gone.extend(self.leave(name));
        gone.extend(to.enter(new_name, moved.clone()));
        moved.settle_at(to, new_name);
        Ok(gone)
    }

    /// After it came to another place.
    fn settle_at(&self, directory: &OverlayNode, name: &[u8]) {
        *self.home.lock() = Some((directory.this.clone(), name.to_vec()));
        self.pinned.store(true, Ordering::Release);
    }

    /// Whether it is `other` or a directory above it. The tree stands still.
    fn is_above(&self, other: &OverlayNode) -> bool {
        if !self.is_directory() {
            return false;
        }
        let mut at = other.this.upgrade();
        while let Some(node) = at {
            if core::ptr::eq(&*node, self) {
                return true;
            }
            at = node.home.lock().as_ref().and_then(|(above, _)| above.upgrade());
        }
        false
    }
}

fn permit_move(
    (from, moved): (&OverlayNode, &OverlayNode),
    (to, there): (&OverlayNode, &Seen),
    flags: u32,
) -> SysResult<()> {
    let who = node::credentials();
    node::permit_removal(&from.stat()?, &moved.stat()?, &who)?;
    match there {
        Some(_) if flags & RENAME_NOREPLACE != 0 => Err(Errno::EEXIST),
        Some(there) => node::permit_removal(&to.stat()?, &there.stat()?, &who),
        None if flags & RENAME_EXCHANGE != 0 => Err(Errno::ENOENT),
        None => node::permit_entries(&to.stat()?, &who),
    }
}
