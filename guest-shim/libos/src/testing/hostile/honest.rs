//! What an honest OS side would answer: a made-up file system in which every name exists and tells its kind, and
//! sockets that always have something to say. No system calls of the host, so that a million answers are cheap.

use std::collections::HashMap;
use std::sync::LazyLock;

use cloak_abi::hostop::{ADDR_MAX, CONTROL_MAX, HostOp, ROOT_FD, resolve};
use cloak_abi::ring::BUFFER;
use zerocopy::IntoBytes;

use super::sealed;
use crate::fs::attributes::{StatFs, statx_of};
use crate::fs::dirent;
use crate::fs::file::Stat;
use crate::fs::flags::*;

/// Bytes of every regular file.
pub const SIZE: u64 = 10_000;
/// Where every symbolic link leads.
pub const TARGET: &[u8] = b"f";
/// Names in every directory.
pub const NAMES: [&[u8]; 3] = [b"f", b"g", b"dir"];
/// What every extended attribute holds.
pub const VALUE: &[u8] = b"a value of an attribute";
/// Most bytes that a stream gives at once.
pub const AT_ONCE: usize = 32;

static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| (0..SIZE).map(|o| (o * 31 + (o >> 8)) as u8).collect());

/// The bytes of every file.
pub fn content() -> &'static [u8] {
    &PATTERN
}

/// A loopback address of the Internet.
pub fn address() -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&[2, 0, 0x12, 0x34, 127, 0, 0, 1]);
    bytes
}

/// Mode of what has this name.
pub fn mode_of(path: &[u8]) -> u32 {
    let name = path
        .rsplit(|&b| b == b'/')
        .find(|c| !c.is_empty())
        .unwrap_or(b".");
    let has = |text: &[u8]| name.windows(text.len()).any(|w| w == text);
    if has(b"dir") || has(b".") || name == b"mnt" || name == b"volume" || name == b"ro" {
        S_IFDIR | 0o755
    } else if has(b"link") {
        S_IFLNK | 0o777
    } else if has(b"stream") {
        S_IFIFO | 0o644
    } else if has(b"tty") {
        S_IFCHR | 0o620
    } else {
        S_IFREG | 0o644
    }
}

/// Attributes of something with this mode and name.
pub fn stat(mode: u32, name: &[u8]) -> Stat {
    let ino = name
        .iter()
        .fold(7u64, |h, &b| h.wrapping_mul(31).wrapping_add(b.into()))
        % 1000
        + 2;
    Stat {
        dev: 0x801,
        ino,
        nlink: 1,
        mode,
        size: if mode & S_IFMT == S_IFREG { SIZE as i64 } else { 0 },
        blksize: 4096,
        blocks: 20,
        mtime: [1_700_000_000, 5],
        ..Stat::default()
    }
}

struct Open {
    stat: Stat,
    listed: bool,
    /// The container of a protected volume that it is.
    container: Option<usize>,
}

/// The descriptors that were given out.
pub struct Files {
    open: HashMap<u64, Open>,
    next: u64,
    free: Vec<u64>,
}

type Answer = Result<(u64, u64), i32>;

impl Files {
    /// Those that are there from the start. New ones are numbered from `first`.
    pub fn new(first: u64) -> Self {
        let mut open = HashMap::new();
        for number in 0..3 {
            open.insert(
                number,
                Open {
                    stat: stat(S_IFCHR | 0o620, b"tty"),
                    listed: false,
                    container: None,
                },
            );
        }
        for mount in 0..3 {
            let root = Open {
                stat: stat(S_IFDIR | 0o755, b"root"),
                listed: false,
                container: None,
            };
            open.insert(u64::from(ROOT_FD) + mount, root);
        }
        for (at, mount) in (sealed::READ..).take(sealed::CONTAINERS).enumerate() {
            let container = Open {
                stat: stat(S_IFREG | 0o600, b"container"),
                listed: false,
                container: Some(at),
            };
            open.insert(u64::from(ROOT_FD + mount), container);
        }
        Self {
            open,
            next: first,
            free: Vec::new(),
        }
    }

