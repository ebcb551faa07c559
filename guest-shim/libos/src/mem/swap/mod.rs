//! Pages of programs that leave guest memory, sealed, and come back verified: `cloak run --resident` where the host may not see
//! plaintext, so that its pager can't do it.
//!
//! The host says how much plaintext there may be, and keeps the file. What left is known by a [`Left`] each: its place in the
//! file, version and tag, all in private memory. Who has the file can keep a page from coming back; what comes back is what left.
//! A version is used once, and a place in the file has one page at a time, so an older one there does not open.
//!
//! The pages are those of private mappings without a file that one address space alone has: what grows with a program's data.
//! `space::evict` chooses them.

pub mod cipher;

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use cloak_abi::layout::PAGE;
use cloak_volumes::{Store, StoreError};
use spin::{Mutex, Once};

use self::cipher::{Label, PAGES_END, PageKeys, VERSIONS_END};
use crate::sched::Lock;

/// Most pages that leave or come back by one request.
pub const TOGETHER: usize = 16;

type File = Box<dyn Store + Send>;

/// Where pages go.
struct Swap {
    file: Lock<File>,
    keys: PageKeys,
    context: u64,
    versions: AtomicU64,
    places: Mutex<Places>,
}

static SWAP: Once<Swap> = Once::new();

/// Places in the file.
#[derive(Debug, Default)]
struct Places {
    next: u64,
    free: BTreeSet<u64>,
}

impl Places {
    fn take(&mut self) -> u64 {
        self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }
}

/// Begins to use a file, under keys that end with this boot.
pub fn begin(file: File, context: u64, key: &[u8; 32], salt: &[u8; 32]) {
    SWAP.call_once(|| Swap {
        file: Lock::new(file),
        keys: PageKeys::derive(key, context, salt),
        context,
        versions: AtomicU64::new(1),
        places: Mutex::default(),
    });
}

/// Whether there is one.
#[must_use]
pub fn is_there() -> bool {
    SWAP.get().is_some()
}

/// A page that left; its place is free when the last who knows it is gone.
#[derive(Debug, Clone)]
pub struct Left(Arc<Record>);

#[derive(Debug)]
struct Record {
    label: Label,
    tag: [u8; 16],
}

impl Left {
    /// Its place in the file.
    #[must_use]
    pub fn place(&self) -> u64 {
        self.0.label.page
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(swap) = SWAP.get() {
            swap.places.lock().free.insert(self.label.page);
        }
    }
}

/// Why pages stay, or do not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapError {
    /// There is no file, or no place or version left.
    Exhausted,
    /// The OS side does not take or give them.
    File(StoreError),
    /// What it gives is not what left.
    Tampered(Label),
}

impl SwapError {
    /// For people: what the context ends with.
    #[must_use]
    pub fn text(&self) -> alloc::string::String {
        match self {
            Self::Exhausted => "no room for sealed pages".into(),
            Self::File(error) => format!("the file of sealed pages: {error}"),
            Self::Tampered(label) => format!(
                "integrity of memory: context {}, page {:#x}, version {}: its ciphertext is not what was sealed as this version",
                label.context,
                label.page * PAGE,
                label.version
            ),
        }
    }
}

/// Seals pages, whose bytes are in `pages`, and writes them out.
///
/// # Errors
/// [`SwapError`]; nothing has left then. `pages` holds ciphertext afterwards.
pub fn send(pages: &mut [u8]) -> Result<Vec<Left>, SwapError> {
    let swap = SWAP.get().ok_or(SwapError::Exhausted)?;
    let mut all: Vec<Left> = Vec::new();
    let bytes = pages.as_chunks_mut::<{ PAGE as usize }>().0;
    for page in &mut *bytes {
        let version = swap.versions.fetch_add(1, Ordering::Relaxed);
        let place = swap.places.lock().take();
        let label = Label {
            context: swap.context,
            page: place,
            version,
        };
        if version >= VERSIONS_END || place >= PAGES_END {
            return Err(SwapError::Exhausted);
        }
        let tag = swap.keys.seal(&label, page);
        all.push(Left(Arc::new(Record { label, tag })));
    }
    let mut done = 0;
    for run in all.chunk_by(|a, b| a.place() + 1 == b.place()) {
        let written = bytes[done..done + run.len()].as_flattened();
        let result = swap.file.lock().write_at(run[0].place() * PAGE, written);
        result.map_err(SwapError::File)?;
        done += run.len();
    }
    Ok(all)
}

