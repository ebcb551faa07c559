//! Tampering, one at a time and mixed, a million times and more: what a reader gets is what was written, or an error
//! that names what is wrong. Never other data, never a panic.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::model::{Model, compare, files, read_all, step};
use super::{KEY, Memory, Random, anchored, create, key, longer, options, reopen};
use crate::block::{BLOCK, BlockId, Pointer};
use crate::data::data;
use crate::engine::Engine;
use crate::error::{Tampering, VolumeError};
use crate::inode::{Ino, Inode};
use crate::keys::VolumeKey;
use crate::names::NewInode;
use crate::store::MemoryStore;
use crate::volume::{Options, Volume};
use crate::walk::{Visitor, Walk};
use crate::weakened::{self, Protection};

const FILE: NewInode = NewInode {
    mode: 0o100_600,
    uid: 0,
    gid: 0,
    device: 0,
};

/// A volume with its past, another one under the same key, and what it should hold.
struct Target {
    now: Vec<u8>,
    past: Vec<Vec<u8>>,
    other: Vec<u8>,
    model: Model,
    files: Vec<(Ino, Vec<u8>)>,
    /// Which file's blocks lie where; 0 for the table of inodes and directories.
    owners: BTreeMap<u64, Ino>,
    anchor: Memory,
}

struct Owners(BTreeMap<u64, Ino>);

impl Visitor for Owners {
    fn block(&mut self, id: &BlockId, pointer: &Pointer) -> Result<bool, VolumeError> {
        self.0.insert(pointer.address, Ino(id.ino));
        Ok(true)
    }
    fn failed(&mut self, _: &BlockId, error: VolumeError) -> Result<(), VolumeError> {
        Err(error)
    }
    fn reads_data(&self) -> bool {
        false
    }
    fn inode(&mut self, _: Ino, _: &Inode) -> Result<(), VolumeError> {
        Ok(())
    }
    fn inode_done(&mut self, _: Ino, _: &Inode) -> Result<(), VolumeError> {
        Ok(())
    }
    fn free_inode(&mut self, _: Ino) {}
}

fn small(random: &mut Random, past: &mut Vec<Vec<u8>>, anchor: &Memory) -> (Volume<MemoryStore>, Model) {
    let mut volume = Volume::create(MemoryStore::default(), key(), &super::NEW, anchored(anchor)).unwrap();
    let mut model = Model::new();
    for n in 0..120 {
        step(&mut volume, &mut model, random, 20_000);
        if n % 20 == 19 {
            volume.sync_all().unwrap();
            past.push(volume.engine.store.0.clone());
            let store = volume.close().unwrap();
            volume = Volume::open(store, key(), anchored(anchor)).unwrap();
            model = model.at_rest();
        }
    }
    volume.sync_all().unwrap();
    (volume, model)
}

