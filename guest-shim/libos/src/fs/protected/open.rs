//! From a record of the configuration to a mounted volume.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use cloak_abi::config::{self, Anchored, mount_flags};
use cloak_abi::hostop::{MAX_MOUNTS, ROOT_FD};
use cloak_volumes::volume::{NewVolume, Options};
use cloak_volumes::{Anchor, Fresh, Ino, NoAnchor, Time, Volume, VolumeKey};

use super::anchor::MonitorAnchor;
use super::store::Container;
use super::{MOUNTED, Protected, new_device};
use crate::arch;
use crate::errno::Errno;
use crate::fs::mount::Mount;
use crate::fs::node::Node;
use crate::fs::providers;

/// How far the container of a volume that is made here may grow: as `cloak volume create` has it.
const LIMIT: u64 = 1 << 40;

/// A protected volume of the configuration, with its key: not to be copied, and cleared with its drop.
pub struct Record {
    root: u64,
    read_only: bool,
    anchor: Option<Anchored>,
    key: VolumeKey,
    /// Nobody outside has the key, and could have made the volume: an empty container becomes one, of this user and group.
    begin: Option<[u32; 2]>,
    path: Vec<u8>,
}

impl core::fmt::Debug for Record {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Record")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl Record {
    /// Where it is to be mounted.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Whether the program may only read it.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Gives it the key from inside. An empty container becomes a volume of `owner`'s (user, group), as nobody outside can make it
    /// one. That is no less than what who keeps the container can do anyway, unless an anchor remembers what was there.
    pub fn set_key(&mut self, key: &[u8; 32], owner: [u32; 2]) {
        self.key = VolumeKey::from_bytes(key);
        self.begin = Some(owner);
    }

    /// Takes what the configuration says.
    ///
    /// # Errors
    /// EINVAL for a mount that can't be.
    pub fn new(parsed: &config::Protected<'_>) -> Result<Self, Errno> {
        if parsed.index >= MAX_MOUNTS {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            root: u64::from(ROOT_FD + parsed.index),
            read_only: parsed.flags & mount_flags::READ_ONLY != 0,
            anchor: parsed.anchor,
            key: VolumeKey::from_bytes(parsed.key),
            begin: None,
            path: parsed.path.to_vec(),
        })
    }
}

/// Opens a volume and mounts it, with `cache` bytes of decrypted blocks.
///
/// # Errors
/// A line for the user: what is wrong with the container, the key or the anchor. Nothing is mounted then.
pub fn mount(record: Record, cache: usize) -> Result<Mount, String> {
    let path = record.path.clone();
    let name = String::from_utf8_lossy(&path).into_owned();
    let read_only = record.read_only;
    let volume = open(record, cache).map_err(|why| format!("protected volume at {name}: {why}"))?;
    let mounted = Protected::new(&path, new_device(), read_only, volume);
    let root = mounted
        .with(|state| mounted.inode(state, Ino::ROOT))
        .map_err(|errno| format!("protected volume at {name}: its root directory: {}", errno.name()))?;
    MOUNTED.lock().push(mounted);
    #[cfg(feature = "bare")]
    if !read_only {
        super::writeback::start()
            .map_err(|errno| format!("protected volume at {name}: its write-back: {}", errno.name()))?;
    }
    let root: Arc<dyn Node> = root;
    Ok(Mount::node("cloakvol", &path, root, read_only))
}

fn open(record: Record, cache: usize) -> Result<Volume<Container>, String> {
    let mut container = Container::open(record.root, !record.read_only).map_err(|errno| match errno {
        Errno::EAGAIN => String::from("another program has the container open"),
        Errno::ENOENT => String::from("the container is not a regular file"),
        other => format!("the container can't be opened ({})", other.name()),
    })?;
    let mut fresh = Fresh([0; 32]);
    crate::random::fill(&mut fresh.0);
    let anchor: Box<dyn Anchor + Send> = match &record.anchor {
        Some(anchored) => Box::new(MonitorAnchor::new(anchored)),
        None => Box::new(NoAnchor),
    };
    let mut anchor = anchor;
    let begin = match record.begin.filter(|_| !record.read_only) {
        Some(owner) if container.is_empty().map_err(|why| format!("{why}"))? => {
            // An anchor that begins has seen nothing; one that has seen a root has lost the volume to it.
            let seen = anchor.last().map_err(|why| format!("its anchor: {why}"))?;
            match seen.filter(|_| record.anchor.is_some_and(|anchored| anchored.seen.is_some())) {
                Some(mark) => {
                    let counter = mark.counter;
                    return Err(format!(
                        "rolled back: the container is empty, and its anchor has seen commit {counter} of it"
                    ));
                }
                None => Some(owner),
            }
        }
        _ => None,
    };
    let options = Options {
        cache_bytes: cache,
        clock: now,
        expected: None,
        anchor,
        fresh,
        wide: arch::with_wide_registers,
    };
    if let Some([uid, gid]) = begin {
        let new = NewVolume {
            limit: LIMIT,
            mode: 0o755,
            uid,
            gid,
        };
        return Volume::create(container, record.key, &new, options).map_err(|error| format!("{error}"));
    }
    let opened = if record.read_only {
        Volume::open_read_only(container, record.key, options)
    } else {
        Volume::open(container, record.key, options)
    };
    opened.map_err(|error| format!("{error}"))
}

fn now() -> Time {
    let [seconds, nanoseconds] = providers::get().now();
    Time {
        seconds,
        nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
    }
}
