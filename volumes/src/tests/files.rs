//! Content: holes, the end of space, what a commit costs, other keys.

use super::model::{Model, compare, read_all, step};
use super::{NEW, Random, create, key, options, reopen};
use crate::anchor::NoAnchor;
use crate::block::BLOCK;
use crate::data::data;
use crate::error::VolumeError;
use crate::inode::{Ino, REGULAR};
use crate::keys::VolumeKey;
use crate::names::NewInode;
use crate::rekey::rekey;
use crate::store::{MemoryStore, Store, StoreError};
use crate::view::CiphertextView;
use crate::volume::{NewVolume, Options, Volume};

const FILE: NewInode = NewInode {
    mode: REGULAR | 0o600,
    uid: 0,
    gid: 0,
    device: 0,
};

#[test]
fn sparse_files_take_the_blocks_that_are_written() {
    let mut volume = create();
    let ino = volume.create_file(volume.root(), b"sparse", &FILE).unwrap();
    let far = (1 << 50) - 5;
    for at in [10 * BLOCK as u64, 1 << 40, far] {
        volume.write_at(ino, at, b"bytes").unwrap();
    }
    let mut volume = reopen(volume);
    assert_eq!(volume.stat(ino).unwrap().blocks, 3);
    assert_eq!(volume.stat(ino).unwrap().size, 1 << 50);
    let mut out = [1; 9];
    assert_eq!(volume.read_at(ino, (1 << 40) - 2, &mut out), Ok(9));
    assert_eq!(&out, b"\0\0bytes\0\0");
    assert_eq!(volume.next_data(ino, 0), Ok(Some(10 * BLOCK as u64)));
    assert_eq!(
        volume.next_hole(ino, 10 * BLOCK as u64),
        Ok(Some(11 * BLOCK as u64))
    );
    assert_eq!(volume.next_data(ino, 11 * BLOCK as u64), Ok(Some(1 << 40)));
    assert_eq!(volume.next_hole(ino, far), Ok(Some(1 << 50)));
    assert_eq!(volume.next_data(ino, 1 << 50), Ok(None));
    assert_eq!(
        volume.write_at(ino, far, b"bytes!"),
        Err(VolumeError::FileTooLarge)
    );
    volume.punch_hole(ino, 0, 1 << 41).unwrap();
    assert_eq!(volume.stat(ino).unwrap().blocks, 1);
    volume.truncate(ino, 0).unwrap();
    assert_eq!(volume.stat(ino).unwrap().blocks, 0);
    volume.sync_all().unwrap();
    assert!(volume.check(&mut |_| ()).unwrap().is_good());
}

/// A scan of a file that the cache can't hold, by reads and writes that begin with a block and are long.
#[test]
fn what_is_larger_than_the_cache_goes_past_it_and_leaves_it_alone() {
    const PIECE: usize = 24 * BLOCK;
    let small = || Options {
        cache_bytes: 0,
        ..options()
    };
    let mut volume = Volume::create(MemoryStore::default(), key(), &NEW, small()).unwrap();
    let kept = volume.create_file(volume.root(), b"kept", &FILE).unwrap();
    volume.write_at(kept, 0, &[7; BLOCK]).unwrap();
    let large = volume.create_file(volume.root(), b"large", &FILE).unwrap();
    let content = Random(5).bytes(20 * PIECE + 1234);
    volume.write_at(large, 0, &content).unwrap();
    volume.sync_all().unwrap();
    let (cached, hole) = (data(large, 3), data(large, 10));
    let mut out = vec![0; PIECE];
    volume.read_at(kept, 0, &mut out).unwrap();
    // One of its blocks is there and another one a hole; the scan meets both.
    volume.punch_hole(large, 10 * BLOCK as u64, BLOCK as u64).unwrap();
    volume.sync_all().unwrap();
    volume.read_at(large, 3 * BLOCK as u64, &mut out[..9]).unwrap();
    assert!(volume.engine.cache.is_dirty(&cached).is_some());
    assert!(volume.engine.pointer(&hole).unwrap().is_hole());
    let mut expected = content;
    expected[10 * BLOCK..11 * BLOCK].fill(0);
    for at in (0..expected.len()).step_by(PIECE) {
        let read = volume.read_at(large, at as u64, &mut out).unwrap();
        assert_eq!(out[..read], expected[at..expected.len().min(at + PIECE)]);
    }
    for (at, piece) in (0..).step_by(PIECE).zip(expected.chunks(PIECE)) {
        volume.write_at(large, at, piece).unwrap();
    }
    volume.sync_all().unwrap();
    let here = |index: u64| volume.engine.cache.is_dirty(&data(large, index)).is_some();
    let passed = (0..20 * 24).filter(|&index| !here(index)).count();
    assert_eq!(passed, 20 * 24, "what was written in a row makes room at once");
    assert!(volume.engine.cache.is_dirty(&data(kept, 0)).is_some());
    assert!(volume.check(&mut |_| ()).unwrap().is_good());
    let mut volume = reopen(volume);
    assert_eq!(read_all(&mut volume, large).unwrap(), expected);
}

