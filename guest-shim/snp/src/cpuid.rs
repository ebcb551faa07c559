//! The table of CPUID values that the hypervisor proposes and the firmware checks (SNP ABI, section 8.17).
//!
//! It is not measured, and the firmware checks only what it must for itself. So it is taken once, at the start, and what
//! matters to the shim has to make sense: where the C-bit is, and which vector state there is. Nothing of CPUID is asked
//! again later: what a program asks is answered from here.
//!
//! ```text
//! 0x00 count u32, reserved u32, reserved u64
//! 0x10 entries of 48 bytes: EAX and ECX in, XCR0 u64, XSS u64, EAX, EBX, ECX, EDX out, reserved u64
//! ```

use cloak_measured::vector_state;

use crate::weakened::{Protection, without};
use crate::{Machine, Stop};

/// Most entries of a table.
pub const MOST: usize = 64;
const ENTRIES_AT: u64 = 0x10;
const ENTRY_WORDS: u64 = 6;

/// Encrypted memory: EBX has the number of the C-bit.
const MEMORY: u32 = 0x8000_001f;
/// Vector state.
const STATE: u32 = 0xd;

/// What a processor has before XSAVE's extended areas: the legacy region and the header.
const STATE_HEADER: u32 = 0x240;
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

/// Leaves whose ECX matters.
const WITH_SUBLEAVES: &[u32] = &[
    4,
    7,
    0xb,
    STATE,
    0xf,
    0x10,
    0x12,
    0x14,
    0x17,
    0x18,
    0x1d,
    0x1f,
    0x8000_001d,
    0x8000_0026,
];

/// What of CPUID is a vCPU's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    /// Its number, which is its APIC's.
    pub id: u32,
    /// XCR0.
    pub vector_state: u64,
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

    /// An empty table.
    #[must_use]
    pub const fn empty() -> Self {
        const NONE: Entry = Entry {
            leaf: (0, 0),
            state: (0, 0),
            values: [0; 4],
        };
        Self {
            entries: [NONE; MOST],
            count: 0,
        }
    }

    /// What CPUID gives on this vCPU: the table's values, with those that the table can't have as it is one for all.
    /// A leaf that is not there is zeros, as on AMD's processors.
    #[must_use]
    pub fn answer(&self, leaf: u32, subleaf: u32, processor: Processor) -> [u32; 4] {
        // Most leaves have no subleaves, and their ECX is not looked at.
        let found = self.find(leaf, subleaf).or_else(|| {
            let first = self.find(leaf, 0);
            first.filter(|_| !WITH_SUBLEAVES.contains(&leaf))
        });
        let [mut eax, mut ebx, mut ecx, mut edx] = found.unwrap_or_default();
        match (leaf, subleaf) {
            (1, _) => {
                ebx = ebx & 0x00ff_ffff | processor.id << 24;
                // OSXSAVE: the shim has turned XSAVE on.
                ecx |= 1 << 27;
            }
            // OSPKE: the shim has not turned protection keys on.
            (7, 0) => ecx &= !(1 << 4),
            (0xb | 0x1f, _) => {
                edx = processor.id;
                ecx = ecx & !0xff | subleaf & 0xff;
            }
            (STATE, 0) => {
                // What may be enabled is what is: nothing more will be.
                (eax, edx) = (
                    processor.vector_state as u32,
                    (processor.vector_state >> 32) as u32,
                );
                ebx = self.state_size(processor.vector_state, false);
                ecx = ebx;
            }
            (STATE, 1) => ebx = self.state_size(processor.vector_state, true),
            (0x8000_001e, _) => eax = processor.id,
            _ => {}
        }
        [eax, ebx, ecx, edx]
    }

    /// Bytes of the state of these components, compacted or not.
    fn state_size(&self, components: u64, compacted: bool) -> u32 {
        let mut end = STATE_HEADER;
        for component in (2..63).filter(|component| components & 1 << component != 0) {
            let Some([size, offset, flags, _]) = self.find(STATE, component) else {
                continue;
            };
            let start = match (compacted, flags & 2 != 0) {
                (false, _) => offset,
                (true, true) => end.saturating_add(63) & !63,
                (true, false) => end,
            };
            end = end.max(start.saturating_add(size).min(LARGEST_STATE));
        }
        end
    }

    /// The C-bit is the measured image's (`private`, one bit).
    ///
    /// # Errors
    /// [`Stop::CpuidCBit`].
    pub fn agree(&self, private: u64) -> Result<(), Stop> {
        let [_, ebx, ..] = self.find(MEMORY, 0).ok_or(Stop::CpuidCBit)?;
        if 1u64 << (ebx & 63) == private || without(Protection::CBit) {
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

    const FIRST: Processor = Processor {
        id: 5,
        vector_state: 0xe7,
    };

    #[test]
    fn programs_are_answered_from_the_table_and_what_is_not_there_is_zeros() {
        let table = of(&[
            (0, 0, [0x10, 1, 2, 3]),
            (1, 0, [7, 0xff00_0800, 1, 9]),
            (7, 0, [1, 2, 0x10, 4]),
            (0xb, 0, [1, 2, 0x100, 9]),
            (0x8000_001e, 0, [9, 9, 9, 9]),
        ]);
        assert_eq!(
            table.answer(0, 0x77, FIRST),
            [0x10, 1, 2, 3],
            "ECX does not count"
        );
        assert_eq!(table.answer(1, 0, FIRST), [7, 0x0500_0800, 1 | 1 << 27, 9]);
        assert_eq!(table.answer(7, 0, FIRST), [1, 2, 0, 4]);
        assert_eq!(table.answer(7, 1, FIRST), [0; 4], "here it does");
        assert_eq!(table.answer(0xb, 0, FIRST), [1, 2, 0x100, 5]);
        assert_eq!(table.answer(0xb, 3, FIRST), [0, 0, 3, 5]);
        assert_eq!(table.answer(0x8000_001e, 0, FIRST)[0], 5);
        for leaf in [2, 0x4000_0000, 0x8fff_ffff, u32::MAX] {
            assert_eq!(table.answer(leaf, 0, FIRST), [0; 4]);
        }
    }

    #[test]
    fn sizes_of_vector_state_are_those_of_what_is_on() {
        let table = of(&[
            (STATE, 0, [0x2e7, 0x240, 0x240, 0]),
            (STATE, 1, [0xf, 0x240, 0, 0]),
            (STATE, 2, [0x100, 0x240, 0, 0]),
            (STATE, 5, [0x40, 0x340, 0, 0]),
            (STATE, 6, [0x200, 0x380, 0, 0]),
            (STATE, 7, [0x400, 0x580, 0, 0]),
            (STATE, 9, [8, 0x980, 2, 0]),
        ]);
        assert_eq!(table.answer(STATE, 0, FIRST), [0xe7, 0x980, 0x980, 0]);
        assert_eq!(table.answer(STATE, 1, FIRST), [0xf, 0x980, 0, 0]);
        let avx = Processor {
            vector_state: 7,
            ..FIRST
        };
        assert_eq!(table.answer(STATE, 0, avx), [7, 0x340, 0x340, 0]);
        let aligned = Processor {
            vector_state: 0x207,
            ..FIRST
        };
        assert_eq!(table.answer(STATE, 1, aligned)[1], 0x348);
        // A table that lies: bounded all the same.
        let wild = of(&[(STATE, 0, [7, 0, 0, 0]), (STATE, 2, [u32::MAX, u32::MAX, 3, 0])]);
        assert!(wild.answer(STATE, 0, avx)[1] <= LARGEST_STATE);
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
