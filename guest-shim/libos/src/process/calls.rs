//! Process system calls: identity, limits, names, system information.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use cloak_abi::layout::PAGE;

use super::family::Usage;
use super::{Process, limits};
use crate::errno::{Errno, SysResult};
use crate::sched::{self, DEFAULT_SLACK, clock};
use crate::signal::timer_calls;
use crate::syscall::{Args, Entry, enosys, eperm, full, partial, refused};
use crate::user;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(39, "getpid", "", |_| Ok(sched::current().process.pid as u64)),
    full(102, "getuid", "", |_| Ok(uid(0))),
    full(107, "geteuid", "", |_| Ok(uid(1))),
    full(104, "getgid", "", |_| Ok(gid(0))),
    full(108, "getegid", "", |_| Ok(gid(1))),
    full(118, "getresuid", "xxx", |a| {
        res(a, Process::current().credentials.lock().uid)
    }),
    full(120, "getresgid", "xxx", |a| {
        res(a, Process::current().credentials.lock().gid)
    }),
    full(115, "getgroups", "ix", getgroups),
    partial(
        105,
        "setuid",
        "u",
        "kept inside: host files are accessed as the user that runs cloak",
        setuid,
    ),
    partial(106, "setgid", "u", "kept inside", setgid),
    partial(113, "setreuid", "uu", "kept inside", setreuid),
    partial(114, "setregid", "uu", "kept inside", setregid),
    partial(117, "setresuid", "uuu", "kept inside", setresuid),
    partial(119, "setresgid", "uuu", "kept inside", setresgid),
    partial(122, "setfsuid", "u", "kept inside", |a| Ok(fs_id(a, true))),
    partial(123, "setfsgid", "u", "kept inside", |a| Ok(fs_id(a, false))),
    partial(116, "setgroups", "ix", "kept inside", setgroups),
    full(63, "uname", "x", uname),
    full(97, "getrlimit", "ix", |a| {
        prlimit(&Args([0, a.u64(0), 0, a.u64(1), 0, 0]))
    }),
    full(160, "setrlimit", "ix", |a| {
        prlimit(&Args([0, a.u64(0), a.u64(1), 0, 0, 0]))
    }),
    partial(
        302,
        "prlimit64",
        "iixx",
        "held for processor time, file size, open files, processes, the stack and address space",
        prlimit,
    ),
    partial(
        98,
        "getrusage",
        "ix",
        "CPU time, faults, the most memory",
        getrusage,
    ),
    full(99, "sysinfo", "x", sysinfo),
    partial(
        157,
        "prctl",
        "ixxxx",
        "names, parent's death, subreaper, dumpable, no_new_privs; keepcaps, timer slack, memory errors, huge pages and names of memory are kept without effect; seccomp as not there",
        prctl,
    ),
    full(318, "getrandom", "xsu", getrandom),
    refused(314, "sched_setattr", "as by an older kernel", enosys),
    refused(315, "sched_getattr", "as by an older kernel", enosys),
    partial(251, "ioprio_set", "iii", "accepted", |_| Ok(0)),
    partial(252, "ioprio_get", "ii", "the default", |_| Ok(4)),
    full(135, "personality", "x", |a| {
        if matches!(a.u32(0), 0 | 0xffff_ffff) {
            Ok(0)
        } else {
            Err(Errno::EINVAL)
        }
    }),
    partial(125, "capget", "xx", "no capabilities", capget),
    refused(126, "capset", "no capabilities to set", eperm),
    refused(101, "ptrace", "a cloaked program is not traced", eperm),
    refused(298, "perf_event_open", "no performance counters inside", enosys),
    refused(321, "bpf", "no BPF inside", enosys),
    refused(317, "seccomp", "the host is out of reach anyhow", enosys),
    refused(
        425,
        "io_uring_setup",
        "programs fall back to epoll and threads",
        enosys,
    ),
    refused(426, "io_uring_enter", "programs fall back", enosys),
    refused(427, "io_uring_register", "programs fall back", enosys),
    refused(206, "io_setup", "programs fall back to threads", enosys),
    refused(248, "add_key", "no kernel keyrings", enosys),
    refused(249, "request_key", "no kernel keyrings", enosys),
    refused(250, "keyctl", "no kernel keyrings", enosys),
    refused(175, "init_module", "no kernel modules", eperm),
    refused(313, "finit_module", "no kernel modules", eperm),
    refused(176, "delete_module", "no kernel modules", eperm),
    refused(169, "reboot", "not a machine", eperm),
    refused(272, "unshare", "no name spaces inside", eperm),
    refused(308, "setns", "no name spaces inside", eperm),
    refused(310, "process_vm_readv", "memory of others is out of reach", eperm),
    refused(
        311,
        "process_vm_writev",
        "memory of others is out of reach",
        eperm,
    ),
    refused(323, "userfaultfd", "no user faults inside", enosys),
    partial(103, "syslog", "ixi", "an empty log", |_| Err(Errno::EPERM)),
    refused(170, "sethostname", "kept as configured", eperm),
    refused(171, "setdomainname", "kept as configured", eperm),
    refused(172, "iopl", "no ports", eperm),
    refused(173, "ioperm", "no ports", eperm),
    refused(444, "landlock_create_ruleset", "as by an older kernel", enosys),
];