    /// New descriptors are numbered from `first` on.
    pub fn number_from(&mut self, first: u64) {
        self.free.clear();
        self.next = first;
    }

    /// Any descriptor that was given out.
    pub fn one(&self, at: usize) -> u64 {
        self.open.keys().nth(at % self.open.len()).copied().unwrap_or(0)
    }

    fn give(&mut self, stat: Stat) -> u64 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        let open = Open {
            stat,
            listed: false,
            container: None,
        };
        self.open.insert(number, open);
        number
    }

    /// Which container a descriptor is.
    pub fn container(&self, number: u64) -> Option<usize> {
        self.open.get(&number)?.container
    }

    fn known(&mut self, number: u64) -> Result<&mut Open, i32> {
        self.open.get_mut(&number).ok_or(libc::EBADF)
    }

    /// Carries out a request on the slot's buffer: result or error number, and the second result.
    pub fn serve(&mut self, op: HostOp, a: [u64; 6], buffer: &mut [u8]) -> (i64, u64) {
        match self.answer(op, a, buffer) {
            Ok((result, extra)) => (result as i64, extra),
            Err(number) => (-i64::from(number), 0),
        }
    }

    fn answer(&mut self, op: HostOp, a: [u64; 6], buffer: &mut [u8]) -> Answer {
        let len = |n: u64| (n as usize).min(BUFFER);
        if let Some(at) = self.container(a[0])
            && let Some(answer) = sealed::serve(op, at, a, buffer)
        {
            return answer;
        }
        match op {
            HostOp::Open => return self.open(a, buffer),
            HostOp::Close => {
                self.open.remove(&a[0]).ok_or(libc::EBADF)?;
                self.free.push(a[0]);
            }
            HostOp::Fetch if a[1] == 0 => return Ok((0, 0)),
            HostOp::Fetch | HostOp::Read => {
                return Ok((give(buffer, &content()[..len(a[1]).min(AT_ONCE)]), 0));
            }
            HostOp::PRead => {
                let from = a[2].min(SIZE) as usize;
                let end = a[2].saturating_add(a[1]).min(SIZE) as usize;
                return Ok((give(buffer, &content()[from..end]), 0));
            }
            HostOp::Deliver | HostOp::Write | HostOp::PWrite => return Ok((a[1], 0)),
            HostOp::FStat => {
                let open = self.known(a[0])?;
                let mut stat = open.stat;
                if let Some(at) = open.container {
                    stat.size = sealed::length(at) as i64;
                }
                give(buffer, stat.as_bytes());
            }
            HostOp::StatX => {
                let path = buffer[..len(a[3])].to_vec();
                let found = if path.is_empty() {
                    self.known(a[0])?.stat
                } else {
                    stat(mode_of(&path), &path)
                };
                give(buffer, statx_of(&found).as_bytes());
            }
            HostOp::StatFs => {
                let found = StatFs {
                    kind: 0xef53,
                    bsize: 4096,
                    blocks: 1 << 20,
                    namelen: 255,
                    ..StatFs::default()
                };
                give(buffer, found.as_bytes());
            }
            HostOp::GetDents => return self.list(a, buffer),
            HostOp::Seek => {
                self.known(a[0])?.listed = false;
                return Ok((a[1] & i64::MAX as u64, 0));
            }
            HostOp::ReadLink => return Ok((give(buffer, TARGET), 0)),
            HostOp::GetXattr | HostOp::ListXattr if a[2] == 0 => return Ok((VALUE.len() as u64, 0)),
            HostOp::GetXattr | HostOp::ListXattr if len(a[2]) < VALUE.len() => return Err(libc::ERANGE),
            HostOp::GetXattr | HostOp::ListXattr => return Ok((give(buffer, VALUE), 0)),
            HostOp::Lock => buffer[..2].copy_from_slice(&2i16.to_ne_bytes()),
            HostOp::Socket | HostOp::Dup => return Ok((self.give(stat(S_IFSOCK | 0o777, b"socket")), 0)),
            HostOp::Accept => {
                let number = self.give(stat(S_IFSOCK | 0o777, b"socket"));
                return Ok((number, give(buffer, &address())));
            }
            HostOp::Streams => {
                for bytes in buffer[..12].as_chunks_mut::<4>().0 {
                    let number = self.give(stat(S_IFCHR | 0o620, b"tty"));
                    *bytes = (number as u32).to_le_bytes();
                }
            }
            HostOp::SockName => return Ok((0, give(buffer, &address()))),
            HostOp::SendMsg => return Ok((a[4], 0)),
            HostOp::RecvMsg => return Ok(receive(a, buffer)),
            HostOp::GetSockOpt => {
                buffer[..4].fill(0);
                return Ok((0, len(a[3]).min(4) as u64));
            }
            HostOp::Ioctl => buffer[..len(a[3])].fill(0),
            HostOp::Poll => {
                for record in buffer[..len(a[0] * 8)].chunks_exact_mut(8) {
                    let asked = [record[4], record[5]];
                    record[6..8].copy_from_slice(&asked);
                }
            }
            _ => {}
        }
        Ok((0, 0))
    }

    fn open(&mut self, a: [u64; 6], buffer: &mut [u8]) -> Answer {
        let name = buffer[..(a[3] as usize).min(buffer.len())].to_vec();
        if let Some(at) = self.container(a[0]).filter(|_| name.is_empty()) {
            let found = stat(S_IFREG | 0o600, b"container");
            give(buffer, found.as_bytes());
            let number = self.give(found);
            self.known(number)?.container = Some(at);
            return Ok((number, found.mode.into()));
        }
        let flags = a[1] as u32;
        let mut mode = mode_of(&name);
        if mode & S_IFMT == S_IFLNK {
            match a[4] {
                resolve::COMPONENT if flags & O_PATH == 0 => return Err(libc::ELOOP),
                resolve::COMPONENT => {}
                _ => mode = mode_of(TARGET),
            }
        }
        if flags & O_DIRECTORY != 0 && mode & S_IFMT != S_IFDIR {
            return Err(libc::ENOTDIR);
        }
        let found = stat(mode, &name);
        give(buffer, found.as_bytes());
        Ok((self.give(found), mode.into()))
    }

    fn list(&mut self, a: [u64; 6], buffer: &mut [u8]) -> Answer {
        let open = self.known(a[0])?;
        if a[2] == 1 {
            open.listed = false;
        }
        if std::mem::replace(&mut open.listed, true) {
            return Ok((0, 0));
        }
        let mut out = Vec::new();
        for (next, name) in (1..).zip(NAMES) {
            let entry = dirent::Entry {
                ino: 9,
                next,
                kind: 0,
                name,
            };
            if !dirent::put(&mut out, a[1] as usize, &entry) {
                break;
            }
        }
        if out.is_empty() {
            Err(libc::EINVAL)
        } else {
            Ok((give(buffer, &out), 0))
        }
    }
}

fn receive(a: [u64; 6], buffer: &mut [u8]) -> (u64, u64) {
    let with = a[2] == 1 || a[3] > 0;
    let at = if with { ADDR_MAX + CONTROL_MAX } else { 0 };
    let got = give(&mut buffer[at..], &content()[..AT_ONCE.min(a[4] as usize)]);
    let from = if a[2] == 1 { give(buffer, &address()) } else { 0 };
    (got, from << 32)
}

/// Puts bytes at the front; gives their number.
fn give(buffer: &mut [u8], bytes: &[u8]) -> u64 {
    buffer[..bytes.len()].copy_from_slice(bytes);
    bytes.len() as u64
}
