//! Directories: many names, colliding names, listing while names come and go; and time that no operation takes.

use std::collections::BTreeSet;

use super::{Random, create, reopen};
use crate::dirblock::tests::with_mask;
use crate::error::VolumeError;
use crate::inode::{Ino, REGULAR};
use crate::names::NewInode;
use crate::store::MemoryStore;
use crate::volume::Volume;

const FILE: NewInode = NewInode {
    mode: REGULAR | 0o600,
    uid: 0,
    gid: 0,
    device: 0,
};

fn list(volume: &mut Volume<MemoryStore>, dir: Ino, most: usize) -> Vec<Vec<u8>> {
    let (mut after, mut names) = (0, vec![]);
    loop {
        let entries = volume.readdir(dir, after, most).unwrap();
        let Some(last) = entries.last() else { return names };
        assert!(last.cookie > after && last.cookie < 1 << 63);
        after = last.cookie;
        names.extend(entries.into_iter().map(|e| e.name));
    }
}

#[test]
fn fifty_thousand_names_are_found_listed_and_removed() {
    let mut volume = create();
    let root = volume.root();
    let count = 50_000;
    let name = |n: u64| format!("a name of some length, number {n}").into_bytes();
    let mut inodes = vec![];
    for n in 0..count {
        inodes.push(volume.create_file(root, &name(n), &FILE).unwrap());
    }
    let mut volume = reopen(volume);
    for n in (0..count).step_by(7) {
        assert_eq!(volume.lookup(root, &name(n)), Ok(inodes[n as usize]));
    }
    let names = list(&mut volume, root, 100);
    assert_eq!(names.len() as u64, count);
    assert_eq!(
        names.iter().collect::<BTreeSet<_>>().len() as u64,
        count,
        "each once"
    );
    assert_eq!(volume.lookup(root, b"none of these"), Err(VolumeError::NotFound));
    for n in 0..count {
        volume.unlink(root, &name(n)).unwrap();
    }
    assert_eq!(volume.stat(root).unwrap().size, 0);
    volume.sync_all().unwrap();
    assert!(volume.check(&mut |_| ()).unwrap().is_good());
}

#[test]
fn a_listing_gives_each_name_that_stays_once_while_others_come_and_go() {
    let mut volume = create();
    let root = volume.root();
    let mut random = Random(6);
    for n in 0..2000 {
        volume
            .create_file(root, format!("stays {n}").as_bytes(), &FILE)
            .unwrap();
    }
    let (mut after, mut seen) = (0, vec![]);
    let mut made = 0;
    loop {
        let entries = volume.readdir(root, after, 20).unwrap();
        let Some(last) = entries.last() else { break };
        after = last.cookie;
        seen.extend(
            entries
                .into_iter()
                .map(|e| e.name)
                .filter(|n| n.starts_with(b"stays")),
        );
        for _ in 0..60 {
            volume
                .create_file(root, format!("comes {made}").as_bytes(), &FILE)
                .unwrap();
            made += 1;
            let gone = format!("comes {}", random.below(made));
            let _ = volume.unlink(root, gone.as_bytes());
        }
    }
    assert_eq!(seen.len(), 2000);
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 2000);
}

#[test]
fn names_of_one_hash_are_told_apart_until_a_block_is_full_of_them() {
    // Four hashes for all names.
    with_mask(3 << 20, || {
        let mut volume = create();
        let root = volume.root();
        let mut names = BTreeSet::new();
        let full = loop {
            let name = format!("name {}", names.len()).into_bytes();
            match volume.create_file(root, &name, &FILE) {
                Ok(_) => names.insert(name),
                Err(error) => break error,
            };
        };
        assert_eq!(full, VolumeError::DirectoryFull);
        assert!(names.len() > 300, "{}", names.len());
        let found: BTreeSet<_> = list(&mut volume, root, 1).into_iter().collect();
        assert_eq!(found, names);
        // The refusal left everything as it was.
        volume.sync_all().unwrap();
        assert!(volume.check(&mut |_| ()).unwrap().is_good());
        for name in &names {
            volume.unlink(root, name).unwrap();
        }
        assert!(list(&mut volume, root, 10).is_empty());
    });
}

#[test]
fn names_that_are_none_are_refused() {
    let mut volume = create();
    let root = volume.root();
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
        assert!(matches!(
            volume.create_file(root, name, &FILE),
            Err(VolumeError::Invalid(_))
        ));
    }
    assert_eq!(
        volume.create_file(root, &[b'n'; 256], &FILE),
        Err(VolumeError::NameTooLong)
    );
    volume.create_file(root, &[b'n'; 255], &FILE).unwrap();
}

#[test]
fn a_directory_that_was_removed_while_open_takes_no_names() {
    let mut volume = create();
    let root = volume.root();
    let dir = volume.mkdir(root, b"d", &FILE).unwrap();
    volume.open_inode(dir).unwrap();
    volume.rmdir(root, b"d").unwrap();
    assert_eq!(volume.create_file(dir, b"x", &FILE), Err(VolumeError::NotFound));
    assert!(volume.readdir(dir, 0, 10).unwrap().is_empty());
    volume.close_inode(dir).unwrap();
    assert_eq!(volume.stat(dir), Err(VolumeError::NotFound));
}
