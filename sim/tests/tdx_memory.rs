//! A domain's private memory against a host that does as it likes.

use std::collections::{BTreeMap, BTreeSet};

use cloak_sim::memory::{Gfn, Hfn, PAGE};
use cloak_sim::tdx::module::{Module, ModuleError, Params};
use cloak_sim::tdx::sept::{Acceptance, Fault};
use proptest::prelude::*;

fn made() -> Module {
    let mut key = [0; 64];
    key.iter_mut().zip(0..).for_each(|(byte, n)| *byte = n);
    let mut module = Module::new(&key, [7; 32]);
    let params = Params {
        attributes: 1 << 28,
        xfam: 3,
        mr_config_id: [0; 48],
        mr_owner: [0; 48],
        mr_owner_config: [0; 48],
    };
    module.init(params).expect("offered");
    module
}

fn running() -> Module {
    let mut module = made();
    module.finalize().expect("made");
    module
}

/// A domain with this page of its own.
fn accepted(page: u64) -> Module {
    let mut module = running();
    module
        .page_aug(Gfn(page), Hfn(page + 100))
        .expect("the host's own");
    let accepted = module.memory.accept(Gfn(page));
    assert_eq!(accepted, Ok(Acceptance::Accepted));
    module
}

#[test]
fn the_host_sees_zeros_and_the_bus_ciphertext() {
    let mut module = accepted(1);
    module.page_aug(Gfn(2), Hfn(102)).expect("own");
    module.memory.accept(Gfn(2)).expect("pending");
    let secret = [0x5a; PAGE];
    module.memory.write(Gfn(1), &secret).expect("accepted");
    module.memory.write(Gfn(2), &secret).expect("accepted");
    assert_eq!(module.memory.host_read(Hfn(101)), [0; PAGE]);
    let (one, two) = (module.memory.bus(Hfn(101)), module.memory.bus(Hfn(102)));
    assert_ne!(one, two);
    for seen in [one, two] {
        let blocks: BTreeSet<_> = seen.chunks(16).collect();
        assert!(blocks.len() == PAGE / 16 && !blocks.contains(&secret[..16]));
    }
    assert_eq!(module.memory.read(Gfn(1)), Ok(secret));
    // Under the shared bit the same host page is not the guest's either.
    module.memory.share(Gfn(9), Hfn(101));
    assert_eq!(module.memory.shared_read(Gfn(9)), Ok([0; PAGE]));
}

#[test]
fn a_page_that_nobody_accepted_is_not_there() {
    let mut module = running();
    assert_eq!(module.memory.read(Gfn(1)), Err(Fault::NotMapped));
    assert_eq!(module.memory.accept(Gfn(1)), Err(Fault::NotMapped));
    module.memory.host_write(Hfn(101), &[6; PAGE]);
    module.page_aug(Gfn(1), Hfn(101)).expect("own");
    assert_eq!(module.memory.read(Gfn(1)), Err(Fault::Pending));
    assert_eq!(module.memory.write(Gfn(1), &[1; PAGE]), Err(Fault::Pending));
    module.memory.accept(Gfn(1)).expect("pending");
    assert_eq!(
        module.memory.read(Gfn(1)),
        Ok([0; PAGE]),
        "cleared, whatever the host wrote"
    );
    assert_eq!(module.memory.accept(Gfn(1)), Ok(Acceptance::Already));
}

/// The attack that acceptance is for: another page where the guest has accepted one.
#[test]
fn a_page_that_was_exchanged_is_not_there() {
    let mut module = accepted(1);
    module.memory.write(Gfn(1), &[1; PAGE]).expect("accepted");
    // A second page at the same address; the same page at a second.
    assert_eq!(module.page_aug(Gfn(1), Hfn(7)), Err(ModuleError::EntryState));
    assert_eq!(module.page_aug(Gfn(2), Hfn(101)), Err(ModuleError::PageMetadata));
    // Not without blocking, and not without flushing translations.
    assert_eq!(module.memory.remove(Gfn(1)), Err(ModuleError::NotBlocked));
    module.memory.block(Gfn(1)).expect("mapped");
    assert_eq!(module.memory.block(Gfn(1)), Err(ModuleError::EntryState));
    assert_eq!(module.memory.read(Gfn(1)), Err(Fault::Blocked));
    assert_eq!(module.memory.accept(Gfn(1)), Err(Fault::Blocked));
    assert_eq!(module.memory.remove(Gfn(1)), Err(ModuleError::NotTracked));
    assert_eq!(
        module.memory.relocate(Gfn(1), Hfn(8)),
        Err(ModuleError::NotTracked)
    );
    module.memory.track();
    // Moved by the module: nothing is lost, and nothing is to accept.
    module.memory.relocate(Gfn(1), Hfn(8)).expect("tracked");
    assert_eq!(module.memory.read(Gfn(1)), Ok([1; PAGE]));
    // Taken, its ciphertext copied back, given again: the guest does not accept it twice.
    let old = module.memory.bus(Hfn(8));
    module.memory.block(Gfn(1)).expect("mapped");
    module.memory.track();
    module.memory.remove(Gfn(1)).expect("tracked");
    module.memory.host_write(Hfn(8), &old);
    module.page_aug(Gfn(1), Hfn(8)).expect("free");
    assert_eq!(module.memory.read(Gfn(1)), Err(Fault::Pending));
}

