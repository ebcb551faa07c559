//! Content of files on read-only mounts, kept in guest memory.
//!
//! Such a file can't be changed from inside, so what was read once is read again without the host. Somebody
//! else may change it there: as with network file systems, an open or a read looks whether the file is still the one
//! that is cached (size, modification and change times) when the last look is more than [`FRESH_NS`] ago. Between
//! looks a read gives what the file was.
//!
//! Files with a writable mount never come here: what two parties change is asked for each time.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hashbrown::HashMap;
use spin::{Lazy, Mutex};

use super::file::Stat;
pub use super::shared_pages::Key;
use crate::arch;
use crate::errno::{Errno, SysResult};
use crate::sched::clock::deadline_in;
use crate::user::Buf;

/// Bytes read from the host at a time.
pub const BLOCK: u64 = 64 << 10;
/// How long is believed what the host said of a read-only mount, nanoseconds.
pub(super) const FRESH_NS: u64 = 1_000_000_000;
/// The part of guest memory that may be used: one in so many.
const SHARE: u64 = 8;

static CONTENTS: Lazy<Mutex<HashMap<Key, Arc<Content>>>> = Lazy::new(|| Mutex::new(HashMap::new()));
/// Bytes in all blocks.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Until when is believed what the host answers to a question that is asked now, ticks.
#[must_use]
pub fn believed_until() -> u64 {
    deadline_in(FRESH_NS)
}

/// Bytes that are kept.
#[must_use]
pub fn used() -> usize {
    USED.load(Ordering::Relaxed)
}

/// Where content comes from.
pub trait Source {
    /// Reads at an offset, from the host.
    ///
    /// # Errors
    /// What the host reports.
    fn fetch(&self, offset: u64, to: &mut Buf) -> SysResult<usize>;
    /// Attributes now.
    ///
    /// # Errors
    /// What the host reports.
    fn attributes(&self) -> SysResult<Stat>;
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    size: u64,
    modified: [i64; 2],
    changed: [i64; 2],
}

impl Version {
    fn of(stat: &Stat) -> Self {
        Self {
            size: stat.size as u64,
            modified: stat.mtime,
            changed: stat.ctime,
        }
    }
}

/// One block, counted while it lives.
#[derive(Debug)]
struct Block(Vec<u8>);

impl Drop for Block {
    fn drop(&mut self) {
        USED.fetch_sub(self.0.capacity(), Ordering::Relaxed);
    }
}

/// Cached content of one file.
#[derive(Debug)]
pub struct Content {
    inner: Mutex<Inner>,
    /// When it was last read, for eviction.
    read: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    version: Version,
    /// Until when the version need not be looked at again, ticks.
    fresh_until: u64,
    blocks: BTreeMap<u64, Arc<Block>>,
}

/// The content of the file with this key, which has these attributes; they are believed `until` then, ticks.
#[must_use]
pub fn content(key: Key, stat: &Stat, until: u64) -> Arc<Content> {
    let content = CONTENTS
        .lock()
        .entry(key)
        .or_insert_with(|| {
            Arc::new(Content {
                inner: Mutex::new(Inner {
                    version: Version::of(stat),
                    fresh_until: 0,
                    blocks: BTreeMap::new(),
                }),
                read: AtomicU64::new(arch::ticks()),
            })
        })
        .clone();
    content.saw(Version::of(stat), until);
    content
}

/// The file with this key was changed from inside, by another of its names.
pub fn changed(key: Key) {
    if USED.load(Ordering::Relaxed) != 0 {
        drop(CONTENTS.lock().remove(&key));
    }
}

impl Content {
    /// Size, modification and change time as they were last seen.
    #[must_use]
    pub fn version(&self) -> [u64; 5] {
        let version = self.inner.lock().version;
        let [modified, changed] = [version.modified, version.changed].map(|t| t.map(|n| n as u64));
        [version.size, modified[0], modified[1], changed[0], changed[1]]
    }

