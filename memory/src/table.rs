//! What is known of each page: state, version, tag. Private to the monitor; the OS side never holds it.
//!
//! Pages are kept in blocks of 64, each under one lock and allocated when a page of it is first touched: 1552 bytes
//! for 256 KiB of RAM and a word or two to find it, 0.6 % of RAM that is in use ([`PageTable::bytes`] counts). A batch
//! takes a lock for a run of pages, not for each.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::cipher::{TAG_SIZE, Tag};
use crate::page::{Page, Version};
use crate::state::PageState;

/// Pages under one lock.
pub const BLOCK_PAGES: u64 = 64;

const STATE_SHIFT: u32 = 62;

#[derive(Debug)]
struct Block {
    /// State in the two highest bits, version in the lower 56.
    words: [u64; BLOCK_PAGES as usize],
    tags: [Tag; BLOCK_PAGES as usize],
    /// One bit for each page that may differ from what it was at the last mark.
    changed: u64,
}

/// Bookkeeping for all pages of a context.
#[derive(Debug)]
pub struct PageTable {
    blocks: Box<[OnceLock<Box<Mutex<Block>>>]>,
    pages: u64,
    /// The state of pages that nothing was recorded of.
    first: PageState,
}

impl PageTable {
    /// All pages `Zero`. Page numbers are below `pages`.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        Self::beginning(pages, PageState::Zero)
    }

    /// All pages in this state.
    #[must_use]
    pub fn beginning(pages: u64, first: PageState) -> Self {
        let blocks = pages.div_ceil(BLOCK_PAGES);
        Self {
            blocks: (0..blocks).map(|_| OnceLock::new()).collect(),
            pages,
            first,
        }
    }

    /// One more than the largest page number.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Bytes that the bookkeeping takes now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let used = self.blocks.iter().filter(|b| b.get().is_some()).count();
        size_of_val(&*self.blocks) + used * size_of::<Mutex<Block>>()
    }

    /// Locks the block that a page is in; none for a page outside.
    #[must_use]
    pub fn lock(&self, page: Page) -> Option<BlockGuard<'_>> {
        if page.number() >= self.pages {
            return None;
        }
        let index = page.number() / BLOCK_PAGES;
        let block = self
            .blocks
            .get(index as usize)?
            .get_or_init(|| Block::new(self.first));
        Some(BlockGuard {
            first: index * BLOCK_PAGES,
            end: ((index + 1) * BLOCK_PAGES).min(self.pages),
            block: block.lock().unwrap_or_else(PoisonError::into_inner),
        })
    }

    /// Locks one after another the blocks in which any page was ever touched.
    pub fn used(&self) -> impl Iterator<Item = BlockGuard<'_>> {
        (0u64..).zip(&self.blocks).filter_map(|(index, cell)| {
            let block = cell.get()?;
            Some(BlockGuard {
                first: index * BLOCK_PAGES,
                end: ((index + 1) * BLOCK_PAGES).min(self.pages),
                block: block.lock().unwrap_or_else(PoisonError::into_inner),
            })
        })
    }
}

impl Block {
    fn new(first: PageState) -> Box<Mutex<Self>> {
        Box::new(Mutex::new(Self {
            words: [(first as u64) << STATE_SHIFT; BLOCK_PAGES as usize],
            tags: [[0; TAG_SIZE]; BLOCK_PAGES as usize],
            changed: 0,
        }))
    }
}

/// A locked block. Its methods panic for pages outside of it, which is a mistake of this crate.
#[derive(Debug)]
pub struct BlockGuard<'a> {
    first: u64,
    end: u64,
    block: MutexGuard<'a, Block>,
}

