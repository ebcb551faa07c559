//! The engine on Linux's own terms: userfaultfd beneath real memory, a view in another process, a swap file.
//!
//! Needs the right to use userfaultfd for kernel faults; without it these tests skip, visibly.

#![allow(missing_docs)]

mod open;
mod pager;
mod secrecy;
mod view;

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloak_memory::page::ContextId;
use cloak_memory::pager::Pager;
use cloak_memory::ram::{Mapping, PrivateRam, Segment};
use cloak_memory::uffd::{Use, Userfaultfd};
use cloak_memory::{Memory, MemoryError, PAGE_SIZE, Page, PageKeys, Secret, Store};

pub fn page(number: u64) -> Page {
    Page::new(number).expect("a small number")
}

/// Whether this machine lets us; if not, says so where `make test` counts it.
pub fn able(test: &str) -> bool {
    let Err(why) = Userfaultfd::open(Use::Private) else {
        return true;
    };
    eprintln!("{test}: skipped: {why}");
    if let Some(list) = std::env::var_os("CLOAK_TEST_SKIPS") {
        let mut list = OpenOptions::new()
            .append(true)
            .create(true)
            .open(list)
            .expect("the list of skips");
        writeln!(list, "{test}: {why}").expect("the list of skips");
    }
    false
}

pub fn keys() -> PageKeys {
    PageKeys::derive(&Secret::random().unwrap(), ContextId(1), &[0; 32]).unwrap()
}

/// A program's memory: words behind a pager.
pub struct Program<S> {
    pub memory: Arc<Memory<PrivateRam, S>>,
    pub pager: Pager,
    failures: Mutex<Receiver<MemoryError>>,
    mapping: Arc<Mapping>,
    pages: u64,
}

impl<S: Store + 'static> Program<S> {
    pub fn start(pages: u64, limit: Option<u64>, store: S) -> Self {
        let mapping = Arc::new(Mapping::reserve(pages).unwrap());
        let segment = Segment {
            first: page(0),
            pages,
            address: mapping.address(),
        };
        // SAFETY: the mapping is private, anonymous and kept by `Self`, whose words are accessed by volatile
        // reads and writes only.
        let ram = unsafe { PrivateRam::watch(vec![segment]) }.unwrap();
        let memory = Arc::new(Memory::new(keys(), pages, ram, store));
        let (sender, failures) = channel();
        let failed = move |error| sender.send(error).expect("the test waits");
        let pager = Pager::start(memory.clone(), limit, failed).unwrap();
        Self {
            memory,
            pager,
            failures: Mutex::new(failures),
            mapping,
            pages,
        }
    }

    /// The pager's failure, if there is one within that time.
    pub fn failure_within(&self, time: Duration) -> Option<MemoryError> {
        self.failures.lock().unwrap().recv_timeout(time).ok()
    }

    fn word(&self, page: u64, word: usize) -> *mut u64 {
        assert!(page < self.pages && word < PAGE_SIZE / 8);
        // SAFETY: inside the mapping, as just checked.
        unsafe {
            self.mapping
                .address()
                .as_ptr()
                .cast::<u64>()
                .add(page as usize * (PAGE_SIZE / 8) + word)
        }
    }

    pub fn load(&self, page: u64, word: usize) -> u64 {
        // SAFETY: mapped, aligned; a missing page comes when it is touched.
        unsafe { self.word(page, word).read_volatile() }
    }

    pub fn save(&self, page: u64, word: usize, value: u64) {
        // SAFETY: as above.
        unsafe { self.word(page, word).write_volatile(value) }
    }
}