    fn saw(&self, version: Version, until: u64) {
        let mut inner = self.inner.lock();
        if until < inner.fresh_until {
            return; // an answer of before the last one
        }
        inner.fresh_until = until;
        if inner.version != version {
            inner.version = version;
            inner.blocks.clear();
        }
    }

    /// Size, after a look at the host when the last one is long ago.
    fn size(&self, source: &impl Source) -> SysResult<u64> {
        let (size, fresh_until) = {
            let inner = self.inner.lock();
            (inner.version.size, inner.fresh_until)
        };
        if arch::ticks() < fresh_until {
            return Ok(size);
        }
        let until = believed_until();
        let version = Version::of(&source.attributes()?);
        self.saw(version, until);
        Ok(version.size)
    }

    fn block(&self, source: &impl Source, number: u64, size: u64) -> SysResult<Arc<Block>> {
        let version = {
            let inner = self.inner.lock();
            if let Some(block) = inner.blocks.get(&number) {
                return Ok(block.clone());
            }
            inner.version
        };
        let len = BLOCK.min(size - number * BLOCK) as usize;
        make_room(len, self);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
        bytes.resize(len, 0);
        USED.fetch_add(bytes.capacity(), Ordering::Relaxed);
        let mut block = Block(bytes);
        let got = source.fetch(number * BLOCK, &mut Buf::own_mut(&mut block.0))?;
        block.0.truncate(got);
        let block = Arc::new(block);
        let mut inner = self.inner.lock();
        // A short block is what the file was for a moment: not to be kept.
        if inner.version == version && got == len {
            inner.blocks.insert(number, block.clone());
        }
        Ok(block)
    }

