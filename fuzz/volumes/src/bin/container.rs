//! A good container with changes at any places: what is opened and read is what was written, or an error.
#![no_main]

use std::sync::OnceLock;

use cloak_volumes::{
    Fresh, Ino, MemoryStore, NewInode, NewVolume, NoAnchor, Options, Time, Volume, VolumeKey,
};
use libfuzzer_sys::fuzz_target;

const CONTENT: &[u8] = &[0x5A; 20_000];

fn options() -> Options {
    Options {
        cache_bytes: 1 << 18,
        clock: Time::default,
        expected: None,
        anchor: Box::new(NoAnchor),
        fresh: Fresh([3; 32]),
        wide: cloak_volumes::own_registers,
    }
}

fn key() -> VolumeKey {
    VolumeKey::from_bytes(&[9; 32])
}

fn good() -> &'static (Vec<u8>, Ino) {
    static GOOD: OnceLock<(Vec<u8>, Ino)> = OnceLock::new();
    GOOD.get_or_init(|| {
        let new = NewVolume {
            limit: 1 << 24,
            mode: 0o755,
            uid: 0,
            gid: 0,
        };
        let mut volume = Volume::create(MemoryStore::default(), key(), &new, options()).expect("it is made");
        let file = NewInode {
            mode: 0o100_644,
            uid: 0,
            gid: 0,
            device: 0,
        };
        let ino = volume
            .create_file(volume.root(), b"file", &file)
            .expect("there is room");
        volume.write_at(ino, 0, CONTENT).expect("there is room");
        (volume.close().expect("memory does not fail").0, ino)
    })
}

fuzz_target!(|changes: Vec<(u32, u8)>| {
    let (image, ino) = good();
    let mut image = image.clone();
    for (at, value) in changes {
        let at = at as usize % image.len();
        image[at] ^= value;
    }
    let Ok(mut volume) = Volume::open(MemoryStore(image), key(), options()) else {
        return;
    };
    let mut out = vec![0; CONTENT.len() + 1];
    // One commit was made: there is no older state that a damaged superblock could lead to but the empty volume.
    if let Ok(len) = volume.read_at(*ino, 0, &mut out) {
        assert_eq!(&out[..len], CONTENT);
    }
});
