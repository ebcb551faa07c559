//! Namespaces of one's own: a tree of files with nothing in it, no System V objects, no host name to be changed and, for a
//! context without network, a network without devices.
//!
//! Who may not have them (the kernel asks for CAP_SYS_ADMIN) goes on without: the other layers stand, and `cloak doctor` says so.
//! A user namespace would give that right to everybody, but in one of a user's own all files of others belong to nobody, and
//! what the guest sees of the host's files are their owners. So only a service whose roots are all containers takes one: in
//! these there are no owners to be seen.
//!
//! The process namespace stays the host's: the guest's terminal is the host's, and job control on it goes by the host's numbers.
//! Other processes are out of reach without it, as no call that names one is in the tables, and the `/proc` that is left
//! shows none.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::DumpableBehavior;
use rustix::thread::UnshareFlags;

use super::JailError;

/// Whose network is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    Host,
    /// One without devices.
    Empty,
}

/// Whether a user namespace may be had for the rights that the others need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// No: owners of files are looked at.
    Matter,
    /// Yes.
    DoNotMatter,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walls {
    /// They are there.
    Own,
    /// The host allows none.
    Hosts,
}

fn failed(step: &'static str) -> impl FnOnce(Errno) -> JailError {
    move |errno| JailError::System {
        step,
        source: errno.into(),
    }
}

/// A directory, or file, without the way up from it, and where `read_only` one that the kernel lets nobody write. `None` where the
/// host does not allow that.
///
/// # Errors
/// When the kernel refuses for another reason than rights.
pub fn severed(root: BorrowedFd<'_>, read_only: bool) -> Result<Option<OwnedFd>, JailError> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | (libc::AT_EMPTY_PATH | libc::AT_RECURSIVE).cast_unsigned();
    // SAFETY: a descriptor that is open and an empty path; nothing is written.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, root.as_raw_fd(), c"".as_ptr(), flags) };
    if fd < 0 {
        return match io::Error::last_os_error().raw_os_error() {
            // EINVAL: a root that lies in no mount of this namespace.
            Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EINVAL) => Ok(None),
            _ => Err(JailError::last_os(
                "cutting a root off from what is above it (open_tree)",
            )),
        };
    }
    // SAFETY: the kernel has just given it out, and nobody else has it.
    let own = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    if read_only {
        forbid_writes(own.as_fd())?;
    }
    Ok(Some(own))
}

fn forbid_writes(tree: BorrowedFd<'_>) -> Result<(), JailError> {
    // SAFETY: plain numbers, for which all zeros are the empty request.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_RDONLY;
    // SAFETY: a descriptor that is open, an empty path, and a request of the size that is said.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if set < 0 {
        return Err(JailError::last_os("making a root read-only (mount_setattr)"));
    }
    Ok(())
}

/// Takes the calling thread into namespaces of its own, with threads that it starts later. Other threads stay where they are.
/// What it has open stays open.
///
/// # Errors
/// When the kernel refuses for another reason than rights, half-way.
pub fn enter(network: Network, owners: Owners) -> Result<Walls, JailError> {
    let mut wanted = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if network == Network::Empty {
        wanted |= UnshareFlags::NEWNET;
    }
    // SAFETY: none of these flags parts the descriptor table, by whose being shared others own what is open.
    let mut entered = unsafe { rustix::thread::unshare_unsafe(wanted) };
    if entered == Err(Errno::PERM) && owners == Owners::DoNotMatter {
        let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
        // SAFETY: as above.
        entered = unsafe { rustix::thread::unshare_unsafe(wanted | UnshareFlags::NEWUSER) };
        if entered.is_ok() {
            stay_oneself(uid.as_raw(), gid.as_raw())?;
        }
    }
    match entered {
        Ok(()) => leave_the_hosts_files().map(|()| Walls::Own),
        Err(Errno::PERM | Errno::NOSPC | Errno::INVAL | Errno::NOSYS) => Ok(Walls::Hosts),
        Err(errno) => Err(failed("taking own namespaces (unshare)")(errno)),
    }
}

/// In a user namespace of one's own, the numbers that one had. The files in which one says so are root's while one is not
/// dumpable, so for that moment one is, as every process is at its start.
fn stay_oneself(uid: u32, gid: u32) -> Result<(), JailError> {
    let before = rustix::process::dumpable_behavior().map_err(failed("asking whether it is dumpable"))?;
    let dumpable = |how| rustix::process::set_dumpable_behavior(how).map_err(failed("being dumpable or not"));
    dumpable(DumpableBehavior::Dumpable)?;
    let said = say_who(uid, gid);
    dumpable(before)?;
    said
}

fn say_who(uid: u32, gid: u32) -> Result<(), JailError> {
    let write = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text).map_err(|source| JailError::System {
            step: "keeping one's own number in a user namespace",
            source,
        })
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("gid_map", format!("{gid} {gid} 1"))
}

/// Makes a tree with an own `/proc` the root, and lets go of the host's.
fn leave_the_hosts_files() -> Result<(), JailError> {
    // What happens here is nobody else's.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(failed("keeping mounts to oneself"))?;
    // The host's, for those who may not mount one: their user namespace keeps them from the processes that it shows.
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let hosts = rustix::mount::open_tree(rustix::fs::CWD, "/proc", flags);
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // Any directory that is there serves as the place to build it in.
    rustix::mount::mount("cloak", "/proc", "tmpfs", quiet, c"size=64k,mode=0555")
        .map_err(failed("mounting an empty root"))?;
    rustix::fs::mkdir("/proc/proc", Mode::from_raw_mode(0o555)).map_err(failed("making /proc"))?;
    // Files are reached anew by `/proc/self/fd`. Of other processes it shows none: nobody here may trace any.
    let processes = c"subset=pid,hidepid=ptraceable";
    match rustix::mount::mount("proc", "/proc/proc", "proc", quiet, processes) {
        Err(Errno::PERM) => hosts
            .and_then(|tree| {
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                rustix::mount::move_mount(tree, "", rustix::fs::CWD, "/proc/proc", flags)
            })
            .map_err(failed("giving it the host's /proc"))?,
        made => made.map_err(failed("mounting /proc"))?,
    }
    let again = MountFlags::RDONLY | quiet;
    rustix::mount::mount_remount("/proc", again, c"").map_err(failed("closing the empty root"))?;
    rustix::process::chdir("/proc").map_err(failed("going into the empty root"))?;
    // On an initial RAM file system there is nothing to pivot from.
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => rustix::mount::unmount(".", UnmountFlags::DETACH)
            .map_err(failed("letting go of the host's files"))?,
        Err(Errno::INVAL) => {
            rustix::mount::mount_move(".", "/").map_err(failed("covering the host's files"))?;
            rustix::process::chroot(".").map_err(failed("making the empty root the root"))?;
        }
        Err(errno) => return Err(failed("making the empty root the root (pivot_root)")(errno)),
    }
    rustix::process::chdir("/").map_err(failed("going to the root"))
}

/// Whether this process could have them, tried in a thread that ends with it.
#[must_use]
pub fn allowed() -> bool {
    let tried = || {
        let wanted = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        // SAFETY: as in `enter`; the thread does nothing else.
        unsafe { rustix::thread::unshare_unsafe(wanted) }.is_ok()
    };
    std::thread::spawn(tried).join().unwrap_or(false)
}