/// Host name, set at boot.
static HOST_NAME: spin::Mutex<[u8; 65]> = spin::Mutex::new([0; 65]);

/// Sets the host name (cut to 64 bytes).
pub fn set_host_name(name: &[u8]) {
    let len = name.len().min(64);
    HOST_NAME.lock()[..len].copy_from_slice(&name[..len]);
}

/// The host name.
pub fn host_name() -> alloc::vec::Vec<u8> {
    HOST_NAME.lock().iter().copied().take_while(|&b| b != 0).collect()
}

fn uid(which: usize) -> u64 {
    u64::from(Process::current().credentials.lock().uid[which])
}

fn gid(which: usize) -> u64 {
    u64::from(Process::current().credentials.lock().gid[which])
}

fn res(a: &Args, ids: [u32; 4]) -> SysResult {
    (0..3)
        .try_for_each(|i| user::write(a.u64(i), &ids[i]))
        .map(|()| 0)
}

fn getgroups(a: &Args) -> SysResult {
    let groups = Process::current().credentials.lock().groups.clone();
    if a.i32(0) < 0 || a.i32(0) > 0 && (a.i32(0) as usize) < groups.len() {
        return Err(Errno::EINVAL);
    }
    if a.i32(0) > 0 {
        for (i, group) in groups.iter().enumerate() {
            user::write(a.u64(1) + 4 * i as u64, group)?;
        }
    }
    Ok(groups.len() as u64)
}

fn setgroups(a: &Args) -> SysResult {
    let count = a.usize(0);
    if count > 65_536 {
        return Err(Errno::EINVAL);
    }
    privileged()?;
    let groups = user::read_array::<u32>(a.u64(1), count)?;
    Process::current().credentials.lock().groups = groups;
    Ok(0)
}

