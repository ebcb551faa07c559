//! A protected volume without its key: what the OS side sees of it, as a file system that is only read.
//!
//! Names are places and contents are the container's bytes as they lie there ([`CiphertextView`]). Nothing is checked, as there is
//! nothing to check it by, and nothing is locked: the context that has the key may write meanwhile.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use core::any::Any;

use cloak_abi::layout::PAGE;
use cloak_volumes::CiphertextView;
use cloak_volumes::view::Opaque;

use super::new_device;
use super::store::Container;
use crate::errno::{Errno, SysResult};
use crate::fs::OpenFile;
use crate::fs::attributes::StatFs;
use crate::fs::dirent::Entry;
use crate::fs::file::{File, Mapping, Stat};
use crate::fs::flags::{O_ACCMODE, S_IFDIR, S_IFREG};
use crate::fs::hostfile::seek_without_holes;
use crate::fs::init::MountRecord;
use crate::fs::mount::{self, Mount};
use crate::fs::node::Node;
use crate::fs::nodedir::NodeDir;
use crate::sched::Lock;
use crate::user::Buf;

/// Its type in `/proc/mounts`.
pub const KIND: &str = "cloakcipher";
/// What `statfs` says that it is: "CLKC".
const MAGIC: i64 = 0x434c_4b43;
/// Bytes that pass through at a time.
const STEP: usize = 128 << 10;
/// Inode of the folder; pieces are numbered from the next one on.
const FOLDER: u64 = 1;

/// The container, seen from outside.
struct Seen {
    device: u64,
    view: Lock<CiphertextView<Container>>,
}

/// Mounts the view of a container.
///
/// # Errors
/// A line for the user.
pub fn mount(record: &MountRecord) -> Result<Mount, String> {
    let name = String::from_utf8_lossy(&record.path);
    let failed = |why: &dyn core::fmt::Display| format!("ciphertext of a volume at {name}: {why}");
    let container = mount::root_dir(record.index)
        .and_then(|root| Container::look(root.number()))
        .map_err(|errno| failed(&format!("the container can't be opened ({})", errno.name())))?;
    let view = CiphertextView::open(container).map_err(|error| failed(&error))?;
    let seen = Arc::new(Seen {
        device: new_device(),
        view: Lock::new(view),
    });
    let root: Arc<dyn Node> = Arc::new(Folder { seen });
    Ok(Mount::node(KIND, &record.path, root, true))
}

impl Seen {
    /// Runs `work` with the view as the container is now: it may have grown.
    fn with<R>(&self, work: impl FnOnce(&mut CiphertextView<Container>) -> SysResult<R>) -> SysResult<R> {
        let mut view = self.view.lock();
        view.refresh().map_err(|_| Errno::EIO)?;
        work(&mut view)
    }

    fn stat(&self, inode: u64, mode: u32, size: u64) -> Stat {
        Stat {
            dev: self.device,
            ino: inode,
            nlink: 1,
            mode,
            size: i64::try_from(size).unwrap_or(i64::MAX),
            blksize: PAGE as i64,
            blocks: size.div_ceil(512) as i64,
            ..Stat::default()
        }
    }
}

fn statfs() -> StatFs {
    StatFs {
        kind: MAGIC,
        bsize: PAGE as i64,
        namelen: 255,
        frsize: PAGE as i64,
        ..StatFs::default()
    }
}

/// The only folder.
struct Folder {
    seen: Arc<Seen>,
}

impl Node for Folder {
    fn stat(&self) -> SysResult<Stat> {
        Ok(self.seen.stat(FOLDER, S_IFDIR | 0o555, 0))
    }

    fn statfs(&self) -> StatFs {
        statfs()
    }

