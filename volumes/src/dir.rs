//! Directories: names to inodes, in the content of the directory's inode.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::block::{BLOCK, BlockId, Fork, Page, zero_page};
use crate::dirblock::{self, Entry, HASH_BITS, Kind, LEVEL_BITS, SLOTS};
use crate::engine::Engine;
use crate::error::VolumeError;
use crate::inode::{Ino, Inode};
use crate::store::Store;

/// A name that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The inode.
    pub ino: Ino,
    /// Type bits of its mode, shifted right by twelve.
    pub kind: u8,
    /// Key of the entry.
    key: u64,
    leaf: Leaf,
}

/// The way to a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leaf {
    /// Block of the leaf; `None` where no leaf is.
    block: Option<u32>,
    /// Index above it, and its depth; `None` if the leaf is the root.
    index: Option<(u32, u32)>,
}

/// A name as a listing gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Resume the listing after this name with it. From 512 up, below 2^63.
    pub cookie: u64,
    /// The inode.
    pub ino: Ino,
    /// Type bits of its mode, shifted right by twelve (`DT_*`).
    pub kind: u8,
    /// Name.
    pub name: Vec<u8>,
}

const fn block(dir: Ino, number: u32) -> BlockId {
    BlockId::new(dir.0, Fork::Data, 0, number as u64)
}

impl<S: Store> Engine<S> {
    /// Finds a name.
    pub fn dir_find(&mut self, dir: Ino, name: &[u8]) -> Result<Option<Place>, VolumeError> {
        if self.inode(dir)?.size == 0 {
            return Ok(None);
        }
        let hash = dirblock::hash(&self.root.name_key, name);
        let leaf = self.leaf(dir, hash)?;
        let Some(number) = leaf.block else {
            return Ok(None);
        };
        let page = self.dir_page(dir, number, Kind::Leaf)?;
        let found =
            dirblock::entries(page).find(|e| e.key >> LEVEL_BITS == hash >> LEVEL_BITS && e.name == name);
        Ok(found.map(|e| Place {
            ino: Ino(e.ino),
            kind: e.kind,
            key: e.key,
            leaf,
        }))
    }

    /// Adds a name that is not there.
    pub fn dir_add(&mut self, dir: Ino, name: &[u8], ino: Ino, kind: u8) -> Result<(), VolumeError> {
        if self.inode(dir)?.size == 0 {
            let root = self.dir_new_block(dir)?;
            dirblock::start_leaf(self.page_to_overwrite(&block(dir, root))?);
        }
        let hash = dirblock::hash(&self.root.name_key, name);
        loop {
            let leaf = self.leaf(dir, hash)?;
            let Some(number) = leaf.block else {
                self.dir_fill_hole(dir, hash, &leaf)?;
                continue;
            };
            let page = self.dir_page(dir, number, Kind::Leaf)?;
            let key = dirblock::free_ordinal(page, hash).ok_or(VolumeError::DirectoryFull)?;
            let entry = Entry {
                key,
                ino: ino.0,
                kind,
                name,
            };
            if dirblock::add(self.page_mut(&block(dir, number))?, &entry) {
                return self.dir_count(dir, 1);
            }
            self.dir_split(dir, hash, number, leaf.index)?;
        }
    }

    /// Lets a name lead to another inode.
    pub fn dir_replace(&mut self, dir: Ino, place: &Place, ino: Ino, kind: u8) -> Result<(), VolumeError> {
        let number = place.leaf.block.expect("what was found lies in a leaf");
        dirblock::replace(self.page_mut(&block(dir, number))?, place.key, ino.0, kind);
        Ok(())
    }

    /// Removes a name.
    pub fn dir_remove(&mut self, dir: Ino, place: &Place) -> Result<(), VolumeError> {
        let number = place.leaf.block.expect("what was found lies in a leaf");
        let empty = dirblock::remove(self.page_mut(&block(dir, number))?, place.key);
        self.dir_count(dir, -1)?;
        let mut inode = self.inode(dir)?;
        if inode.entries == 0 {
            self.free_range(dir, Fork::Data, 0, u64::MAX)?;
            inode = self.inode(dir)?;
            inode.size = 0;
            inode.free_block = 0;
            return self.put_inode(dir, &inode);
        }
        match place.leaf.index {
            Some((index, depth)) if empty => {
                let page = self.page_mut(&block(dir, index))?;
                let run = dirblock::run(page, dirblock::slot(place.key, depth));
                dirblock::set_children(page, run, 0);
                dirblock::start_free(self.page_mut(&block(dir, number))?, inode.free_block);
                inode = self.inode(dir)?;
                inode.free_block = number;
                self.put_inode(dir, &inode)
            }
            _ => Ok(()),
        }
    }

