//! Any bytes as superblocks: as they are, and sealed by someone who has the key.
#![no_main]

use cloak_volumes::superblock::{Clear, SUPERBLOCK, newest};
use cloak_volumes::{CiphertextView, MemoryStore, VolumeKey, own_registers};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut slots = [None; 2];
    for (slot, bytes) in slots.iter_mut().zip(bytes.chunks_exact(SUPERBLOCK)) {
        let bytes: [u8; SUPERBLOCK] = bytes.try_into().expect("a chunk is as long");
        let _ = Clear::parse(&bytes);
        *slot = Some(bytes);
    }
    let _ = newest(VolumeKey::from_bytes(&[7; 32]), None, slots, own_registers);
    let view = CiphertextView::open(MemoryStore(bytes.to_vec())).expect("memory can be read");
    for name in view.names() {
        assert!(view.piece(&name).is_some());
    }
});
