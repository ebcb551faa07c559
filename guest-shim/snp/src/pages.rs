//! Memory that becomes the guest's: asked of the hypervisor, then accepted, 2 MiB at a time, each page once in its life.
//!
//! Once, because that is what the integrity of SNP's memory stands on: a hypervisor that puts another page at an address,
//! or an older one, can do so only as a page that is not accepted, and an access to it faults. A guest that accepted it
//! again would read what the hypervisor chose.

use cloak_abi::layout::{LARGE, PAGE};

use crate::ghcb::{Ghcb, exits, fields};
use crate::weakened::{Protection, without};
use crate::{Machine, SIZE_MISMATCH, Size, Stop, Validation};

/// A page-state change to private, in an entry of the buffer.
const PRIVATE: u64 = 1 << 52;
/// The entry is about a large page.
const WHOLE: u64 = 1 << 56;
/// Most times that a request is made of which the hypervisor says that it is not done yet.
const TRIES: u32 = 16;

/// Makes the block of 2 MiB at `gpa` the guest's.
///
/// # Errors
/// [`Stop`]: the hypervisor did not do it, or had it done before.
pub fn accept(machine: &mut impl Machine, ghcb: Ghcb, gpa: u64) -> Result<(), Stop> {
    to_private(machine, ghcb, gpa)?;
    match machine.pvalidate(gpa, Size::Large, true) {
        Validation::Changed => Ok(()),
        Validation::Unchanged if without(Protection::Unchanged) => Ok(()),
        Validation::Unchanged => Err(Stop::Twice),
        Validation::Failed(SIZE_MISMATCH) => (gpa..gpa + LARGE)
            .step_by(PAGE as usize)
            .try_for_each(|page| accept_small(machine, page)),
        Validation::Failed(_) if without(Protection::Accepted) => Ok(()),
        Validation::Failed(_) => Err(Stop::Validate),
    }
}

fn accept_small(machine: &mut impl Machine, gpa: u64) -> Result<(), Stop> {
    match machine.pvalidate(gpa, Size::Small, true) {
        Validation::Changed => Ok(()),
        Validation::Unchanged if without(Protection::Unchanged) => Ok(()),
        Validation::Unchanged => Err(Stop::Twice),
        Validation::Failed(_) if without(Protection::Accepted) => Ok(()),
        Validation::Failed(_) => Err(Stop::Validate),
    }
}

