//! Which blocks of the container are in use: a set of bits with two levels of summary above, so that the next free
//! block is found without looking at what is full.
//!
//! It is not stored. It follows from the tree of pointers, and is rebuilt when a volume is opened.

use alloc::vec;
use alloc::vec::Vec;

use crate::superblock::FIRST_BLOCK;

const WORD: u64 = 64;

/// The set of used blocks.
#[derive(Debug)]
pub struct Space {
    /// Level 0: a bit for each block, set if used. Above: a bit for each word below, set if the word is full.
    levels: [Vec<u64>; 3],
    blocks: u64,
    free: u64,
    next: u64,
}

impl Space {
    /// All blocks free but the superblocks.
    #[must_use]
    pub fn new(blocks: u64) -> Self {
        let mut space = Self {
            levels: [vec![], vec![], vec![]],
            blocks: 0,
            free: 0,
            next: FIRST_BLOCK,
        };
        space.grow(blocks);
        for slot in 0..FIRST_BLOCK {
            space.take(slot);
        }
        space
    }

    /// Blocks in all.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Free blocks.
    #[must_use]
    pub const fn free(&self) -> u64 {
        self.free
    }

    /// More blocks, free.
    pub fn grow(&mut self, blocks: u64) {
        let mut bits = blocks;
        for level in &mut self.levels {
            bits = bits.div_ceil(WORD);
            level.resize(bits as usize, 0);
        }
        self.free += blocks - self.blocks;
        self.blocks = blocks;
        // What was full because it ended within a word may have room now: the summaries are set from the words.
        for word in 0..self.levels[0].len() as u64 {
            self.summarise(word);
        }
    }

    /// Marks a block as used; says whether it was free.
    pub fn take(&mut self, block: u64) -> bool {
        let (word, bit) = ((block / WORD) as usize, 1 << (block % WORD));
        if block >= self.blocks || self.levels[0][word] & bit != 0 {
            return false;
        }
        self.levels[0][word] |= bit;
        self.free -= 1;
        self.summarise(block / WORD);
        true
    }

    /// Marks a block as free.
    pub fn release(&mut self, block: u64) {
        let (word, bit) = ((block / WORD) as usize, 1 << (block % WORD));
        debug_assert!(self.levels[0][word] & bit != 0, "block {block} is free already");
        self.levels[0][word] &= !bit;
        self.free += 1;
        self.summarise(block / WORD);
    }

    /// Takes a free block: the next after the one that was given last, and from the start at the end.
    pub fn allocate(&mut self) -> Option<u64> {
        let block = self.find(self.next).or_else(|| self.find(FIRST_BLOCK))?;
        self.take(block);
        self.next = block + 1;
        Some(block)
    }

    fn summarise(&mut self, word: u64) {
        let mut index = word;
        for level in 0..2 {
            let full = self.levels[level][index as usize] == u64::MAX;
            let above = &mut self.levels[level + 1][(index / WORD) as usize];
            let bit = 1 << (index % WORD);
            let before = *above;
            *above = if full { *above | bit } else { *above & !bit };
            if *above == before {
                return;
            }
            index /= WORD;
        }
    }

    /// The first free block from `from`.
    fn find(&self, from: u64) -> Option<u64> {
        let mut at = from;
        // Up while nothing is free beneath, sideways, and down again.
        let mut level = 0;
        loop {
            let word = *self.levels[level].get((at / WORD) as usize)?;
            let open = !word & (u64::MAX << (at % WORD));
            if open == 0 {
                at = at / WORD + 1;
                if level < 2 {
                    level += 1;
                } else {
                    at *= WORD;
                }
                continue;
            }
            at = at / WORD * WORD + u64::from(open.trailing_zeros());
            if level == 0 {
                return (at < self.blocks).then_some(at);
            }
            if at as usize >= self.levels[level - 1].len() {
                return None;
            }
            level -= 1;
            at *= WORD;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_gives_what_is_free_and_nothing_twice(
            start in 2_u64..9000,
            steps in prop::collection::vec((0_u8..10, any::<u64>()), 0..2000),
        ) {
            let mut space = Space::new(start);
            let mut free: BTreeSet<u64> = (FIRST_BLOCK..start).collect();
            let mut used = vec![];
            for (what, value) in steps {
                match what {
                    0..6 => match space.allocate() {
                        Some(block) => {
                            prop_assert!(free.remove(&block));
                            used.push(block);
                        }
                        None => prop_assert!(free.is_empty()),
                    },
                    6..9 if !used.is_empty() => {
                        let block = used.swap_remove(value as usize % used.len());
                        space.release(block);
                        free.insert(block);
                    }
                    9 => {
                        let more = space.blocks() + value % 5000;
                        free.extend(space.blocks()..more);
                        space.grow(more);
                    }
                    _ => {}
                }
                prop_assert_eq!(space.free(), free.len() as u64);
            }
            while let Some(block) = space.allocate() {
                prop_assert!(free.remove(&block));
            }
            prop_assert!(free.is_empty());
        }
    }
}
