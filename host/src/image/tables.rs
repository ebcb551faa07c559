//! The page tables that a vCPU finds at its first instruction.

use cloak_abi::kcall::{PTE_A, PTE_ADDR, PTE_D, PTE_P, PTE_PS, PTE_U, PTE_W};
use cloak_abi::layout::{LARGE, PAGE};

use super::memory::GuestPages;
use crate::vm::error::VmError;

/// Builds page tables in frames of a pool, which are zero.
#[derive(Debug)]
pub struct Tables<'a, M> {
    memory: &'a mut M,
    root: u64,
    next: u64,
    end: u64,
    private: u64,
}

impl<'a, M: GuestPages> Tables<'a, M> {
    /// An empty root table at `root`; further tables come from `[next, end)`. `private` is set in every entry that leads
    /// to private memory, as tables are: the bit that makes a page private, or 0.
    pub fn new(memory: &'a mut M, root: u64, [next, end]: [u64; 2], private: u64) -> Self {
        Self {
            memory,
            root,
            next,
            end,
            private,
        }
    }

    /// First frame of the pool that is not in use.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Maps contiguous memory, by large pages where all three numbers allow. Accessed and dirty bits are
    /// preset: a host that shadows page tables prefetches such entries.
    ///
    /// # Errors
    /// [`VmError::Shim`]: the pool is used up, or no memory.
    pub fn map(&mut self, va: u64, gpa: u64, len: u64, flags: u64) -> Result<(), VmError> {
        self.map_as(va, gpa, len, flags | self.private)
    }

    /// Maps memory that others see, too.
    ///
    /// # Errors
    /// As [`Tables::map`].
    pub fn map_shared(&mut self, va: u64, gpa: u64, len: u64, flags: u64) -> Result<(), VmError> {
        self.map_as(va, gpa, len, flags)
    }

    fn map_as(&mut self, va: u64, gpa: u64, len: u64, flags: u64) -> Result<(), VmError> {
        let flags = flags | PTE_P | PTE_A | PTE_D;
        let large = (va | gpa | len).is_multiple_of(LARGE);
        let step = if large { LARGE } else { PAGE };
        let mut offset = 0;
        while offset < len {
            let leaf_shift = if large { 21 } else { 12 };
            let mut table = self.root;
            for shift in [39, 30, 21].into_iter().take_while(|&s| s > leaf_shift) {
                table = self.child(table, va + offset, shift)?;
            }
            let size = if large { PTE_PS } else { 0 };
            // One table's worth at a time.
            let first = (va + offset) >> leaf_shift & 511;
            let count = (512 - first).min((len - offset) / step);
            let entries: Vec<u8> = (0..count)
                .flat_map(|i| ((gpa + offset + i * step) | flags | size).to_le_bytes())
                .collect();
            self.memory.put(table + first * 8, &entries)?;
            offset += count * step;
        }
        Ok(())
    }

    fn child(&mut self, table: u64, va: u64, shift: u32) -> Result<u64, VmError> {
        let at = table + (va >> shift & 511) * 8;
        let entry = self.memory.word(at)?;
        if entry & PTE_P != 0 {
            return Ok(entry & PTE_ADDR & !self.private);
        }
        if self.next == self.end {
            return Err(VmError::Shim("page-table pool too small"));
        }
        let frame = self.next;
        self.next += PAGE;
        // The upper half is the kernel's: not reachable from CPL 3 whatever the entries below say.
        let user = if va >> 63 == 0 { PTE_U } else { 0 };
        let entry = frame | PTE_P | PTE_W | PTE_A | user | self.private;
        self.memory.put(at, &entry.to_le_bytes())?;
        Ok(frame)
    }
}
