//! seccomp: which system calls can be made.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::JailError;

/// Which arguments a call may have. Arguments count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Any.
    Always,
    /// As 32 bits it is one of these.
    OneOf(u8, &'static [u32]),
    /// It has none of these bits.
    Without(u8, u64),
    /// It has all of these bits.
    With(u8, u64),
    /// Those bits of it (the mask, first) have this value.
    Masked(u8, u64, u64),
    /// It is this process's own number.
    Own(u8),
}

/// A call that may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// Its number.
    pub number: libc::c_long,
    /// Its name.
    pub name: &'static str,
    /// With which arguments.
    pub when: When,
    /// The same in words, for `docs/jail.md`.
    pub words: &'static str,
}

macro_rules! calls {
    ($($number:ident $(($when:expr, $words:literal))?),* $(,)?) => {
        [$(calls!(one $number $($when, $words)?)),*]
    };
    (one $number:ident) => { calls!(one $number When::Always, "") };
    (one $number:ident $when:expr, $words:literal) => {
        Allowed { number: libc::$number, name: stringify!($number).split_at(4).1, when: $when, words: $words }
    };
}

/// Threads of this program: what `pthread_create` asks for.
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;
const EXECUTABLE: u64 = libc::PROT_EXEC as u64;
/// `PR_GET_AUXV`, by which `rustix` finds the vDSO.
const PR_GET_AUXV: u32 = 0x4155_5856;
const HARMLESS: &[u32] = &[libc::PR_SET_NAME as u32, libc::PR_SET_VMA as u32, PR_GET_AUXV];

/// What any program of ours needs: memory, threads, the end.
pub const COMMON: &[Allowed] = &calls![
    SYS_brk,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_clone(When::With(0, THREAD), "threads only"),
    SYS_close,
    SYS_exit,
    SYS_exit_group,
    SYS_fcntl,
    SYS_futex,
    SYS_getpid,
    SYS_getrandom,
    SYS_gettid,
    SYS_madvise,
    SYS_mmap(When::Without(2, EXECUTABLE), "never executable"),
    SYS_mprotect(When::Without(2, EXECUTABLE), "never executable"),
    SYS_mremap,
    SYS_munmap,
    SYS_nanosleep,
    SYS_poll,
    SYS_ppoll,
    SYS_prctl(
        When::OneOf(0, HARMLESS),
        "names of threads and memory, its own auxiliary vector"
    ),
    SYS_read,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    SYS_set_robust_list,
    SYS_sigaltstack,
    SYS_tgkill(When::Own(0), "itself only"),
    SYS_write,
];

/// What the OS service needs besides: the guest's files and sockets.
const OS_SERVICE: &[Allowed] = &calls![
    SYS_accept4,
    SYS_bind,
    SYS_connect,
    SYS_copy_file_range,
    SYS_dup,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_wait,
    SYS_eventfd2,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_fallocate,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_fchown,
    SYS_fchownat,
    SYS_fdatasync,
    SYS_fgetxattr,
    SYS_flistxattr,
    SYS_flock,
    SYS_fremovexattr,
    SYS_fsetxattr,
    SYS_fstat,
    SYS_fstatfs,
    SYS_fsync,
    SYS_ftruncate,
    SYS_getdents64,
    SYS_getpeername,
    SYS_getpgid,
    SYS_getpgrp,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_getxattr,
    SYS_ioctl,
    SYS_kill(When::OneOf(0, &[0]), "its own process group only (job control)"),
    SYS_linkat,
    SYS_listen,
    SYS_listxattr,
    SYS_lseek,
    SYS_memfd_create,
    SYS_mkdirat,
    SYS_mknodat,
    SYS_newfstatat,
    SYS_open,
    SYS_openat,
    SYS_openat2,
    SYS_pipe2,
    SYS_pread64,
    SYS_preadv,
    SYS_preadv2,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_pwritev2,
    SYS_readlink,
    SYS_readlinkat,
    SYS_readv,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_removexattr,
    SYS_renameat2,
    SYS_sendfile,
    SYS_sendmsg,
    SYS_sendto,
    SYS_setsockopt,
    SYS_setxattr,
    SYS_shutdown,
    SYS_socket,
    SYS_socketpair,
    SYS_statx,
    SYS_symlinkat,
    SYS_sync_file_range,
    SYS_syncfs,
    SYS_sysinfo,
    SYS_unlinkat,
    SYS_utimensat,
    SYS_writev,
];

/// Requests of KVM (`KVMIO`) and of userfaultfd (`UFFDIO`) have their letter in this byte.
const LETTER: u64 = 0xff00;

