//! Secrets don't stay: after a context is gone its keys are nowhere in this process.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use cloak_memory::page::ContextId;
use cloak_memory::{Memory, PageKeys, Secret};

use crate::page;

const CHILD: &str = "CLOAK_TEST_SECRECY";

/// The key, never stored as such outside of what is under test: what is searched for is its complement.
fn complement() -> [u8; 32] {
    let mut bytes = [0u8; 32];
    let mut state = 0x1234_5678_9abc_def0u64;
    for byte in &mut bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        *byte = (state >> 56) as u8;
    }
    bytes
}

/// How often bytes whose complement is `wanted` lie in writable memory of this process.
fn occurrences(wanted: &[u8; 32]) -> usize {
    let memory = File::open("/proc/self/mem").unwrap();
    let maps = BufReader::new(File::open("/proc/self/maps").unwrap());
    let mut count = 0;
    let mut chunk = vec![0u8; 1 << 20];
    for line in maps.lines().map(Result::unwrap) {
        let (range, rest) = line.split_once(' ').unwrap();
        if !rest.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let start = u64::from_str_radix(start, 16).unwrap();
        let end = u64::from_str_radix(end, 16).unwrap();
        let mut at = start;
        while at < end {
            let len = chunk.len().min((end - at) as usize);
            // Guard pages and the like can't be read, and so hold nothing.
            if memory.read_exact_at(&mut chunk[..len], at).is_ok() {
                count += chunk[..len]
                    .windows(32)
                    .filter(|w| w.iter().zip(wanted).all(|(a, b)| *a == !b))
                    .count();
            }
            // Overlapping, so that nothing hides on a border.
            at += (len as u64).saturating_sub(31).max(1);
            if len < 32 {
                break;
            }
        }
        chunk.fill(0);
    }
    count
}

/// In a process of its own, so that no other test's memory is searched or disturbs.
#[test]
fn nothing_of_a_key_is_left() {
    if std::env::var_os(CHILD).is_none() {
        let status = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "secrecy::nothing_of_a_key_is_left",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD, "1")
            // Its closing line would be counted as another test's.
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let wanted = complement();
    let secret = {
        let mut key = wanted.map(|b| !b);
        let secret = Secret::new(&key);
        key.fill(0);
        std::hint::black_box(&mut key);
        secret
    };
    assert!(occurrences(&wanted) > 0, "the search finds a key that is there");
    let keys = PageKeys::derive(&secret, ContextId(1), &[0; 32]).unwrap();
    drop(secret);
    assert_eq!(
        occurrences(&wanted),
        0,
        "the context's key is left after the page keys were derived"
    );
    let memory = Memory::new(keys, 8, Nothing, Nothing);
    memory.seal(&[page(1)]).unwrap();
    drop(memory);
    assert_eq!(occurrences(&wanted), 0);
}

/// Sides that do nothing: pages that were never touched are sealed without them.
#[derive(Debug)]
struct Nothing;

impl cloak_memory::Plaintext for Nothing {
    fn freeze(&self, _: cloak_memory::Run) -> std::io::Result<()> {
        Ok(())
    }
    fn thaw(&self, _: cloak_memory::Run) -> std::io::Result<()> {
        Ok(())
    }
    fn read(&self, _: cloak_memory::Page, _: &mut cloak_memory::PageBytes) -> std::io::Result<()> {
        Ok(())
    }
    fn install(
        &self,
        _: cloak_memory::Page,
        _: &[cloak_memory::PageBytes],
        _: cloak_memory::Access,
    ) -> std::io::Result<()> {
        Ok(())
    }
    fn release(&self, _: cloak_memory::Run) -> std::io::Result<()> {
        Ok(())
    }
}

impl cloak_memory::Store for Nothing {
    fn put(
        &self,
        _: cloak_memory::Page,
        _: &[cloak_memory::PageBytes],
    ) -> Result<(), cloak_memory::StoreError> {
        Ok(())
    }
    fn fetch(
        &self,
        _: cloak_memory::Page,
        _: &mut [cloak_memory::PageBytes],
    ) -> Result<(), cloak_memory::StoreError> {
        Ok(())
    }
    fn forget(&self, _: cloak_memory::Run) -> Result<(), cloak_memory::StoreError> {
        Ok(())
    }
}