#[test]
fn a_write_past_the_key_ends_the_domain_and_does_not_change_what_it_reads() {
    let mut module = accepted(1);
    module.memory.write(Gfn(1), &[1; PAGE]).expect("accepted");
    let old = module.memory.bus(Hfn(101));
    module.memory.write(Gfn(1), &[2; PAGE]).expect("accepted");
    // Replays what was there before, bit by bit.
    module.memory.host_write(Hfn(101), &old);
    assert_eq!(module.memory.read(Gfn(1)), Err(Fault::Poisoned));
    // Moving it does not mend it.
    module.memory.block(Gfn(1)).expect("mapped");
    module.memory.track();
    module.memory.relocate(Gfn(1), Hfn(8)).expect("tracked");
    assert_eq!(module.memory.read(Gfn(1)), Err(Fault::Poisoned));
}

#[test]
fn nothing_is_added_after_the_launch_and_nothing_lazily_before() {
    let mut module = made();
    assert_eq!(module.page_aug(Gfn(1), Hfn(101)), Err(ModuleError::OpState));
    module.page_add(Gfn(1), Hfn(101), &[3; PAGE]).expect("free");
    module.finalize().expect("once");
    assert_eq!(module.finalize(), Err(ModuleError::OpState));
    assert_eq!(
        module.page_add(Gfn(2), Hfn(102), &[3; PAGE]),
        Err(ModuleError::OpState)
    );
    assert_eq!(module.mr_extend(0x1000), Err(ModuleError::OpState));
    assert_eq!(module.memory.read(Gfn(1)), Ok([3; PAGE]));
}

#[derive(Debug, Clone)]
enum Deed {
    Aug(u64, u64),
    Block(u64),
    Unblock(u64),
    Track,
    Remove(u64),
    Relocate(u64, u64),
    Share(u64, u64),
    HostWrite(u64, u8),
    Copy(u64, u64),
    Accept(u64),
    GuestWrite(u64, u8),
    GuestRead(u64),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let (g, h) = (0..3u64, 0..5u64);
    let pair = (g.clone(), h.clone());
    let deed = prop_oneof![
        3 => pair.clone().prop_map(|(g, h)| Deed::Aug(g, h)),
        2 => g.clone().prop_map(Deed::Block),
        1 => g.clone().prop_map(Deed::Unblock),
        2 => Just(Deed::Track),
        2 => g.clone().prop_map(Deed::Remove),
        1 => pair.clone().prop_map(|(g, h)| Deed::Relocate(g, h)),
        1 => pair.prop_map(|(g, h)| Deed::Share(g, h)),
        1 => (h.clone(), any::<u8>()).prop_map(|(h, b)| Deed::HostWrite(h, b)),
        1 => (h.clone(), h).prop_map(|(a, b)| Deed::Copy(a, b)),
        3 => g.clone().prop_map(Deed::Accept),
        4 => (g.clone(), any::<u8>()).prop_map(|(g, b)| Deed::GuestWrite(g, b)),
        4 => g.prop_map(Deed::GuestRead),
    ];
    prop::collection::vec(deed, 1..150)
}

/// Plays the deeds for a guest that accepts each address once, or as often as it is asked. What it reads that it did not
/// write there last.
fn surprises(deeds: &[Deed], once: bool) -> Vec<u64> {
    let mut module = running();
    let mut accepted = BTreeSet::new();
    let mut written: BTreeMap<u64, u8> = BTreeMap::new();
    let mut surprises = Vec::new();
    for deed in deeds {
        match *deed {
            Deed::Aug(g, h) => drop(module.page_aug(Gfn(g), Hfn(h))),
            Deed::Block(g) => drop(module.memory.block(Gfn(g))),
            Deed::Unblock(g) => drop(module.memory.unblock(Gfn(g))),
            Deed::Track => module.memory.track(),
            Deed::Remove(g) => drop(module.memory.remove(Gfn(g))),
            Deed::Relocate(g, h) => drop(module.memory.relocate(Gfn(g), Hfn(h))),
            Deed::Share(g, h) => module.memory.share(Gfn(g), Hfn(h)),
            Deed::HostWrite(h, byte) => module.memory.host_write(Hfn(h), &[byte; PAGE]),
            Deed::Copy(a, b) => {
                let bytes = module.memory.bus(Hfn(a));
                module.memory.host_write(Hfn(b), &bytes);
            }
            Deed::Accept(g) => {
                if !(once && accepted.contains(&g)) && module.memory.accept(Gfn(g)).is_ok() {
                    accepted.insert(g);
                }
            }
            Deed::GuestWrite(g, byte) => {
                if module.memory.write(Gfn(g), &[byte; PAGE]).is_ok() {
                    assert!(accepted.contains(&g));
                    written.insert(g, byte);
                }
            }
            Deed::GuestRead(g) => {
                if let Ok(bytes) = module.memory.read(Gfn(g)) {
                    assert!(accepted.contains(&g));
                    // Before its first write a page is zero.
                    let last = written.get(&g).copied().unwrap_or(0);
                    if bytes != [last; PAGE] {
                        surprises.push(g);
                    }
                }
            }
        }
    }
    surprises
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A guest that accepts each address at most once reads what it wrote there last, or faults: whatever the host gives,
    /// blocks, takes, moves, copies and writes in between.
    #[test]
    fn a_guest_that_accepts_once_reads_what_it_wrote_or_nothing(deeds in deeds()) {
        prop_assert_eq!(surprises(&deeds, true), Vec::<u64>::new());
    }
}

/// The same attack on a guest that accepts whatever it is given: its page is gone, and it does not notice.
#[test]
fn a_guest_that_accepts_twice_loses_what_it_wrote() {
    use Deed::{Accept, Aug, Block, GuestRead, GuestWrite, Remove, Track};
    let attack = [
        Aug(0, 0),
        Accept(0),
        GuestWrite(0, 5),
        Block(0),
        Track,
        Remove(0),
        Aug(0, 1),
        Accept(0),
        GuestRead(0),
    ];
    assert_eq!(surprises(&attack, false), [0]);
    assert_eq!(surprises(&attack, true), Vec::<u64>::new());
}
