//! The page of secrets, which the firmware fills at launch (SNP ABI, section 8.14.2.5): the keys of the guest's messages to
//! it, one for each privilege level.
//!
//! Nobody but the guest can read it, and nobody but the firmware write it. The shim runs at the most privileged level, takes
//! that level's key and leaves none of them behind.

use zeroize::Zeroizing;

use crate::weakened::{Protection, without};
use crate::{Machine, Stop};

/// Where the keys are.
const KEYS: u64 = 0x20;
/// The versions of the page whose keys are there.
const VERSIONS: core::ops::RangeInclusive<u32> = 2..=4;

/// A key for messages.
pub type Key = Zeroizing<[u8; 32]>;

/// Takes the key of the most privileged level from the page at `gpa`, and clears the page.
///
/// # Errors
/// [`Stop::Secrets`]: the firmware did not write it, or the page has been taken before.
pub fn take(machine: &mut impl Machine, gpa: u64) -> Result<Key, Stop> {
    let version = machine.read(gpa) as u32;
    let mut key = Zeroizing::new([0; 32]);
    for (index, part) in (0u64..).zip(key.as_chunks_mut::<8>().0) {
        *part = machine.read(gpa + KEYS + 8 * index).to_le_bytes();
    }
    if !without(Protection::Cleared) {
        machine.clear(gpa);
    }
    if !VERSIONS.contains(&version) || *key == [0; 32] {
        return Err(Stop::Secrets);
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Hypervisor;

    fn page(version: u64, key: u64) -> Hypervisor<'static> {
        let mut machine = Hypervisor::registers(|_, _| 0);
        machine.memory.write(0x2000, version);
        (0..16).for_each(|i| machine.memory.write(0x2020 + 8 * i, key));
        machine
    }

    #[test]
    fn the_first_key_is_taken_and_none_is_left() {
        let mut machine = page(4, 0x0102);
        let key = take(&mut machine, 0x2000).expect("a key");
        assert_eq!(key[..8], 0x0102u64.to_le_bytes());
        assert!((0..512).all(|i| machine.memory.read(0x2000 + 8 * i) == 0));
        assert_eq!(take(&mut machine, 0x2000).err(), Some(Stop::Secrets), "once");
    }

    #[test]
    fn a_page_that_is_not_the_firmwares_is_refused_and_cleared_all_the_same() {
        for (version, key) in [(0, 7), (1, 7), (5, 7), (4, 0)] {
            let mut machine = page(version, key);
            assert_eq!(take(&mut machine, 0x2000).err(), Some(Stop::Secrets));
            assert_eq!(machine.memory.read(0x2020), 0);
        }
    }
}
