//! A guest's wish that pages become private or shared: `KVM_EXIT_HYPERCALL` with `KVM_HC_MAP_GPA_RANGE`, on SNP and TDX.
//!
//! The arguments are the guest's: first guest-physical address, number of 4 KiB pages, and attributes, of which bit 4
//! says "encrypted" and bits 3:0 name a page size that is a hint
//! (`Documentation/virt/kvm/x86/hypercalls.rst`).

use kvm_bindings::{KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_memory_attributes};

use super::calls::{Backing, RunCalls};
use super::error::{At, SnpError, Step};

const PAGE: u64 = 4096;
const ENCRYPTED: u64 = 1 << 4;
const KNOWN: u64 = 0x1f;

/// A wish that can be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageState {
    /// First guest-physical address, a multiple of 4 KiB.
    pub gpa: u64,
    /// Bytes, a multiple of 4 KiB, more than 0.
    pub len: u64,
    /// What they are to be.
    pub to: Backing,
}

impl PageState {
    /// Takes the arguments of the exit. `ranges` is the guest's memory, half-open; what is asked for has to be in one.
    ///
    /// # Errors
    /// [`SnpError::Request`]: not whole pages of the guest's own, or attributes that nobody has defined.
    pub fn parse(arguments: &[u64; 6], ranges: &[[u64; 2]]) -> Result<Self, SnpError> {
        let wrong = |problem| SnpError::Request {
            step: Step::PageState,
            problem,
        };
        let [gpa, pages, attributes, ..] = *arguments;
        if attributes & !KNOWN != 0 {
            return Err(wrong("attributes that are not defined"));
        }
        if !gpa.is_multiple_of(PAGE) || pages == 0 {
            return Err(wrong("not whole pages"));
        }
        let len = pages
            .checked_mul(PAGE)
            .ok_or(wrong("more pages than there are"))?;
        let end = gpa.checked_add(len).ok_or(wrong("past the end of memory"))?;
        if !ranges.iter().any(|&[start, last]| start <= gpa && end <= last) {
            return Err(wrong("not the guest's memory"));
        }
        let to = if attributes & ENCRYPTED == 0 {
            Backing::Shared
        } else {
            Backing::Private
        };
        Ok(Self { gpa, len, to })
    }

    /// Grants it. The pages' former content is given back to the host: nobody reads it any more.
    ///
    /// # Errors
    /// [`SnpError::Refused`].
    pub fn grant(self, calls: &mut impl RunCalls) -> Result<(), SnpError> {
        let (attributes, former) = match self.to {
            Backing::Private => (u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE), Backing::Shared),
            Backing::Shared => (0, Backing::Private),
        };
        let change = kvm_memory_attributes {
            address: self.gpa,
            size: self.len,
            attributes,
            flags: 0,
        };
        // In this order: pages that are still private would come back from guest_memfd as zeros, as if the host had
        // taken them.
        calls.set_attributes(change).at(Step::PageState)?;
        calls.discard(self.gpa, self.len, former).at(Step::PageState)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RANGES: &[[u64; 2]] = &[[0, 0x10_0000], [1 << 32, 2 << 32]];

    #[test]
    fn wishes_are_taken_as_linux_makes_them() {
        let shared = PageState::parse(&[0x3000, 2, 0, 7, 7, 7], RANGES).expect("own memory");
        assert_eq!(
            (shared.gpa, shared.len, shared.to),
            (0x3000, 0x2000, Backing::Shared)
        );
        let private = PageState::parse(&[1 << 32, 512, 0x11, 0, 0, 0], RANGES).expect("own memory");
        assert_eq!((private.len, private.to), (2 << 20, Backing::Private));
    }

    #[test]
    fn what_is_not_the_guests_is_refused() {
        for [gpa, pages, attributes] in [
            [1, 1, 0],
            [0, 0, 0],
            [0, 0x101, 0],
            [0xf_f000, 2, 0],
            [0x20_0000, 1, 0],
            [0, u64::MAX, 0],
            [0, 1 << 52, 0],
            [u64::MAX - 4095, 1, 0],
            [0, 1, 0x20],
            [0, 1, 1 << 63],
        ] {
            assert!(PageState::parse(&[gpa, pages, attributes, 0, 0, 0], RANGES).is_err());
        }
    }

    proptest! {
        #[test]
        fn what_is_granted_lies_in_one_range(gpa: u64, pages in 0u64..0x20_0000, attributes in 0u64..0x40) {
            let gpa = gpa & 0x3_ffff_ffff;
            if let Ok(wish) = PageState::parse(&[gpa, pages, attributes, 0, 0, 0], RANGES) {
                prop_assert!(wish.len > 0 && (wish.gpa | wish.len).is_multiple_of(PAGE));
                let inside = |&&[start, end]: &&[u64; 2]| start <= wish.gpa && wish.gpa + wish.len <= end;
                prop_assert_eq!(RANGES.iter().filter(inside).count(), 1);
            }
        }
    }
}
