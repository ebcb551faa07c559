//! The pager: right results within the limit, and no result at all from what was tampered with.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use cloak_memory::pager::{LEAST_RESIDENT, Pager};
use cloak_memory::{FileStore, MemoryError, PageState};

use crate::{Program, able, page};

fn swap(pages: u64) -> (tempfile::TempDir, FileStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::swap(&folder.path().join("swap"), pages).unwrap();
    (folder, store)
}

/// What a page has to hold after so many rounds.
const fn expected(page: u64, word: usize, round: u64) -> u64 {
    (page << 20 | word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round
}

/// 1 GiB in 256 MiB: twice through all of it in order, then at random, with changes on the way.
#[test]
fn a_working_set_of_four_times_the_limit_gives_right_results() {
    if !able("memory::pager") {
        return;
    }
    let (pages, limit) = (1 << 18, 1 << 16);
    let (_folder, store) = swap(pages);
    let program = Program::start(pages, Some(limit), store);
    let mut rounds = vec![1u8; pages as usize];
    for number in 0..pages {
        for word in [0, 511] {
            assert_eq!(
                program.load(number, word),
                0,
                "page {number} began with something"
            );
            program.save(number, word, expected(number, word, 1));
        }
    }
    for number in 0..pages {
        assert_eq!(
            program.load(number, 511),
            expected(number, 511, 1),
            "page {number}"
        );
    }
    let mut random = 1u64;
    for _ in 0..40_000 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let number = random >> 46;
        let round = &mut rounds[number as usize];
        for word in [0, 511] {
            assert_eq!(
                program.load(number, word),
                expected(number, word, u64::from(*round)),
                "page {number}"
            );
        }
        if random & 1 << 20 != 0 {
            *round += 1;
            for word in [0, 511] {
                program.save(number, word, expected(number, word, u64::from(*round)));
            }
        }
    }
    for (number, round) in (0..pages).zip(rounds) {
        assert_eq!(
            program.load(number, 0),
            expected(number, 0, u64::from(round)),
            "page {number}"
        );
    }
    let counters = program.pager.counters();
    assert!(
        counters.most_resident.load(Ordering::Relaxed) <= limit,
        "{counters:?}"
    );
    assert!(program.memory.plaintext().resident() <= limit);
    assert!(
        counters.evicted.load(Ordering::Relaxed) >= pages - limit,
        "{counters:?}"
    );
    assert!(program.failure_within(Duration::ZERO).is_none());
    println!("{counters:?}");
}

/// Several threads on the same pages, of which a quarter may stay. Each word is counted up by one thread.
#[test]
fn threads_find_what_they_left() {
    if !able("memory::pager") {
        return;
    }
    let pages = 4 * LEAST_RESIDENT;
    let (_folder, store) = swap(pages);
    let program = Program::start(pages, Some(LEAST_RESIDENT), store);
    thread::scope(|scope| {
        for word in 0..4usize {
            let program = &program;
            scope.spawn(move || {
                let mut counts = vec![0u64; pages as usize];
                let mut random = word as u64;
                for _ in 0..20_000 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(3);
                    let number = (random >> 33) % pages;
                    let count = &mut counts[number as usize];
                    assert_eq!(
                        program.load(number, word * 100),
                        *count,
                        "page {number}, word {word}"
                    );
                    *count += 1;
                    program.save(number, word * 100, *count);
                }
                for (number, count) in (0..).zip(counts) {
                    assert_eq!(
                        program.load(number, word * 100),
                        count,
                        "page {number}, word {word}"
                    );
                }
            });
        }
    });
    assert!(program.failure_within(Duration::ZERO).is_none());
    assert!(program.pager.counters().most_resident.load(Ordering::Relaxed) <= LEAST_RESIDENT);
}

/// Pages in use stay: a few are touched all the time while eight times the limit streams past.
#[test]
fn pages_in_use_get_a_second_chance() {
    if !able("memory::pager") {
        return;
    }
    let (limit, hot, pages) = (4096, 256, 32_768);
    let (_folder, store) = swap(pages);
    let program = Program::start(pages, Some(limit), store);
    for number in 0..hot {
        program.save(number, 0, number);
    }
    let mut taken = 0;
    for number in hot..pages {
        program.save(number, 0, number);
        let before = program.pager.counters().brought_back.load(Ordering::Relaxed);
        let favourite = number % hot;
        assert_eq!(program.load(favourite, 0), favourite);
        taken += program.pager.counters().brought_back.load(Ordering::Relaxed) - before;
    }
    let counters = program.pager.counters();
    assert!(
        counters.second_chances.load(Ordering::Relaxed) > 1000,
        "{counters:?}"
    );
    // Without a second chance each favourite would leave with every pass of the stream, eight times in all. One
    // pass may take all of them: the first round of the hand finds nothing that was used again.
    assert!(
        taken <= 2 * hot,
        "{taken} of the pages in use were taken; {counters:?}"
    );
}

