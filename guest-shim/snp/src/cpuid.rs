//! The table of CPUID values that the hypervisor proposes and the firmware checks (SNP ABI, section 8.17).
//!
//! It is not measured, and the firmware checks only what it must for itself. So it is taken once, at the start, and what
//! matters to the shim has to make sense: where the C-bit is, and which vector state there is. Nothing of CPUID is asked
//! again later.
//!
//! ```text
//! 0x00 count u32, reserved u32, reserved u64
//! 0x10 entries of 48 bytes: EAX and ECX in, XCR0 u64, XSS u64, EAX, EBX, ECX, EDX out, reserved u64
//! ```

use cloak_measured::vector_state;

use crate::{Machine, Stop};

/// Most entries of a table.
pub const MOST: usize = 64;
const ENTRIES_AT: u64 = 0x10;
const ENTRY_WORDS: u64 = 6;

/// Encrypted memory: EBX has the number of the C-bit.
const MEMORY: u32 = 0x8000_001f;
/// Vector state.
const STATE: u32 = 0xd;

/// More than all state that there is takes, tiles included.
const LARGEST_STATE: u32 = 16 << 10;

/// One entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entry {
    /// Leaf and subleaf.
    pub leaf: (u32, u32),
    /// XCR0 and XSS that it holds for.
    pub state: (u64, u64),
    /// EAX, EBX, ECX, EDX.
    pub values: [u32; 4],
}

/// The table as it was at the start.
#[derive(Debug, Clone)]
pub struct Table {
    entries: [Entry; MOST],
    count: usize,
}

fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

impl Table {
    /// Takes the table of the page at `gpa`, each word once.
    ///
    /// # Errors
    /// [`Stop::CpuidTable`]: a size or a reserved field is wrong.
    pub fn take(machine: &impl Machine, gpa: u64) -> Result<Self, Stop> {
        let (count, reserved) = halves(machine.read(gpa));
        let count = count as usize;
        if count == 0 || count > MOST || reserved != 0 || machine.read(gpa + 8) != 0 {
            return Err(Stop::CpuidTable);
        }
        let mut entries = [Entry::default(); MOST];
        for (index, entry) in (0u64..).zip(&mut entries[..count]) {
            let at = gpa + ENTRIES_AT + index * ENTRY_WORDS * 8;
            let word = |n: u64| machine.read(at + 8 * n);
            let ((eax, ebx), (ecx, edx)) = (halves(word(3)), halves(word(4)));
            *entry = Entry {
                leaf: halves(word(0)),
                state: (word(1), word(2)),
                values: [eax, ebx, ecx, edx],
            };
            if word(5) != 0 {
                return Err(Stop::CpuidTable);
            }
        }
        Ok(Self { entries, count })
    }

    /// The values of a leaf: of several entries the first, always.
    #[must_use]
    pub fn find(&self, leaf: u32, subleaf: u32) -> Option<[u32; 4]> {
        let found = self.entries[..self.count]
            .iter()
            .find(|entry| entry.leaf == (leaf, subleaf));
        found.map(|entry| entry.values)
    }

    /// The C-bit is the measured image's (`private`, one bit).
    ///
    /// # Errors
    /// [`Stop::CpuidCBit`].
    pub fn agree(&self, private: u64) -> Result<(), Stop> {
        let [_, ebx, ..] = self.find(MEMORY, 0).ok_or(Stop::CpuidCBit)?;
        if 1u64 << (ebx & 63) == private {
            Ok(())
        } else {
            Err(Stop::CpuidCBit)
        }
    }