impl BlockGuard<'_> {
    /// Numbers of the pages in the block.
    #[must_use]
    pub const fn range(&self) -> Range<u64> {
        self.first..self.end
    }

    /// Whether a page is in the block.
    #[must_use]
    pub fn holds(&self, page: Page) -> bool {
        self.range().contains(&page.number())
    }

    /// The page's state.
    #[must_use]
    pub fn state(&self, page: Page) -> PageState {
        PageState::ALL[(self.block.words[self.index(page)] >> STATE_SHIFT) as usize]
    }

    /// Whether any page of the block is in this state.
    #[must_use]
    pub fn any(&self, state: PageState) -> bool {
        // No early end: without one the compiler compares several words at once.
        let in_state = |word: &u64| word >> STATE_SHIFT == state as u64;
        self.block.words.iter().filter(|w| in_state(w)).count() > 0
    }

    /// The version that the page was last sealed as.
    #[must_use]
    pub fn version(&self, page: Page) -> Version {
        Version::new(self.block.words[self.index(page)] & (Version::END - 1)).unwrap_or(Version::NONE)
    }

    /// The tag of that sealing.
    #[must_use]
    pub fn tag(&self, page: Page) -> Tag {
        self.block.tags[self.index(page)]
    }

    /// Whether the page may differ from what it was at the last mark.
    #[must_use]
    pub fn changed(&self, page: Page) -> bool {
        self.block.changed >> self.index(page) & 1 == 1
    }

    pub(crate) fn set_state(&mut self, page: Page, state: PageState) {
        let index = self.index(page);
        let word = &mut self.block.words[index];
        *word = *word & (Version::END - 1) | (state as u64) << STATE_SHIFT;
    }

    pub(crate) fn set_sealed(&mut self, page: Page, state: PageState, version: Version, tag: Tag) {
        let index = self.index(page);
        self.block.words[index] = version.number() | (state as u64) << STATE_SHIFT;
        self.block.tags[index] = tag;
    }

    pub(crate) fn set_changed(&mut self, page: Page) {
        self.block.changed |= 1 << self.index(page);
    }

    pub(crate) fn clear_changed(&mut self) {
        self.block.changed = 0;
    }

    fn index(&self, page: Page) -> usize {
        assert!(self.holds(page), "{page} is not in the locked block");
        (page.number() - self.first) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u64) -> Page {
        Page::new(number).unwrap()
    }

    #[test]
    fn neighbours_are_left_alone() {
        let table = PageTable::new(100);
        let top = Version::new(Version::END - 1).unwrap();
        for number in [0, 63, 64, 99] {
            let mut block = table.lock(page(number)).unwrap();
            block.set_sealed(page(number), PageState::Sealed, top, [number as u8; 16]);
            block.set_changed(page(number));
        }
        for number in 0..100 {
            let block = table.lock(page(number)).unwrap();
            let set = [0, 63, 64, 99].contains(&number);
            assert_eq!(block.state(page(number)) == PageState::Sealed, set);
            assert_eq!(block.version(page(number)) == top, set);
            assert_eq!(block.changed(page(number)), set);
            assert_eq!(block.tag(page(number)), [if set { number as u8 } else { 0 }; 16]);
        }
        assert!(table.lock(page(100)).is_none());
    }

    #[test]
    fn a_state_keeps_the_version() {
        let table = PageTable::new(1);
        let mut block = table.lock(page(0)).unwrap();
        let version = Version::new(77).unwrap();
        block.set_sealed(page(0), PageState::Clean, version, [3; 16]);
        for state in PageState::ALL {
            block.set_state(page(0), state);
            assert_eq!((block.state(page(0)), block.version(page(0))), (state, version));
        }
    }

    #[test]
    fn bookkeeping_is_below_eight_thousandths() {
        let pages = 1 << 16;
        let table = PageTable::new(pages);
        assert!(table.bytes() < pages as usize * 4096 / 10_000);
        for number in 0..pages {
            drop(table.lock(page(number)));
        }
        assert!(
            table.bytes() < pages as usize * 4096 * 8 / 1000,
            "{}",
            table.bytes()
        );
    }
}
