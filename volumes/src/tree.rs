//! Trees of blocks: from a logical name to a pointer and back, growing, and freeing ranges. A hole is a pointer to
//! nothing and reads as zeros.

use alloc::vec::Vec;

use crate::block::{
    BLOCK, BlockId, FANOUT, Fork, MAX_HEIGHT, Page, Pointer, pointer_in, set_pointer_in, start_node,
};
use crate::engine::Engine;
use crate::error::VolumeError;
use crate::inode::{Ino, Inode};
use crate::store::Store;
use crate::superblock::TreeRoot;

/// Data blocks below one block of a level.
#[must_use]
pub const fn span(level: u8) -> u64 {
    FANOUT.pow(level as u32)
}

impl<S: Store> Engine<S> {
    /// An inode that is in use.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`] if it is not.
    pub fn inode(&mut self, ino: Ino) -> Result<Inode, VolumeError> {
        let inode = self.inode_slot(ino)?;
        if inode.mode == 0 {
            Err(VolumeError::NotFound)
        } else {
            Ok(inode)
        }
    }

    /// An inode, also a free one.
    pub fn inode_slot(&mut self, ino: Ino) -> Result<Inode, VolumeError> {
        let block = ino.block();
        match self.page(&block)? {
            None => Ok(Inode::FREE),
            Some(page) => Inode::in_block(page, ino).ok_or(VolumeError::Inconsistent {
                block,
                what: "an inode makes no sense",
            }),
        }
    }

    /// Changes an inode.
    pub fn put_inode(&mut self, ino: Ino, inode: &Inode) -> Result<(), VolumeError> {
        inode.put_in_block(self.page_mut(&ino.block())?, ino);
        Ok(())
    }

    /// The tree that a block is in.
    pub(crate) fn tree(&mut self, id: &BlockId) -> Result<TreeRoot, VolumeError> {
        if id.table {
            return Ok(self.root.inodes);
        }
        let ino = Ino(id.ino);
        let block = ino.block();
        match self.page(&block)? {
            None => Ok(TreeRoot::EMPTY),
            Some(page) => Inode::tree_in_block(page, ino, id.fork).ok_or(VolumeError::Inconsistent {
                block,
                what: "an inode makes no sense",
            }),
        }
    }

    fn set_tree(&mut self, id: &BlockId, tree: TreeRoot) -> Result<(), VolumeError> {
        if id.table {
            self.root.inodes = tree;
            return Ok(());
        }
        let ino = Ino(id.ino);
        let mut inode = self.inode_slot(ino)?;
        inode.set_tree(id.fork, tree);
        self.put_inode(ino, &inode)
    }

    /// Where a block lies.
    pub fn pointer(&mut self, id: &BlockId) -> Result<Pointer, VolumeError> {
        let tree = self.tree(id)?;
        self.pointer_in_tree(id, &tree)
    }

    /// The same for who knows the tree.
    pub(crate) fn pointer_in_tree(&mut self, id: &BlockId, tree: &TreeRoot) -> Result<Pointer, VolumeError> {
        if id.level >= tree.height {
            let is_top = id.level == tree.height && id.index == 0;
            return Ok(if is_top { tree.top } else { Pointer::HOLE });
        }
        Ok(match self.page(&id.parent())? {
            Some(node) => pointer_in(node, id.slot()),
            None => Pointer::HOLE,
        })
    }

    /// Tells a block's parent where it lies.
    pub(crate) fn set_pointer(
        &mut self,
        id: &BlockId,
        tree: TreeRoot,
        pointer: &Pointer,
    ) -> Result<(), VolumeError> {
        if id.level == tree.height {
            return self.set_tree(
                id,
                TreeRoot {
                    top: *pointer,
                    ..tree
                },
            );
        }
        set_pointer_in(self.page_mut(&id.parent())?, id.slot(), pointer);
        Ok(())
    }

    /// A block's bytes; `None` for a hole.
    pub fn page(&mut self, id: &BlockId) -> Result<Option<&Page>, VolumeError> {
        if self.cache.is_dirty(id).is_none() {
            let pointer = self.pointer(id)?;
            if pointer.is_hole() {
                return Ok(None);
            }
            self.load(id, &pointer)?;
        }
        Ok(self.cache.get(id))
    }

    /// A block's bytes, to be changed. A hole becomes a block of zeros, or an empty node.
    pub fn page_mut(&mut self, id: &BlockId) -> Result<&mut Page, VolumeError> {
        self.touch(id, true)?;
        Ok(self.cache.get_dirty(id).expect("it was touched above"))
    }

    /// The same for who writes all of it: what it held is not read, and until then it may hold another block's bytes.
    pub fn page_to_overwrite(&mut self, id: &BlockId) -> Result<&mut Page, VolumeError> {
        self.touch(id, false)?;
        Ok(self.cache.get_dirty(id).expect("it was touched above"))
    }

    /// Makes a block and all its ancestors dirty.
    fn touch(&mut self, id: &BlockId, keep: bool) -> Result<(), VolumeError> {
        let known = self.cache.is_dirty(id);
        if known == Some(true) {
            return Ok(());
        }
        let tree = self.raised(id)?;
        match known {
            Some(_) => {}
            None => {
                let pointer = self.pointer_in_tree(id, &tree)?;
                if !pointer.is_hole() && (keep || id.level > 0) {
                    self.load(id, &pointer)?;
                } else {
                    if pointer.is_hole() && id.level == 0 && !id.table {
                        self.count_blocks(id, 1)?;
                    }
                    let page = self.cache.insert(*id);
                    // Who does not keep what was there overwrites all of it.
                    if keep {
                        page.fill(0);
                    }
                    if id.level > 0 {
                        start_node(page, id.level);
                    }
                }
            }
        }
        self.cache.mark(id);
        if id.level < tree.height {
            self.touch(&id.parent(), true)
        } else if id.table {
            Ok(())
        } else {
            self.touch(&Ino(id.ino).block(), true)
        }
    }

