//! Measured files against `fsverity`, and changed in every way.

use super::Random;
use crate::error::VolumeError;
use crate::measured::Measured;
use crate::store::MemoryStore;
use crate::verity::{BLOCK, Builder};
use crate::weakened::{self, Protection};

fn made(bytes: &[u8]) -> ([u8; 32], Vec<u8>) {
    let mut builder = Builder::keeping();
    bytes.chunks(BLOCK).for_each(|block| builder.block(block));
    builder.finish()
}

const LENGTHS: [usize; 9] = [
    0,
    1,
    BLOCK - 1,
    BLOCK,
    BLOCK + 1,
    128 * BLOCK,
    128 * BLOCK + 1,
    300 * BLOCK + 17,
    128 * 128 * BLOCK + 5,
];

#[test]
fn tree_and_digest_are_those_of_fsverity() {
    let folder = tempfile::tempdir().unwrap();
    let (file, tree_file) = (folder.path().join("file"), folder.path().join("tree"));
    for length in LENGTHS {
        let bytes = Random(length as u64).bytes(length);
        std::fs::write(&file, &bytes).unwrap();
        let tree_option = format!("--out-merkle-tree={}", tree_file.display());
        let output = std::process::Command::new("fsverity")
            .args(["digest", "--compact", &tree_option])
            .arg(&file)
            .output();
        let Ok(output) = output else {
            skip("fsverity is not installed");
            return;
        };
        let (digest, tree) = made(&bytes);
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap().trim(),
            hex,
            "{length} bytes"
        );
        assert_eq!(std::fs::read(&tree_file).unwrap(), tree, "{length} bytes");
    }
}

fn skip(why: &str) {
    println!("skipped: {why}");
    if let Some(list) = std::env::var_os("CLOAK_TEST_SKIPS") {
        use std::io::Write;
        let mut list = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(list)
            .unwrap();
        writeln!(list, "volumes: {why}").unwrap();
    }
}

#[test]
fn every_part_of_a_file_is_read_as_it_is() {
    let mut random = Random(4);
    for length in LENGTHS {
        let bytes = random.bytes(length);
        let (digest, tree) = made(&bytes);
        let mut built = Measured::build(MemoryStore(bytes.clone()), &digest).unwrap();
        let mut stored = Measured::with_tree(
            MemoryStore(bytes.clone()),
            MemoryStore(tree),
            length as u64,
            &digest,
        )
        .unwrap();
        for _ in 0..50 {
            let offset = random.index(length + 2);
            let mut out = vec![0; random.index(200_000)];
            let expected =
                &bytes[offset.min(length)..(offset + out.len()).min(length).max(offset.min(length))];
            let read = built.read_at(offset as u64, &mut out).unwrap();
            assert_eq!(&out[..read], expected);
            let read = stored.read_at(offset as u64, &mut out).unwrap();
            assert_eq!(&out[..read], expected);
        }
    }
}

/// Changes file or tree, reads, and says whether what came was wrong.
fn campaign(rounds: u64) -> Result<u64, String> {
    let mut random = Random(8);
    let length = 260 * BLOCK + 100;
    let bytes = random.bytes(length);
    let (digest, tree) = made(&bytes);
    let mut caught = 0;
    let (mut file, mut hashes) = (bytes.clone(), tree.clone());
    for round in 0..rounds {
        let at = random.index(length);
        match random.below(8) {
            0 => file.truncate(at),
            1 => file.extend_from_slice(&[7; 99]),
            2 => {
                let block = random.index(200) * BLOCK;
                file.copy_within(block..block + BLOCK, at / BLOCK / 2 * BLOCK);
            }
            3 | 4 => hashes[random.index(tree.len())] ^= 1 << random.below(8),
            5 => hashes.truncate(random.index(tree.len())),
            _ => file[at] ^= 1 << random.below(8),
        }
        let offset = at.saturating_sub(random.index(3 * BLOCK));
        let mut out = vec![0; 5 * BLOCK];
        let read = Measured::with_tree(
            MemoryStore(file.clone()),
            MemoryStore(hashes.clone()),
            length as u64,
            &digest,
        )
        .and_then(|mut measured| measured.read_at(offset as u64, &mut out));
        match read {
            Ok(read) if out[..read] == bytes[offset..offset + read] => {}
            Ok(_) => return Err(format!("round {round}: wrong bytes")),
            Err(VolumeError::Tampered(_)) => caught += 1,
            Err(error) => return Err(error.to_string()),
        }
        file.clone_from(&bytes);
        hashes.clone_from(&tree);
    }
    Ok(caught)
}

#[test]
fn a_changed_file_or_tree_is_caught_before_a_byte_is_given() {
    assert!(campaign(3000).unwrap() > 1000);
}

#[test]
fn with_verification_off_changes_are_not_caught() {
    assert!(weakened::with(Protection::Seal, || campaign(500)).is_err());
}

#[test]
fn another_file_is_refused_when_it_is_opened() {
    let (digest, _) = made(&[1; 9000]);
    let error = Measured::build(MemoryStore(vec![2; 9000]), &digest)
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error, VolumeError::Tampered(crate::error::Tampering::Digest));
}
