//! The monitor has the guest's plaintext on plain KVM, so it lets no other process of its user look.

use super::error::VmError;

/// Makes this process undumpable, with no core file at all: from then on `/proc/PID/mem`, ptrace and
/// process_vm_readv are refused to whoever lacks CAP_SYS_PTRACE. Root has it, and is trusted on plain KVM.
///
/// # Errors
/// When the kernel refuses.
pub fn hide() -> Result<(), VmError> {
    // SAFETY: plain calls with constants.
    unsafe {
        if libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 {
            return Err(VmError::last_os("making the monitor undumpable"));
        }
        // A core_pattern that is a pipe ignores the limit, but not the line above.
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        if libc::setrlimit(libc::RLIMIT_CORE, &raw const none) < 0 {
            return Err(VmError::last_os("forbidding core files"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Error;

    /// Another process of the same user tries to read this one's memory.
    fn stolen(pid: libc::pid_t, at: u64) -> Result<u64, i32> {
        let mut word = 0u64;
        let local = libc::iovec {
            iov_base: (&raw mut word).cast(),
            iov_len: 8,
        };
        let remote = libc::iovec {
            iov_base: at as *mut libc::c_void,
            iov_len: 8,
        };
        // SAFETY: both segments are eight bytes; the other side's address is only read, by the kernel.
        match unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) } {
            8 => Ok(word),
            _ => Err(Error::last_os_error().raw_os_error().unwrap_or(0)),
        }
    }

    /// Run in a child, because it cannot be undone: a process that gave up root hides, and its own child, of the
    /// same user, looks.
    #[test]
    fn a_process_of_the_same_user_cannot_read_the_monitor() {
        static SECRET: u64 = 0x5ec2_e75e_c2e7;
        let at = &raw const SECRET as u64;
        let look = |hidden: bool| {
            // SAFETY: between fork and _exit only system calls are made.
            let monitor = unsafe { libc::fork() };
            assert!(monitor >= 0);
            if monitor == 0 {
                // SAFETY: as above; 65534 is nobody. Without root the user stays the same, which serves as well.
                unsafe {
                    libc::setgid(65534);
                    libc::setuid(65534);
                    // A change of user hides by itself: the comparison starts open.
                    libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
                }
                let fine = !hidden || hide().is_ok();
                // SAFETY: as above.
                let (pid, thief) = unsafe { (libc::getpid(), libc::fork()) };
                if thief == 0 {
                    // The child of an undumpable process is one too; it is the monitor that is looked at.
                    let code = match stolen(pid, at) {
                        Ok(word) if word == SECRET => 1,
                        Err(libc::EPERM) => 2,
                        _ => 3,
                    };
                    // SAFETY: ends this process only.
                    unsafe { libc::_exit(code) };
                }
                let mut status = 0;
                // SAFETY: our own child, our own variable.
                unsafe { libc::waitpid(thief, &raw mut status, 0) };
                let code = if fine { libc::WEXITSTATUS(status) } else { 4 };
                // SAFETY: ends this process only.
                unsafe { libc::_exit(code) };
            }
            let mut status = 0;
            // SAFETY: our own child, our own variable.
            unsafe { libc::waitpid(monitor, &raw mut status, 0) };
            libc::WEXITSTATUS(status)
        };
        assert_eq!(
            look(false),
            1,
            "without hiding the secret is read: the attack works"
        );
        assert_eq!(look(true), 2, "hidden, EPERM");
    }

    /// Whether the kernel made a core of a child that a signal ended, though its limits allow one.
    fn leaves_a_core(hidden: bool) -> bool {
        let folder = tempfile::tempdir().expect("a folder");
        let path = std::ffi::CString::new(folder.path().as_os_str().as_encoded_bytes()).expect("a path");
        // SAFETY: between fork and the signal only system calls are made.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            // SAFETY: as above.
            unsafe {
                libc::chdir(path.as_ptr());
                let fine = !hidden || libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) == 0;
                let much = libc::rlimit {
                    rlim_cur: 1 << 30,
                    rlim_max: 1 << 30,
                };
                // Only what says that it may not be dumped is between it and a core.
                if !fine || libc::setrlimit(libc::RLIMIT_CORE, &raw const much) < 0 {
                    libc::_exit(1);
                }
                libc::signal(libc::SIGABRT, libc::SIG_DFL);
                libc::kill(libc::getpid(), libc::SIGABRT);
                libc::_exit(2);
            }
        }
        let mut status = 0;
        // SAFETY: our own child, our own variable.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert!(libc::WIFSIGNALED(status), "status {status:x}");
        let files = std::fs::read_dir(folder.path()).expect("the folder").count();
        assert!(!hidden || files == 0, "files where it was");
        libc::WCOREDUMP(status)
    }

    /// The OS service hides by the same call. A limit of zero stands before it as well ([`crate::jail`]).
    #[test]
    fn the_kernel_makes_no_core_of_a_hidden_process() {
        assert!(!leaves_a_core(true));
        let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
        if leaves_a_core(false) {
            return;
        }
        // Where cores of others go nowhere there is nothing to compare with.
        println!(
            "skipped in part: core_pattern is {:?}, and no core came of it",
            pattern.trim()
        );
    }
}