impl Target {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let (anchor, mut past) = (Memory::default(), vec![]);
        let (mut volume, model) = small(&mut random, &mut past, &anchor);
        let (other, _) = small(&mut random, &mut vec![], &Memory::default());
        let mut owners = Owners(BTreeMap::new());
        let Engine {
            store, ring, root, ..
        } = &mut volume.engine;
        Walk { store, ring, root }.all(&mut owners).unwrap();
        Self {
            now: volume.close().unwrap().0,
            past,
            other: other.close().unwrap().0,
            files: files(&model),
            model,
            owners: owners.0,
            anchor,
        }
    }

    /// Changes `image` somewhere; gives the address of a block that was hit.
    fn tamper(&self, image: &mut Vec<u8>, random: &mut Random) -> u64 {
        let blocks = (image.len() / BLOCK) as u64;
        if blocks < 3 {
            return 0;
        }
        // Where the volume's blocks are, mostly: elsewhere nobody looks.
        let places: Vec<u64> = self.owners.keys().copied().filter(|&at| at < blocks).collect();
        let any = |random: &mut Random| match random.below(8) {
            0 => random.below(2),
            1 => random.below(blocks),
            _ if places.is_empty() => 0,
            _ => places[random.index(places.len())],
        };
        let (at, from) = (any(random), any(random));
        let range = |at: u64| at as usize * BLOCK..(at as usize + 1) * BLOCK;
        let copy = |image: &mut Vec<u8>, source: &[u8], from: u64| {
            if let Some(bytes) = source.get(range(from)) {
                image[range(at)].copy_from_slice(bytes);
            }
        };
        match random.below(12) {
            // One bit.
            0..=3 => image[range(at)][random.index(BLOCK)] ^= 1 << random.below(8),
            // Two blocks change places.
            4 => {
                let first = image[range(at)].to_vec();
                image.copy_within(range(from), range(at).start);
                image[range(from)].copy_from_slice(&first);
            }
            // One block's bytes in the place of another.
            5 => image.copy_within(range(from), range(at).start),
            // What was there in the past, and what was elsewhere.
            6 | 7 => copy(image, &self.past[random.index(self.past.len())], at),
            8 => copy(image, &self.past[random.index(self.past.len())], from),
            // Another volume's, of the same key.
            9 => copy(image, &self.other, from),
            // Cut, or longer.
            10 => match random.below(8) {
                0 => image.truncate(random.index(image.len())),
                1 => image.resize(image.len() + random.index(10_000), random.next() as u8),
                _ => image[range(at)].fill(0),
            },
            // Bytes.
            _ => {
                let len = 1 + random.index(600);
                let start = random.index(BLOCK - len);
                image[range(at)][start..start + len].copy_from_slice(&random.bytes(len));
            }
        }
        at
    }

    /// Opens and reads one file, or everything; an error, or what was written, or a complaint.
    fn read(&self, image: Vec<u8>, hit: u64, all: bool, random: &mut Random) -> Seen {
        let store = MemoryStore(image);
        // Without the anchor a newest superblock that was destroyed is the same as one that a crash tore.
        let options = anchored(&Memory::at(self.anchor.get()));
        if all {
            return match Volume::open(store, key(), options) {
                Ok(mut volume) => match compare(&mut volume, &self.model) {
                    Ok(()) => Seen::AsWritten,
                    // `compare` tells errors of the volume and differences alike: a difference is none of these.
                    Err(told) if told.starts_with("tampered: ") => Seen::Caught,
                    Err(told) => Seen::Wrong(told),
                },
                Err(error) => judged(&error),
            };
        }
        let owner = self.owners.get(&hit).copied();
        let of_owner = self.files.iter().find(|(ino, _)| Some(*ino) == owner);
        let (ino, expected) = of_owner.unwrap_or(&self.files[random.index(self.files.len())]);
        let read =
            Volume::open_read_only(store, key(), options).and_then(|mut volume| read_all(&mut volume, *ino));
        match read {
            Ok(bytes) if bytes == *expected => Seen::AsWritten,
            Ok(_) => Seen::Wrong(format!("inode {ino}: other content")),
            Err(error) => judged(&error),
        }
    }
}

enum Seen {
    AsWritten,
    Caught,
    Wrong(String),
}

fn judged(error: &VolumeError) -> Seen {
    match error {
        VolumeError::Tampered(_)
        | VolumeError::NoVolume
        | VolumeError::WrongKey(_)
        | VolumeError::Foreign { .. }
        | VolumeError::RolledBack { .. } => Seen::Caught,
        other => Seen::Wrong(other.to_string()),
    }
}

struct Counts {
    done: u64,
    caught: u64,
}

/// Tampers `wanted` times; stops at the first that gives something wrong.
fn campaign(wanted: u64) -> Result<Counts, String> {
    let mut counts = Counts { done: 0, caught: 0 };
    let mut random = Random(2026);
    let each = 100_000.min(wanted.div_ceil(4));
    let mut seed = 0;
    while counts.done < wanted {
        seed += 1;
        let target = Target::new(seed);
        let mut image = target.now.clone();
        for n in 0..each {
            let several = if random.below(3) == 0 {
                1 + random.below(4)
            } else {
                1
            };
            let hit = (0..several)
                .map(|_| target.tamper(&mut image, &mut random))
                .last()
                .unwrap_or(0);
            let seen = target.read(image.clone(), hit, n % 64 == 0, &mut random);
            counts.done += several;
            match seen {
                Seen::Caught => counts.caught += 1,
                Seen::AsWritten => {}
                Seen::Wrong(what) => return Err(format!("seed {seed}, tampering {n}: {what}")),
            }
            image.clone_from(&target.now);
        }
    }
    Ok(counts)
}

#[test]
fn a_million_tamperings_give_what_was_written_or_an_error() {
    let counts = campaign(1_000_000 * longer()).unwrap();
    println!("{} tamperings, {} rounds caught", counts.done, counts.caught);
    assert!(
        counts.caught > counts.done / 4,
        "most of them are where someone looks"
    );
}

#[test]
fn with_verification_off_the_same_campaign_finds_wrong_data() {
    let result = weakened::with(Protection::Seal, || {
        catch_unwind(AssertUnwindSafe(|| campaign(10_000)))
    });
    assert!(!matches!(result, Ok(Ok(_))), "the campaign must be able to fail");
}

