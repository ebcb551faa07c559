//! A whole volume set back, and what a crash between root and anchor means.

use super::{Memory, NEW, anchored, create, key, options};
use crate::anchor::{Anchor, AnchorError, Mark};
use crate::error::VolumeError;
use crate::keys::{VolumeId, VolumeKey};
use crate::names::NewInode;
use crate::store::MemoryStore;
use crate::volume::{Options, Volume};

const FILE: NewInode = NewInode {
    mode: 0o100_644,
    uid: 0,
    gid: 0,
    device: 0,
};

fn commit(volume: &mut Volume<MemoryStore>, name: &str) {
    volume.create_file(volume.root(), name.as_bytes(), &FILE).unwrap();
    volume.sync_all().unwrap();
}

fn open(store: &MemoryStore, anchor: &Memory) -> Result<Volume<MemoryStore>, VolumeError> {
    Volume::open(store.clone(), key(), anchored(anchor))
}

#[test]
fn yesterdays_volume_is_refused() {
    let anchor = Memory::default();
    let mut volume = Volume::create(MemoryStore::default(), key(), &NEW, anchored(&anchor)).unwrap();
    let mut days = vec![];
    for day in 0..5 {
        commit(&mut volume, &format!("day {day}"));
        let store = volume.close().unwrap();
        days.push(store.clone());
        volume = open(&store, &anchor).unwrap();
    }
    let counter = anchor.get().unwrap().counter;
    for old in &days[..4] {
        let error = open(old, &anchor).unwrap_err();
        assert!(
            matches!(error, VolumeError::RolledBack { anchor, forked: false, .. } if anchor == counter),
            "{error}"
        );
    }
    open(&days[4], &anchor).unwrap();
    // Without an anchor nothing can tell.
    Volume::open(days[0].clone(), key(), options()).unwrap();
}

#[test]
fn a_crash_between_root_and_anchor_leaves_both_roots_good_until_one_is_taken() {
    let anchor = Memory::default();
    let mut volume = Volume::create(MemoryStore::default(), key(), &NEW, anchored(&anchor)).unwrap();
    commit(&mut volume, "first");
    let before = (volume.engine.store.clone(), anchor.get());
    commit(&mut volume, "second");
    let after = (volume.engine.store.clone(), anchor.get());

    // The anchor is one behind: both containers are what a crash may have left.
    let behind = Memory::at(before.1);
    open(&before.0, &behind).unwrap();
    assert_eq!(behind.get(), before.1, "opening alone changes nothing");
    let mut taken = open(&after.0, &behind).unwrap();
    taken.sync_all().unwrap();
    assert_eq!(behind.get(), after.1, "the next sync brings the anchor up");
    assert!(matches!(
        open(&before.0, &behind),
        Err(VolumeError::RolledBack { forked: false, .. })
    ));

    // The older one is taken and goes on: the newer one is of another history now.
    let behind = Memory::at(before.1);
    let mut other = open(&before.0, &behind).unwrap();
    commit(&mut other, "another second");
    let error = open(&after.0, &behind).unwrap_err();
    assert!(matches!(error, VolumeError::RolledBack { .. }), "{error}");
}

#[test]
fn a_fork_at_the_same_counter_is_refused() {
    let anchor = Memory::default();
    let mut volume = Volume::create(MemoryStore::default(), key(), &NEW, anchored(&anchor)).unwrap();
    commit(&mut volume, "common");
    let store = volume.close().unwrap();
    let at = anchor.get();
    let fork = |name: &str| {
        let anchor = Memory::at(at);
        let mut volume = open(&store, &anchor).unwrap();
        commit(&mut volume, name);
        (volume.close().unwrap(), anchor)
    };
    let ((left, left_anchor), (right, right_anchor)) = (fork("left"), fork("right"));
    assert_eq!(
        left_anchor.get().unwrap().counter,
        right_anchor.get().unwrap().counter
    );
    open(&left, &left_anchor).unwrap();
    assert!(matches!(
        open(&left, &right_anchor),
        Err(VolumeError::RolledBack { forked: true, .. })
    ));
    assert!(matches!(
        open(&right, &left_anchor),
        Err(VolumeError::RolledBack { forked: true, .. })
    ));
}