    /// Up to `most` names after a cookie (0: from the first), in the order of cookies.
    pub fn dir_list(&mut self, dir: Ino, after: u64, most: usize) -> Result<Vec<DirEntry>, VolumeError> {
        let mut found: Vec<DirEntry> = Vec::new();
        if self.inode(dir)?.size == 0 {
            return Ok(found);
        }
        let mut key = after.saturating_add(1);
        while key < 1 << (HASH_BITS + LEVEL_BITS) && found.len() < most {
            let leaf = self.leaf(dir, key)?;
            if let Some(number) = leaf.block {
                let before = found.len();
                let page = self.dir_page(dir, number, Kind::Leaf)?;
                let after_key = dirblock::entries(page).filter(|e| e.key >= key);
                found.extend(after_key.map(|e| DirEntry {
                    cookie: e.key,
                    ino: Ino(e.ino),
                    kind: e.kind,
                    name: e.name.to_vec(),
                }));
                found[before..].sort_unstable_by_key(|e| e.cookie);
            }
            let Some((index, depth)) = leaf.index else { break };
            // The first key that the slots of this leaf, or hole, don't cover.
            let page = self.dir_page(dir, index, Kind::Index)?;
            let run = dirblock::run(page, dirblock::slot(key, depth));
            let shift = HASH_BITS - LEVEL_BITS * depth;
            let above = (key >> shift) >> LEVEL_BITS << LEVEL_BITS;
            key = (above + run.end as u64) << shift;
        }
        found.truncate(most);
        Ok(found)
    }

    /// The leaf for a key.
    fn leaf(&mut self, dir: Ino, key: u64) -> Result<Leaf, VolumeError> {
        let (mut number, mut index) = (0, None);
        for depth in 0..=HASH_BITS / LEVEL_BITS {
            let (id, page) = (block(dir, number), self.page(&block(dir, number))?);
            match page.and_then(|page| Some((page, dirblock::kind(page)?))) {
                Some((_, Kind::Leaf)) => {
                    return Ok(Leaf {
                        block: Some(number),
                        index,
                    });
                }
                Some((page, Kind::Index)) if depth < HASH_BITS / LEVEL_BITS => {
                    index = Some((number, depth));
                    number = dirblock::child(page, dirblock::slot(key, depth));
                    if number == 0 {
                        return Ok(Leaf { block: None, index });
                    }
                }
                _ => {
                    return Err(VolumeError::Inconsistent {
                        block: id,
                        what: "it is neither leaf nor index of a directory",
                    });
                }
            }
        }
        Err(VolumeError::DirectoryFull)
    }

    fn dir_page(&mut self, dir: Ino, number: u32, kind: Kind) -> Result<&Page, VolumeError> {
        let id = block(dir, number);
        let page = self.page(&id)?.filter(|page| dirblock::kind(page) == Some(kind));
        page.ok_or(VolumeError::Inconsistent {
            block: id,
            what: "it is another kind of block of a directory",
        })
    }

    fn dir_count(&mut self, dir: Ino, more: i64) -> Result<(), VolumeError> {
        let mut inode = self.inode(dir)?;
        inode.entries = inode.entries.saturating_add_signed(more);
        self.put_inode(dir, &inode)
    }

    /// A block for a leaf or an index: a free one, or one more.
    fn dir_new_block(&mut self, dir: Ino) -> Result<u32, VolumeError> {
        let mut inode: Inode = self.inode(dir)?;
        let number = inode.free_block;
        if number != 0 {
            let next = dirblock::next_free(self.dir_page(dir, number, Kind::Free)?);
            inode.free_block = next;
            self.put_inode(dir, &inode)?;
            return Ok(number);
        }
        let number = u32::try_from(inode.size / BLOCK as u64).map_err(|_| VolumeError::DirectoryFull)?;
        inode.size += BLOCK as u64;
        self.put_inode(dir, &inode)?;
        Ok(number)
    }

    /// A leaf where an index leads nowhere.
    fn dir_fill_hole(&mut self, dir: Ino, key: u64, leaf: &Leaf) -> Result<(), VolumeError> {
        let (index, depth) = leaf.index.expect("only an index leads nowhere");
        let number = self.dir_new_block(dir)?;
        dirblock::start_leaf(self.page_to_overwrite(&block(dir, number))?);
        let page = self.page_mut(&block(dir, index))?;
        let run = dirblock::run(page, dirblock::slot(key, depth));
        dirblock::set_children(page, run, number);
        Ok(())
    }

    /// Makes room where a leaf is full: its slots are shared with a new leaf; a leaf with one slot gets an index.
    fn dir_split(
        &mut self,
        dir: Ino,
        key: u64,
        number: u32,
        index: Option<(u32, u32)>,
    ) -> Result<(), VolumeError> {
        let Some((index, depth)) = index else {
            // The root stays where it is and becomes an index; its entries move.
            let moved = self.dir_new_block(dir)?;
            let old: Box<Page> = Box::new(*self.page_mut(&block(dir, number))?);
            *self.page_to_overwrite(&block(dir, moved))? = *old;
            dirblock::start_index(self.page_mut(&block(dir, number))?, moved);
            return Ok(());
        };
        let slot = dirblock::slot(key, depth);
        let run = dirblock::run(self.page_mut(&block(dir, index))?, slot);
        if run.len() == 1 {
            if depth + 1 == HASH_BITS / LEVEL_BITS {
                return Err(VolumeError::DirectoryFull);
            }
            let below = self.dir_new_block(dir)?;
            dirblock::start_index(self.page_to_overwrite(&block(dir, below))?, number);
            let page = self.page_mut(&block(dir, index))?;
            dirblock::set_children(page, run, below);
            return Ok(());
        }
        let middle = run.start + run.len() / 2;
        let second = self.dir_new_block(dir)?;
        let mut other = zero_page();
        dirblock::split(self.page_mut(&block(dir, number))?, &mut other, depth, middle);
        *self.page_to_overwrite(&block(dir, second))? = *other;
        dirblock::set_children(self.page_mut(&block(dir, index))?, middle..run.end, second);
        debug_assert!(run.end <= SLOTS, "a run ends within its index");
        Ok(())
    }
}
