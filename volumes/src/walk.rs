//! Walks over all blocks without the cache: to learn which are in use when a volume is opened, and to check them.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::block::{BlockId, FANOUT, Fork, Page, Pointer, pointer_in, zero_page};
use crate::engine::{unreadable, unseal};
use crate::error::VolumeError;
use crate::inode::{INODES_IN_BLOCK, Ino, Inode};
use crate::keys::KeyRing;
use crate::store::Store;
use crate::superblock::{FIRST_BLOCK, Root};

/// What a walk meets.
pub trait Visitor {
    /// A block, before it is read. Nodes are read if the answer is true, data too if it is [`Visitor::reads_data`].
    fn block(&mut self, id: &BlockId, pointer: &Pointer) -> Result<bool, VolumeError>;
    /// A block that can't be read, or that is not as it was written. An error ends the walk.
    fn failed(&mut self, id: &BlockId, error: VolumeError) -> Result<(), VolumeError>;
    /// Whether data of inodes is read, too.
    fn reads_data(&self) -> bool;
    /// An inode that is in use, before its trees.
    fn inode(&mut self, ino: Ino, inode: &Inode) -> Result<(), VolumeError>;
    /// An inode's trees are done.
    fn inode_done(&mut self, ino: Ino, inode: &Inode) -> Result<(), VolumeError>;
    /// A number below the end that no inode has.
    fn free_inode(&mut self, ino: Ino);
}

/// A container that is walked over.
pub struct Walk<'a, S> {
    /// The container.
    pub store: &'a mut S,
    /// Keys.
    pub ring: &'a mut KeyRing,
    /// Where to begin.
    pub root: &'a Root,
}

impl<S: Store> Walk<'_, S> {
    /// Meets every block that the root leads to.
    ///
    /// # Errors
    /// What the visitor gives.
    pub fn all(&mut self, visitor: &mut dyn Visitor) -> Result<(), VolumeError> {
        let table = self.root.inodes;
        let mut leaves = Vec::new();
        let top = BlockId::new(0, Fork::Data, table.height, 0);
        self.below(&top, &table.top, visitor, &mut leaves)?;
        let mut next = 1;
        for (id, pointer) in leaves {
            let first = id.index * INODES_IN_BLOCK;
            self.free_inodes(&mut next, first, visitor);
            let Some(page) = self.read(&id, &pointer, visitor)? else {
                next = next.max(first + INODES_IN_BLOCK);
                continue;
            };
            for ino in (first.max(1)..first + INODES_IN_BLOCK).map(Ino) {
                self.inode(ino, &id, &page, visitor)?;
            }
            next = next.max(first + INODES_IN_BLOCK);
        }
        self.free_inodes(&mut next, self.root.inode_end, visitor);
        Ok(())
    }

    fn free_inodes(&self, next: &mut u64, end: u64, visitor: &mut dyn Visitor) {
        while *next < end.min(self.root.inode_end) {
            visitor.free_inode(Ino(*next));
            *next += 1;
        }
    }

    fn inode(
        &mut self,
        ino: Ino,
        block: &BlockId,
        page: &Page,
        visitor: &mut dyn Visitor,
    ) -> Result<(), VolumeError> {
        let Some(inode) = Inode::in_block(page, ino) else {
            let what = "an inode makes no sense";
            return visitor.failed(block, VolumeError::Inconsistent { block: *block, what });
        };
        if inode.mode == 0 {
            if ino.0 < self.root.inode_end {
                visitor.free_inode(ino);
            }
            return Ok(());
        }
        visitor.inode(ino, &inode)?;
        for fork in [Fork::Data, Fork::Attributes] {
            let tree = inode.tree(fork);
            let top = BlockId::new(ino.0, fork, tree.height, 0);
            self.below(&top, &tree.top, visitor, &mut Vec::new())?;
        }
        visitor.inode_done(ino, &inode)
    }

    fn below(
        &mut self,
        id: &BlockId,
        pointer: &Pointer,
        visitor: &mut dyn Visitor,
        leaves: &mut Vec<(BlockId, Pointer)>,
    ) -> Result<(), VolumeError> {
        if pointer.is_hole() {
            return Ok(());
        }
        if pointer.address < FIRST_BLOCK || pointer.address >= self.root.blocks {
            let what = "its pointer leads out of the volume";
            return visitor.failed(id, VolumeError::Inconsistent { block: *id, what });
        }
        if !visitor.block(id, pointer)? {
            return Ok(());
        }
        if id.level == 0 {
            if id.table {
                leaves.push((*id, *pointer));
            } else if visitor.reads_data() {
                self.read(id, pointer, visitor)?;
            }
            return Ok(());
        }
        let Some(node) = self.read(id, pointer, visitor)? else {
            return Ok(());
        };
        for slot in 0..FANOUT {
            let child = BlockId {
                level: id.level - 1,
                index: id.index * FANOUT + slot,
                ..*id
            };
            self.below(&child, &pointer_in(&node, slot as usize), visitor, leaves)?;
        }
        Ok(())
    }

    fn read(
        &mut self,
        id: &BlockId,
        pointer: &Pointer,
        visitor: &mut dyn Visitor,
    ) -> Result<Option<Box<Page>>, VolumeError> {
        let (mut sealed, mut page) = (zero_page(), zero_page());
        let read = self.store.read_at(pointer.offset(), sealed.as_mut_slice());
        let opened = read
            .map_err(|error| unreadable(id, pointer.offset(), error))
            .and_then(|()| {
                let Self { ring, root, .. } = self;
                ring.with(|ciphers| unseal(ciphers, root, id, pointer, &*sealed, &mut page))
            });
        match opened {
            Ok(()) => Ok(Some(page)),
            Err(error) => visitor.failed(id, error).map(|()| None),
        }
    }
}
