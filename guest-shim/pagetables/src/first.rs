//! The tables that a context starts on, where the kernel makes them itself because the launch is measured. On plain KVM
//! the monitor makes the same ones (`cloak_host::image::tables`).

use cloak_abi::kcall::{KcallError, PTE_A, PTE_ADDR, PTE_D, PTE_P, PTE_PS, PTE_U, PTE_W};
use cloak_abi::layout::{LARGE, PAGE};

use crate::frames::Memory;

/// Builds tables in frames of any content.
#[derive(Debug)]
pub struct First<'a, M> {
    /// Guest-physical memory.
    pub memory: &'a mut M,
    /// Guest-physical address of the root table.
    pub root: u64,
    next: u64,
    end: u64,
    private: u64,
}

impl<'a, M: Memory> First<'a, M> {
    /// An empty root table and more, in the frames of `[next, end)`. `private` is the bit of entries that lead to private
    /// memory, as all tables are, or 0.
    ///
    /// # Errors
    /// [`KcallError::Tables`].
    pub fn new(memory: &'a mut M, [next, end]: [u64; 2], private: u64) -> Result<Self, KcallError> {
        let mut tables = Self {
            memory,
            root: next,
            next,
            end,
            private,
        };
        tables.take()?;
        Ok(tables)
    }

    /// First frame that is not in use.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Maps contiguous private memory, by large pages as far as both addresses allow.
    ///
    /// # Errors
    /// [`KcallError::Tables`]: the frames are used up.
    pub fn map(&mut self, va: u64, gpa: u64, len: u64, flags: u64) -> Result<(), KcallError> {
        self.map_as(va, gpa, len, flags | self.private)
    }

    /// Maps memory that others see, too.
    ///
    /// # Errors
    /// As [`First::map`].
    pub fn map_shared(&mut self, va: u64, gpa: u64, len: u64, flags: u64) -> Result<(), KcallError> {
        self.map_as(va, gpa, len, flags)
    }

    fn map_as(&mut self, va: u64, gpa: u64, len: u64, flags: u64) -> Result<(), KcallError> {
        // Accessed and dirty bits are preset: a host that shadows page tables prefetches such entries.
        let flags = flags | PTE_P | PTE_A | PTE_D;
        let mut at = 0;
        while at < len {
            let (va, gpa, left) = (va + at, gpa + at, len - at);
            let whole = (va | gpa).is_multiple_of(LARGE) && left >= LARGE;
            let (shift, step, size) = if whole { (21, LARGE, PTE_PS) } else { (12, PAGE, 0) };
            let mut table = self.root;
            for level in [39, 30, 21].into_iter().take_while(|&level| level > shift) {
                table = self.child(table + (va >> level & 511) * 8, va)?;
            }
            // As many as one table has, and no small ones where large ones can follow.
            let first = va >> shift & 511;
            let until = if whole {
                left / LARGE
            } else {
                (left.min(LARGE - va % LARGE)) / PAGE
            };
            let count = until.min(512 - first);
            self.memory
                .fill(table + first * 8, gpa | flags | size, step, count);
            at += count * step;
        }
        Ok(())
    }

    fn child(&mut self, slot: u64, va: u64) -> Result<u64, KcallError> {
        let entry = self.memory.read(slot);
        if entry & PTE_P != 0 {
            return Ok(entry & PTE_ADDR & !self.private);
        }
        let table = self.take()?;
        // The upper half is the kernel's: not reachable from CPL 3 whatever the entries below say.
        let user = if va >> 63 == 0 { PTE_U } else { 0 };
        self.memory
            .write(slot, table | PTE_P | PTE_W | PTE_A | user | self.private);
        Ok(table)
    }

    fn take(&mut self) -> Result<u64, KcallError> {
        if self.next == self.end {
            return Err(KcallError::Tables);
        }
        let frame = self.next;
        self.next += PAGE;
        self.memory.fill(frame, 0, 0, 512);
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::tests::Ram;
    use cloak_abi::kcall::PTE_NX;
    use std::collections::BTreeMap;

    const C: u64 = 1 << 51;

    /// What is mapped, small page by small page: where to, and with which flags of its last entry.
    fn walk(ram: &Ram, root: u64) -> BTreeMap<u64, (u64, u64)> {
        let mut found = BTreeMap::new();
        let mut tables = vec![(root, 0u64, 39u32)];
        while let Some((table, base, shift)) = tables.pop() {
            for index in 0..512u64 {
                let entry = ram.read(table + 8 * index);
                if entry == 0 {
                    continue;
                }
                let va = base | index << shift;
                let va = if va >> 47 & 1 == 1 { va | 0xffff << 48 } else { va };
                let leaf = shift == 12 || entry & PTE_PS != 0;
                if !leaf {
                    assert_eq!(entry & C, C, "every table is private");
                    assert_eq!(
                        entry & PTE_U != 0,
                        va >> 63 == 0,
                        "the upper half is the kernel's"
                    );
                    tables.push((entry & PTE_ADDR & !C, va, shift - 9));
                    continue;
                }
                for small in 0..(1u64 << shift) / PAGE {
                    let gpa = (entry & PTE_ADDR & !C) + small * PAGE;
                    found.insert(va + small * PAGE, (gpa, entry & !(PTE_ADDR & !C) & !PTE_PS));
                }
            }
        }
        found
    }

    #[test]
    fn everything_is_mapped_where_it_was_asked_for_and_nothing_else() {
        let mut ram = Ram(vec![0xdead_beef; 32 << 9]);
        let ranges = [
            (
                0x6f00_0000_0000u64,
                0x59_3000u64,
                0x11_000u64,
                PTE_U | PTE_W | PTE_NX,
            ),
            (0x6f00_0001_1000, 0x61_1000, 0x40_5000, PTE_U | PTE_W | PTE_NX),
            (0xffff_8000_0000_0000, 0, 16 << 20, PTE_W | PTE_NX),
        ];
        let shared = (
            0x6f40_0000_0000u64,
            0x40_0000_0000u64,
            4u64 << 20,
            PTE_U | PTE_W | PTE_NX,
        );
        let mut tables = First::new(&mut ram, [PAGE, 32 * PAGE], C).expect("room");
        for (va, gpa, len, flags) in ranges {
            tables.map(va, gpa, len, flags).expect("room");
        }
        tables
            .map_shared(shared.0, shared.1, shared.2, shared.3)
            .expect("room");
        let (root, used) = (tables.root, (tables.next() - root_of(&tables)) / PAGE);
        assert!(used < 14, "large pages where they fit: {used} tables");
        let found = walk(&ram, root);
        let mut wanted = BTreeMap::new();
        for ((va, gpa, len, flags), private) in ranges.map(|r| (r, C)).into_iter().chain([(shared, 0)]) {
            for at in (0..len).step_by(PAGE as usize) {
                wanted.insert(va + at, (gpa + at, flags | private | PTE_P | PTE_A | PTE_D));
            }
        }
        assert_eq!(found, wanted);
    }

    fn root_of<M>(tables: &First<'_, M>) -> u64 {
        tables.root
    }

    #[test]
    fn tables_that_run_out_are_an_error() {
        let mut ram = Ram(vec![0; 4 << 9]);
        let mut tables = First::new(&mut ram, [PAGE, 3 * PAGE], 0).expect("room");
        assert_eq!(tables.map(0, 0, PAGE, 0), Err(KcallError::Tables));
        assert_eq!(
            First::new(&mut ram, [PAGE, PAGE], 0).err(),
            Some(KcallError::Tables)
        );
    }
}
