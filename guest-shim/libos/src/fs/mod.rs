//! Files, directories, mounts, descriptors.
//!
//! | module | concept |
//! |---|---|
//! | [`fd`], [`mod@file`] | descriptors, open files, what they can refer to |
//! | [`mount`], [`walk`], [`path`], `context` | the name space: mounts, path resolution, working directory |
//! | [`open`], [`mod@init`] | from paths to open files; boot |
//! | [`hostops`], [`hostfd`] | operations of the OS service, checked |
//! | [`hostfile`], [`hostdir`], [`hoststream`], `host_fifos`, [`tty`], [`jobs`], [`shared_pages`] | the host's files |
//! | `name_cache`, `open_cache`, [`read_cache`] | what the host said and gave, believed for a second |
//! | [`node`], [`nodedir`], [`tmpfs`], [`devfs`], [`synth`], [`special`] | file systems in the guest |
//! | [`pty`] | pseudo-terminals |
//! | [`overlay`] | a host tree with changes in guest memory |
//! | [`protected`] | volumes that the host keeps and can't read |
//! | [`measured`] | files that the host keeps and can't change |
//! | [`locks`], [`readiness`], [`attributes`], [`dirent`], [`flags`], [`size_limit`], `pathfile` | what they share |
//! | [`poll`], [`epoll`], [`hostlink`] | waiting for many files |
//! | [`pipe`], [`eventfd`], [`inotify`], [`timerfd`], [`signalfd`], [`anon`], [`certificates`] | what is no file of a file system |
//! | [`providers`], [`signals`] | what files need to know of the rest of the libos |
//! | `calls_*` | system calls |

pub mod anon;
pub mod attributes;
pub mod calls_change;
mod calls_copy;
mod calls_fd;
mod calls_io;
mod calls_misc;
mod calls_mount;
pub(crate) mod calls_names;
mod calls_open;
mod calls_stat;
mod calls_xattr;
pub mod certificates;
mod context;
mod devfs;
pub mod dirent;
pub mod epoll;
pub mod eventfd;
pub mod fd;
pub mod file;
pub mod flags;
mod host_fifos;
mod hostdir;
pub mod hostfd;
mod hostfile;
pub mod hostlink;
pub mod hostops;
mod hoststream;
mod init;
pub mod inotify;
pub mod jobs;
mod lengths;
pub mod locks;
pub mod measured;
pub mod mount;
mod name_cache;
pub mod node;
mod nodedir;
pub mod open;
pub(crate) mod open_cache;
pub mod overlay;
pub mod path;
mod pathfile;
pub mod pipe;
pub mod poll;
pub mod protected;
pub mod providers;
pub mod pty;
pub mod read_cache;
pub mod readiness;
pub mod shared_pages;
pub mod signalfd;
pub mod signals;
pub mod size_limit;
mod special;
pub mod synth;
pub mod timerfd;
pub mod tmpfs;
mod tty;
pub mod walk;

#[cfg(test)]
pub mod fake;
#[cfg(test)]
mod tests;

pub use context::FsContext;
pub use fd::{FdTable, OpenFile};
pub use file::File;
pub use init::{MountRecord, Segment, init, open_executable};
pub use open::{handed_streams, open_kernel};
pub use providers::Providers;

use crate::errno::SysResult;
use crate::syscall::Entry;

/// Writes back and makes durable what the guest holds back of files: at the end of the context, and `sync`.
///
/// # Errors
/// Of a protected volume. For shared files there is nobody to tell, as for Linux's own flusher.
pub fn sync_all() -> SysResult<()> {
    shared_pages::sync_all();
    protected::sync_all()
}

/// The parts of the table of calls.
const PARTS: &[&[Entry]] = &[
    calls_change::SYSCALLS,
    calls_copy::SYSCALLS,
    calls_fd::SYSCALLS,
    calls_io::SYSCALLS,
    calls_misc::SYSCALLS,
    calls_mount::SYSCALLS,
    calls_names::SYSCALLS,
    calls_open::SYSCALLS,
    calls_stat::SYSCALLS,
    calls_xattr::SYSCALLS,
];

const COUNT: usize = {
    let (mut count, mut part) = (0, 0);
    while part < PARTS.len() {
        count += PARTS[part].len();
        part += 1;
    }
    count
};

const JOINED: [Entry; COUNT] = {
    let mut all = [PARTS[0][0]; COUNT];
    let (mut at, mut part) = (0, 0);
    while part < PARTS.len() {
        let mut i = 0;
        while i < PARTS[part].len() {
            all[at] = PARTS[part][i];
            at += 1;
            i += 1;
        }
        part += 1;
    }
    all
};

/// System calls served here.
pub const SYSCALLS: &[Entry] = &JOINED;