fn privileged() -> SysResult<()> {
    if Process::current().credentials.lock().uid[1] == 0 {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// Sets real, effective, saved id where given; each must be one that the process has, or it is root.
fn set_ids(ids: [Option<u32>; 3], user_ids: bool) -> SysResult {
    let process = Process::current();
    let mut credentials = process.credentials.lock();
    let root = credentials.uid[1] == 0;
    let own = if user_ids {
        &mut credentials.uid
    } else {
        &mut credentials.gid
    };
    if !root && ids.iter().flatten().any(|id| !own[..3].contains(id)) {
        return Err(Errno::EPERM);
    }
    for (slot, id) in own.iter_mut().zip(ids) {
        *slot = id.unwrap_or(*slot);
    }
    own[3] = own[1];
    Ok(0)
}

fn optional(id: u32) -> Option<u32> {
    (id != u32::MAX).then_some(id)
}

fn setuid(a: &Args) -> SysResult {
    let id = Some(a.u32(0));
    if uid(1) == 0 {
        set_ids([id, id, id], true)
    } else {
        set_ids([None, id, None], true)
    }
}

fn setgid(a: &Args) -> SysResult {
    let id = Some(a.u32(0));
    if uid(1) == 0 {
        set_ids([id, id, id], false)
    } else {
        set_ids([None, id, None], false)
    }
}

fn setreuid(a: &Args) -> SysResult {
    let (real, effective) = (optional(a.u32(0)), optional(a.u32(1)));
    set_ids([real, effective, effective], true)
}

fn setregid(a: &Args) -> SysResult {
    let (real, effective) = (optional(a.u32(0)), optional(a.u32(1)));
    set_ids([real, effective, effective], false)
}

fn setresuid(a: &Args) -> SysResult {
    set_ids([0, 1, 2].map(|i| optional(a.u32(i))), true)
}

fn setresgid(a: &Args) -> SysResult {
    set_ids([0, 1, 2].map(|i| optional(a.u32(i))), false)
}

fn fs_id(a: &Args, user_ids: bool) -> u64 {
    let process = Process::current();
    let mut credentials = process.credentials.lock();
    let own = if user_ids {
        &mut credentials.uid
    } else {
        &mut credentials.gid
    };
    let old = own[3];
    if own.contains(&a.u32(0)) {
        own[3] = a.u32(0);
    }
    u64::from(old)
}

fn uname(a: &Args) -> SysResult {
    let mut out = [0u8; 65 * 6];
    let host = *HOST_NAME.lock();
    let fields: [&[u8]; 6] = [
        b"Linux",
        &host,
        b"6.1.0-cloak",
        b"#1 SMP Cloak",
        b"x86_64",
        b"(none)",
    ];
    for (i, field) in fields.iter().enumerate() {
        let len = field.len().min(64);
        out[65 * i..65 * i + len].copy_from_slice(&field[..len]);
    }
    user::copy_out(a.u64(0), &out).map(|()| 0)
}

fn prlimit(a: &Args) -> SysResult {
    let process = match a.i32(0) {
        0 => Process::current(),
        pid => super::find(pid).ok_or(Errno::ESRCH)?,
    };
    let resource = a.usize(1);
    if resource >= limits::COUNT {
        return Err(Errno::EINVAL);
    }
    let new: Option<[u64; 2]> = if a.u64(2) == 0 {
        None
    } else {
        Some(user::read(a.u64(2))?)
    };
    let mut all = process.limits.0.lock();
    if resource == limits::NOFILE {
        let (soft, hard) = process.files.limits();
        all[resource] = [soft as u64, hard as u64];
    }
    let old = all[resource];
    if let Some([soft, hard]) = new {
        if soft > hard {
            return Err(Errno::EINVAL);
        }
        if hard > old[1] && Process::current().credentials.lock().uid[1] != 0 {
            return Err(Errno::EPERM);
        }
        all[resource] = [soft, hard];
        if resource == limits::NOFILE {
            let clamp = |v: u64| usize::try_from(v).unwrap_or(usize::MAX).min(1 << 20);
            process.files.set_limits(clamp(soft), clamp(hard));
        }
    }
    drop(all);
    if new.is_some() {
        took_effect(&process, resource);
    }
    if a.u64(3) != 0 {
        user::write(a.u64(3), &old)?;
    }
    Ok(0)
}

/// A limit was set that somebody has to look after.
fn took_effect(process: &Arc<Process>, resource: usize) {
    match resource {
        limits::CPU => timer_calls::limit_cpu(process),
        limits::FSIZE => crate::fs::size_limit::begin(),
        _ => {}
    }
}

fn getrusage(a: &Args) -> SysResult {
    let process = Process::current();
    let own = Usage {
        ticks: process.cpu_time(),
        faults: process.space().lock().faults,
        peak: process.most_resident(),
    };
    let usage = match a.i32(0) {
        0 => own,
        1 => Usage {
            ticks: sched::current().cpu_time(),
            ..own
        },
        -1 => *process.family.children.lock(),
        _ => return Err(Errno::EINVAL),
    };
    let out = super::wait::rusage(&usage);
    user::write(a.u64(1), &out).map(|()| 0)
}

fn sysinfo(a: &Args) -> SysResult {
    let (used, total) = crate::mem::frames::usage();
    let mut out = [0u64; 14];
    out[0] = clock::boottime() / 1_000_000_000;
    (out[4], out[5]) = (total * 4096, (total - used) * 4096);
    out[10] = super::all().len() as u64; // processes (u16, padded)
    out[13] = 1; // memory unit, in the low half
    user::copy_out(a.u64(0), &zerocopy::IntoBytes::as_bytes(&out)[..112]).map(|()| 0)
}

fn prctl(a: &Args) -> SysResult {
    let thread = sched::current();
    let family = &thread.process.family;
    match a.i32(0) {
        15 => {
            let mut name = [0u8; 16];
            let given = user::read_string(a.u64(1), 4096)?;
            let len = given.len().min(15);
            name[..len].copy_from_slice(&given[..len]);
            *thread.name.lock() = name;
            Ok(0)
        }
        16 => user::copy_out(a.u64(1), &*thread.name.lock()).map(|()| 0),
        1 if a.u64(1) > 64 => Err(Errno::EINVAL),
        1 => {
            family.death_signal.store(a.u32(1), Ordering::Relaxed);
            Ok(0)
        }
        2 => user::write(a.u64(1), &family.death_signal.load(Ordering::Relaxed)).map(|()| 0),
        3 => Ok(u64::from(!family.undumpable.load(Ordering::Relaxed))),
        4 if a.u64(1) > 1 => Err(Errno::EINVAL),
        4 => {
            family.undumpable.store(a.u64(1) == 0, Ordering::Relaxed);
            Ok(0)
        }
        36 => {
            family.subreaper.store(a.u64(1) != 0, Ordering::Relaxed);
            Ok(0)
        }
        37 => user::write(a.u64(1), &u32::from(family.subreaper.load(Ordering::Relaxed))).map(|()| 0),
        38 if a.u64(1) != 1 || a.0[2..5] != [0; 3] => Err(Errno::EINVAL),
        38 => {
            family.no_new_privileges.store(true, Ordering::Relaxed);
            Ok(0)
        }
        39 => Ok(u64::from(family.no_new_privileges.load(Ordering::Relaxed))),
        7 => Ok(u64::from(family.keeps_capabilities.load(Ordering::Relaxed))),
        8 if a.u64(1) > 1 => Err(Errno::EINVAL),
        8 => {
            family.keeps_capabilities.store(a.u64(1) != 0, Ordering::Relaxed);
            Ok(0)
        }
        21 | 35 => Ok(0),
        29 => {
            let slack = if a.u64(1) == 0 { DEFAULT_SLACK } else { a.u64(1) };
            thread.timer_slack.store(slack, Ordering::Relaxed);
            Ok(0)
        }
        30 => Ok(thread.timer_slack.load(Ordering::Relaxed)),
        31 | 32 => Ok(0), // PR_TASK_PERF_EVENTS_DISABLE, ENABLE: there are none
        33 => {
            // PR_MCE_KILL: clear; or set to late, early, as configured
            let policy = match a.0[1..5] {
                [0, 0, 0, 0] | [1, 2, 0, 0] => 0,
                [1, 0, 0, 0] => 1,
                [1, 1, 0, 0] => 2,
                _ => return Err(Errno::EINVAL),
            };
            family.memory_errors.store(policy, Ordering::Relaxed);
            Ok(0)
        }
        34 if a.0[1..5] != [0; 4] => Err(Errno::EINVAL),
        34 => Ok([2, 0, 1][family.memory_errors.load(Ordering::Relaxed).min(2) as usize]),
        41 if a.0[2..5] != [0; 3] => Err(Errno::EINVAL),
        41 => {
            family.huge_pages_off.store(a.u64(1) != 0, Ordering::Relaxed);
            Ok(0)
        }
        42 if a.0[1..5] != [0; 4] => Err(Errno::EINVAL),
        42 => Ok(u64::from(family.huge_pages_off.load(Ordering::Relaxed))),
        23 => Ok(0), // PR_CAPBSET_READ: not in the set
        24 => Err(Errno::EPERM),
        0x5356_4d41 => name_memory(a),
        _ => Err(Errno::EINVAL),
    }
}

/// `PR_SET_VMA_ANON_NAME`: checked, and not shown anywhere.
fn name_memory(a: &Args) -> SysResult {
    if a.u64(1) != 0 || !a.u64(2).is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    if a.u64(4) != 0 {
        let name = user::read_string(a.u64(4), 79).map_err(|e| match e {
            Errno::ENAMETOOLONG => Errno::EINVAL,
            other => other,
        })?;
        if name
            .iter()
            .any(|b| !(b' '..=b'~').contains(b) || b"\\`$[]".contains(b))
        {
            return Err(Errno::EINVAL);
        }
    }
    Ok(0)
}

fn getrandom(a: &Args) -> SysResult {
    if a.u32(2) & !7 != 0 {
        return Err(Errno::EINVAL);
    }
    let len = a.usize(1).min(0x1ff_ffff);
    let mut done = 0;
    let mut chunk = [0u8; 256];
    while done < len {
        let step = chunk.len().min(len - done);
        crate::random::fill(&mut chunk[..step]);
        match user::copy_out(a.u64(0) + done as u64, &chunk[..step]) {
            Ok(()) => done += step,
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
    }
    Ok(done as u64)
}

fn capget(a: &Args) -> SysResult {
    const VERSION: u32 = 0x2008_0522;
    let version: u32 = user::read(a.u64(0))?;
    if version != VERSION {
        user::write(a.u64(0), &VERSION)?;
        return if a.u64(1) == 0 { Ok(0) } else { Err(Errno::EINVAL) };
    }
    if a.u64(1) != 0 {
        user::write(a.u64(1), &[0u32; 6])?;
    }
    Ok(0)
}
