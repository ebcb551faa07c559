//! Protected volumes under the hostile service: containers that it serves and lies about, and what a program has to find
//! in them all the same.
//!
//! | host mount | in the guest | |
//! |---|---|---|
//! | [`READ`] | `/sealed` | only read: whatever the service does, bytes are right or there are none |
//! | [`WRITTEN`] | `/kept` | written to: a lie about a write may end that, and must end nothing else |
//! | [`YESTERDAY`] | nowhere | an older state of the first: it is refused by the anchor |

use std::sync::{LazyLock, Mutex, PoisonError};

use cloak_abi::config::{self, Anchored, mount_flags};
use cloak_abi::hostop::HostOp;
use cloak_volumes::block::BLOCK;
use cloak_volumes::volume::{NewVolume, Options};
use cloak_volumes::{Fresh, MemoryStore, NewInode, NoAnchor, Time, Volume, VolumeKey};

use super::dice::Dice;
use super::honest;
use crate::errno::Errno;
use crate::fs::mount::Mount;
use crate::fs::protected::{self, Record};

/// Host mounts that are containers.
pub const READ: u32 = 3;
/// The one that is written.
pub const WRITTEN: u32 = 4;
/// The older state.
pub const YESTERDAY: u32 = 5;
/// Containers in all.
pub const CONTAINERS: usize = 3;
/// A file in the first.
pub const FILE: &[u8] = b"/sealed/f";
/// Bytes of it: more than the cache of a volume holds.
pub const LENGTH: usize = 300 * BLOCK;
/// Bytes that a container may grow to.
const LIMIT: u64 = 4 << 20;
const KEY: [u8; 32] = [0x3c; 32];

/// What is in the file, of each time that it was written.
pub fn content(version: usize) -> Vec<u8> {
    honest::content()
        .iter()
        .cycle()
        .skip(version * 4099)
        .take(LENGTH)
        .copied()
        .collect()
}

/// The file's bytes as they were written last.
pub static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| content(1));

struct Made {
    containers: Mutex<[Vec<u8>; CONTAINERS]>,
    /// What the first held before, for replays of single blocks.
    past: Vec<u8>,
    anchored: Anchored,
}

static MADE: LazyLock<Made> = LazyLock::new(|| {
    let mut now = made(1);
    let file = NewInode {
        mode: 0o100_644,
        uid: 0,
        gid: 0,
        device: 0,
    };
    let root = now.root();
    let ino = now.create_file(root, b"f", &file).expect("room");
    let directory = NewInode { mode: 0o755, ..file };
    now.mkdir(root, b"dir", &directory).expect("room");
    now.symlink(root, b"link", b"f", &file).expect("room");
    now.write_at(ino, 0, &content(0)).expect("room");
    let store = now.close().expect("memory");
    let past = store.0.clone();
    let mut now = Volume::open(store, VolumeKey::from_bytes(&KEY), options(2)).expect("it was just made");
    now.write_at(ino, 0, &content(1)).expect("room");
    now.sync_all().expect("memory");
    let anchored = Anchored {
        number: 0,
        seen: Some(protected::mark_words(&now.mark())),
    };
    let written = made(3).close().expect("memory").0;
    let containers = [now.close().expect("memory").0, written, past.clone()];
    Made {
        containers: Mutex::new(containers),
        past,
        anchored,
    }
});

fn options(session: u8) -> Options {
    Options {
        cache_bytes: 1 << 20,
        clock: Time::default,
        expected: None,
        anchor: Box::new(NoAnchor),
        fresh: Fresh([session; 32]),
        wide: cloak_volumes::own_registers,
    }
}

