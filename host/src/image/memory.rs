//! Guest-physical memory as a launch fills it: the RAM of a VM, or a list of pages that something else adds.

use std::collections::BTreeMap;

use cloak_abi::layout::PAGE;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::vm::error::VmError;

const OUTSIDE: VmError = VmError::Shim("does not fit guest RAM");

/// What a launch writes into. All of it is zero before.
pub trait GuestPages {
    /// Writes `bytes` from `gpa` on.
    ///
    /// # Errors
    /// [`VmError::Shim`]: no such memory.
    fn put(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), VmError>;

    /// Reads the word at `gpa`, a multiple of 8.
    ///
    /// # Errors
    /// As [`GuestPages::put`].
    fn word(&self, gpa: u64) -> Result<u64, VmError>;
}

impl GuestPages for &GuestMemoryMmap {
    fn put(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), VmError> {
        self.write_slice(bytes, GuestAddress(gpa)).map_err(|_| OUTSIDE)
    }

    fn word(&self, gpa: u64) -> Result<u64, VmError> {
        self.read_obj(GuestAddress(gpa)).map_err(|_| OUTSIDE)
    }
}

/// Bytes of a page.
pub type PageBytes = [u8; PAGE as usize];

/// The pages that were written, by address. A page exists from its first byte on.
#[derive(Debug, Default)]
pub struct PageList(BTreeMap<u64, Box<PageBytes>>);

impl PageList {
    /// The pages in the order of their addresses.
    pub fn into_pages(self) -> impl Iterator<Item = (u64, Box<PageBytes>)> {
        self.0.into_iter()
    }

    /// Makes all pages of `[gpa, gpa + len)` exist.
    pub fn reserve(&mut self, gpa: u64, len: u64) {
        for at in (gpa & !(PAGE - 1)..gpa + len).step_by(PAGE as usize) {
            self.page(at);
        }
    }

    fn page(&mut self, gpa: u64) -> &mut PageBytes {
        self.0
            .entry(gpa & !(PAGE - 1))
            .or_insert_with(|| Box::new([0; PAGE as usize]))
    }
}

impl GuestPages for PageList {
    fn put(&mut self, mut gpa: u64, mut bytes: &[u8]) -> Result<(), VmError> {
        while !bytes.is_empty() {
            let at = (gpa % PAGE) as usize;
            let (now, rest) = bytes.split_at(bytes.len().min(PAGE as usize - at));
            self.page(gpa)[at..at + now.len()].copy_from_slice(now);
            gpa = gpa.checked_add(now.len() as u64).ok_or(OUTSIDE)?;
            bytes = rest;
        }
        Ok(())
    }

    fn word(&self, gpa: u64) -> Result<u64, VmError> {
        let at = (gpa % PAGE) as usize;
        let Some(page) = self.0.get(&(gpa & !(PAGE - 1))) else {
            return Ok(0);
        };
        let word = page.get(at..).and_then(|rest| rest.first_chunk());
        word.map(|bytes| u64::from_le_bytes(*bytes)).ok_or(OUTSIDE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_cross_a_border_are_in_both_pages() {
        let mut list = PageList::default();
        list.put(0x1ffe, &[1, 2, 3, 4]).expect("any address");
        list.reserve(0x5000, 1);
        assert_eq!(list.word(0x2000).expect("aligned"), 0x0403);
        assert_eq!(list.word(0x9000).expect("zero where there is nothing"), 0);
        let pages: Vec<_> = list.into_pages().map(|(gpa, page)| (gpa, page[4094])).collect();
        assert_eq!(pages, [(0x1000, 1), (0x2000, 0), (0x5000, 0)]);
    }
}
