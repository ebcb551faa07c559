//! Capabilities, new privileges, limits.

use super::JailError;

/// Capabilities that stay, where the user has them: a root's files may belong to others (capabilities(7)).
pub const KEPT: [(u32, &str); 5] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (4, "CAP_FSETID"),
    (10, "CAP_NET_BIND_SERVICE"),
];

/// What of them the process keeps that fetches quotes: the quoting service's socket may be in a folder of others.
pub const COURIER: [(u32, &str); 1] = [(1, "CAP_DAC_OVERRIDE")];

/// Numbers of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Makes the calling thread that user, for good: what root could do it can't any more.
///
/// # Errors
/// When the kernel refuses (only root can become somebody else).
pub fn become_user(user: &Identity) -> Result<(), JailError> {
    let groups: Vec<libc::gid_t> = user.groups.clone();
    let call = |step, result: libc::c_long| {
        if result < 0 {
            Err(JailError::last_os(step))
        } else {
            Ok(())
        }
    };
    // The plain calls, not the C library's, which would signal every thread: here there is one.
    // SAFETY: the list is ours and as long as it says; the others take plain numbers.
    unsafe {
        call(
            "setting the user's groups (setgroups)",
            libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()),
        )?;
        call(
            "becoming the user's group (setresgid)",
            libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid),
        )?;
        call(
            "becoming the user (setresuid)",
            libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid),
        )
    }
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up every capability of the calling thread but `kept`, and for good: the bounding set goes, too.
///
/// # Errors
/// When the kernel refuses.
pub fn drop_capabilities(kept: &[(u32, &str)]) -> Result<(), JailError> {
    let mask = kept.iter().fold(0u64, |bits, (number, _)| bits | 1 << number);
    let mut header = Header {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 takes a header and two data words, which both are ours.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) } < 0 {
        return Err(JailError::last_os("reading capabilities (capget)"));
    }
    // Without CAP_SETPCAP the bounding set stays, and nothing can be gained from it: no new privileges.
    if data[0].effective & 1 << 8 != 0 {
        drop_bounds(mask)?;
    }
    for (half, word) in data.iter_mut().enumerate() {
        word.permitted &= (mask >> (32 * half)) as u32;
        word.effective = word.permitted;
        word.inheritable = 0;
    }
    // SAFETY: as above; the data is only read.
    if unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) } < 0 {
        return Err(JailError::last_os("giving up capabilities (capset)"));
    }
    Ok(())
}

/// Empties the bounding set of all but `kept`.
fn drop_bounds(kept: u64) -> Result<(), JailError> {
    for number in (0..64).filter(|n| kept >> n & 1 == 0) {
        // SAFETY: plain numbers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } == 0 {
            continue;
        }
        let source = std::io::Error::last_os_error();
        if source.raw_os_error() == Some(libc::EINVAL) {
            return Ok(()); // beyond the last that this kernel has
        }
        return Err(JailError::System {
            step: "dropping capabilities (PR_CAPBSET_DROP)",
            source,
        });
    }
    Ok(())
}

/// No program that it could start would have more rights.
///
/// # Errors
/// When the kernel refuses.
pub fn no_new_privileges() -> Result<(), JailError> {
    rustix::thread::set_no_new_privs(true).map_err(|errno| JailError::System {
        step: "renouncing new privileges",
        source: errno.into(),
    })
}
