//! An OS side that tampers: every change is caught before the program gets a byte, and named.
//!
//! The same run against a store that isn't verified shows that the check can fail.

use cloak_memory::cipher::{Label, TAG_SIZE, Tag};
use cloak_memory::page::ContextId;
use cloak_memory::{
    Memory, MemoryError, PAGE_SIZE, Page, PageBytes, PageKeys, PageState, Secret, Tampering, Version,
};
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::doubles::{Hostile, Ram, page};

const TAMPERINGS: u64 = 1_000_000;
const PAGES: u64 = 80;

/// What the OS side does to what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Tamper {
    Flip,
    FlipMany,
    Swap,
    Replay,
    OtherContext,
    Truncate,
    Extend,
    Replace,
}

const ALL: [Tamper; 8] = [
    Tamper::Flip,
    Tamper::FlipMany,
    Tamper::Swap,
    Tamper::Replay,
    Tamper::OtherContext,
    Tamper::Truncate,
    Tamper::Extend,
    Tamper::Replace,
];

/// A context whose pages were all sealed several times, and what the OS side kept of it.
struct World {
    engine: Memory<Ram, Hostile>,
    /// Older ciphertexts of each page.
    older: Vec<Vec<Vec<u8>>>,
    /// What another context with the same contents left at the same addresses.
    foreign: Vec<Vec<u8>>,
    rng: TestRng,
}

fn contents(page: Page) -> PageBytes {
    let mut bytes = [0; PAGE_SIZE];
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(page.number() << 32 | index as u64).to_le_bytes());
    }
    bytes
}

fn context(id: u64, secret: &Secret) -> (Memory<Ram, Hostile>, Vec<Vec<Vec<u8>>>) {
    let keys = PageKeys::derive(secret, ContextId(id), &[0; 32]).unwrap();
    let engine = Memory::new(keys, PAGES, Ram::default(), Hostile::default());
    let all: Vec<_> = (0..PAGES).map(page).collect();
    let mut older = vec![Vec::new(); PAGES as usize];
    for round in 0..4 {
        for &p in &all {
            engine.written(p).unwrap();
            assert!(engine.plaintext().poke(p, contents(p)));
        }
        engine.seal(&all).unwrap();
        if round < 3 {
            let held = engine.store().held();
            all.iter()
                .for_each(|p| older[p.number() as usize].push(held[p].clone()));
        }
    }
    engine.drop_plaintext(&all).unwrap();
    (engine, older)
}

impl World {
    /// The other context has the same key, number apart: the worst case for what binds a page to its context.
    fn new() -> Self {
        let secret = Secret::random().unwrap();
        let (engine, older) = context(1, &secret);
        let (foreign, _) = context(2, &secret);
        let foreign = (0..PAGES)
            .map(|n| foreign.store().held()[&page(n)].clone())
            .collect();
        Self {
            engine,
            older,
            foreign,
            rng: TestRng::from_seed(RngAlgorithm::ChaCha, &[1; 32]),
        }
    }

    fn below(&mut self, end: u64) -> usize {
        (self.rng.next_u64() % end) as usize
    }

    /// Tampers; gives the page and what the OS side held before.
    fn tamper(&mut self, how: Tamper) -> (Page, Vec<u8>) {
        let victim = page(self.below(PAGES) as u64);
        let index = victim.number() as usize;
        let good = self.engine.store().held()[&victim].clone();
        let mut bad = good.clone();
        match how {
            Tamper::Flip => flip(&mut bad, self.below(PAGE_SIZE as u64 * 8)),
            Tamper::FlipMany => {
                for _ in 0..=self.below(64) {
                    let bit = self.below(PAGE_SIZE as u64 * 8);
                    flip(&mut bad, bit);
                }
                // An even number of flips of one bit is none.
                if bad == good {
                    flip(&mut bad, 0);
                }
            }
            Tamper::Swap => {
                let other = (index as u64 + 1 + self.below(PAGES - 1) as u64) % PAGES;
                bad = self.engine.store().held()[&page(other)].clone();
            }
            Tamper::Replay => {
                let which = self.below(self.older[index].len() as u64);
                bad = self.older[index][which].clone();
            }
            Tamper::OtherContext => bad = self.foreign[index].clone(),
            Tamper::Truncate => bad.truncate(self.below(PAGE_SIZE as u64)),
            Tamper::Extend => bad.extend(vec![0; 1 + self.below(PAGE_SIZE as u64)]),
            Tamper::Replace => self.rng.fill_bytes(&mut bad),
        }
        assert!(bad != good, "{how:?} changed nothing");
        self.engine.store().held().insert(victim, bad);
        (victim, good)
    }
}

fn flip(bytes: &mut [u8], bit: usize) {
    bytes[bit / 8] ^= 1 << (bit % 8);
}

