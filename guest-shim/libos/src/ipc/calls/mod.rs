//! The system calls, and what they have in common.

mod msg;
mod sem;
mod shm;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::table::{About, Caller};
use crate::process::Process;
use crate::sched::clock;
use crate::syscall::{Entry, full, partial};

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    partial(29, "shmget", "isx", "huge pages are refused", shm::shmget),
    full(30, "shmat", "ixx", shm::shmat),
    partial(
        31,
        "shmctl",
        "iix",
        "detaching by the end of a process or a new program leaves its time and number as they were",
        shm::shmctl,
    ),
    full(64, "semget", "iix", sem::semget),
    partial(
        65,
        "semop",
        "ixs",
        "processes made with CLONE_SYSVSEM do not share what is undone",
        sem::semop,
    ),
    full(66, "semctl", "iiix", sem::semctl),
    full(67, "shmdt", "x", shm::shmdt),
    full(68, "msgget", "ix", msg::msgget),
    full(69, "msgsnd", "ixsx", msg::msgsnd),
    full(70, "msgrcv", "ixsix", msg::msgrcv),
    full(71, "msgctl", "iix", msg::msgctl),
    partial(
        220,
        "semtimedop",
        "ixsx",
        "processes made with CLONE_SYSVSEM do not share what is undone",
        sem::semtimedop,
    ),
];

/// Runs `work` on behalf of the running process.
fn with<T>(work: impl FnOnce(&Caller<'_>) -> T) -> T {
    let process = Process::current();
    let who = process.credentials.lock().clone();
    work(&Caller {
        who: &who,
        pid: process.pid,
        now: (clock::realtime() / 1_000_000_000) as i64,
    })
}

/// `struct ipc64_perm` (`include/uapi/asm-generic/ipcbuf.h`).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Permissions {
    key: i32,
    uid: u32,
    gid: u32,
    cuid: u32,
    cgid: u32,
    mode: u32,
    sequence: u16,
    pad: [u16; 3],
    unused: [u64; 2],
}

const _: () = assert!(size_of::<Permissions>() == 48);

impl From<About> for Permissions {
    fn from(about: About) -> Self {
        Self {
            key: about.key,
            uid: about.owner.0,
            gid: about.owner.1,
            cuid: about.creator.0,
            cgid: about.creator.1,
            mode: about.mode,
            ..Self::default()
        }
    }
}