#[test]
fn a_full_volume_refuses_and_after_removal_goes_on() {
    let new = NewVolume {
        limit: 4 << 20,
        ..NEW
    };
    let mut volume = Volume::create(MemoryStore::default(), key(), &new, options()).unwrap();
    let root = volume.root();
    for round in 0..3 {
        let mut files = 0_u64;
        let error = loop {
            let ino = match volume.create_file(root, format!("f{files}").as_bytes(), &FILE) {
                Ok(ino) => ino,
                Err(error) => break error,
            };
            files += 1;
            if let Err(error) = volume.write_at(ino, 0, &[round; 50_000]) {
                break error;
            }
        };
        assert_eq!(error, VolumeError::NoSpace);
        assert!(files > 60, "round {round}: {files} files of 50 kB in 4 MiB");
        volume.sync_all().unwrap();
        for n in 0..files {
            volume.unlink(root, format!("f{n}").as_bytes()).unwrap();
        }
        volume = reopen(volume);
        assert!(volume.check(&mut |_| ()).unwrap().is_good());
    }
    assert!(volume.engine.store.0.len() <= 4 << 20);
}

/// Counts what goes to the store.
#[derive(Debug, Default)]
struct Counting(MemoryStore, u64, u64);

impl Store for Counting {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.0.read_at(offset, out)
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.1 += bytes.len() as u64;
        self.0.write_at(offset, bytes)
    }
    fn flush(&mut self) -> Result<(), StoreError> {
        self.2 += 1;
        Ok(())
    }
    fn len(&mut self) -> Result<u64, StoreError> {
        self.0.len()
    }
    fn set_len(&mut self, len: u64) -> Result<(), StoreError> {
        self.0.set_len(len)
    }
}

#[test]
fn a_commit_writes_what_changed_and_the_way_to_it() {
    let mut volume = Volume::create(Counting::default(), key(), &NEW, options()).unwrap();
    let ino = volume.create_file(volume.root(), b"large", &FILE).unwrap();
    for n in 0..64 {
        volume.write_at(ino, n << 20, &vec![3; 1 << 20]).unwrap();
    }
    volume.sync_all().unwrap();
    let mut random = Random(1);
    for _ in 0..100 {
        let (bytes, flushes) = (volume.engine.store.1, volume.engine.store.2);
        volume
            .write_at(ino, random.below(16384) * BLOCK as u64, &[4; BLOCK])
            .unwrap();
        volume.sync(ino).unwrap();
        // The block, three nodes above it, the inode's block, and a superblock's sector.
        assert_eq!(volume.engine.store.1 - bytes, 5 * BLOCK as u64 + 512);
        assert_eq!(volume.engine.store.2 - flushes, 2);
        // Synced already: nothing to do.
        let before = volume.engine.store.2;
        volume.sync(ino).unwrap();
        volume.sync_all().unwrap();
        assert_eq!(volume.engine.store.2, before);
    }
}

