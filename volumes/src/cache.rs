//! Decrypted blocks in memory, bounded. Blocks that differ from the container ("dirty") stay until they are written;
//! of the others the ones that nobody used since the hand came by last make room (second chance).

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use hashbrown::HashMap;
use zeroize::Zeroize;

use crate::block::{BLOCK, BlockId, Page, zero_page};

/// Blocks: half a MiB, which stays in a core's own cache until it is sealed.
const DATA_AT_MOST: usize = 128;

#[derive(Debug)]
struct Slot {
    id: Option<BlockId>,
    page: Box<Page>,
    dirty: bool,
    used: bool,
    /// It makes room as soon as it is written.
    passing: bool,
}

/// Blocks by their logical names.
#[derive(Debug)]
pub struct Cache {
    slots: Vec<Slot>,
    index: HashMap<BlockId, usize>,
    dirty: BTreeSet<BlockId>,
    /// Those of `dirty` that are data and no nodes.
    dirty_data: usize,
    empty: Vec<usize>,
    hand: usize,
    capacity: usize,
}

impl Cache {
    /// Room for a number of blocks. Dirty ones beyond it are kept all the same: who makes them writes them in time.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            slots: Vec::new(),
            index: HashMap::new(),
            dirty: BTreeSet::new(),
            dirty_data: 0,
            empty: Vec::new(),
            hand: 0,
            capacity: capacity.max(64),
        }
    }

    /// Bytes that it has room for.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        (self.capacity * BLOCK) as u64
    }

    /// Dirty blocks.
    #[must_use]
    pub fn dirty(&self) -> usize {
        self.dirty.len()
    }

    /// More dirty blocks than this are to be written.
    #[must_use]
    pub const fn dirty_limit(&self) -> usize {
        self.capacity / 2
    }

    /// Dirty blocks that are no nodes: who overwrites a part of a file at random makes nearly as many nodes dirty, and
    /// writing these again and again costs more than waiting.
    #[must_use]
    pub const fn dirty_data(&self) -> usize {
        self.dirty_data
    }

    /// More dirty blocks of data than this are to be written: few, so that they are still in the processor's caches when they
    /// are sealed, and that a commit has little left to do.
    #[must_use]
    pub const fn dirty_data_limit(&self) -> usize {
        let half = self.capacity / 2;
        if half < DATA_AT_MOST { half } else { DATA_AT_MOST }
    }

    /// The first dirty blocks in the order of flushing, at most so many, and all of one level of the trees or of the table.
    pub fn first_dirty(&self, most: usize, into: &mut Vec<BlockId>) {
        into.clear();
        if let Some(first) = self.dirty.first() {
            let alike = |id: &&BlockId| (id.table, id.level) == (first.table, first.level);
            into.extend(self.dirty.iter().take_while(alike).take(most));
        }
    }

    /// The dirty blocks of a range of a tree's level.
    #[must_use]
    pub fn dirty_in(&self, first: BlockId, end: u64) -> Vec<BlockId> {
        let last = BlockId { index: end, ..first };
        self.dirty.range(first..last).copied().collect()
    }

    /// A block.
    pub fn get(&mut self, id: &BlockId) -> Option<&Page> {
        let slot = &mut self.slots[*self.index.get(id)?];
        slot.used = true;
        Some(&slot.page)
    }

    /// Whether it is here and dirty; `None` if it is not here.
    #[must_use]
    pub fn is_dirty(&self, id: &BlockId) -> Option<bool> {
        self.index.get(id).map(|&at| self.slots[at].dirty)
    }

    /// A dirty block, to be changed.
    pub fn get_dirty(&mut self, id: &BlockId) -> Option<&mut Page> {
        let slot = &mut self.slots[*self.index.get(id)?];
        debug_assert!(slot.dirty, "{id} is changed without being marked");
        slot.used = true;
        Some(&mut slot.page)
    }

    /// Marks a block that is here as dirty.
    pub fn mark(&mut self, id: &BlockId) {
        if let Some(&at) = self.index.get(id) {
            self.slots[at].dirty = true;
            if self.dirty.insert(*id) {
                self.dirty_data += usize::from(id.level == 0);
            }
        }
    }

    /// Marks a block that is here as one that makes room as soon as it is written.
    pub fn pass(&mut self, id: &BlockId) {
        if let Some(&at) = self.index.get(id) {
            self.slots[at].passing = true;
        }
    }

    /// Marks a block as written; one that was to pass goes.
    pub fn clean(&mut self, id: &BlockId) {
        if let Some(&at) = self.index.get(id) {
            if self.slots[at].passing {
                return self.remove(id);
            }
            self.slots[at].dirty = false;
            self.no_longer_dirty(id);
        }
    }

    /// A page for a block that is not here: its old bytes are to be overwritten by the caller.
    pub fn insert(&mut self, id: BlockId) -> &mut Page {
        let at = self.room();
        self.index.insert(id, at);
        let slot = &mut self.slots[at];
        slot.id = Some(id);
        slot.used = true;
        slot.dirty = false;
        slot.passing = false;
        &mut slot.page
    }

    /// Forgets a block, dirty or not.
    pub fn remove(&mut self, id: &BlockId) {
        if let Some(at) = self.index.remove(id) {
            if self.slots[at].dirty {
                self.no_longer_dirty(id);
            }
            self.slots[at].id = None;
            self.slots[at].dirty = false;
            self.empty.push(at);
        }
    }

    fn no_longer_dirty(&mut self, id: &BlockId) {
        if self.dirty.remove(id) {
            self.dirty_data -= usize::from(id.level == 0);
        }
    }

    fn room(&mut self) -> usize {
        if let Some(at) = self.empty.pop() {
            return at;
        }
        if self.slots.len() >= self.capacity {
            // Twice around: the first time takes chances away.
            for _ in 0..2 * self.slots.len() {
                let at = self.hand;
                self.hand = (self.hand + 1) % self.slots.len();
                let slot = &mut self.slots[at];
                if slot.dirty {
                    continue;
                }
                if core::mem::take(&mut slot.used) {
                    continue;
                }
                if let Some(id) = slot.id.take() {
                    self.index.remove(&id);
                }
                return at;
            }
        }
        self.slots.push(Slot {
            id: None,
            page: zero_page(),
            dirty: false,
            used: false,
            passing: false,
        });
        self.slots.len() - 1
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            slot.page.zeroize();
        }
    }
}
