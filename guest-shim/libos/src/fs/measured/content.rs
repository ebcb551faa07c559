//! One measured file: reads from the OS side, compared with its tree of hashes.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicU32, Ordering};

use cloak_abi::hostop::{HostOp, resolve};
use cloak_volumes::verity::{BLOCK, Builder, Hash, Shape, hash_data};

use crate::errno::{Errno, SysResult};
use crate::fs::file::Stat;
use crate::fs::flags::{O_DIRECTORY, O_NOFOLLOW, O_PATH, S_IFMT, S_IFREG};
use crate::fs::hostfd::HostFd;
use crate::fs::hostops::{self, At};
use crate::fs::path;
use crate::fs::read_cache::{self, believed_until};
use crate::host::{CAPACITY, Request};
use crate::sched::Lock;
#[cfg(test)]
use crate::testing::weaken::{Protection, without};

/// Bytes read from the OS side at a time: a block of the read cache.
pub const CHUNK: usize = read_cache::BLOCK as usize;
const _: () = assert!(CHUNK.is_multiple_of(BLOCK) && CHUNK <= CAPACITY);
/// What is read to be compared for the first time is kept, if the file is not longer than this.
const KEPT: u64 = 8 << 20;
/// Lines about one file: a program that goes on after EIO does not fill the terminal.
const LINES: u32 = 16;

/// A file that the manifest lists.
pub struct Content {
    /// The mount that has it, as a number of the OS side, and where in it.
    root: u64,
    name: Vec<u8>,
    /// Where the guest sees it.
    path: Vec<u8>,
    digest: Hash,
    state: Lock<State>,
    told: AtomicU32,
}

#[derive(Default)]
struct State {
    known: Option<Arc<Known>>,
    /// Held by those who have the file open.
    fd: Weak<HostFd>,
}

/// What follows from the digest.
pub struct Known {
    /// Bytes of the file.
    pub length: u64,
    /// A hash for each block.
    hashes: Vec<Hash>,
    /// What the OS side says of its times, which nothing here vouches for.
    pub modified: [i64; 2],
}

impl Content {
    /// The file `name` of mount `root`, at `path` in the guest.
    #[must_use]
    pub fn new(root: u64, name: Vec<u8>, path: &[u8], digest: Hash) -> Self {
        Self {
            root,
            name,
            path: path.to_vec(),
            digest,
            state: Lock::new(State::default()),
            told: AtomicU32::new(0),
        }
    }

