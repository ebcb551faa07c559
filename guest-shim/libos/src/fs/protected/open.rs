//! From a record of the configuration to a mounted volume.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use cloak_abi::config::{self, Anchored, mount_flags};
use cloak_abi::hostop::{MAX_MOUNTS, ROOT_FD};
use cloak_volumes::volume::Options;
use cloak_volumes::{Anchor, Fresh, Ino, NoAnchor, Time, Volume, VolumeKey};

use super::anchor::MonitorAnchor;
use super::store::Container;
use super::{MOUNTED, Protected, new_device};
use crate::errno::Errno;
use crate::fs::mount::Mount;
use crate::fs::node::Node;
use crate::fs::providers;

/// A protected volume of the configuration, with its key: not to be copied, and cleared with its drop.
pub struct Record {
    root: u64,
    read_only: bool,
    anchor: Option<Anchored>,
    key: VolumeKey,
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
    let container = Container::open(record.root, !record.read_only).map_err(|errno| match errno {
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
    let options = Options {
        cache_bytes: cache,
        clock: now,
        expected: None,
        anchor,
        fresh,
    };
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