#[test]
fn an_anchor_that_was_set_back_is_noticed() {
    let anchor = Memory::default();
    let mut volume = Volume::create(MemoryStore::default(), key(), &NEW, anchored(&anchor)).unwrap();
    let old = anchor.get();
    for n in 0..4 {
        commit(&mut volume, &n.to_string());
    }
    let store = volume.close().unwrap();
    assert!(matches!(
        open(&store, &Memory::at(old)),
        Err(VolumeError::AnchorBehind { .. })
    ));
}

/// Fails when told to.
struct Flaky(Memory, std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Anchor for Flaky {
    fn last(&mut self) -> Result<Option<Mark>, AnchorError> {
        self.0.last()
    }
    fn advance(&mut self, mark: &Mark) -> Result<(), AnchorError> {
        if self.1.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(AnchorError::Unavailable(5));
        }
        self.0.advance(mark)
    }
}

#[test]
fn a_sync_does_not_return_before_the_anchor_knows_and_the_next_one_makes_up_for_it() {
    let (memory, fails) = (Memory::default(), std::sync::Arc::default());
    let anchor = Box::new(Flaky(memory.clone(), std::sync::Arc::clone(&fails)));
    let mut volume = Volume::create(
        MemoryStore::default(),
        key(),
        &NEW,
        Options { anchor, ..options() },
    )
    .unwrap();
    let root = volume.root();
    fails.store(true, std::sync::atomic::Ordering::Relaxed);
    let ino = volume.create_file(root, b"a", &FILE).unwrap();
    assert_eq!(
        volume.sync(ino),
        Err(VolumeError::Anchor(AnchorError::Unavailable(5)))
    );
    assert_eq!(
        volume.sync(ino),
        Err(VolumeError::Anchor(AnchorError::Unavailable(5)))
    );
    // No second root is written over one that the anchor does not know of.
    let counter = volume.mark().counter;
    volume.create_file(root, b"b", &FILE).unwrap();
    assert!(volume.sync_all().is_err());
    assert_eq!(volume.mark().counter, counter);
    open(&volume.engine.store, &memory).unwrap();
    fails.store(false, std::sync::atomic::Ordering::Relaxed);
    volume.sync_all().unwrap();
    assert_eq!(memory.get(), Some(volume.mark()));
    let mut volume = open(&volume.close().unwrap(), &memory).unwrap();
    volume.lookup(root, b"a").unwrap();
    volume.lookup(root, b"b").unwrap();
}

#[test]
fn wrong_keys_foreign_volumes_and_what_is_no_volume_are_told_apart() {
    let mut volume = create();
    commit(&mut volume, "a");
    let id = volume.id();
    let store = volume.close().unwrap();
    let open = |key: VolumeKey, expected, store: &MemoryStore| {
        Volume::open(
            store.clone(),
            key,
            Options {
                expected,
                ..options()
            },
        )
        .map(|_| ())
    };
    assert_eq!(open(key(), Some(id), &store), Ok(()));
    assert_eq!(
        open(VolumeKey::from_bytes(&[1; 32]), None, &store),
        Err(VolumeError::WrongKey(id))
    );
    let other = VolumeId([9; 16]);
    let foreign = VolumeError::Foreign {
        expected: other,
        found: id,
    };
    assert_eq!(open(key(), Some(other), &store), Err(foreign));
    assert_eq!(
        open(key(), None, &MemoryStore(vec![])),
        Err(VolumeError::NoVolume)
    );
    assert_eq!(
        open(key(), None, &MemoryStore(vec![0x55; 1 << 20])),
        Err(VolumeError::NoVolume)
    );
    let anchor = Memory::at(Some(Mark {
        volume: other,
        counter: 1,
        root: [0; 32],
    }));
    assert!(matches!(
        Volume::open(store, key(), anchored(&anchor)),
        Err(VolumeError::Foreign { .. })
    ));
}
