//! Memory against a hypervisor that does as it likes.

use std::collections::{BTreeMap, BTreeSet};

use cloak_sim::memory::{Fault, Gfn, Hfn, Memory, PAGE, Validation};
use proptest::prelude::*;

fn memory() -> Memory {
    let mut key = [0; 64];
    key.iter_mut().zip(0..).for_each(|(byte, n)| *byte = n);
    Memory::new(&key)
}

fn accepted(page: u64) -> Memory {
    let mut memory = memory();
    memory.map(Gfn(page), Hfn(page + 100));
    memory
        .assign(Hfn(page + 100), Gfn(page))
        .expect("the hypervisor's own");
    assert_eq!(memory.validate(Gfn(page), true), Ok(Validation::Changed));
    memory
}

#[test]
fn the_host_sees_ciphertext_that_differs_from_page_to_page() {
    let mut memory = accepted(1);
    memory.map(Gfn(2), Hfn(102));
    memory.assign(Hfn(102), Gfn(2)).expect("own");
    memory.validate(Gfn(2), true).expect("own");
    let secret = [0x5a; PAGE];
    memory.private_write(Gfn(1), &secret).expect("accepted");
    memory.private_write(Gfn(2), &secret).expect("accepted");
    let (one, two) = (memory.host_read(Hfn(101)), memory.host_read(Hfn(102)));
    assert_ne!(one, two);
    for seen in [one, two] {
        // No block of it is the plaintext, and no two are alike.
        let blocks: BTreeSet<_> = seen.chunks(16).collect();
        assert!(blocks.len() == PAGE / 16 && !blocks.contains(&secret[..16]));
    }
    assert_eq!(memory.private_read(Gfn(1)), Ok(secret));
    assert_eq!(memory.host_write(Hfn(101), &[0; PAGE]), Err(Fault::Assigned));
    assert_eq!(memory.shared_read(Gfn(1)), Err(Fault::Assigned));
}

#[test]
fn a_second_validation_shows() {
    let mut memory = accepted(1);
    assert_eq!(memory.validate(Gfn(1), true), Ok(Validation::Unchanged));
    assert_eq!(memory.validate(Gfn(1), false), Ok(Validation::Changed));
    assert_eq!(memory.private_read(Gfn(1)), Err(Fault::NotValidated));
}

/// The attack that PVALIDATE is for: another page where the guest has accepted one.
#[test]
fn remapping_faults() {
    let mut memory = accepted(1);
    memory.private_write(Gfn(1), &[1; PAGE]).expect("accepted");
    // To a fresh page of the guest's.
    memory.assign(Hfn(7), Gfn(1)).expect("own");
    memory.map(Gfn(1), Hfn(7));
    assert_eq!(memory.private_read(Gfn(1)), Err(Fault::NotValidated));
    // To the guest's own page of another address.
    memory.assign(Hfn(8), Gfn(2)).expect("own");
    memory.map(Gfn(1), Hfn(8));
    assert_eq!(memory.private_read(Gfn(1)), Err(Fault::OtherAddress));
    // To the host's.
    memory.map(Gfn(1), Hfn(9));
    assert_eq!(memory.private_read(Gfn(1)), Err(Fault::NotAssigned));
    memory.unmap(Gfn(1));
    assert_eq!(memory.private_read(Gfn(1)), Err(Fault::NotMapped));
    // Back: nothing is lost.
    memory.map(Gfn(1), Hfn(101));
    assert_eq!(memory.private_read(Gfn(1)), Ok([1; PAGE]));
    // Taken, changed and given again: validation is lost.
    let old = memory.host_read(Hfn(101));
    memory.release(Hfn(101)).expect("own");
    memory.host_write(Hfn(101), &old).expect("the host's now");
    memory.assign(Hfn(101), Gfn(1)).expect("own");
    assert_eq!(memory.private_read(Gfn(1)), Err(Fault::NotValidated));
}

#[derive(Debug, Clone)]
enum Deed {
    Map(u64, u64),
    Unmap(u64),
    Assign(u64, u64),
    Release(u64),
    HostWrite(u64, u8),
    Copy(u64, u64),
    Accept(u64),
    GuestWrite(u64, u8),
    GuestRead(u64),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let (g, h) = (0..3u64, 0..5u64);
    let deed = prop_oneof![
        (g.clone(), h.clone()).prop_map(|(g, h)| Deed::Map(g, h)),
        g.clone().prop_map(Deed::Unmap),
        (h.clone(), g.clone()).prop_map(|(h, g)| Deed::Assign(h, g)),
        h.clone().prop_map(Deed::Release),
        (h.clone(), any::<u8>()).prop_map(|(h, b)| Deed::HostWrite(h, b)),
        (h.clone(), h).prop_map(|(a, b)| Deed::Copy(a, b)),
        g.clone().prop_map(Deed::Accept),
        (g.clone(), any::<u8>()).prop_map(|(g, b)| Deed::GuestWrite(g, b)),
        g.prop_map(Deed::GuestRead),
    ];
    prop::collection::vec(deed, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A guest that accepts each address at most once reads what it wrote there last, or faults: whatever the hypervisor
    /// maps, assigns, takes, copies and writes in between.
    #[test]
    fn a_guest_that_accepts_once_reads_what_it_wrote_or_nothing(deeds in deeds()) {
        let mut memory = memory();
        let mut accepted = BTreeSet::new();
        let mut written: BTreeMap<u64, u8> = BTreeMap::new();
        for deed in deeds {
            match deed {
                Deed::Map(g, h) => memory.map(Gfn(g), Hfn(h)),
                Deed::Unmap(g) => memory.unmap(Gfn(g)),
                Deed::Assign(h, g) => memory.assign(Hfn(h), Gfn(g)).expect("nothing is the firmware's"),
                Deed::Release(h) => memory.release(Hfn(h)).expect("nothing is the firmware's"),
                Deed::HostWrite(h, byte) => drop(memory.host_write(Hfn(h), &[byte; PAGE])),
                Deed::Copy(a, b) => {
                    let bytes = memory.host_read(Hfn(a));
                    let _ = memory.host_write(Hfn(b), &bytes);
                }
                Deed::Accept(g) => {
                    if !accepted.contains(&g) && memory.validate(Gfn(g), true).is_ok() {
                        accepted.insert(g);
                    }
                }
                Deed::GuestWrite(g, byte) => {
                    if memory.private_write(Gfn(g), &[byte; PAGE]).is_ok() {
                        prop_assert!(accepted.contains(&g));
                        written.insert(g, byte);
                    }
                }
                Deed::GuestRead(g) => {
                    if let Ok(bytes) = memory.private_read(Gfn(g)) {
                        prop_assert!(accepted.contains(&g));
                        // Before its first write the guest knows nothing of the content and relies on none.
                        if let Some(byte) = written.get(&g) {
                            prop_assert_eq!(bytes, [*byte; PAGE]);
                        }
                    }
                }
            }
        }
    }
}
