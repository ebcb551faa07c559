//! Tests of volumes as a whole: against a model, with crashes, with tampering.

mod crash;
mod files;
mod measured;
mod model;
mod names;
mod rollback;
mod tamper;

use std::boxed::Box;
use std::env;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::anchor::{Anchor, AnchorError, Mark, NoAnchor};
use crate::inode::Time;
use crate::keys::{Fresh, VolumeKey, own_registers};
use crate::store::{MemoryStore, Store};
use crate::volume::{NewVolume, Options, Volume};

pub const KEY: [u8; 32] = [0x42; 32];

pub fn key() -> VolumeKey {
    VolumeKey::from_bytes(&KEY)
}

/// Random bytes that are new each time and the same in each run of one test after another.
pub fn fresh() -> Fresh {
    static DRAWN: AtomicU64 = AtomicU64::new(1);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&DRAWN.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    Fresh(bytes)
}

pub fn options() -> Options {
    Options {
        cache_bytes: 1 << 20,
        clock: || Time {
            seconds: 1_700_000_000,
            nanoseconds: 5,
        },
        expected: None,
        anchor: Box::new(NoAnchor),
        fresh: fresh(),
        wide: own_registers,
    }
}

pub fn anchored(anchor: &Memory) -> Options {
    Options {
        anchor: Box::new(anchor.clone()),
        ..options()
    }
}

pub const NEW: NewVolume = NewVolume {
    limit: 1 << 30,
    mode: 0o755,
    uid: 0,
    gid: 0,
};

pub fn create() -> Volume<MemoryStore> {
    Volume::create(MemoryStore::default(), key(), &NEW, options()).unwrap()
}

pub fn reopen<S: Store>(volume: Volume<S>) -> Volume<S> {
    Volume::open(volume.close().unwrap(), key(), options()).unwrap()
}

/// An anchor in memory.
#[derive(Debug, Clone, Default)]
pub struct Memory(pub Arc<Mutex<Option<Mark>>>);

impl Memory {
    pub fn at(mark: Option<Mark>) -> Self {
        Self(Arc::new(Mutex::new(mark)))
    }
    pub fn get(&self) -> Option<Mark> {
        *self.0.lock().unwrap()
    }
}

impl Anchor for Memory {
    fn last(&mut self) -> Result<Option<Mark>, AnchorError> {
        Ok(self.get())
    }
    fn advance(&mut self, mark: &Mark) -> Result<(), AnchorError> {
        *self.0.lock().unwrap() = Some(*mark);
        Ok(())
    }
}

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// How much longer than usual a test is to run: `CLOAK_VOLUMES_LONGER=10`.
pub fn longer() -> u64 {
    env::var("CLOAK_VOLUMES_LONGER")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1)
}
