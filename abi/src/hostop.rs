//! Host operations: what the libos may ask of the OS service.
//!
//! Shapes: `fd` is a *host descriptor*, a number that the OS service gave out in an earlier answer (0, 1
//! and 2 are the standard streams from the start; [`ROOT_FD`] + n is the root of mount n). Paths are bytes
//! in the slot's buffer without a final NUL, relative to a descriptor, and never absolute. `a0..a5` are
//! the slot's arguments; "buf" is the slot's buffer. Structures in the buffer have Linux's x86-64 layout.
//! Every result is the Linux one: not negative, or a negative error number.
//!
//! No operation may block for long: reads, writes, accepts and connects on anything that could make them
//! wait are non-blocking (`-EAGAIN`), and readiness comes as an event for the descriptor's token
//! ([`HostOp::Watch`]). What may still take its time (a slow disk) the service does on a worker, so answers
//! come in any order. A slot that is submitted again before it was answered gives `-EBUSY`.
//!
//! Terminals in the background: where Linux would send SIGTTIN or SIGTTOU, the answer is `-EIO` with the
//! signal's number in extra, and nothing was done; the libos delivers the signal to the program. If the
//! program ignores or blocks SIGTTOU, the request is repeated with the argument that insists.
//!
//! Unix sockets with a path in the address: the path is relative to a directory fd, which the operation
//! takes as one more argument, and resolved like [`resolve::ROOTED`]. An address that comes back holds the
//! last component only of a name that was bound through this service.

/// Descriptor of mount n's root is `ROOT_FD + n`.
pub const ROOT_FD: u32 = 0x4000_0000;
/// Most mounts.
pub const MAX_MOUNTS: u32 = 64;
/// Largest read or write in one operation, bytes: what fits a slot's buffer.
pub const MAX_IO: usize = crate::ring::BUFFER;
/// Longest path, bytes, as on Linux without the NUL.
pub const PATH_MAX: usize = 4095;
/// Bytes at the start of the buffer for the socket address of [`HostOp::SendMsg`] and
/// [`HostOp::RecvMsg`]; control data follows, then the payload.
pub const ADDR_MAX: usize = 128;
/// Bytes for control data of those.
pub const CONTROL_MAX: usize = 1024;

