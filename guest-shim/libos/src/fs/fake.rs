//! The file side of the OS service for tests ([`crate::testing`]): carries out host operations on a temporary
//! directory, with nothing but std.
//!
//! Only one test at a time may use it ([`service`] hands out a lock): they twist its answers and count them. A directory named `border` counts as another file system.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use cloak_abi::config::mount_flags;
use cloak_abi::hostop::{HostOp, ROOT_FD, resolve};
use zerocopy::IntoBytes;

use super::attributes::statx_of;
use super::file::Stat;
use super::flags::*;
use super::{dirent, init};
use crate::testing;

/// What a test makes of an answer before it goes out: operation, result, extra, buffer.
pub type Twist = Box<dyn FnMut(HostOp, &mut i64, &mut u64, &mut [u8]) + Send>;

static LOCK: Mutex<()> = Mutex::new(());
static TWIST: Mutex<Option<Twist>> = Mutex::new(None);
static STARTED: LazyLock<PathBuf> = LazyLock::new(start);
/// Mount 3: the container of a protected volume, in the guest's root.
pub const CONTAINER: &str = "container";
/// Mount 4: the lower layer of an overlay, in the guest's root. The overlay is at `/mnt/overlay`.
pub const LOWER: &str = "lower";
/// Requests carried out.
pub static SERVED: AtomicU64 = AtomicU64::new(0);

/// The running service, for the test that holds this.
pub struct Service {
    _lock: MutexGuard<'static, ()>,
    /// The directory on the host that is the guest's `/`.
    pub root: PathBuf,
}

impl Service {
    /// Twists all answers from now on.
    pub fn twist(&self, twist: impl FnMut(HostOp, &mut i64, &mut u64, &mut [u8]) + Send + 'static) {
        *TWIST.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(twist));
    }

    /// Back to honest answers.
    pub fn honest(&self) {
        *TWIST.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A fresh directory in the guest's root, by its guest path.
    pub fn directory(&self, name: &str) -> String {
        let path = self.root.join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a directory");
        format!("/{name}")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.honest();
        // Closing makes requests, which are this test's to make.
        let files = crate::process::Process::current().files.clone();
        for fd in files.numbers() {
            drop(files.remove(fd));
        }
    }
}

/// Starts the service if it does not run.
pub fn service() -> Service {
    let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    Service {
        _lock: lock,
        root: STARTED.clone(),
    }
}

/// What is on the host side, of this process alone.
fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("cloak-libos-test-{}", std::process::id()))
}

/// The folder goes with the process: no test knows that it is the last one.
extern "C" fn remove_folder() {
    // Nobody is left who could be told.
    let _ = fs::remove_dir_all(folder());
}

fn start() -> PathBuf {
    let root = folder();
    // SAFETY: it touches files only.
    assert_eq!(unsafe { libc::atexit(remove_folder) }, 0, "its end can be told");
    let volume = root.join("volume");
    let library = root.join("library");
    for folder in [&volume, &library] {
        fs::create_dir_all(folder).expect("a temporary directory");
    }
    let mut table = HashMap::new();
    fs::create_dir_all(root.join(LOWER)).expect("a temporary directory");
    let container = root.join(CONTAINER);
    fs::write(&container, b"").expect("a temporary file");
    let mounts = [&root, &volume, &library, &container, &root.join(LOWER)];
    for (fd, path) in (ROOT_FD..).zip(mounts) {
        let file = File::open(path).expect("a mount's root");
        table.insert(
            u64::from(fd),
            Open {
                file,
                listed: 0,
                position: 0,
                foreign: false,
            },
        );
    }
    let mut host = Host { table, next: 3 };
    testing::serve_others(move |asked| host.serve(asked));
    let records = [
        init::MountRecord {
            index: 0,
            flags: 0,
            path: b"/".to_vec(),
        },
        init::MountRecord {
            index: 1,
            flags: 0,
            path: b"/mnt/volume".to_vec(),
        },
        init::MountRecord {
            index: 1,
            flags: mount_flags::EXCLUSIVE,
            path: b"/mnt/own".to_vec(),
        },
        init::MountRecord {
            index: 2,
            flags: mount_flags::READ_ONLY,
            path: b"/mnt/library".to_vec(),
        },
        init::MountRecord {
            index: 4,
            flags: mount_flags::OVERLAY,
            path: b"/mnt/overlay".to_vec(),
        },
    ];
    let files = super::FdTable::new(16, 16);
    init::init(
        &records,
        Vec::new(),
        Vec::new(),
        [S_IFCHR | 0o620; 3],
        1 << 24,
        &files,
    )
    .expect("a name space");
    std::mem::forget(files);
    root
}

struct Open {
    file: File,
    listed: usize,
    position: u64,
    foreign: bool,
}

struct Host {
    table: HashMap<u64, Open>,
    next: u64,
}

type Reply = io::Result<(u64, u64)>;

fn errno(n: i32) -> io::Error {
    io::Error::from_raw_os_error(n)
}