    /// Reads at `offset`.
    ///
    /// # Errors
    /// EFAULT; what the host reports.
    pub fn read_at(&self, source: &impl Source, mut offset: u64, to: &mut Buf) -> SysResult<usize> {
        let mut done = 0;
        self.read.store(arch::ticks(), Ordering::Relaxed);
        while !to.is_empty() {
            match self.step(source, offset, to) {
                Ok(0) => break,
                Ok(n) => {
                    done += n;
                    offset += n as u64;
                }
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Keeps a block that was read otherwise. It has to be whole: [`BLOCK`] bytes, or up to the end.
    pub fn keep(&self, number: u64, bytes: Vec<u8>) {
        make_room(bytes.len(), self);
        USED.fetch_add(bytes.capacity(), Ordering::Relaxed);
        let block = Arc::new(Block(bytes));
        self.inner.lock().blocks.insert(number, block);
    }

    /// Reads from one block.
    ///
    /// # Errors
    /// EFAULT; what the host reports.
    pub fn step(&self, source: &impl Source, offset: u64, to: &mut Buf) -> SysResult<usize> {
        let size = self.size(source)?;
        if offset >= size {
            return Ok(0);
        }
        let block = match self.block(source, offset / BLOCK, size) {
            Err(Errno::ENOMEM) => return source.fetch(offset, to), // no room to keep it
            block => block?,
        };
        let left = block.0.get((offset % BLOCK) as usize..).unwrap_or_default();
        to.put(&left[..left.len().min(to.len())])
    }
}

/// Lets go of the content that was not read for longest until `len` bytes more are within the limit; at last of
/// what was read first of the file that asks.
fn make_room(len: usize, asks: &Content) {
    let limit = memory() / SHARE as usize;
    while USED.load(Ordering::Relaxed) + len > limit {
        let oldest = {
            let contents = CONTENTS.lock();
            let others = contents
                .iter()
                .filter(|(_, c)| !core::ptr::eq(Arc::as_ptr(c), asks));
            let oldest = others.min_by_key(|(_, c)| c.read.load(Ordering::Relaxed));
            oldest.map(|(key, content)| (*key, content.clone()))
        };
        let Some((key, content)) = oldest else {
            let first = asks.inner.lock().blocks.pop_first();
            if first.is_none() {
                return;
            }
            continue;
        };
        let blocks = core::mem::take(&mut content.inner.lock().blocks);
        drop(blocks);
        // Open files keep theirs; it counts again when it is opened again.
        CONTENTS.lock().remove(&key);
    }
}

#[cfg(feature = "bare")]
fn memory() -> usize {
    crate::mem::frames::usage().1 as usize * 4096
}

#[cfg(not(feature = "bare"))]
fn memory() -> usize {
    32 << 20
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    struct Host {
        data: Vec<u8>,
        version: i64,
        fetches: Cell<usize>,
        looks: Cell<usize>,
    }

    impl Host {
        fn new(len: usize) -> Self {
            Self {
                data: (0..len).map(|i| (i % 251) as u8).collect(),
                version: 1,
                fetches: Cell::new(0),
                looks: Cell::new(0),
            }
        }

        fn stat(&self) -> Stat {
            Stat {
                size: self.data.len() as i64,
                mtime: [self.version, 0],
                ..Stat::default()
            }
        }

        fn read(&self, content: &Content, offset: u64, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            let mut buf = Buf::own_mut(&mut bytes);
            let got = content.read_at(self, offset, &mut buf).expect("read");
            bytes.truncate(got);
            bytes
        }
    }

    impl Source for Host {
        fn fetch(&self, offset: u64, to: &mut Buf) -> SysResult<usize> {
            self.fetches.set(self.fetches.get() + 1);
            to.put(self.data.get(offset as usize..).unwrap_or_default())
        }
        fn attributes(&self) -> SysResult<Stat> {
            self.looks.set(self.looks.get() + 1);
            Ok(self.stat())
        }
    }

    /// Tests share the limit.
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

    #[test]
    fn what_was_read_is_not_fetched_again() {
        let _one = ONE.lock();
        let host = Host::new(200_000);
        let content = content((1, 1), &host.stat(), believed_until());
        assert_eq!(host.read(&content, 10, 100_000), host.data[10..100_010]);
        assert_eq!(host.read(&content, 0, 131_072), host.data[..131_072]);
        assert_eq!((host.fetches.get(), host.looks.get()), (2, 0));
        assert_eq!(host.read(&content, 131_072, 1 << 20), host.data[131_072..]);
        assert_eq!(host.read(&content, 200_000, 10), b"");
        assert_eq!((host.fetches.get(), host.looks.get()), (4, 0));
    }

    #[test]
    fn an_open_and_a_look_later_see_a_change() {
        let _one = ONE.lock();
        let mut host = Host::new(1000);
        let first = content((1, 2), &host.stat(), believed_until());
        assert_eq!(host.read(&first, 0, 1000), host.data);
        host.data = vec![7; 1500];
        host.version = 2;
        assert_eq!(host.read(&first, 1000, 1000), b"", "what it was a moment ago");
        std::thread::sleep(std::time::Duration::from_nanos(FRESH_NS));
        assert_eq!(host.read(&first, 1000, 1000), [7; 500]);
        assert_eq!(host.read(&first, 0, 2), [7, 7]);
        host.data = vec![9; 1500];
        host.version = 3;
        let again = content((1, 2), &host.stat(), believed_until());
        assert_eq!(host.read(&again, 0, 2), [9, 9], "an open");
        let _older = content((1, 2), &Stat::default(), 0);
        assert_eq!(host.read(&again, 0, 2), [9, 9], "an answer that comes late");
    }

    #[test]
    fn a_file_that_shrinks_meanwhile_reads_short() {
        let _one = ONE.lock();
        let mut host = Host::new(100_000);
        let content = content((1, 3), &host.stat(), believed_until());
        host.data.truncate(70_000);
        assert_eq!(host.read(&content, 65_000, 50_000), host.data[65_000..]);
    }

    #[test]
    fn memory_is_bounded() {
        let _one = ONE.lock();
        let host = Host::new(3 << 20);
        for file in 10..20 {
            let content = content((1, file), &host.stat(), believed_until());
            assert_eq!(host.read(&content, 0, 3 << 20), host.data);
            assert!(USED.load(Ordering::Relaxed) <= memory() / SHARE as usize);
        }
        changed((1, 19));
    }
}