#[test]
fn a_sync_of_one_file_serves_all() {
    let mut volume = Volume::create(Counting::default(), key(), &NEW, options()).unwrap();
    let root = volume.root();
    let files: Vec<Ino> = (0..10)
        .map(|n| {
            volume
                .create_file(root, format!("{n}").as_bytes(), &FILE)
                .unwrap()
        })
        .collect();
    let before = volume.engine.store.2;
    for &ino in &files {
        volume.sync(ino).unwrap();
    }
    assert_eq!(volume.engine.store.2 - before, 2, "one commit");
}

#[test]
fn a_new_key_opens_the_same_volume_and_the_old_one_does_not() {
    let mut volume = create();
    let (mut model, mut random) = (Model::new(), Random(12));
    for _ in 0..500 {
        step(&mut volume, &mut model, &mut random, 300_000);
    }
    let mut volume = reopen(volume);
    let model = model.at_rest();
    if volume.engine.is_changed() {
        volume.sync_all().unwrap();
    }
    let (id, mark) = (volume.id(), volume.mark());
    let other = || VolumeKey::from_bytes(&[0x99; 32]);
    let new = rekey(
        &mut volume,
        MemoryStore::default(),
        other(),
        options(),
        &mut |_| (),
    )
    .unwrap();
    compare(&mut volume, &model).unwrap();
    let store = new.close().unwrap();
    let opened = Volume::open(store.clone(), key(), options()).map(|_| ());
    assert_eq!(opened, Err(VolumeError::WrongKey(id)));
    // The anchor of the old container takes the new one for its successor.
    let anchor = super::Memory::at(Some(mark));
    let mut new = Volume::open(store, other(), super::anchored(&anchor)).unwrap();
    compare(&mut new, &model).unwrap();
    assert_eq!(new.id(), id);
    new.sync_all().unwrap();
    assert!(new.check(&mut |_| ()).unwrap().is_good());
    assert_eq!(anchor.get(), Some(new.mark()));
}

#[test]
fn without_the_key_there_are_places_and_bytes_and_no_names() {
    let secret = b"a secret that nobody else may see";
    let mut volume = create();
    let root = volume.root();
    let ino = volume
        .create_file(root, b"the name is secret as well", &FILE)
        .unwrap();
    volume.write_at(ino, 0, &secret.repeat(60_000)).unwrap();
    let id = volume.id();
    let counter = volume.mark().counter;
    let store = volume.close().unwrap();
    let mut view = CiphertextView::open(store.clone()).unwrap();
    assert_eq!(view.claims(), Some((id, counter + 1)));
    let names = view.names();
    assert_eq!(
        names[..3],
        ["superblock-0", "superblock-1", "blocks-0000000000000002"]
    );
    let mut whole = vec![];
    for name in &names {
        let piece = view.piece(name).unwrap();
        let mut out = vec![0; piece.len as usize + 1];
        let len = view.read_at(&piece, 0, &mut out).unwrap();
        assert_eq!(len as u64, piece.len);
        assert_eq!(view.read_at(&piece, piece.len, &mut out), Ok(0));
        whole.extend_from_slice(&out[..len]);
    }
    assert_eq!(whole, store.0, "all of it, once");
    for needle in [&secret[..], b"the name is secret", b"leaf", b"node"] {
        assert!(!whole.windows(needle.len()).any(|w| w == needle));
    }
    assert!(view.piece("blocks-0000000000000003").is_none() && view.piece("superblock-7").is_none());
}

#[test]
fn a_volume_that_is_open_for_reading_is_not_written() {
    let mut volume = create();
    let root = volume.root();
    let ino = volume.create_file(root, b"f", &FILE).unwrap();
    volume.write_at(ino, 0, b"abc").unwrap();
    let store = volume.close().unwrap();
    let before = store.0.clone();
    let read_only = Options {
        anchor: Box::new(NoAnchor),
        ..options()
    };
    let mut volume = Volume::open_read_only(store, key(), read_only).unwrap();
    assert_eq!(read_all(&mut volume, ino).unwrap(), b"abc");
    assert_eq!(volume.write_at(ino, 0, b"x"), Err(VolumeError::ReadOnly));
    assert_eq!(volume.create_file(root, b"g", &FILE), Err(VolumeError::ReadOnly));
    assert_eq!(volume.close().unwrap().0, before);
}
