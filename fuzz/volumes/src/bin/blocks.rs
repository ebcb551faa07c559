//! Any bytes as blocks that were opened: nodes, inodes, blocks of directories, attributes. Only who has the key can
//! make such a block, and still nothing may panic.
#![no_main]

use cloak_volumes::attributes::Pairs;
use cloak_volumes::block::{BLOCK, Page, is_node, pointer_in};
use cloak_volumes::dirblock::{
    Entry, Kind, SLOTS, add, child, entries, free_ordinal, kind, remove, replace, run,
};
use cloak_volumes::inode::{INODE, Inode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut page: Page = [0; BLOCK];
    let len = bytes.len().min(BLOCK);
    page[..len].copy_from_slice(&bytes[..len]);

    let _ = is_node(&page, 1);
    for slot in 0..85 {
        let pointer = pointer_in(&page, slot);
        assert_eq!(cloak_volumes::block::Pointer::parse(&pointer.encode()), pointer);
    }
    for inode in page.chunks_exact(INODE) {
        if let Some(inode) = Inode::parse(inode.try_into().expect("a chunk is as long")) {
            assert_eq!(Inode::parse(&inode.encode()), Some(inode));
        }
    }
    assert!(
        Pairs(bytes)
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>()
            <= bytes.len()
    );
    match kind(&page) {
        Some(Kind::Leaf) => {
            let keys: Vec<u64> = entries(&page).map(|e| e.key).collect();
            if let Some(&key) = keys.first() {
                let _ = free_ordinal(&page, key & !511);
                replace(&mut page, key, 3, 8);
                let entry = Entry {
                    key: key ^ 1,
                    ino: 4,
                    kind: 4,
                    name: b"name",
                };
                let _ = add(&mut page, &entry);
                remove(&mut page, key);
            }
        }
        Some(Kind::Index) => {
            for slot in 0..SLOTS {
                let run = run(&page, slot);
                assert!(run.contains(&slot) && run.end <= SLOTS);
                let _ = child(&page, slot);
            }
        }
        _ => {}
    }
});
