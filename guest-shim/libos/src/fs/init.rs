//! Boot: mounts from the configuration, standard streams.

use alloc::sync::Arc;
use alloc::vec::Vec;

use cloak_abi::config::mount_flags;

use super::flags::{AT_FDCWD, MAY_EXEC, S_IFMT, S_IFREG};
use super::mount::{self, Mount};
use super::overlay::Overlay;
use super::tmpfs::Tmpfs;
use super::walk::Start;
use super::{FdTable, OpenFile, devfs, measured, node, open, pty, synth};
use crate::errno::{Errno, SysResult};
use crate::mem::pages::Frame;

/// A mount record of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRecord {
    /// Index of the host mount.
    pub index: u32,
    /// [`mount_flags`].
    pub flags: u32,
    /// Absolute path in the guest.
    pub path: Vec<u8>,
}

impl MountRecord {
    /// Parses the value of a `Tag::Mount` record.
    ///
    /// # Errors
    /// EINVAL when it is none.
    pub fn parse(value: &[u8]) -> SysResult<Self> {
        let number = |at: usize| -> SysResult<u32> {
            let raw = value
                .get(at..at + 4)
                .and_then(|b| b.try_into().ok())
                .ok_or(Errno::EINVAL)?;
            Ok(u32::from_le_bytes(raw))
        };
        let path = value
            .get(8..)
            .filter(|p| p.first() == Some(&b'/'))
            .ok_or(Errno::EINVAL)?;
        Ok(Self {
            index: number(0)?,
            flags: number(4)?,
            path: path.to_vec(),
        })
    }

    fn mount(&self, memory: u64) -> SysResult<Mount> {
        let read_only = self.flags & mount_flags::READ_ONLY != 0;
        if self.flags & mount_flags::OVERLAY != 0 {
            let lower = mount::root_dir(self.index)?;
            let root = Overlay::new(lower, memory)?.root();
            return Ok(Mount::node("overlay", &self.path, root, read_only));
        }
        if self.flags & mount_flags::MEMORY == 0 {
            let mount = Mount::host(self.index, &self.path, read_only)?;
            let is_exclusive = self.flags & mount_flags::EXCLUSIVE != 0;
            return Ok(if is_exclusive { mount.exclusive() } else { mount });
        }
        Ok(Mount::node(
            "tmpfs",
            &self.path,
            Tmpfs::new(memory, 0o1777).root(),
            read_only,
        ))
    }
}

/// A segment that other contexts share: a file of fixed length in `/dev/shm`, as `shm_open` finds it.
#[derive(Debug)]
pub struct Segment {
    /// Its name there.
    pub name: Vec<u8>,
    /// Bytes.
    pub len: u64,
    /// Its pages.
    pub frames: Vec<Frame>,
}

/// Makes the name space and puts the standard streams into `files` as 0, 1 and 2.
///
/// `volumes`: mounts besides the records'. `segments`: what is in `/dev/shm` from the start. `stdio`: the streams' file modes. `memory`: bytes that all files of one memory file system may take. Where
/// the records name none, `/proc`, `/sys`, `/dev`, `/dev/shm` and, unless something is measured, `/tmp` are mounted by default.
///
/// # Errors
/// EINVAL for records that make no name space, or a second call.
pub fn init(
    records: &[MountRecord],
    volumes: Vec<Mount>,
    segments: Vec<Segment>,
    stdio: [u32; 3],
    memory: u64,
    files: &FdTable,
) -> SysResult<()> {
    let mut mounts = records
        .iter()
        .filter(|r| r.flags & (mount_flags::MEASURED | mount_flags::CIPHERTEXT) == 0)
        .map(|r| r.mount(memory))
        .collect::<SysResult<Vec<_>>>()?;
    mounts.extend(volumes);
    if !mounts.iter().any(|m| m.path == b"/") {
        mounts.insert(
            0,
            Mount::node("tmpfs", b"/", Tmpfs::new(memory, 0o755).root(), false),
        );
    }
    let shm = Tmpfs::new(memory, 0o1777);
    for segment in segments {
        shm.lend(&segment.name, segment.frames.into_iter(), segment.len)?;
    }
    let defaults = [
        Mount::node("proc", b"/proc", synth::proc_root(), false),
        Mount::node("sysfs", b"/sys", synth::sys_root(), false),
        Mount::node("devtmpfs", b"/dev", devfs::root(), false),
        Mount::node("devpts", b"/dev/pts", pty::root(), false),
        Mount::node("tmpfs", b"/dev/shm", shm.root(), false),
        Mount::node("tmpfs", b"/tmp", Tmpfs::new(memory, 0o1777).root(), false),
    ];
    // A manifest names what may be written; and what it measures below `/tmp` is not to be hidden.
    let stated = mounts.iter().any(|m| m.kind == measured::KIND);
    for default in defaults {
        if stated && default.path == b"/tmp" {
            continue;
        }
        if !mounts.iter().any(|m| m.path == default.path) {
            mounts.push(default);
        }
    }
    mount::set(mounts)?;
    for (number, mode) in (0u32..).zip(stdio) {
        files.replace(number as i32, open::standard_stream(number, mode), false)?;
    }
    Ok(())
}

/// Opens a program to run, or its interpreter.
///
/// # Errors
/// Those of execve(2): ENOENT, EACCES for what is no regular file or not executable, ELOOP, EIO.
pub fn open_executable(path: &[u8]) -> SysResult<Arc<OpenFile>> {
    let open = open::open_from(&Start::of(AT_FDCWD, path)?, path, 0, 0)?;
    let stat = open.file.stat()?;
    if stat.mode & S_IFMT != S_IFREG || stat.mode & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    if open.file.node().is_some() {
        node::permit(&stat, &node::credentials(), MAY_EXEC)?;
    }
    Ok(open)
}