/// What the monitor needs besides once the VM has started.
const MONITOR: &[Allowed] = &calls![
    SYS_accept4,
    SYS_eventfd2,
    SYS_fallocate,
    SYS_fdatasync,
    SYS_getsockopt(
        When::OneOf(2, &[libc::SO_PEERCRED as u32]),
        "who a caller of the control socket is"
    ),
    SYS_ioctl(When::Masked(1, LETTER, 0xae00), "KVM's"),
    SYS_ioctl(When::Masked(1, LETTER, 0xaa00), "userfaultfd's"),
    SYS_lseek,
    SYS_pidfd_send_signal,
    SYS_pread64,
    SYS_preadv,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_recvmsg,
    SYS_rt_sigtimedwait,
    SYS_sendmsg,
    SYS_statx,
    SYS_waitid,
    SYS_writev,
];

/// Families of sockets on which a quoting service listens.
const QUOTING: &[u32] = &[libc::AF_UNIX as u32, libc::AF_VSOCK as u32];

/// What the process that fetches quotes needs besides.
const QUOTES: &[Allowed] = &calls![
    SYS_connect,
    SYS_sendmsg,
    SYS_sendto,
    SYS_setsockopt,
    SYS_socket(When::OneOf(0, QUOTING), "Unix sockets and vsock"),
];

/// One rule for each way to be accepted; none: any arguments are.
fn accepted(when: When) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let one = |arg, len, op, value| {
        SeccompCondition::new(arg, len, op, value).and_then(|condition| SeccompRule::new(vec![condition]))
    };
    match when {
        When::Always => Ok(Vec::new()),
        When::OneOf(arg, values) => {
            let rule = |value: &u32| one(arg, Len::Dword, Op::Eq, u64::from(*value));
            values.iter().map(rule).collect()
        }
        When::Without(arg, bits) => Ok(vec![one(arg, Len::Qword, Op::MaskedEq(bits), 0)?]),
        When::With(arg, bits) => Ok(vec![one(arg, Len::Qword, Op::MaskedEq(bits), bits)?]),
        When::Masked(arg, mask, value) => Ok(vec![one(arg, Len::Qword, Op::MaskedEq(mask), value)?]),
        When::Own(arg) => Ok(vec![one(arg, Len::Dword, Op::Eq, u64::from(std::process::id()))?]),
    }
}

fn rules(tables: &[&[Allowed]]) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for allowed in tables.iter().copied().flatten() {
        let of_call = rules.entry(allowed.number).or_default();
        of_call.extend(accepted(allowed.when)?);
    }
    Ok(rules)
}

/// A call that is answered with an error instead of ending the process: the C library makes it and can do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Its number.
    pub number: libc::c_long,
    /// Its name.
    pub name: &'static str,
    /// The error.
    pub errno: i32,
    /// Why it is made.
    pub words: &'static str,
}

/// Its arguments are in memory, which a filter can't look at.
const CLONE3: Refused = Refused {
    number: libc::SYS_clone3,
    name: "clone3",
    errno: libc::ENOSYS,
    words: "the C library falls back to `clone`",
};
const OPEN: Refused = Refused {
    number: libc::SYS_openat,
    name: "openat",
    errno: libc::EACCES,
    words: "`malloc` looks at `/proc/sys/vm/overcommit_memory` when it gives memory back",
};

/// A process with a filter.
#[derive(Debug, Clone, Copy)]
pub struct Party {
    /// Calls besides [`COMMON`].
    pub own: &'static [Allowed],
    /// Calls that get an error.
    pub refused: &'static [Refused],
    /// Calls of these that it can't make after all.
    pub without: &'static [libc::c_long],
}

/// The OS service.
pub const SERVICE: Party = Party {
    own: OS_SERVICE,
    refused: &[CLONE3],
    without: &[],
};
/// The OS service of a context without network: it makes no socket and gives none a name or a peer. The rest is for
/// standard streams, which may be sockets.
pub const OFFLINE: Party = Party {
    own: OS_SERVICE,
    refused: &[CLONE3],
    without: &[
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_bind,
        libc::SYS_connect,
        libc::SYS_listen,
        libc::SYS_accept4,
    ],
};
/// The monitor, once the VM has started.
pub const VM: Party = Party {
    own: MONITOR,
    refused: &[CLONE3, OPEN],
    without: &[],
};

/// The process that fetches the quotes of a TDX domain.
pub const COURIER: Party = Party {
    own: QUOTES,
    refused: &[CLONE3, OPEN],
    without: &[],
};

/// Every thread of this process makes only these calls from now on; any other ends the process (SIGSYS).
///
/// # Errors
/// When the kernel refuses.
pub fn close(party: &Party) -> Result<(), JailError> {
    let mut all = rules(&[COMMON, party.own])?;
    all.retain(|number, _| !party.without.contains(number));
    // Of several filters' answers the strictest counts, so each error has a filter of its own that allows all else.
    for refused in party.refused {
        all.insert(refused.number, Vec::new());
        let only = BTreeMap::from([(refused.number, Vec::new())]);
        apply(
            only,
            SeccompAction::Allow,
            SeccompAction::Errno(refused.errno as u32),
        )?;
    }
    apply(all, SeccompAction::KillProcess, SeccompAction::Allow)
}

fn apply(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<(), JailError> {
    let filter = SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(seccompiler::apply_filter_all_threads(&program)?)
}
