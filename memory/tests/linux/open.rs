//! Memory that is plaintext as a whole: sealed where somebody looks, stale when it is written, otherwise left alone.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cloak_memory::open::{OpenRam, WriteServer};
use cloak_memory::ram::Segment;
use cloak_memory::uffd::{Use, Userfaultfd};
use cloak_memory::{FileStore, Memory, PAGE_SIZE, PageState};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

use crate::{able, keys, page};

const LARGE: usize = 2 << 20;
const PAGES: u64 = (4 * LARGE / PAGE_SIZE) as u64;

/// A program's memory, used before anybody watches it.
struct Used {
    address: NonNull<u8>,
    memory: Arc<Memory<OpenRam, FileStore>>,
    _server: WriteServer,
}

/// Four large pages, mapped for good, of which the last was never touched.
fn address() -> NonNull<u8> {
    // SAFETY: a new mapping, one large page longer than needed so that an aligned part fits.
    let raw = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            5 * LARGE,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }
    .unwrap();
    let aligned = (raw as usize).next_multiple_of(LARGE) as *mut u8;
    // SAFETY: advice on the mapping just made; it may be refused.
    let _wish = unsafe { madvise(aligned.cast(), 4 * LARGE, Advice::LinuxHugepage) };
    NonNull::new(aligned).unwrap()
}

impl Used {
    fn new() -> Self {
        let address = address();
        for number in 0..PAGES * 3 / 4 {
            word(address, number, 0).store(number, Ordering::Relaxed);
            word(address, number, 511).store(!number, Ordering::Relaxed);
        }
        let segment = Segment {
            first: page(0),
            pages: PAGES,
            address,
        };
        let uffd = Userfaultfd::open(Use::Writes).unwrap();
        // SAFETY: private, anonymous, never unmapped; its words are reached as atomics only.
        let ram = unsafe { OpenRam::watch(vec![segment], uffd) }.unwrap();
        // One page more than there is memory: between the parts of a guest's memory is nothing.
        let store = FileStore::view(PAGES + 1).unwrap();
        let memory = Arc::new(Memory::in_use(keys(), PAGES + 1, ram, store));
        let server = WriteServer::start(memory.clone(), |error| panic!("{error}")).unwrap();
        Self {
            address,
            memory,
            _server: server,
        }
    }

    fn word(&self, number: u64, index: usize) -> &'static AtomicU64 {
        word(self.address, number, index)
    }

    /// How much of it large pages back, KiB.
    fn large(&self) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let at = self.address.as_ptr() as u64;
        let mut inside = false;
        let mut sum = 0;
        for line in maps.lines() {
            if let Some((range, _)) = line.split_once(' ')
                && let Some((start, end)) = range.split_once('-')
                && let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
            {
                inside = start < at + 4 * LARGE as u64 && end > at;
            } else if inside && line.starts_with("AnonHugePages:") {
                sum += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
            }
        }
        sum
    }
}

fn word(address: NonNull<u8>, number: u64, index: usize) -> &'static AtomicU64 {
    assert!(number < PAGES && index < 512);
    // SAFETY: inside a mapping that is never unmapped; aligned.
    unsafe {
        address
            .as_ptr()
            .add(number as usize * PAGE_SIZE + 8 * index)
            .cast::<AtomicU64>()
            .as_ref()
            .unwrap()
    }
}

fn first_word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

#[test]
fn a_page_is_sealed_when_looked_at_and_stale_when_written() {
    if !able("memory::open") {
        return;
    }
    let used = Used::new();
    assert_eq!(
        used.memory.state(page(7)).unwrap(),
        PageState::Plain,
        "it was used before"
    );
    let look = used.memory.look(page(7)).unwrap();
    assert_eq!(
        (look.before, first_word(&look.plaintext[0])),
        (PageState::Plain, 7)
    );
    assert_ne!(look.ciphertext[..], look.plaintext[0][..]);
    let again = used.memory.look(page(7)).unwrap();
    assert_eq!(
        (again.before, again.version),
        (PageState::Clean, look.version),
        "nothing changed"
    );
    assert_eq!(again.ciphertext, look.ciphertext);
    used.word(7, 3).store(99, Ordering::SeqCst);
    assert_eq!(
        used.memory.state(page(7)).unwrap(),
        PageState::Plain,
        "the write was seen"
    );
    let after = used.memory.look(page(7)).unwrap();
    assert!(after.version > look.version && after.ciphertext != look.ciphertext);
    assert_eq!(after.plaintext[0][24..32], 99u64.to_le_bytes());
    // A page that was never touched, written once somebody has looked at it.
    let last = PAGES - 1;
    assert_eq!(first_word(&used.memory.look(page(last)).unwrap().plaintext[0]), 0);
    used.word(last, 0).store(5, Ordering::SeqCst);
    let look = used.memory.look(page(last)).unwrap();
    assert_eq!(
        (look.before, first_word(&look.plaintext[0])),
        (PageState::Plain, 5)
    );
    // What is no memory: zeros, sealed, so that nobody sees where the memory ends.
    let beyond = used.memory.look(page(PAGES)).unwrap();
    assert!(
        beyond.plaintext[0].iter().all(|&byte| byte == 0) && beyond.ciphertext.iter().any(|&byte| byte != 0)
    );
    assert!(
        used.memory.drop_plaintext(&[page(7)]).is_err(),
        "its plaintext stays"
    );
}

#[test]
fn what_nobody_looks_at_keeps_its_large_pages() {
    if !able("memory::open") {
        return;
    }
    let used = Used::new();
    let before = used.large();
    if before < 4 << 10 {
        // Without large pages there is nothing to keep.
        eprintln!("only {before} KiB are in large pages here");
        return;
    }
    used.memory.look(page(3)).unwrap();
    let after = used.large();
    assert_eq!(before - after, 2 << 10, "the one that the page lies in");
    for number in 600..900 {
        used.word(number, 1).store(1, Ordering::SeqCst);
    }
    assert_eq!(used.large(), after);
}

/// What is looked at is of one moment, whatever the program does meanwhile.
#[test]
fn a_look_is_of_one_moment() {
    if !able("memory::open") {
        return;
    }
    let used = Used::new();
    let stop = AtomicBool::new(false);
    let (front, back) = (used.word(9, 0), used.word(9, 511));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The one at the end of the page first: who reads from the front would see the other one newer.
            for round in 1.. {
                back.store(round, Ordering::SeqCst);
                front.store(round, Ordering::SeqCst);
                if stop.load(Ordering::SeqCst) {
                    return;
                }
            }
        });
        for _ in 0..300 {
            let look = used.memory.look(page(9)).unwrap();
            let bytes = &look.plaintext[0];
            let (front, back) = (first_word(bytes), first_word(&bytes[511 * 8..]));
            if (front, back) != (9, !9) {
                assert!(back == front || back == front + 1 || front == 9, "{front} {back}");
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
}