/// How often each change was caught, and how often not.
fn campaign(
    world: &mut World,
    count: u64,
    open: impl Fn(&World, Page) -> Result<(), MemoryError>,
) -> (u64, u64) {
    let (mut caught, mut missed) = (0, 0);
    for number in 0..count {
        let how = ALL[(number % ALL.len() as u64) as usize];
        let (victim, good) = world.tamper(how);
        match open(world, victim) {
            Err(MemoryError::Integrity {
                context,
                page,
                version,
                what,
            }) => {
                assert_eq!((context, page), (ContextId(1), victim), "{how:?}");
                assert_eq!(
                    version,
                    world.engine.table().lock(victim).unwrap().version(victim)
                );
                let length = matches!(how, Tamper::Truncate | Tamper::Extend);
                assert_eq!(
                    matches!(what, Tampering::Length { .. }),
                    length,
                    "{how:?}: {what}"
                );
                assert_eq!(
                    world.engine.plaintext().peek(victim),
                    None,
                    "{how:?}: bytes were given"
                );
                assert_eq!(world.engine.state(victim).unwrap(), PageState::Sealed);
                caught += 1;
            }
            Ok(()) => missed += 1,
            Err(other) => panic!("{how:?}: {other}"),
        }
        world.engine.store().held().insert(victim, good);
    }
    (caught, missed)
}

#[test]
fn a_million_tamperings_are_caught() {
    let mut world = World::new();
    let result = campaign(&mut world, TAMPERINGS, |world, page| {
        world.engine.bring_back(&[page])
    });
    assert_eq!(result, (TAMPERINGS, 0));
    // And with the OS side honest again, every page is what it was.
    let all: Vec<_> = (0..PAGES).map(page).collect();
    world.engine.bring_back(&all).unwrap();
    for p in all {
        assert_eq!(world.engine.plaintext().peek(p), Some(contents(p)));
    }
}

/// The same campaign against opening without verifying: nothing but lengths is noticed.
#[test]
fn without_verification_the_campaign_fails() {
    let mut world = World::new();
    let unverified = |world: &World, page: Page| {
        let bytes = world.engine.store().held()[&page].clone();
        let what = Tampering::Length {
            expected: PAGE_SIZE as u64,
            found: bytes.len() as u64,
        };
        let version = world.engine.table().lock(page).unwrap().version(page);
        if bytes.len() == PAGE_SIZE {
            Ok(())
        } else {
            Err(MemoryError::Integrity {
                context: ContextId(1),
                page,
                version,
                what,
            })
        }
    };
    let (caught, missed) = campaign(&mut world, 8_000, unverified);
    assert_eq!((caught, missed), (2_000, 6_000));
}

/// A batch in which one page is bad gives the program none of it.
#[test]
fn one_bad_page_stops_its_batch() {
    let world = World::new();
    world.engine.store().held().get_mut(&page(20)).unwrap()[0] ^= 1;
    let range: Vec<_> = (10..30).map(page).collect();
    let error = world.engine.bring_back(&range).unwrap_err();
    assert!(error.to_string().contains("page 0x14000"), "{error}");
    for p in range {
        assert_eq!(world.engine.plaintext().peek(p), None);
    }
}

/// Each bit of ciphertext and tag, and each bit of what the page is sealed as.
#[test]
fn every_bit_counts() {
    let keys = PageKeys::derive(&Secret::random().unwrap(), ContextId(1), &[0; 32]).unwrap();
    let label = Label {
        context: ContextId(5),
        page: page(6),
        version: Version::new(7).unwrap(),
    };
    let mut sealed = [0x33; PAGE_SIZE];
    let tag: Tag = keys.seal(&label, &mut sealed).unwrap();
    let mut out = [0; PAGE_SIZE];
    keys.open(&label, &sealed, &tag, &mut out)
        .expect("the untouched page opens");
    for bit in 0..PAGE_SIZE * 8 {
        let mut bad = sealed;
        flip(&mut bad, bit);
        keys.open(&label, &bad, &tag, &mut out)
            .expect_err("a bit of the ciphertext");
    }
    for bit in 0..TAG_SIZE * 8 {
        let mut bad = tag;
        flip(&mut bad, bit);
        keys.open(&label, &sealed, &bad, &mut out)
            .expect_err("a bit of the tag");
    }
    for bit in 0..64 {
        let context = ContextId(label.context.0 ^ 1 << bit);
        let page = Page::new(label.page.number() ^ 1 << bit);
        let version = Version::new(label.version.number() ^ 1 << bit);
        let others = [
            Some(Label { context, ..label }),
            page.map(|page| Label { page, ..label }),
            version.map(|version| Label { version, ..label }),
        ];
        for other in others.into_iter().flatten() {
            keys.open(&other, &sealed, &tag, &mut out)
                .expect_err("a bit of the label");
        }
    }
}