impl Host {
    fn serve(&mut self, asked: &testing::Asked) -> testing::Reply {
        let buffer = asked.buffer();
        let (mut result, mut extra) = match self.carry_out(asked.op, asked.args, buffer) {
            Ok((result, extra)) => (result as i64, extra),
            Err(e) => (-i64::from(e.raw_os_error().unwrap_or(5)), 0),
        };
        SERVED.fetch_add(1, Ordering::Relaxed);
        if let Some(twist) = &mut *TWIST.lock().unwrap_or_else(PoisonError::into_inner) {
            twist(asked.op, &mut result, &mut extra, buffer);
        }
        (result, extra)
    }

    fn open(&mut self, fd: u64) -> io::Result<&mut Open> {
        if fd < 3 {
            let file = File::open("/dev/null")?;
            return Ok(self.table.entry(fd).or_insert(Open {
                file,
                listed: 0,
                position: 0,
                foreign: false,
            }));
        }
        self.table.get_mut(&fd).ok_or_else(|| errno(9))
    }

    fn base(&mut self, dir: u64) -> io::Result<PathBuf> {
        Ok(PathBuf::from(format!(
            "/proc/self/fd/{}",
            self.open(dir)?.file.as_raw_fd()
        )))
    }

    /// Resolves like openat2 with RESOLVE_IN_ROOT | RESOLVE_NO_XDEV; the last component as asked.
    fn rooted(&mut self, dir: u64, path: &[u8], follow: bool) -> io::Result<PathBuf> {
        let root = self.base(dir)?;
        let mut todo: Vec<Vec<u8>> = path.split(|&b| b == b'/').rev().map(<[u8]>::to_vec).collect();
        let mut at: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    at.pop();
                    continue;
                }
                b"border" => return Err(errno(18)),
                _ => {}
            }
            at.push(name);
            let here = at.iter().fold(root.clone(), |p, c| p.join(OsStr::from_bytes(c)));
            if (follow || !todo.is_empty()) && fs::symlink_metadata(&here).is_ok_and(|m| m.is_symlink()) {
                links += 1;
                if links > 40 {
                    return Err(errno(40));
                }
                let target = fs::read_link(&here)?.into_os_string().into_vec();
                if target.starts_with(b"/") {
                    at.clear();
                } else {
                    at.pop();
                }
                todo.extend(target.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
            }
        }
        // The directory itself is not the link under which it is reached here.
        let slash = if path.ends_with(b"/") || at.is_empty() {
            "/"
        } else {
            ""
        };
        let mut out = at
            .iter()
            .fold(root, |p, c| p.join(OsStr::from_bytes(c)))
            .into_os_string();
        out.push(slash);
        Ok(out.into())
    }

    fn path(&mut self, dir: u64, path: &[u8], how: u64, follow: bool) -> io::Result<PathBuf> {
        if how == resolve::ROOTED {
            return self.rooted(dir, path, follow);
        }
        assert!(!path.contains(&b'/') && path != b"..", "one component");
        let path = self.base(dir)?.join(OsStr::from_bytes(path));
        if follow && fs::symlink_metadata(&path)?.is_symlink() {
            return Err(errno(40));
        }
        Ok(path)
    }

    fn carry_out(&mut self, op: HostOp, a: [u64; 6], buffer: &mut [u8]) -> Reply {
        let text = |at: usize, len: u64| buffer[at..at + len as usize].to_vec();
        match op {
            HostOp::Open => self.do_open(a, &text(0, a[3]), buffer),
            HostOp::Close => self.table.remove(&a[0]).map(|_| (0, 0)).ok_or_else(|| errno(9)),
            HostOp::Read => {
                let open = self.open(a[0])?;
                let n = open.file.read_at(&mut buffer[..a[1] as usize], open.position)?;
                open.position += n as u64;
                Ok((n as u64, 0))
            }
            HostOp::Write => {
                use io::Write;
                Ok((
                    (&self.open(a[0])?.file).write(&buffer[..a[1] as usize])? as u64,
                    0,
                ))
            }
            HostOp::PRead => Ok((
                self.open(a[0])?
                    .file
                    .read_at(&mut buffer[..a[1] as usize], a[2])? as u64,
                0,
            )),
            HostOp::PWrite => Ok((
                self.open(a[0])?.file.write_at(&buffer[..a[1] as usize], a[2])? as u64,
                0,
            )),
            HostOp::FStat => {
                let open = self.open(a[0])?;
                let stat = stat(&open.file.metadata()?, open.foreign);
                buffer[..144].copy_from_slice(stat.as_bytes());
                Ok((0, 0))
            }
            HostOp::StatX => {
                let follow = a[1] as u32 & AT_SYMLINK_NOFOLLOW == 0;
                let path = match a[3] {
                    0 => self.base(a[0])?.join(""),
                    len => self.path(a[0], &text(0, len), a[4], follow)?,
                };
                let stat = stat(&fs::symlink_metadata(path)?, false);
                buffer[..256].copy_from_slice(statx_of(&stat).as_bytes());
                Ok((0, 0))
            }
            HostOp::GetDents => self.list(a, buffer),
            HostOp::ReadLink => {
                let path = self.path(a[0], &text(0, a[1]), a[4], false)?;
                let target = fs::read_link(path)?.into_os_string().into_vec();
                buffer[..target.len()].copy_from_slice(&target);
                Ok((target.len() as u64, 0))
            }
            HostOp::MkDir => fs::create_dir(self.rooted(a[0], &text(0, a[3]), false)?).map(|()| (0, 0)),
            HostOp::Unlink => {
                let path = self.rooted(a[0], &text(0, a[3]), false)?;
                let result = if a[1] == 0 {
                    fs::remove_file(path)
                } else {
                    fs::remove_dir(path)
                };
                result.map(|()| (0, 0))
            }
            HostOp::Rename => {
                let from = self.rooted(a[0], &text(0, a[1]), false)?;
                let to = self.rooted(a[2], &text(a[1] as usize, a[3]), false)?;
                fs::rename(from, to).map(|()| (0, 0))
            }
            HostOp::SymLink => {
                let path = self.rooted(a[0], &text(a[1] as usize, a[3]), false)?;
                symlink(Path::new(OsStr::from_bytes(&text(0, a[1]))), path).map(|()| (0, 0))
            }
            HostOp::ChMod => {
                let path = self.rooted(a[0], &text(0, a[3]), true)?;
                fs::set_permissions(path, fs::Permissions::from_mode(a[1] as u32)).map(|()| (0, 0))
            }
            HostOp::Truncate => self.open(a[0])?.file.set_len(a[1]).map(|()| (0, 0)),
            HostOp::Access => self
                .path(a[0], &text(0, a[3]), a[4], true)
                .and_then(fs::metadata)
                .map(|_| (0, 0)),
            HostOp::Sync | HostOp::Lock | HostOp::Flock | HostOp::Nop => Ok((0, 0)),
            HostOp::Seek => {
                self.open(a[0])?.listed = a[1] as usize;
                Ok((a[1], 0))
            }
            HostOp::Watch => Err(errno(1)),
            _ => Err(errno(38)),
        }
    }

    fn do_open(&mut self, a: [u64; 6], name: &[u8], buffer: &mut [u8]) -> Reply {
        let flags = a[1] as u32;
        let existing = flags & (O_CREAT | O_EXCL) != O_CREAT | O_EXCL;
        let follow = flags & O_NOFOLLOW == 0 && existing;
        let path = match self.path(a[0], name, a[4], follow) {
            _ if name.is_empty() => self.base(a[0])?,
            Err(e) if flags & O_CREAT != 0 && e.kind() == io::ErrorKind::NotFound => {
                self.path(a[0], name, a[4], false)?
            }
            path => path?,
        };
        let mut options = OpenOptions::new();
        options
            .read(flags & 3 != 1)
            .write(flags & 3 != 0)
            .append(flags & O_APPEND != 0);
        let file = options
            .custom_flags((flags & !3 & !O_APPEND) as i32)
            .mode(a[2] as u32)
            .open(path)?;
        let foreign = name == b"border" || self.open(a[0])?.foreign;
        let stat = stat(&file.metadata()?, foreign);
        buffer[..144].copy_from_slice(stat.as_bytes());
        let fd = self.next;
        self.next += 1;
        self.table.insert(
            fd,
            Open {
                file,
                listed: 0,
                position: 0,
                foreign,
            },
        );
        Ok((fd, u64::from(stat.mode)))
    }

    fn list(&mut self, a: [u64; 6], buffer: &mut [u8]) -> Reply {
        let path = self.base(a[0])?;
        let mut names: Vec<_> = fs::read_dir(path)?
            .flatten()
            .map(|e| e.file_name().into_vec())
            .collect();
        names.sort();
        let open = self.open(a[0])?;
        let mut out = Vec::new();
        for (i, name) in names.iter().enumerate().skip(open.listed) {
            let entry = dirent::Entry {
                ino: 1,
                next: i as u64 + 1,
                kind: 0,
                name,
            };
            if !dirent::put(&mut out, a[1] as usize, &entry) {
                break;
            }
            open.listed = i + 1;
        }
        buffer[..out.len()].copy_from_slice(&out);
        Ok((out.len() as u64, 0))
    }
}

fn stat(m: &fs::Metadata, foreign: bool) -> Stat {
    Stat {
        dev: m.dev() + u64::from(foreign),
        ino: m.ino(),
        nlink: m.nlink(),
        mode: m.mode(),
        uid: m.uid(),
        gid: m.gid(),
        rdev: m.rdev(),
        size: m.size() as i64,
        blksize: m.blksize() as i64,
        blocks: m.blocks() as i64,
        atime: [m.atime(), m.atime_nsec()],
        mtime: [m.mtime(), m.mtime_nsec()],
        ctime: [m.ctime(), m.ctime_nsec()],
        ..Stat::default()
    }
}
