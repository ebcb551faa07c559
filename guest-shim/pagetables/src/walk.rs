//! Where an address of a program leads, by its page tables.
//!
//! The tables may be the program's own work: an entry that leads out of the context's memory leads nowhere.

use cloak_abi::kcall::{PTE_P, PTE_PS, PTE_U};
use cloak_abi::layout::PAGE;

use crate::frames::Memory;

const ADDRESS: u64 = 0xf_ffff_ffff_f000;

/// The guest-physical address of `va`, as CPL 3 reaches it by the root table `root`. `private` is the bit of private memory,
/// and `holds` whether memory at an address is the context's.
pub fn user(
    memory: &impl Memory,
    root: u64,
    va: u64,
    private: u64,
    holds: impl Fn(u64) -> bool,
) -> Option<u64> {
    let mut table = root & ADDRESS & !private;
    for level in (0..4u32).rev() {
        if !holds(table) {
            return None;
        }
        let shift = 12 + 9 * level;
        let entry = memory.read(table + 8 * (va >> shift & 511));
        if entry & (PTE_P | PTE_U) != PTE_P | PTE_U {
            return None;
        }
        let address = entry & ADDRESS & !private;
        let last = level == 0 || level < 3 && entry & PTE_PS != 0;
        if last {
            let inside = (PAGE << (9 * level)) - 1;
            let gpa = address & !inside | va & inside;
            return holds(gpa & !(PAGE - 1)).then_some(gpa);
        }
        table = address;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[derive(Default)]
    struct Words(HashMap<u64, u64>);

    impl Memory for Words {
        fn read(&self, gpa: u64) -> u64 {
            assert!(gpa < 0x10_0000, "{gpa:#x} is not the context's");
            self.0.get(&gpa).copied().unwrap_or_default()
        }

        fn write(&mut self, gpa: u64, value: u64) {
            self.0.insert(gpa, value);
        }

        fn fill(&mut self, _: u64, _: u64, _: u64, _: u64) {
            unreachable!("nothing is written")
        }
    }

    const BIT: u64 = 1 << 51;
    const FLAGS: u64 = PTE_P | PTE_U;
    const VA: u64 = 0x7f12_3456_7abc;

    /// Root 0x1000, then tables up to 0x4000, and a page at 0x5000.
    fn tables() -> Words {
        let mut words = Words::default();
        for level in 0..4u64 {
            let index = VA >> (39 - 9 * level) & 511;
            words.write(
                0x1000 * (level + 1) + 8 * index,
                (0x1000 * (level + 2)) | BIT | FLAGS,
            );
        }
        words
    }

    fn find(words: &Words, va: u64) -> Option<u64> {
        user(words, 0x1000 | BIT, va, BIT, |gpa| gpa < 0x20_0000)
    }

    #[test]
    fn what_is_mapped_is_found_and_nothing_else() {
        let mut words = tables();
        assert_eq!(find(&words, VA), Some(0x5abc));
        assert_eq!(find(&words, VA + 0x1000), None);
        assert_eq!(find(&words, VA ^ 1 << 40), None);
        // A large page.
        words.write(0x3000 + 8 * (VA >> 21 & 511), FLAGS | PTE_PS | BIT);
        assert_eq!(find(&words, VA), Some(VA & 0x1f_ffff));
    }

    #[test]
    fn what_is_not_the_programs_is_not_followed() {
        for level in 0..4u64 {
            let at = 0x1000 * (level + 1) + 8 * (VA >> (39 - 9 * level) & 511);
            for entry in [
                0,
                PTE_P | 0x5000 | BIT,
                PTE_U | 0x5000,
                FLAGS | 0x5000_0000,
                FLAGS | ADDRESS,
            ] {
                let mut words = tables();
                words.write(at, entry);
                assert_eq!(find(&words, VA), None, "level {level}, {entry:#x}");
            }
        }
        assert_eq!(user(&tables(), 0x20_0000, VA, BIT, |gpa| gpa < 0x10_0000), None);
    }
}
