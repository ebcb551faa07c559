//! Memory that becomes the guest's: accepted 2 MiB at a time, each address once in the domain's life (`cloak_measured::accepted`).
//!
//! No address can lead to another page of the domain, but a page can be taken away and another added, which is pending then:
//! an access to it stops the domain. A guest that accepted it again would go on with zeros in the place of its own.

use cloak_abi::layout::{LARGE, PAGE};

use crate::module::{self, Acceptance, Size};
use crate::weakened::{Protection, without};
use crate::{Machine, Stop};

/// Makes the block of 2 MiB at `gpa` the guest's. It is zero then.
///
/// # Errors
/// [`Stop::Twice`]: it was before; [`Stop::Validate`]: it can't be.
pub fn accept(machine: &mut impl Machine, gpa: u64) -> Result<(), Stop> {
    match module::accept(machine, gpa, Size::Large) {
        Acceptance::Accepted => Ok(()),
        Acceptance::Already if without(Protection::Already) => Ok(()),
        Acceptance::Already => Err(Stop::Twice),
        Acceptance::SizeMismatch => (gpa..gpa + LARGE)
            .step_by(PAGE as usize)
            .try_for_each(|page| accept_small(machine, page)),
        Acceptance::Refused => Err(Stop::Validate),
    }
}

fn accept_small(machine: &mut impl Machine, gpa: u64) -> Result<(), Stop> {
    match module::accept(machine, gpa, Size::Small) {
        Acceptance::Accepted => Ok(()),
        Acceptance::Already if without(Protection::Already) => Ok(()),
        Acceptance::Already => Err(Stop::Twice),
        // There is nothing smaller.
        Acceptance::SizeMismatch | Acceptance::Refused => Err(Stop::Validate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Registers;
    use crate::testing::Answering;

    const AT: u64 = 6 << 20;
    const MISMATCH: u64 = 0xc000_0b0b_0000_0001;
    const ALREADY: u64 = 0x0000_0b0a_0000_0000;

    fn with(mut status: impl FnMut(u64) -> u64) -> (Result<(), Stop>, Vec<u64>) {
        let mut asked = Vec::new();
        let mut machine = Answering::new(|r: &mut Registers| {
            asked.push(r.rcx);
            r.rax = status(r.rcx);
        });
        let result = accept(&mut machine, AT);
        drop(machine);
        (result, asked)
    }

    #[test]
    fn a_block_is_accepted_as_a_whole() {
        assert_eq!(with(|_| 0), (Ok(()), vec![AT | 1]));
    }

    #[test]
    fn a_block_of_small_pages_is_accepted_page_by_page() {
        let small = |rcx: u64| if rcx & 1 == 1 { MISMATCH } else { 0 };
        let all: Vec<u64> = [AT | 1]
            .into_iter()
            .chain((AT..AT + LARGE).step_by(4096))
            .collect();
        assert_eq!(with(small), (Ok(()), all));
        // One of them was accepted before.
        let (result, asked) = with(|rcx| if rcx == AT + 0x5000 { ALREADY } else { small(rcx) });
        assert_eq!((result, asked.len()), (Err(Stop::Twice), 7));
        assert_eq!(
            with(|_| MISMATCH).0,
            Err(Stop::Validate),
            "nothing is smaller than a page"
        );
    }

    #[test]
    fn a_page_that_was_accepted_before_is_an_attack_though_it_is_no_error() {
        assert_eq!(with(|_| ALREADY).0, Err(Stop::Twice));
    }

    #[test]
    fn a_page_that_is_not_there_is_not_accepted() {
        for status in [1 << 63, 0xc000_0100_0000_0001, u64::MAX] {
            assert_eq!(with(|_| status).0, Err(Stop::Validate));
        }
    }
}
