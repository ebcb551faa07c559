//! Power lost at every point: after each write, flush and step of the anchor, with any part of what was not flushed
//! on the disk, torn at sectors of 512 bytes and in any order.

use std::sync::{Arc, Mutex};

use super::model::{FILE, Model, compare, step};
use super::{Memory, NEW, Random, key, longer, options};
use crate::anchor::{Anchor, AnchorError, Mark, NoAnchor};
use crate::error::VolumeError;
use crate::store::{MemoryStore, Store, StoreError};
use crate::volume::{Options, Volume};

const SECTOR: usize = 512;

#[derive(Debug, Clone)]
enum Event {
    Write(u64, Vec<u8>),
    Length(u64),
    Flush,
    Anchor(Mark),
    /// A sync returned; the state is the one of this number.
    Synced(usize),
}

type Log = Arc<Mutex<Vec<Event>>>;

/// Does everything at once, and remembers in which order.
#[derive(Debug, Clone)]
struct Recorded {
    inner: MemoryStore,
    log: Log,
}

impl Store for Recorded {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.inner.read_at(offset, out)
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.log
            .lock()
            .unwrap()
            .push(Event::Write(offset, bytes.to_vec()));
        self.inner.write_at(offset, bytes)
    }
    fn flush(&mut self) -> Result<(), StoreError> {
        self.log.lock().unwrap().push(Event::Flush);
        Ok(())
    }
    fn len(&mut self) -> Result<u64, StoreError> {
        self.inner.len()
    }
    fn set_len(&mut self, len: u64) -> Result<(), StoreError> {
        self.log.lock().unwrap().push(Event::Length(len));
        self.inner.set_len(len)
    }
}

struct RecordedAnchor(Log, Memory);

impl Anchor for RecordedAnchor {
    fn last(&mut self) -> Result<Option<Mark>, AnchorError> {
        self.1.last()
    }
    fn advance(&mut self, mark: &Mark) -> Result<(), AnchorError> {
        self.0.lock().unwrap().push(Event::Anchor(*mark));
        self.1.advance(mark)
    }
}