#[test]
fn an_older_container_is_caught_by_the_anchor_whole_and_with_newer_parts() {
    let target = Target::new(99);
    let mut random = Random(1);
    for old in &target.past[..target.past.len() - 1] {
        for round in 0..200 {
            let mut image = old.clone();
            // An older container into which newer blocks were copied, but no newer superblock.
            for _ in 0..round % 7 {
                let at = 2 + random.index(image.len() / BLOCK - 2);
                if let Some(bytes) = target.now.get(at * BLOCK..(at + 1) * BLOCK) {
                    image[at * BLOCK..(at + 1) * BLOCK].copy_from_slice(bytes);
                }
            }
            let opened = Volume::open_read_only(MemoryStore(image), key(), anchored(&target.anchor));
            assert!(matches!(opened, Err(VolumeError::RolledBack { .. })));
        }
    }
}

/// A block that goes past the cache, to where the caller wants it, is checked before it is decrypted there.
#[test]
fn what_goes_past_the_cache_is_checked_first() {
    const BLOCKS: usize = 100;
    let small = || Options {
        cache_bytes: 0,
        ..options()
    };
    let mut volume = create();
    let ino = volume.create_file(volume.root(), b"file", &FILE).unwrap();
    volume.write_at(ino, 0, &[1; BLOCKS * BLOCK]).unwrap();
    let mut volume = reopen(volume);
    let bad = 20;
    let offset = volume.engine.pointer(&data(ino, bad)).unwrap().offset() as usize;
    let mut image = volume.close().unwrap().0;
    image[offset + 77] ^= 4;
    let read = |out: &mut [u8]| {
        let mut volume = Volume::open(MemoryStore(image.clone()), key(), small()).unwrap();
        assert!(volume.engine.passes((BLOCKS * BLOCK) as u64, 0, 32 * BLOCK));
        volume.read_at(ino, 0, out)
    };
    let mut out = vec![9; BLOCKS * BLOCK];
    let error = read(&mut out).unwrap_err();
    assert!(
        matches!(error, VolumeError::Tampered(Tampering::Block { block, .. }) if block == data(ino, bad)),
        "{error}"
    );
    let bad = bad as usize * BLOCK;
    assert!(out[..bad].iter().all(|&byte| byte == 1), "what is good comes");
    assert!(
        out[bad..bad + BLOCK].iter().all(|&byte| byte == 0),
        "nothing of a bad block comes"
    );
    assert!(
        out[bad + BLOCK..].iter().all(|&byte| byte == 9),
        "nor anything behind it"
    );
    let unchecked = weakened::with(Protection::Seal, || read(&mut out));
    assert_eq!(unchecked, Ok(BLOCKS * BLOCK));
    assert_eq!(
        out[bad + 77],
        1 ^ 4,
        "with verification off the changed byte comes"
    );
}

#[test]
fn errors_name_what_and_where() {
    let mut volume = create();
    let root = volume.root();
    let ino = volume.create_file(root, b"file", &FILE).unwrap();
    volume.write_at(ino, 0, &[1; 3 * BLOCK]).unwrap();
    let mut volume = reopen(volume);
    let id = BlockId::new(ino.0, crate::block::Fork::Data, 0, 1);
    let offset = volume.engine.pointer(&id).unwrap().offset();
    let mut image = volume.close().unwrap().0;
    let whole = image.clone();
    image[offset as usize + 77] ^= 4;
    let mut volume = Volume::open(MemoryStore(image), key(), options()).unwrap();
    let mut out = vec![9; 3 * BLOCK];
    let error = volume.read_at(ino, 0, &mut out).unwrap_err();
    assert_eq!(
        error,
        VolumeError::Tampered(Tampering::Block { block: id, offset })
    );
    let told = format!(
        "tampered: block 1 of inode {ino} at byte {offset} of the container is not what was written \
        there last"
    );
    assert_eq!(error.to_string(), told);
    // The blocks beside it can still be read, and a check says the same.
    assert_eq!(volume.read_at(ino, 0, &mut out[..BLOCK]), Ok(BLOCK));
    let report = volume.check(&mut |_| ()).unwrap();
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.findings[0].what, told);

    let mut cut = whole;
    cut.truncate(offset as usize);
    let error = Volume::open(MemoryStore(cut), VolumeKey::from_bytes(&KEY), options())
        .and_then(|mut volume| volume.read_at(ino, 0, &mut out))
        .unwrap_err();
    assert!(
        matches!(error, VolumeError::Tampered(Tampering::Missing { .. })),
        "{error}"
    );
}