/// Asks the hypervisor for private memory there. What it says is not trusted: PVALIDATE will tell.
fn to_private(machine: &mut impl Machine, ghcb: Ghcb, gpa: u64) -> Result<(), Stop> {
    let (header, entry) = (ghcb.buffer(), ghcb.buffer() + 8);
    let wanted = gpa | PRIVATE | WHOLE;
    // First and last entry are entry 0.
    machine.write(header, 0);
    machine.write(entry, wanted);
    for _ in 0..TRIES {
        let scratch = [(fields::SCRATCH, ghcb.buffer())];
        let answer = ghcb.exit(machine, exits::PAGE_STATE, [0, 0], &scratch)?;
        if answer.info != 0 {
            return Err(Stop::PageState);
        }
        match machine.read(header) {
            // The entry that it would go on with is behind the last one.
            1 => return Ok(()),
            // Interrupted, perhaps half-way: its low bits count the small pages that are done.
            0 => {
                let left = machine.read(entry);
                if left & !0x1ff != wanted {
                    return Err(Stop::PageState);
                }
            }
            _ => return Err(Stop::PageState),
        }
    }
    Err(Stop::PageState)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::testing::{Hypervisor, Memory};

    const GHCB: u64 = 0x7000;
    const BUFFER: u64 = GHCB + fields::BUFFER;

    fn answer(memory: &mut Memory, info: u64, header: u64) {
        memory.write(GHCB + fields::INFO1, 0);
        memory.write(GHCB + fields::INFO2, info);
        memory.write(BUFFER, header);
    }

    fn honest(register: u64, memory: &mut Memory) -> u64 {
        answer(memory, 0, 1);
        register
    }

    fn try_to(machine: &mut Hypervisor<'_>) -> Result<(), Stop> {
        accept(machine, Ghcb::registered(GHCB), 6 << 20)
    }

    #[test]
    fn a_block_is_asked_for_and_accepted_as_a_whole() {
        let asked = RefCell::new(Vec::new());
        let accepted = RefCell::new(Vec::new());
        let mut machine = Hypervisor::new(|register, memory: &mut Memory| {
            asked.borrow_mut().push(memory.read(BUFFER + 8));
            assert_eq!(memory.read(GHCB + fields::SCRATCH), BUFFER);
            honest(register, memory)
        })
        .with_validate(|gpa, size| {
            accepted.borrow_mut().push((gpa, size));
            Validation::Changed
        });
        assert_eq!(try_to(&mut machine), Ok(()));
        drop(machine);
        assert_eq!(*asked.borrow(), [(6 << 20) | 1 << 52 | 1 << 56]);
        assert_eq!(*accepted.borrow(), [(6 << 20, Size::Large)]);
    }

    #[test]
    fn a_block_backed_by_small_pages_is_accepted_page_by_page() {
        let accepted = RefCell::new(Vec::new());
        let mut machine = Hypervisor::new(honest).with_validate(|gpa, size| match size {
            Size::Large => Validation::Failed(SIZE_MISMATCH),
            Size::Small => {
                accepted.borrow_mut().push(gpa);
                Validation::Changed
            }
        });
        assert_eq!(try_to(&mut machine), Ok(()));
        drop(machine);
        let all: Vec<u64> = (6 << 20..8 << 20).step_by(4096).collect();
        assert_eq!(*accepted.borrow(), all);
        // One of them replayed.
        let mut machine = Hypervisor::new(honest).with_validate(|gpa, size| match size {
            Size::Large => Validation::Failed(SIZE_MISMATCH),
            Size::Small if gpa == (6 << 20) + 0x5000 => Validation::Unchanged,
            Size::Small => Validation::Changed,
        });
        assert_eq!(try_to(&mut machine), Err(Stop::Twice));
    }

    #[test]
    fn a_page_that_was_accepted_before_is_an_attack() {
        let mut machine = Hypervisor::new(honest).with_validate(|_, _| Validation::Unchanged);
        assert_eq!(try_to(&mut machine), Err(Stop::Twice));
    }

    #[test]
    fn a_page_that_is_another_ones_is_not_accepted() {
        for code in [1, 2, u32::MAX] {
            let mut machine = Hypervisor::new(honest).with_validate(move |_, _| Validation::Failed(code));
            assert_eq!(try_to(&mut machine), Err(Stop::Validate));
        }
    }

    #[test]
    fn wrong_results_of_a_page_state_change_end_it() {
        for (info, header) in [
            (1, 1),
            (1 << 32, 1),
            (0, 2),
            (0, 0xffff),
            (0, 1 << 16),
            (0, 1 << 32),
        ] {
            let mut machine = Hypervisor::new(move |register, memory: &mut Memory| {
                answer(memory, info, header);
                register
            });
            assert_eq!(
                try_to(&mut machine),
                Err(Stop::PageState),
                "{info:#x} {header:#x}"
            );
        }
    }

    #[test]
    fn an_interrupted_change_goes_on_and_one_without_end_does_not() {
        let mut calls = 0;
        let mut machine = Hypervisor::new(|register, memory: &mut Memory| {
            calls += 1;
            answer(memory, 0, u64::from(calls == 3));
            memory.write(BUFFER + 8, memory.read(BUFFER + 8) + 7);
            register
        });
        assert_eq!(try_to(&mut machine), Ok(()));
        let mut machine = Hypervisor::new(|register, memory: &mut Memory| {
            answer(memory, 0, 0);
            register
        });
        assert_eq!(try_to(&mut machine), Err(Stop::PageState));
        // Another page in the place of the one that was asked for.
        let mut machine = Hypervisor::new(|register, memory: &mut Memory| {
            answer(memory, 0, 0);
            memory.write(BUFFER + 8, 0x40_0000 | 1 << 52 | 1 << 56);
            register
        });
        assert_eq!(try_to(&mut machine), Err(Stop::PageState));
    }
}