fn put(disk: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if disk.len() < offset + bytes.len() {
        disk.resize(offset + bytes.len(), 0);
    }
    disk[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// What a loss of power leaves: of each write that was not flushed all, nothing, or some sectors.
fn crashed(flushed: &[u8], waiting: &[Event], random: &mut Random) -> Vec<u8> {
    let mut disk = flushed.to_vec();
    let mut order: Vec<&Event> = waiting.iter().collect();
    for i in (1..order.len()).rev() {
        order.swap(i, random.index(i + 1));
    }
    let likely = random.below(4);
    for event in order {
        match event {
            Event::Length(len) if random.below(2) == 0 && *len as usize > disk.len() => {
                disk.resize(*len as usize, 0);
            }
            Event::Write(offset, bytes) => match random.below(4) {
                n if n < likely => put(&mut disk, *offset as usize, bytes),
                3 => {
                    for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                        if random.below(2) == 0 {
                            put(&mut disk, *offset as usize + i * SECTOR, sector);
                        }
                    }
                }
                _ => {}
            },
            _ => {}
        }
    }
    disk
}

fn record(seed: u64, steps: usize) -> (Vec<Event>, Vec<Model>) {
    let log: Log = Arc::default();
    let mut random = Random(seed);
    let store = Recorded {
        inner: MemoryStore::default(),
        log: log.clone(),
    };
    let with = |anchor: Memory| Options {
        anchor: Box::new(RecordedAnchor(log.clone(), anchor)),
        cache_bytes: 0,
        ..options()
    };
    let anchor = Memory::default();
    let mut volume = Volume::create(store, key(), &NEW, with(anchor.clone())).unwrap();
    let mut model = Model::new();
    let mut states = vec![model.clone()];
    log.lock().unwrap().push(Event::Synced(0));
    for n in 0..steps {
        let synced = step(&mut volume, &mut model, &mut random, FILE / 4);
        if synced || n % 50 == 49 {
            volume.sync_all().unwrap();
            states.push(model.at_rest());
            log.lock().unwrap().push(Event::Synced(states.len() - 1));
        }
        if n % 200 == 199 {
            volume = Volume::open(volume.close().unwrap(), key(), with(anchor.clone())).unwrap();
            model = model.at_rest();
        }
    }
    drop(volume);
    let events = std::mem::take(&mut *log.lock().unwrap());
    (events, states)
}

/// Opens what a crash left and says which state it is in.
fn judge(disk: Vec<u8>, anchor: Option<Mark>, states: &[Model], durable: usize) -> Result<usize, String> {
    let told = |e: VolumeError| e.to_string();
    let anchor = Memory::at(anchor);
    let options = Options {
        anchor: Box::new(anchor.clone()),
        ..options()
    };
    let mut volume = Volume::open(MemoryStore(disk), key(), options).map_err(told)?;
    let before = compare(&mut volume, &states[durable]);
    let state = match (before, states.get(durable + 1)) {
        (Ok(()), _) => durable,
        (Err(_), Some(next)) => compare(&mut volume, next).map(|()| durable + 1)?,
        (Err(error), None) => return Err(error),
    };
    // It goes on, and the anchor with it.
    volume.sync_all().map_err(told)?;
    let report = volume.check(&mut |_| ()).map_err(told)?;
    if !report.is_good() {
        return Err(format!("{:?}", report.findings));
    }
    if volume.mark() != anchor.get().unwrap() {
        return Err("the anchor is behind".to_owned());
    }
    Ok(state)
}

#[test]
fn after_a_crash_anywhere_the_state_is_the_one_before_or_after_and_nothing_synced_is_lost() {
    let mut random = Random(77);
    let (mut points, mut before, mut after) = (0_u64, 0_u64, 0_u64);
    let wanted = 10_000 * longer();
    let mut seed = 0;
    while points < wanted {
        seed += 1;
        let (events, states) = record(seed, 400);
        let (mut flushed, mut waiting) = (Vec::new(), Vec::new());
        let (mut durable, mut anchor) = (None, None);
        for event in &events {
            match event {
                Event::Flush => {
                    for event in waiting.drain(..) {
                        match event {
                            Event::Write(offset, bytes) => put(&mut flushed, offset as usize, &bytes),
                            Event::Length(len) => flushed.resize(len as usize, 0),
                            _ => {}
                        }
                    }
                }
                Event::Anchor(mark) => anchor = Some(*mark),
                Event::Synced(state) => durable = Some(*state),
                other => waiting.push(other.clone()),
            }
            // Before the first sync there is no volume that anyone was promised.
            let Some(durable) = durable else { continue };
            for _ in 0..3 {
                let disk = crashed(&flushed, &waiting, &mut random);
                let state = judge(disk, anchor, &states, durable)
                    .unwrap_or_else(|error| panic!("seed {seed}, crash point {points}: {error}"));
                points += 1;
                if state == durable { before += 1 } else { after += 1 }
            }
        }
    }
    println!("{points} crash points: {before} before, {after} after");
    assert!(
        before > points / 10 && after > points / 200,
        "both sides were seen"
    );
}

#[test]
fn a_store_that_forgets_what_it_flushed_is_found_out() {
    // The test above can fail: without flushes between blocks and superblock it does.
    let (events, states) = record(5, 300);
    let mut random = Random(3);
    let (mut flushed, mut waiting, mut durable, mut anchor) = (Vec::new(), Vec::new(), None, None);
    let mut wrong = 0;
    for event in &events {
        match event {
            Event::Flush => {
                // A lying disk: it drops a part of what it says is durable.
                flushed = crashed(&flushed, &waiting, &mut random);
                waiting.clear();
            }
            Event::Anchor(mark) => anchor = Some(*mark),
            Event::Synced(state) => durable = Some(*state),
            other => waiting.push(other.clone()),
        }
        if let Some(durable) = durable {
            wrong += u32::from(judge(flushed.clone(), anchor, &states, durable).is_err());
        }
    }
    assert!(wrong > 100, "{wrong}");
}

/// Fails from the n-th change on.
struct Failing {
    inner: MemoryStore,
    left: u64,
}

impl Failing {
    fn spend(&mut self) -> Result<(), StoreError> {
        self.left = self.left.checked_sub(1).ok_or(StoreError::Refused(5))?;
        Ok(())
    }
}

impl Store for Failing {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.inner.read_at(offset, out)
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.spend()?;
        self.inner.write_at(offset, bytes)
    }
    fn flush(&mut self) -> Result<(), StoreError> {
        self.spend()
    }
    fn len(&mut self) -> Result<u64, StoreError> {
        self.inner.len()
    }
    fn set_len(&mut self, len: u64) -> Result<(), StoreError> {
        self.inner.set_len(len)
    }
}

#[test]
fn after_a_failed_write_or_flush_changes_are_refused_and_the_last_commit_is_whole() {
    for left in 0..60 {
        let volume = super::create();
        let store = Failing {
            inner: volume.close().unwrap(),
            left,
        };
        let mut volume = Volume::open(store, key(), options()).unwrap();
        let mut made = 0_u64;
        let error = loop {
            let name = format!("file {made}");
            let new = crate::names::NewInode {
                mode: 0o100_644,
                uid: 0,
                gid: 0,
                device: 0,
            };
            let done = volume
                .create_file(volume.root(), name.as_bytes(), &new)
                .and_then(|ino| {
                    volume
                        .write_at(ino, 0, &[7; 10_000])
                        .and_then(|()| volume.sync(ino))
                });
            match done {
                Ok(()) => made += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, VolumeError::Store { .. }), "{error}");
        let root = volume.root();
        assert_eq!(
            volume.mkdir(
                root,
                b"more",
                &crate::names::NewInode {
                    mode: 0,
                    uid: 0,
                    gid: 0,
                    device: 0
                }
            ),
            Err(VolumeError::Poisoned)
        );
        let store = volume.abandon().inner;
        let mut volume = Volume::open(
            store,
            key(),
            Options {
                anchor: Box::new(NoAnchor),
                ..options()
            },
        )
        .unwrap();
        let found = volume.readdir(root, 0, 1000).unwrap().len() as u64;
        assert!(found == made || found == made + 1, "{found} of {made}");
        assert!(volume.check(&mut |_| ()).unwrap().is_good());
    }
}