/// Brings pages back, whose places follow one another, into `pages`.
///
/// # Errors
/// [`SwapError`]; `pages` holds nothing of them then that was not verified.
pub fn fetch(left: &[Left], pages: &mut [u8]) -> Result<(), SwapError> {
    let swap = SWAP.get().ok_or(SwapError::Exhausted)?;
    let first = left.first().map_or(0, Left::place);
    let read = swap.file.lock().read_at(first * PAGE, pages);
    read.map_err(SwapError::File)?;
    for (left, page) in left.iter().zip(pages.as_chunks_mut::<{ PAGE as usize }>().0) {
        let Record { label, tag } = &*left.0;
        if !swap.keys.open(label, tag, page) {
            let label = *label;
            pages.fill(0);
            return Err(SwapError::Tampered(label));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloak_volumes::MemoryStore;
    use std::sync::{Arc as Shared, Mutex as StdMutex};

    /// A file that the test can reach, too.
    #[derive(Clone, Default)]
    struct Open(Shared<StdMutex<MemoryStore>>);

    impl Store for Open {
        fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
            self.0.lock().expect("whole").read_at(offset, out)
        }
        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
            let mut store = self.0.lock().expect("whole");
            let end = offset + bytes.len() as u64;
            if store.len()? < end {
                store.set_len(end)?;
            }
            store.write_at(offset, bytes)
        }
        fn flush(&mut self) -> Result<(), StoreError> {
            Ok(())
        }
        fn len(&mut self) -> Result<u64, StoreError> {
            self.0.lock().expect("whole").len()
        }
        fn set_len(&mut self, len: u64) -> Result<(), StoreError> {
            self.0.lock().expect("whole").set_len(len)
        }
    }

    /// One test, as there is one file for all.
    #[test]
    fn pages_come_back_as_they_left_or_not_at_all() {
        const P: usize = PAGE as usize;
        let mut file = Open::default();
        assert_eq!(send(&mut [0; P]).err(), Some(SwapError::Exhausted));
        begin(Box::new(file.clone()), 1, &[3; 32], &[4; 32]);
        let content: Vec<u8> = (0..3 * P).map(|i| (i / P + 1) as u8).collect();
        let mut bytes = content.clone();
        let left = send(&mut bytes).expect("there is room");
        assert_eq!(left.iter().map(Left::place).collect::<Vec<_>>(), [0, 1, 2]);
        let mut outside = vec![0; 3 * P];
        file.read_at(0, &mut outside).expect("there");
        assert_eq!(outside, bytes, "what is outside is what was sealed");
        assert!(
            outside
                .chunks(P)
                .zip(content.chunks(P))
                .all(|(out, own)| out != own)
        );
        let mut back = vec![9; 3 * P];
        fetch(&left, &mut back).expect("untouched");
        assert_eq!(back, content);
        // Every kind of tampering, of the second page: the error names it, and nothing of the three comes through.
        let older = outside.clone();
        let mut again = content.clone();
        drop(left);
        let left = send(&mut again).expect("there is room");
        assert_eq!(left[1].place(), 1, "places are used again");
        let now = again.clone();
        type Change = fn(&mut Vec<u8>, &[u8]);
        let changes: [Change; 3] = [
            |file, _| file[P + 17] ^= 1,
            |file, _| file.copy_within(2 * P.., P),
            |file, older| file[P..2 * P].copy_from_slice(&older[P..2 * P]),
        ];
        for change in changes {
            let mut bytes = now.clone();
            change(&mut bytes, &older);
            file.write_at(0, &bytes).expect("there");
            let mut back = vec![9; 3 * P];
            let Err(SwapError::Tampered(label)) = fetch(&left, &mut back) else {
                panic!("it came back");
            };
            assert_eq!(label.page, 1);
            assert!(back.iter().all(|byte| *byte == 0));
        }
        file.write_at(0, &now).expect("there");
        let mut back = vec![9; 3 * P];
        fetch(&left, &mut back).expect("as it was");
        assert_eq!(back, content);
        // A shorter file.
        file.set_len(P as u64).expect("there");
        assert!(matches!(fetch(&left, &mut back), Err(SwapError::File(_))));
    }
}