fn made(session: u8) -> Volume<MemoryStore> {
    let new = NewVolume {
        limit: LIMIT,
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
    Volume::create(
        MemoryStore::default(),
        VolumeKey::from_bytes(&KEY),
        &new,
        options(session),
    )
    .expect("memory")
}

fn mounted(index: u32, flags: u32, anchor: Option<Anchored>, path: &[u8]) -> Result<Mount, String> {
    let record = Record::new(&config::Protected {
        index,
        flags,
        anchor,
        key: &KEY,
        path,
    });
    // The smallest cache, so that reads go to the container.
    protected::mount(record.expect("a mount that can be"), 0)
}

/// Mounts for the name space.
pub fn mounts() -> Vec<Mount> {
    crate::random::seed(b"hostile service over volumes");
    let anchored = Some(MADE.anchored);
    let read = mounted(READ, mount_flags::READ_ONLY, anchored, b"/sealed");
    let written = mounted(WRITTEN, 0, None, b"/kept");
    vec![read.expect("a good volume"), written.expect("a good volume")]
}

/// Presents yesterday's container where today's is expected; says what was wrong if it was taken.
pub fn is_rolled_back() -> Option<&'static str> {
    match mounted(
        YESTERDAY,
        mount_flags::READ_ONLY,
        Some(MADE.anchored),
        b"/yesterday",
    ) {
        Ok(_) => Some("yesterday's volume was taken for today's"),
        Err(why) if why.contains("rolled back") => None,
        Err(_) => Some("yesterday's volume was refused for another reason than its age"),
    }
}

/// Bytes of container `at`.
pub fn length(at: usize) -> u64 {
    with(at, |bytes| bytes.len() as u64)
}

fn with<R>(at: usize, work: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut containers = MADE.containers.lock().unwrap_or_else(PoisonError::into_inner);
    work(&mut containers[at])
}

/// Carries out what is asked of container `at`; `None` for what is not asked of its bytes.
pub fn serve(op: HostOp, at: usize, a: [u64; 6], buffer: &mut [u8]) -> Option<Result<(u64, u64), i32>> {
    with(at, |bytes| {
        let len = (a[1] as usize).min(buffer.len());
        match op {
            HostOp::PRead => {
                let from = (a[2] as usize).min(bytes.len());
                let got = len.min(bytes.len() - from);
                buffer[..got].copy_from_slice(&bytes[from..from + got]);
                Some(Ok((got as u64, 0)))
            }
            HostOp::PWrite => {
                let from = usize::try_from(a[2]).unwrap_or(usize::MAX);
                match bytes.get_mut(from..from.saturating_add(len)) {
                    Some(to) => to.copy_from_slice(&buffer[..len]),
                    None => return Some(Err(libc::EFBIG)),
                }
                Some(Ok((len as u64, 0)))
            }
            HostOp::Truncate if a[1] <= LIMIT => {
                bytes.resize(a[1] as usize, 0);
                Some(Ok((0, 0)))
            }
            HostOp::Truncate => Some(Err(libc::EFBIG)),
            _ => None,
        }
    })
}

/// Changes what container `at` gave: a bit, another block of it, the block as it was before, nothing at all.
pub fn lie(dice: &mut Dice, at: usize, a: [u64; 6], result: &mut i64, buffer: &mut [u8]) {
    let got = usize::try_from(*result).unwrap_or(0).min(buffer.len());
    if got < BLOCK {
        return;
    }
    let block = dice.below((got / BLOCK) as u64) as usize * BLOCK;
    let out = &mut buffer[block..block + BLOCK];
    match dice.below(5) {
        0 => out[dice.below(BLOCK as u64) as usize] ^= 1 << dice.below(8),
        1 => {
            let other = dice.any();
            with(at, |bytes| {
                let from = other as usize % (bytes.len() / BLOCK) * BLOCK;
                out.copy_from_slice(&bytes[from..from + BLOCK]);
            });
        }
        2 => {
            let from = a[2] as usize + block;
            if let Some(before) = MADE.past.get(from..from + BLOCK) {
                out.copy_from_slice(before);
            }
        }
        3 => out.fill(0),
        _ => *result = -i64::from(dice.pick(&[Errno::EIO, Errno::ENOSPC, Errno::EINTR]).number()),
    }
}