/// A program that works in a row faults once for many pages, also where it writes them: pages that came back protected
/// would each fault again.
#[test]
fn writing_in_a_row_faults_once_for_many_pages() {
    if !able("memory::pager") {
        return;
    }
    let (pages, limit) = (16_384, 8192);
    let (_folder, store) = swap(pages);
    let program = Program::start(pages, Some(limit), store);
    for number in 0..pages {
        program.save(number, 0, number);
    }
    let counters = program.pager.counters();
    let count = || counters.faults.load(Ordering::Relaxed);
    for reads_first in [false, true] {
        let (before, back) = (count(), counters.brought_back.load(Ordering::Relaxed));
        for number in 0..pages {
            if reads_first {
                assert_eq!(program.load(number, 0), number + 1, "page {number}");
            }
            program.save(number, 0, number + 1 + u64::from(reads_first));
        }
        let faults = count() - before;
        assert!(faults * 8 < pages, "{faults} faults, {counters:?}");
        let came = counters.brought_back.load(Ordering::Relaxed) - back;
        assert!(came >= pages - limit, "it did not page: {counters:?}");
    }
    for number in 0..pages {
        assert_eq!(program.load(number, 0), number + 2, "page {number}");
    }
    assert!(counters.most_resident.load(Ordering::Relaxed) <= limit);
}

/// A sealed page that was changed in the swap file: the program that touches it waits for ever and gets no byte.
#[test]
fn a_changed_swap_file_stops_the_context() {
    if !able("memory::pager") {
        return;
    }
    let pages = 2 * LEAST_RESIDENT;
    let (folder, store) = swap(pages);
    let program = Arc::new(Program::start(pages, Some(LEAST_RESIDENT), store));
    for number in 0..pages {
        program.save(number, 0, number + 1);
    }
    let sealed = (0..pages)
        .find(|&n| program.memory.state(page(n)).unwrap() == PageState::Sealed)
        .unwrap();
    let file = File::options()
        .read(true)
        .write(true)
        .open(folder.path().join("swap"))
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, page(sealed).gpa() + 77).unwrap();
    file.write_all_at(&[byte[0] ^ 4], page(sealed).gpa() + 77)
        .unwrap();

    let (seen, value) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let victim = {
        let (program, seen, value) = (program.clone(), seen.clone(), value.clone());
        thread::spawn(move || {
            value.store(program.load(sealed, 0), Ordering::SeqCst);
            seen.store(true, Ordering::SeqCst);
        })
    };
    let error = program
        .failure_within(Duration::from_secs(60))
        .expect("the failure is told");
    assert!(
        matches!(error, MemoryError::Integrity { page, .. } if page.number() == sealed),
        "{error}"
    );
    assert!(
        error.to_string().contains(&format!("page {:#x}", sealed * 4096)),
        "{error}"
    );
    thread::sleep(Duration::from_millis(100));
    assert!(
        !seen.load(Ordering::SeqCst),
        "the program went on with {:#x}",
        value.load(Ordering::SeqCst)
    );
    // The thread waits for a page that never comes, and keeps the program's memory.
    drop(victim);
}

#[test]
fn too_small_a_limit_is_refused() {
    if !able("memory::pager") {
        return;
    }
    let (_folder, store) = swap(16);
    let program = Program::start(16, None, store);
    let refused = Pager::start(program.memory.clone(), Some(LEAST_RESIDENT - 1), |_| {});
    assert!(matches!(refused, Err(MemoryError::LimitTooSmall { .. })));
}

/// Marks see what a real program writes through real memory.
#[test]
fn a_mark_sees_writes() {
    if !able("memory::pager") {
        return;
    }
    let (_folder, store) = swap(256);
    let program = Program::start(256, None, store);
    for number in 0..200 {
        program.save(number, 0, 1);
    }
    program.memory.seal(&[page(5), page(6), page(7)]).unwrap();
    program.memory.drop_plaintext(&[page(7)]).unwrap();
    let mark = program.memory.mark().unwrap();
    assert_eq!(program.load(7, 0), 1);
    assert_eq!(program.memory.changed_since(mark).unwrap(), []);
    for number in [5, 7, 199, 220] {
        program.save(number, 1, 2);
    }
    assert_eq!(
        program.memory.changed_since(mark).unwrap(),
        [5, 7, 199, 220].map(page)
    );
    assert_eq!((program.load(5, 0), program.load(7, 1)), (1, 2));
}