    /// The digest, as words that tell it from other files.
    #[must_use]
    pub fn words(&self) -> [u64; 4] {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(self.digest.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        words
    }

    /// What the digest stands for; reads all of the file, the first time.
    ///
    /// # Errors
    /// EIO for another file; what the OS side says.
    pub fn known(&self, cache: read_cache::Key) -> SysResult<Arc<Known>> {
        let mut state = self.state.lock();
        match &state.known {
            Some(known) => Ok(known.clone()),
            None => self.learn(&mut state, cache).map(|(known, _)| known),
        }
    }

    /// The same, and the file itself.
    ///
    /// # Errors
    /// As [`Content::known`].
    pub fn open(&self, cache: read_cache::Key) -> SysResult<(Arc<Known>, Arc<HostFd>)> {
        let mut state = self.state.lock();
        let Some(known) = state.known.clone() else {
            return self.learn(&mut state, cache);
        };
        let fd = match state.fd.upgrade() {
            Some(fd) => fd,
            None => Arc::new(self.open_on_host()?.0),
        };
        state.fd = Arc::downgrade(&fd);
        Ok((known, fd))
    }

    fn learn(&self, state: &mut State, cache: read_cache::Key) -> SysResult<(Arc<Known>, Arc<HostFd>)> {
        let (fd, stat) = self.open_on_host()?;
        let known = Arc::new(self.read_all(&fd, &stat, cache)?);
        let fd = Arc::new(fd);
        (state.known, state.fd) = (Some(known.clone()), Arc::downgrade(&fd));
        Ok((known, fd))
    }

    /// Opens it, wherever the OS side says that it is: what is there is compared.
    fn open_on_host(&self) -> SysResult<(HostFd, Stat)> {
        let at = At {
            dir: self.root,
            path: &self.name,
            how: resolve::ROOTED,
        };
        let opened = match hostops::open(at, 0, 0) {
            Err(Errno::EXDEV) => self.open_by_steps(),
            opened => opened,
        };
        let (fd, stat) = opened?;
        if stat.mode & S_IFMT != S_IFREG {
            self.tell("the OS side has something there that is not a regular file");
            return Err(Errno::EIO);
        }
        fd.set_unnoticed(true);
        Ok((fd, stat))
    }

    /// For a path that goes over from one of the host's file systems to another.
    fn open_by_steps(&self) -> SysResult<(HostFd, Stat)> {
        let (mut dir, mut names) = (None::<HostFd>, path::components(&self.name).peekable());
        loop {
            let name = names.next().ok_or(Errno::ENOENT)?;
            let at = At {
                dir: dir.as_ref().map_or(self.root, HostFd::number),
                path: name,
                how: resolve::COMPONENT,
            };
            if names.peek().is_none() {
                return hostops::open(at, 0, 0);
            }
            dir = Some(hostops::open(at, O_PATH | O_DIRECTORY | O_NOFOLLOW, 0)?.0);
        }
    }

    fn read_all(&self, fd: &HostFd, stat: &Stat, cache: read_cache::Key) -> SysResult<Known> {
        let length = stat.size as u64;
        let mut builder = Builder::keeping();
        let (mut kept, mut only) = (Vec::new(), None);
        for at in (0..length).step_by(CHUNK) {
            let mut chunk = buffer((length - at).min(CHUNK as u64) as usize)?;
            if !read_exactly(fd, at, &mut chunk)? {
                self.tell("the file is shorter than the OS side says");
                return Err(Errno::EIO);
            }
            chunk.chunks(BLOCK).for_each(|block| builder.block(block));
            if length <= BLOCK as u64 {
                only = Some(hash_data(&chunk));
            }
            if length <= KEPT {
                kept.push(chunk);
            }
        }
        let (found, tree) = builder.finish();
        if found != self.digest && !weakened() {
            self.tell(&format!(
                "its digest is {}, the manifest says {}",
                hexadecimal(&found),
                hexadecimal(&self.digest)
            ));
            return Err(Errno::EIO);
        }
        let lowest = Shape::of(length)
            .starts
            .first()
            .map_or(0, |start| *start as usize * BLOCK);
        let blocks = length.div_ceil(BLOCK as u64) as usize;
        let hashes = match only {
            Some(hash) => alloc::vec![hash],
            None => tree
                .get(lowest..)
                .unwrap_or_default()
                .as_chunks::<32>()
                .0
                .iter()
                .take(blocks)
                .copied()
                .collect(),
        };
        // From here on they are what the digest stands for.
        let content = read_cache::content(cache, &stat_of(length), believed_until());
        for (number, chunk) in (0..).zip(kept) {
            content.keep(number, chunk);
        }
        Ok(Known {
            length,
            hashes,
            modified: stat.mtime,
        })
    }

    /// Fills `out`, which is memory of the libos alone, from block `first` on, and compares each block. The last one of `out` may be
    /// the file's last.
    ///
    /// # Errors
    /// EIO for a wrong one, which is told if `tell`; `out` must then not be used.
    pub fn compared(
        &self,
        known: &Known,
        fd: &HostFd,
        first: u64,
        out: &mut [u8],
        tell: bool,
    ) -> SysResult<()> {
        if !read_exactly(fd, first * BLOCK as u64, out)? {
            if tell {
                self.tell(&format!("block {first}: the file ends before it does"));
            }
            return Err(Errno::EIO);
        }
        for (number, block) in (first..).zip(out.chunks(BLOCK)) {
            let found = hash_data(block);
            let expected = known.hashes.get(number as usize).ok_or(Errno::EIO)?;
            if found != *expected && !weakened() {
                if tell {
                    self.tell(&format!(
                        "block {number}: found {}, expected {}",
                        hexadecimal(&found),
                        hexadecimal(expected)
                    ));
                }
                return Err(Errno::EIO);
            }
        }
        #[cfg(test)]
        if without(Protection::Once) {
            read_exactly(fd, first * BLOCK as u64, out)?;
        }
        Ok(())
    }

    fn tell(&self, what: &str) {
        let before = self.told.fetch_add(1, Ordering::Relaxed);
        if before < LINES {
            let more = if before + 1 == LINES {
                " (no more is said of this file)"
            } else {
                ""
            };
            let name = String::from_utf8_lossy(&self.path).to_string();
            crate::host::tell(&format!("cloak: measured file {name}: {what}{more}\n"));
        }
    }
}

/// What the cache has to know of it: it never changes.
pub fn stat_of(length: u64) -> Stat {
    Stat {
        size: length as i64,
        ..Stat::default()
    }
}

/// Zeroed memory of the libos.
///
/// # Errors
/// ENOMEM.
pub fn buffer(len: usize) -> SysResult<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    bytes.resize(len, 0);
    Ok(bytes)
}

/// Fills the buffer; false if the file ends before.
fn read_exactly(fd: &HostFd, offset: u64, out: &mut [u8]) -> SysResult<bool> {
    let mut request = Request::new();
    let mut done = 0;
    while done < out.len() {
        let want = (out.len() - done).min(CAPACITY);
        let at = offset.saturating_add(done as u64);
        let got = request
            .call(HostOp::PRead, [fd.number(), want as u64, at, 0, 0, 0])
            .len(want)?;
        if got == 0 {
            return Ok(false);
        }
        // The only copy out of memory that the OS side can write: from here on the bytes stay what they are.
        request.get(0, &mut out[done..done + got]);
        done += got;
    }
    Ok(true)
}

fn hexadecimal(hash: &Hash) -> String {
    hash.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
fn weakened() -> bool {
    without(Protection::Measured) || tests_weaken::is_on()
}

#[cfg(not(test))]
const fn weakened() -> bool {
    false
}

#[cfg(test)]
pub mod tests_weaken {
    //! Takes the comparison away for one thread.
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<bool> = const { Cell::new(false) };
    }

    pub fn is_on() -> bool {
        ON.get()
    }

    pub fn set(on: bool) {
        ON.set(on);
    }
}