    /// Vector state to turn on: what the table has of what programs get, in a combination that XCR0 takes.
    ///
    /// # Errors
    /// [`Stop::CpuidState`].
    pub fn vector_state(&self) -> Result<u64, Stop> {
        let [eax, ebx, ecx, edx] = self.find(STATE, 0).ok_or(Stop::CpuidState)?;
        let has = u64::from(eax) | u64::from(edx) << 32;
        if ebx.max(ecx) > LARGEST_STATE {
            return Err(Stop::CpuidState);
        }
        vector_state::choose(has).ok_or(Stop::CpuidState)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Hypervisor;
    use proptest::prelude::*;

    const AT: u64 = 0x1_3000;

    fn page(words: &[u64]) -> Hypervisor<'static> {
        let mut machine = Hypervisor::registers(|_, _| 0);
        for (index, word) in (0u64..).zip(words) {
            machine.memory.write(AT + 8 * index, *word);
        }
        machine
    }

    fn of(entries: &[(u32, u32, [u32; 4])]) -> Table {
        let mut words = vec![entries.len() as u64, 0];
        for (leaf, subleaf, [a, b, c, d]) in entries {
            let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
            words.extend([pair(*leaf, *subleaf), 1, 0, pair(*a, *b), pair(*c, *d), 0]);
        }
        Table::take(&page(&words), AT).expect("a table")
    }

    #[test]
    fn values_are_found_and_the_first_of_two_counts() {
        let table = of(&[(1, 0, [1, 2, 3, 4]), (0xd, 1, [5; 4]), (1, 0, [9; 4])]);
        assert_eq!(table.find(1, 0), Some([1, 2, 3, 4]));
        assert_eq!(table.find(0xd, 1), Some([5; 4]));
        assert_eq!(table.find(0xd, 0), None);
    }

    #[test]
    fn a_table_that_makes_no_sense_is_refused() {
        let refused = |words: &[u64]| Table::take(&page(words), AT).expect_err("refused");
        for words in [
            &[0u64, 0][..],
            &[65, 0],
            &[u64::MAX, 0],
            &[1 | 1 << 32, 0],
            &[1, 1],
            &[1, 0, 0, 0, 0, 0, 0, 1],
        ] {
            assert_eq!(refused(words), Stop::CpuidTable);
        }
    }

    #[test]
    fn a_lie_about_the_c_bit_is_found() {
        let with = |ebx| of(&[(MEMORY, 0, [0x12, ebx, 0, 0])]);
        assert_eq!(with(51 | 5 << 6).agree(1 << 51), Ok(()));
        for table in [with(47), with(0), with(63), of(&[(1, 0, [0; 4])])] {
            assert_eq!(table.agree(1 << 51), Err(Stop::CpuidCBit));
        }
    }

    #[test]
    fn vector_state_is_what_a_processor_takes() {
        let with = |mask: u32, size| of(&[(STATE, 0, [mask, size, size, 0])]).vector_state();
        assert_eq!(with(0x2e7, 0xa88), Ok(0x2e7));
        assert_eq!(with(0x6_02e7, 0x2b00), Ok(0x2e7), "tiles are not offered");
        assert_eq!(with(7, 0x340), Ok(7));
        assert_eq!(with(0x67, 0x340), Ok(7), "half of AVX-512");
        assert_eq!(with(0xe3, 0x340), Ok(3), "AVX-512 without AVX");
        for (mask, size) in [(0, 0), (1, 0x240), (6, 0x240), (7, 1 << 20)] {
            assert_eq!(with(mask, size), Err(Stop::CpuidState));
        }
    }

    proptest! {
        #[test]
        fn anything_is_a_table_or_a_reason(mut words in proptest::collection::vec(any::<u64>(), 0..400), count in 0u64..70) {
            if let Some(first) = words.first_mut() {
                *first = count;
            }
            if let Ok(table) = Table::take(&page(&words), AT) {
                if let Ok(state) = table.vector_state() {
                    prop_assert_eq!(state & !vector_state::OFFERED, 0);
                    prop_assert_eq!(state & 3, 3);
                    prop_assert!([0, 0xe0].contains(&(state & 0xe0)));
                }
                let _ = table.agree(1 << 51);
            }
        }
    }
}
