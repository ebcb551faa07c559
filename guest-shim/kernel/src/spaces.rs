//! Address spaces: which numbers are in use, and where their root tables are.
//!
//! The libos chooses the numbers; nothing it passes is more than an index here.

use cloak_abi::kcall::{KcallError, MAX_SPACES};

/// The root tables, by number; 0: not in use.
#[derive(Debug)]
pub struct Spaces {
    roots: [u64; MAX_SPACES],
}

impl Default for Spaces {
    fn default() -> Self {
        Self::new()
    }
}

impl Spaces {
    /// No space yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            roots: [0; MAX_SPACES],
        }
    }

    /// Where the slot of `number` is, if it may be given to a new space.
    ///
    /// # Errors
    /// [`KcallError::Invalid`]: no such number, or in use.
    pub fn vacant(&mut self, number: u64) -> Result<&mut u64, KcallError> {
        self.slot(number)
            .filter(|root| **root == 0)
            .ok_or(KcallError::Invalid)
    }

    /// The root table of `number`.
    ///
    /// # Errors
    /// [`KcallError::Invalid`]: not in use.
    pub fn root(&self, number: u64) -> Result<u64, KcallError> {
        usize::try_from(number)
            .ok()
            .and_then(|n| self.roots.get(n).copied())
            .filter(|&root| root != 0)
            .ok_or(KcallError::Invalid)
    }

    /// Forgets a space; gives its root table. The first one stays.
    ///
    /// # Errors
    /// [`KcallError::Invalid`]: not in use, or the first.
    pub fn remove(&mut self, number: u64) -> Result<u64, KcallError> {
        self.slot(number)
            .filter(|root| number != 0 && **root != 0)
            .map(core::mem::take)
            .ok_or(KcallError::Invalid)
    }

    fn slot(&mut self, number: u64) -> Option<&mut u64> {
        self.roots.get_mut(usize::try_from(number).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_one_space_until_it_is_removed() {
        let mut spaces = Spaces::new();
        *spaces.vacant(0).expect("free") = 0x1000;
        *spaces.vacant(7).expect("free") = 0x2000;
        assert!(spaces.vacant(7).is_err());
        assert_eq!(spaces.root(7), Ok(0x2000));
        assert_eq!(spaces.remove(7), Ok(0x2000));
        assert_eq!(spaces.root(7), Err(KcallError::Invalid));
        assert_eq!(spaces.remove(7), Err(KcallError::Invalid));
        assert_eq!(spaces.remove(0), Err(KcallError::Invalid), "the first stays");
        assert!(spaces.vacant(MAX_SPACES as u64).is_err() && spaces.vacant(u64::MAX).is_err());
    }
}
