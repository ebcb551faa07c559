//! Starting a process with chosen descriptors.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;

/// `posix_spawn` returns its error.
fn spawned(result: libc::c_int) -> Result<(), Errno> {
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_raw_os_error(result))
    }
}

/// File actions, destroyed on drop.
struct Actions(libc::posix_spawn_file_actions_t);

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

impl Actions {
    fn new() -> Result<Self, Errno> {
        // SAFETY: init overwrites the value, zero is a valid one before.
        let mut actions = Self(unsafe { std::mem::zeroed() });
        // SAFETY: as above.
        spawned(unsafe { libc::posix_spawn_file_actions_init(&raw mut actions.0) })?;
        Ok(actions)
    }

    fn put(&mut self, fd: &OwnedFd, number: i32) -> Result<(), Errno> {
        // SAFETY: initialised; the descriptor is open and stays so until the caller returns.
        spawned(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, fd.as_raw_fd(), number) })
    }
}

/// Attributes, destroyed on drop.
struct Attributes(libc::posix_spawnattr_t);

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

impl Attributes {
    /// The child starts with every signal blocked, so that none reaches it before it has said which it
    /// ignores.
    fn new() -> Result<Self, Errno> {
        // SAFETY: init overwrites the value, zero is a valid one before.
        let mut attributes = Self(unsafe { std::mem::zeroed() });
        // SAFETY: as above; the set is filled before it is used, and copied.
        unsafe {
            spawned(libc::posix_spawnattr_init(&raw mut attributes.0))?;
            let mut all = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            spawned(libc::posix_spawnattr_setsigmask(
                &raw mut attributes.0,
                &raw const all,
            ))?;
            let flags = libc::POSIX_SPAWN_SETSIGMASK as libc::c_short;
            spawned(libc::posix_spawnattr_setflags(&raw mut attributes.0, flags))?;
        }
        Ok(attributes)
    }
}

/// Starts `program` (vfork-like: nothing of this process is copied) with `descriptors` as number `first`
/// and up, every signal blocked and an empty environment. Result: its process number.
///
/// No descriptor may have a number of the target range already.
pub fn start(
    program: &CString,
    arguments: &[CString],
    descriptors: &[OwnedFd],
    first: i32,
) -> Result<i32, Errno> {
    let mut actions = Actions::new()?;
    for (number, fd) in (first..).zip(descriptors) {
        actions.put(fd, number)?;
    }
    let attributes = Attributes::new()?;
    let mut argv: Vec<*mut libc::c_char> = arguments.iter().map(|a| a.as_ptr().cast_mut()).collect();
    argv.push(std::ptr::null_mut());
    let environment: [*mut libc::c_char; 1] = [std::ptr::null_mut()];
    let mut pid = 0;
    // SAFETY: all pointers are to values that live through the call; the two lists end with null.
    spawned(unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            argv.as_ptr(),
            environment.as_ptr(),
        )
    })?;
    Ok(pid)
}
