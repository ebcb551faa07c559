//! The two sides that the engine stands between: plaintext memory, which it trusts, and the OS side's store, which
//! it does not. Others implement these: guest RAM ([`crate::ram`]), a file ([`crate::file`]), test doubles.

use std::io;
use std::ops::Range;

use crate::page::{Page, PageBytes};

/// Pages in a row, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub first: Page,
    /// How many.
    pub count: u64,
}

impl Run {
    /// One page.
    #[must_use]
    pub const fn one(page: Page) -> Self {
        Self {
            first: page,
            count: 1,
        }
    }

    /// The page numbers.
    #[must_use]
    pub const fn numbers(self) -> Range<u64> {
        self.first.number()..self.first.number() + self.count
    }

    /// The pages.
    pub fn pages(self) -> impl Iterator<Item = Page> {
        self.numbers().filter_map(Page::new)
    }

    /// Groups pages, in their order, into the longest runs.
    pub fn group(pages: &[Page]) -> impl Iterator<Item = Self> {
        pages
            .chunk_by(|a, b| a.number() + 1 == b.number())
            .map(|chunk| Self {
                first: chunk[0],
                count: chunk.len() as u64,
            })
    }
}

/// Whether a program can change an installed page unnoticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A first write is noticed ([`crate::Memory::written`]).
    Frozen,
    /// It can.
    Free,
}

/// Plaintext memory. The engine calls it with the page's block locked, so no two calls are about one page.
pub trait Plaintext: Send + Sync {
    /// From now on no write reaches these pages unnoticed. All have plaintext.
    ///
    /// # Errors
    /// What the system says; the pages may then be frozen or not.
    fn freeze(&self, run: Run) -> io::Result<()>;

    /// Ends [`Plaintext::freeze`] and lets those who wait for a page go on.
    ///
    /// # Errors
    /// What the system says.
    fn thaw(&self, run: Run) -> io::Result<()>;

    /// Copies a page out. It has plaintext; it is frozen, or the bytes may be of different moments.
    ///
    /// # Errors
    /// What the system says.
    fn read(&self, page: Page, out: &mut PageBytes) -> io::Result<()>;

    /// Gives pages their bytes, all at once for each page, and lets those who wait for them go on. They have none.
    ///
    /// # Errors
    /// What the system says; then a prefix of the pages may have been installed.
    fn install(&self, first: Page, bytes: &[PageBytes], access: Access) -> io::Result<()>;

    /// Takes the plaintext away, so that nothing of it is left.
    ///
    /// # Errors
    /// What the system says.
    fn release(&self, run: Run) -> io::Result<()>;
}

/// Why the OS side's store has no page to give.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system says.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It holds more or less than was put there.
    #[error("it holds {found} bytes instead of {expected}")]
    Length {
        /// Bytes put there.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
}

/// Where ciphertext lies. Nothing that it gives is believed.
pub trait Store: Send + Sync {
    /// Takes the ciphertext of pages in a row.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the engine then keeps the plaintext.
    fn put(&self, first: Page, ciphertext: &[PageBytes]) -> Result<(), StoreError>;

    /// Gives what it holds for pages in a row.
    ///
    /// # Errors
    /// [`StoreError`].
    fn fetch(&self, first: Page, out: &mut [PageBytes]) -> Result<(), StoreError>;

    /// The ciphertext no longer counts.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    fn forget(&self, run: Run) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_grouped_in_their_order() {
        let pages: Vec<_> = [4, 5, 6, 9, 8, 9, 10].into_iter().filter_map(Page::new).collect();
        let runs: Vec<_> = Run::group(&pages).map(Run::numbers).collect();
        assert_eq!(runs, [4..7, 9..10, 8..11]);
        assert_eq!(Run::group(&[]).count(), 0);
    }
}