    fn open(self: Arc<Self>, _flags: u32) -> SysResult<Arc<dyn File>> {
        Ok(Arc::new(NodeDir(self)))
    }

    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Node>> {
        let name = core::str::from_utf8(name).map_err(|_| Errno::ENOENT)?;
        let number = self.seen.with(|view| {
            let all = view.pieces().position(|piece| piece.name == name);
            all.ok_or(Errno::ENOENT)
        })?;
        Ok(Arc::new(Piece {
            seen: self.seen.clone(),
            name: name.to_string(),
            inode: FOLDER + 1 + number as u64,
        }))
    }

    fn entries(&self, from: u64, each: &mut dyn FnMut(&Entry<'_>) -> bool) -> SysResult<()> {
        let names = self.seen.with(|view| Ok(view.names()))?;
        let dots = [".", ".."].map(|name| (name, FOLDER, S_IFDIR));
        let pieces = names.iter().zip(FOLDER + 1..);
        let pieces = pieces.map(|(name, inode)| (name.as_str(), inode, S_IFREG));
        let all = (1u64..).zip(dots.into_iter().chain(pieces));
        for (next, (name, ino, mode)) in all.skip(usize::try_from(from).unwrap_or(usize::MAX)) {
            let entry = Entry {
                ino,
                next,
                kind: (mode >> 12) as u8,
                name: name.as_bytes(),
            };
            if !each(&entry) {
                break;
            }
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A piece of the container.
struct Piece {
    seen: Arc<Seen>,
    name: String,
    inode: u64,
}

impl Piece {
    /// Runs `work` with the view and the piece as it is now.
    fn with<R>(
        &self,
        work: impl FnOnce(&mut CiphertextView<Container>, &Opaque) -> SysResult<R>,
    ) -> SysResult<R> {
        self.seen.with(|view| {
            // Gone when the container was cut meanwhile.
            let piece = view.piece(&self.name).ok_or(Errno::EIO)?;
            work(view, &piece)
        })
    }

    fn length(&self) -> SysResult<u64> {
        self.with(|_, piece| Ok(piece.len))
    }
}

impl Node for Piece {
    fn stat(&self) -> SysResult<Stat> {
        Ok(self.seen.stat(self.inode, S_IFREG | 0o444, self.length()?))
    }

    fn statfs(&self) -> StatFs {
        statfs()
    }

    fn open(self: Arc<Self>, flags: u32) -> SysResult<Arc<dyn File>> {
        if flags & O_ACCMODE != 0 {
            return Err(Errno::EROFS);
        }
        Ok(Arc::new(OpenPiece {
            node: self.clone(),
            piece: self,
        }))
    }

    fn truncate(&self, _size: u64) -> SysResult<()> {
        Err(Errno::EROFS)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An open piece.
struct OpenPiece {
    piece: Arc<Piece>,
    node: Arc<dyn Node>,
}

impl File for OpenPiece {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        file.position.with(|position| {
            let done = self.read_at(*position, to)?;
            *position += done as u64;
            Ok(done)
        })
    }

    fn read_at(&self, offset: u64, to: &mut Buf) -> SysResult<usize> {
        let mut bytes = vec![0; STEP.min(to.len())];
        // Copied after the lock: that may fault, and the fault may need it.
        let got = self
            .piece
            .with(|view, piece| view.read_at(piece, offset, &mut bytes).map_err(|_| Errno::EIO))?;
        to.put(&bytes[..got])
    }

    fn stat(&self) -> SysResult<Stat> {
        self.piece.stat()
    }

    fn seek(&self, file: &OpenFile, offset: i64, whence: u32) -> SysResult<u64> {
        seek_without_holes(file, self.piece.length()?, offset, whence)
    }

    fn sync(&self, _data_only: bool) -> SysResult<()> {
        Ok(())
    }

    fn map(&self, shared: bool) -> SysResult<Mapping> {
        // A shared mapping would have to follow what the other context writes.
        if shared {
            Err(Errno::ENODEV)
        } else {
            Ok(Mapping::Read)
        }
    }

    fn node(&self) -> Option<&Arc<dyn Node>> {
        Some(&self.node)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