    fn count_blocks(&mut self, id: &BlockId, more: i64) -> Result<(), VolumeError> {
        let ino = Ino(id.ino);
        let mut inode = self.inode_slot(ino)?;
        inode.blocks = inode.blocks.saturating_add_signed(more);
        self.put_inode(ino, &inode)
    }

    /// The block's tree, made high enough for it.
    fn raised(&mut self, id: &BlockId) -> Result<TreeRoot, VolumeError> {
        let mut tree = self.tree(id)?;
        if id.level > 0 {
            return Ok(tree);
        }
        while id.index >= span(tree.height) {
            if tree.height == MAX_HEIGHT {
                return Err(VolumeError::FileTooLarge);
            }
            let top = BlockId::new(id.ino, id.fork, tree.height, 0);
            let old = tree;
            tree.height += 1;
            if old.top.is_hole() && self.cache.is_dirty(&top) != Some(true) {
                self.set_tree(id, tree)?;
                continue;
            }
            let node = BlockId::new(id.ino, id.fork, tree.height, 0);
            let page = self.cache.insert(node);
            page.fill(0);
            start_node(page, tree.height);
            set_pointer_in(page, 0, &old.top);
            self.cache.mark(&node);
            tree.top = Pointer::HOLE;
            self.set_tree(id, tree)?;
        }
        Ok(tree)
    }

    /// Makes a hole of the blocks `first..end` of a tree.
    ///
    /// # Errors
    /// [`VolumeError::Tampered`] and the like when nodes can't be read; a part may be freed by then.
    pub fn free_range(&mut self, ino: Ino, fork: Fork, first: u64, end: u64) -> Result<(), VolumeError> {
        let data = BlockId::new(ino.0, fork, 0, first);
        let mut count = 0;
        for id in self.cache.dirty_in(data, end) {
            if self.pointer(&id)?.is_hole() {
                count += 1;
            }
            self.cache.remove(&id);
        }
        let tree = self.tree(&data)?;
        let top = BlockId::new(ino.0, fork, tree.height, 0);
        let gone = self.free_below(&top, &tree.top, first..end, &mut count)?;
        let mut inode = self.inode_slot(ino)?;
        if gone {
            inode.set_tree(fork, TreeRoot::EMPTY);
        }
        inode.blocks = inode.blocks.saturating_sub(count);
        self.put_inode(ino, &inode)
    }

    /// Says whether the block itself is gone.
    fn free_below(
        &mut self,
        id: &BlockId,
        pointer: &Pointer,
        range: core::ops::Range<u64>,
        count: &mut u64,
    ) -> Result<bool, VolumeError> {
        let exists = !pointer.is_hole() || self.cache.is_dirty(id) == Some(true);
        let start = id.index * span(id.level);
        let whole = range.start <= start && start + span(id.level) <= range.end;
        if !exists || range.end <= start || start + span(id.level) <= range.start {
            return Ok(!exists && whole);
        }
        if id.level > 0 {
            let pointers = self.pointers(id)?;
            for (slot, child_pointer) in pointers.iter().enumerate() {
                let child = BlockId {
                    level: id.level - 1,
                    index: id.index * FANOUT + slot as u64,
                    ..*id
                };
                let gone = self.free_below(&child, child_pointer, range.clone(), count)?;
                if gone && !whole && !child_pointer.is_hole() {
                    set_pointer_in(self.page_mut(id)?, slot, &Pointer::HOLE);
                }
            }
        } else {
            *count += 1;
        }
        if whole {
            self.cache.remove(id);
            if !pointer.is_hole() {
                self.free(pointer.address);
            }
        }
        Ok(whole)
    }

    fn pointers(&mut self, id: &BlockId) -> Result<Vec<Pointer>, VolumeError> {
        let Some(node) = self.page(id)? else {
            return Ok(Vec::new());
        };
        Ok((0..FANOUT as usize).map(|slot| pointer_in(node, slot)).collect())
    }

    /// The first block of data in `from..end` that is there, or that is a hole.
    pub fn find(&mut self, ino: Ino, from: u64, end: u64, data: bool) -> Result<Option<u64>, VolumeError> {
        let mut index = from;
        while index < end {
            let id = BlockId::new(ino.0, Fork::Data, 0, index);
            let (there, next) = self.is_there(&id)?;
            if there == data {
                return Ok(Some(index));
            }
            index = next;
        }
        Ok(None)
    }

    /// Whether a block is there, and the next index at which that may differ.
    fn is_there(&mut self, id: &BlockId) -> Result<(bool, u64), VolumeError> {
        if self.cache.is_dirty(id).is_some() {
            return Ok((true, id.index + 1));
        }
        let height = self.tree(id)?.height;
        for level in (1..=height).rev() {
            let node = BlockId {
                level,
                index: id.index / span(level),
                ..*id
            };
            if self.page(&node)?.is_none() {
                return Ok((false, (node.index + 1) * span(level)));
            }
        }
        if id.index >= span(height) {
            return Ok((false, u64::MAX));
        }
        Ok((!self.pointer(id)?.is_hole(), id.index + 1))
    }
}

/// Number of blocks that hold so many bytes.
#[must_use]
pub const fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK as u64)
}
