//! The page of secrets, which the firmware fills at launch (SNP ABI, section 8.14.2.5): the keys of the guest's messages to
//! it, one for each privilege level.
//!
//! Nobody but the guest can read it, and nobody but the firmware write it. The shim takes two of them and leaves none behind:
//! that of the most privileged level, by which the root of the context's keys is asked for, once, before any program runs; and
//! the next one, by which reports are asked for as long as the guest runs. A program that took its own shim over has the second
//! one only, and under that the firmware makes no key of the most privileged level.

use zeroize::Zeroizing;

use crate::message::Level;
use crate::weakened::{Protection, without};
use crate::{Machine, Stop};

/// Where the keys are.
const KEYS: u64 = 0x20;
/// The versions of the page whose keys are there.
const VERSIONS: core::ops::RangeInclusive<u32> = 2..=4;

/// A key for messages.
pub type Key = Zeroizing<[u8; 32]>;

/// Takes the keys of [`Level::Keys`] and [`Level::Reports`] from the page at `gpa`, and clears the page.
///
/// # Errors
/// [`Stop::Secrets`]: the firmware did not write it, or the page has been taken before.
pub fn take(machine: &mut impl Machine, gpa: u64) -> Result<[Key; 2], Stop> {
    let version = machine.read(gpa) as u32;
    let key = |level: Level| {
        let at = gpa + KEYS + 32 * u64::from(level as u8);
        let mut key = Zeroizing::new([0; 32]);
        for (index, part) in (0u64..).zip(key.as_chunks_mut::<8>().0) {
            *part = machine.read(at + 8 * index).to_le_bytes();
        }
        key
    };
    let keys = [key(Level::Keys), key(Level::Reports)];
    if !without(Protection::Cleared) {
        machine.clear(gpa);
    }
    if !VERSIONS.contains(&version) || keys.iter().any(|key| **key == [0; 32]) {
        return Err(Stop::Secrets);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Hypervisor;

    fn page(version: u64, keys: [u64; 4]) -> Hypervisor<'static> {
        let mut machine = Hypervisor::registers(|_, _| 0);
        machine.memory.write(0x2000, version);
        for (index, word) in (0u64..).zip(keys.into_iter().flat_map(|key| [key; 4])) {
            machine.memory.write(0x2020 + 8 * index, word);
        }
        machine
    }

    #[test]
    fn two_keys_are_taken_and_none_is_left() {
        let mut machine = page(4, [0x0102, 0x0304, 5, 6]);
        let [first, second] = take(&mut machine, 0x2000).expect("keys");
        assert_eq!(first[..8], 0x0102u64.to_le_bytes());
        assert_eq!(second[24..], 0x0304u64.to_le_bytes());
        assert!((0..512).all(|i| machine.memory.read(0x2000 + 8 * i) == 0));
        assert_eq!(take(&mut machine, 0x2000).err(), Some(Stop::Secrets), "once");
    }

    #[test]
    fn a_page_that_is_not_the_firmwares_is_refused_and_cleared_all_the_same() {
        for (version, keys) in [
            (0, [7; 4]),
            (1, [7; 4]),
            (5, [7; 4]),
            (4, [0, 7, 7, 7]),
            (4, [7, 0, 7, 7]),
        ] {
            let mut machine = page(version, keys);
            assert_eq!(take(&mut machine, 0x2000).err(), Some(Stop::Secrets));
            assert!((0..16).all(|i| machine.memory.read(0x2020 + 8 * i) == 0));
        }
    }
}