macro_rules! host_ops {
    ($($(#[$doc:meta])* $name:ident = $n:literal,)*) => {
        /// Operation numbers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum HostOp { $($(#[$doc])* $name = $n,)* }

        impl HostOp {
            /// All operations, by number.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, stringify!($name)),)*];

            /// The operation of this number.
            #[must_use]
            pub const fn from_u32(n: u32) -> Option<Self> {
                match n { $($n => Some(Self::$name),)* _ => None }
            }
        }
    };
}

host_ops! {
    /// Does nothing; result 0.
    Nop = 0,
    /// buf out: `[u64; 2]` nanoseconds of CLOCK_MONOTONIC and CLOCK_REALTIME, `[u64; 1]` of CLOCK_BOOTTIME.
    Clock = 1,
    /// a0 = directory fd, a1 = open flags (O_*), a2 = mode, a3 = path length (0: the fd itself, a regular file),
    /// a4 = [`resolve`] bits; buf in: path. Result: fd. extra: `st_mode` of what was opened. buf out: its `struct stat`.
    /// O_NONBLOCK and O_CLOEXEC are always added for what is not a regular file. `-EACCES` for what is on the
    /// host's procfs, unless the mount's root is.
    Open = 2,
    /// a0 = fd. The number may be given out again afterwards.
    Close = 3,
    /// a0 = fd, a1 = length. buf out: data. At the file's position; for streams, terminals, FIFOs.
    Read = 4,
    /// a0 = fd, a1 = length, a2 = 1: insists (terminals, see above); buf in: data. At the file's position, or
    /// appended with O_APPEND.
    Write = 5,
    /// a0 = fd, a1 = length, a2 = offset. buf out: data.
    PRead = 6,
    /// a0 = fd, a1 = length, a2 = offset; buf in: data.
    PWrite = 7,
    /// a0 = fd. buf out: `struct stat` (144 bytes).
    FStat = 8,
    /// a0 = directory fd, a1 = AT_* flags, a2 = STATX_* mask, a3 = path length (0: the fd itself), a4 = [`resolve`] bits;
    /// buf in: path. buf out: `struct statx` (256 bytes).
    StatX = 9,
    /// a0 = directory fd, a1 = length, a2 = 1 to start again from the first entry. buf out:
    /// `struct linux_dirent64` records.
    GetDents = 10,
    /// a0 = directory fd, a1 = path length, a4 = [`resolve`] bits; buf in: path. buf out: target; result its length.
    ReadLink = 11,
    /// a0 = directory fd, a1 = mode, a3 = path length; buf in: path.
    MkDir = 12,
    /// a0 = directory fd, a1 = AT_REMOVEDIR or 0, a3 = path length; buf in: path.
    Unlink = 13,
    /// a0 = old directory fd, a1 = old path length, a2 = new directory fd, a3 = new path length,
    /// a4 = RENAME_* flags; buf in: old path, then new path.
    Rename = 14,
    /// Like [`HostOp::Rename`], a4 = AT_* flags of linkat.
    Link = 15,
    /// a0 = directory fd, a1 = target length, a3 = path length; buf in: target, then path.
    SymLink = 16,
    /// a0 = directory fd, a1 = mode, a2 = AT_* flags, a3 = path length (0: the fd itself); buf in: path.
    ChMod = 17,
    /// a0 = directory fd, a1 = uid, a2 = gid (as u32, !0 leaves it), a3 = path length (0: the fd itself),
    /// a4 = AT_* flags; buf in: path.
    ChOwn = 18,
    /// a0 = directory fd, a2 = AT_* flags, a3 = path length (0: the fd itself); buf in: two `struct timespec`, then path.
    UTimes = 19,
    /// a0 = fd, a1 = length.
    Truncate = 20,
    /// a0 = fd, a1 = 0 fsync, 1 fdatasync, 2 syncfs, 3 begin writing out a2 = offset, a3 = length. The last makes nothing durable: it
    /// leaves less to wait for to who then syncs.
    Sync = 21,
    /// a0 = fd, a1 = mode, a2 = offset, a3 = length.
    Allocate = 22,
    /// a0 = fd, a1 = operation (LOCK_*, LOCK_NB is always added).
    Flock = 23,
    /// a0 = fd, a1 = 0 get, 1 set; buf in and out: `struct flock` (open-file-description lock).
    Lock = 24,
    /// a0 = directory fd, a1 = mode (R_OK…), a2 = AT_* flags, a3 = path length, a4 = [`resolve`] bits; buf in: path.
    Access = 25,
    /// a0 = fd. buf out: `struct statfs` (120 bytes).
    StatFs = 26,
    /// a0 = directory fd, a1 = mode, a2 = device, a3 = path length; buf in: path.
    MkNod = 27,
    /// a0 = fd, a1 = request, a2 = bytes in, a3 = bytes out, a4 = 1: insists (terminals, see above); buf in and
    /// out. Requests that the service knows only (else `-ENOTTY`). TIOCGPGRP: extra is 1 when the OS side's own
    /// process group has the terminal. TIOCSPGRP: group 0 is the OS side's own. SIOCGIFCONF: buf out is the
    /// list of `struct ifreq`, a3 its space, result its length. TCSBRK, TCSBRKP, TCXONC, TCFLSH: the
    /// argument is an i32 in buf.
    Ioctl = 28,
    /// a0 = fd in, a1 = offset in, a2 = fd out, a3 = offset out, a4 = length, a5 bit 0 / 1: use the position of
    /// the in / out file instead. To a socket or pipe it is sendfile(2). May do less than was asked for.
    CopyRange = 29,
    /// a0 = fd, a1 = offset, a2 = whence. Result: position. (SEEK_DATA and SEEK_HOLE, devices.)
    Seek = 30,
    /// a0 = directory fd, a1 = name length, a2 = size, a3 = path length (0: the fd itself), a4 = 1: do not
    /// follow; buf in: name, path. buf out: value; result its length.
    GetXattr = 31,
    /// a0 = directory fd, a1 = name length, a2 = value length, a3 = path length, a4 = 1: do not follow,
    /// a5 = XATTR_* flags; buf in: name, path, value.
    SetXattr = 32,
    /// a0 = directory fd, a2 = size, a3 = path length, a4 = 1: do not follow; buf in: path. buf out: names.
    ListXattr = 33,
    /// a0 = directory fd, a1 = name length, a3 = path length, a4 = 1: do not follow; buf in: name, path.
    RemoveXattr = 34,
    /// a0 = domain, a1 = type, a2 = protocol. Result: fd, non-blocking.
    Socket = 40,
    /// a0 = domain, a1 = type, a2 = protocol. Result: first fd; extra: second.
    SocketPair = 41,
    /// a0 = fd, a1 = address length, a2 = directory fd (Unix path); buf in: address.
    Bind = 42,
    /// a0 = fd, a1 = backlog.
    Listen = 43,
    /// a0 = fd. Result: new fd, non-blocking. extra: address length; buf out: address.
    Accept = 44,
    /// a0 = fd, a1 = address length, a2 = directory fd (Unix path); buf in: address. May give -EINPROGRESS.
    Connect = 45,
    /// a0 = fd, a1 = how.
    Shutdown = 46,
    /// a0 = fd, a1 = MSG_* flags, a2 = address length, a3 = control length, a4 = payload length, a5 = directory
    /// fd (Unix path); never SIGPIPE. SCM_RIGHTS gives `-EOPNOTSUPP`, SCM_CREDENTIALS `-EPERM`. buf in: address
    /// at 0, control at [`ADDR_MAX`], payload at [`ADDR_MAX`] + [`CONTROL_MAX`] (no address and no control: payload at 0).
    SendMsg = 47,
    /// a0 = fd, a1 = MSG_* flags, a2 = 1: with address, a3 = control space, a4 = payload space. buf out as
    /// [`HostOp::SendMsg`] when address or control is asked for. Descriptors that come along are dropped, with
    /// MSG_CTRUNC. extra: `msg_flags | address length << 32 | control length << 48`.
    RecvMsg = 48,
    /// a0 = fd, a1 = level, a2 = name, a3 = length. buf out: value; extra: its length.
    GetSockOpt = 49,
    /// a0 = fd, a1 = level, a2 = name, a3 = length; buf in: value.
    SetSockOpt = 50,
    /// a0 = fd, a1 = 0 own, 1 peer. extra: address length; buf out: address.
    SockName = 51,
    /// a0 = fd, a1 = token (u32). From now on the service posts events (edge-triggered: EPOLLIN, EPOLLOUT,
    /// EPOLLRDHUP, EPOLLPRI, EPOLLERR, EPOLLHUP) for the token. -EPERM when the file is always ready.
    Watch = 60,
    /// a0 = count; buf in: count times `struct pollfd`. buf out: the same with `revents`. Never waits. With a count of 0,
    /// the events of what is ready when it is carried out are posted before the answer.
    Poll = 61,
    /// a0 = pipe flags. Result: read end; extra: write end.
    Pipe = 62,
    /// a0 = signal, sent to the OS side's own process group for job control (SIGTSTP, SIGSTOP).
    Stop = 63,
    /// a0 = fd. Result: an independent descriptor of the same open file.
    Dup = 64,
    /// buf out: `struct sysinfo`, then three u64: host MemAvailable, number of CPUs, load average * 65536.
    SysInfo = 65,
    /// a0 = ticket. buf out: three u32, descriptors of the standard streams that the monitor handed over under that ticket.
    /// A ticket is good once; `-EAGAIN` for one that the service has nothing of.
    Streams = 66,
    /// a0 = fd of a stream socket, a1 = length, a2 = token. buf out: data. As [`HostOp::Read`], but where nothing is there
    /// the answer comes when something is. Watches the file under the token (see [`HostOp::Watch`]); what an answer brings
    /// need not be reported as well. One at a time (`-EBUSY`). `-ECANCELED` when the file is closed, when urgent data
    /// comes, or by a request of length 0, which itself gives 0.
    Fetch = 67,
    /// a0 = fd of a stream socket, a1 = length; buf in: data. As [`HostOp::Write`], but what the socket does not take is kept,
    /// and sent when it does; until then other writes give `-EAGAIN`, and a close or a shutdown comes after it.
    /// Result: bytes that the socket took at once. Nobody is woken for the answer.
    Deliver = 68,
    /// Result: bytes kept by [`HostOp::Deliver`], of all files.
    Undelivered = 69,
}

/// How a path is resolved.
pub mod resolve {
    /// Stay below the directory, as if it were the root (`RESOLVE_IN_ROOT`), and give `-EXDEV` when the
    /// path leaves the directory's file system, so that the libos can walk it component by component.
    pub const ROOTED: u64 = 0;
    /// The path is one component: do not follow a symbolic link in it (`-ELOOP`; with AT_SYMLINK_NOFOLLOW or
    /// O_PATH | O_NOFOLLOW it is the link itself), file-system borders are fine. `..` is refused (`-EINVAL`): it
    /// could leave the mount.
    pub const COMPONENT: u64 = 1;
}
