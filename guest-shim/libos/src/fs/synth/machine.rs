//! `/proc` files about the machine.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;

use super::{Fixed, Item, made, text};
use crate::fs::attributes::split_dev;
use crate::fs::{fd, mount, path, providers};

/// Clock ticks in a second, as `/proc` counts (`USER_HZ`).
pub const TICKS: u64 = 100;

/// The names in `/proc` that are no processes.
pub fn items() -> Vec<(&'static [u8], Item)> {
    alloc::vec![
        (b"cpuinfo", made(cpuinfo)),
        (b"meminfo", made(meminfo)),
        (b"stat", made(stat)),
        (b"uptime", made(uptime)),
        (b"loadavg", made(loadavg)),
        (b"version", made(|| format!("{}\n", providers::get().version()))),
        (b"cmdline", text("cloak\n")),
        (
            b"filesystems",
            text("nodev\tsysfs\nnodev\tproc\nnodev\ttmpfs\nnodev\tdevtmpfs\n\tcloakfs\n")
        ),
        (b"locks", made(crate::fs::locks::listing)),
        (
            b"devices",
            text("Character devices:\n  1 mem\n  5 /dev/tty\n\nBlock devices:\n")
        ),
        (
            b"cgroups",
            text("#subsys_name\thierarchy\tnum_cgroups\tenabled\n")
        ),
        (
            b"swaps",
            text("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")
        ),
        (b"vmstat", made(vmstat)),
        (b"diskstats", text("")),
        (b"partitions", text("major minor  #blocks  name\n\n")),
        (b"modules", text("")),
        (b"mounts", super::tasks::link("self/mounts")),
        (b"net", super::tasks::link("self/net")),
        (b"sys", sys()),
    ]
}

fn cpuinfo() -> String {
    let (leaf, brand) = (Cpu::read(), Cpu::brand());
    let cpus = providers::get().cpus();
    let mhz = providers::get().tsc_hz() / 1000;
    let mut out = String::new();
    for cpu in 0..cpus {
        // Writing to a string does not fail.
        let _ = write!(
            out,
            "processor\t: {cpu}\nvendor_id\t: {}\ncpu family\t: {}\nmodel\t\t: {}\nmodel name\t: {brand}\n\
             stepping\t: {}\nmicrocode\t: 0x1\ncpu MHz\t\t: {}.{:03}\ncache size\t: 1024 KB\nphysical id\t: 0\n\
             siblings\t: {cpus}\ncore id\t\t: {cpu}\ncpu cores\t: {cpus}\napicid\t\t: {cpu}\n\
             initial apicid\t: {cpu}\nfpu\t\t: yes\nfpu_exception\t: yes\ncpuid level\t: 13\nwp\t\t: yes\n\
             flags\t\t: {}\nbugs\t\t:\nbogomips\t: {}.{:02}\nclflush size\t: 64\ncache_alignment\t: 64\n\
             address sizes\t: 48 bits physical, 48 bits virtual\npower management:\n\n",
            leaf.vendor,
            leaf.family,
            leaf.model,
            leaf.stepping,
            mhz / 1000,
            mhz % 1000,
            leaf.flags,
            mhz / 500,
            mhz / 5 % 100,
        );
    }
    out
}

/// What CPUID says.
struct Cpu {
    vendor: String,
    family: u32,
    model: u32,
    stepping: u32,
    flags: String,
}

/// Flags by leaf (1 ECX, 1 EDX, 7 EBX, 7 ECX, 0x8000_0001 ECX, EDX) and bit, as Linux names them.
const FLAGS: &[(usize, u32, &str)] = &[
    (1, 0, "fpu"),
    (1, 4, "tsc"),
    (1, 6, "pae"),
    (1, 8, "cx8"),
    (1, 15, "cmov"),
    (1, 19, "clflush"),
    (1, 23, "mmx"),
    (1, 24, "fxsr"),
    (1, 25, "sse"),
    (1, 26, "sse2"),
    (1, 28, "ht"),
    (5, 11, "syscall"),
    (5, 20, "nx"),
    (5, 27, "rdtscp"),
    (5, 29, "lm"),
    (0, 0, "pni"),
    (0, 1, "pclmulqdq"),
    (0, 9, "ssse3"),
    (0, 12, "fma"),
    (0, 13, "cx16"),
    (0, 19, "sse4_1"),
    (0, 20, "sse4_2"),
    (0, 22, "movbe"),
    (0, 23, "popcnt"),
    (0, 25, "aes"),
    (0, 26, "xsave"),
    (0, 28, "avx"),
    (0, 29, "f16c"),
    (0, 30, "rdrand"),
    (0, 31, "hypervisor"),
    (4, 0, "lahf_lm"),
    (4, 5, "abm"),
    (4, 6, "sse4a"),
    (2, 0, "fsgsbase"),
    (2, 3, "bmi1"),
    (2, 5, "avx2"),
    (2, 8, "bmi2"),
    (2, 9, "erms"),
    (2, 16, "avx512f"),
    (2, 17, "avx512dq"),
    (2, 18, "rdseed"),
    (2, 19, "adx"),
    (2, 23, "clflushopt"),
    (2, 24, "clwb"),
    (2, 28, "avx512cd"),
    (2, 29, "sha_ni"),
    (2, 30, "avx512bw"),
    (2, 31, "avx512vl"),
    (3, 8, "gfni"),
    (3, 9, "vaes"),
    (3, 10, "vpclmulqdq"),
    (3, 22, "rdpid"),
];

impl Cpu {
    fn read() -> Self {
        use core::arch::x86_64::{__cpuid, __cpuid_count};
        let (zero, one) = (__cpuid(0), __cpuid(1));
        let seven = if zero.eax >= 7 {
            __cpuid_count(7, 0)
        } else {
            __cpuid_count(0x8000_0000, 0)
        };
        let (ebx7, ecx7) = if zero.eax >= 7 {
            (seven.ebx, seven.ecx)
        } else {
            (0, 0)
        };
        let extended = __cpuid(0x8000_0001);
        let words = [one.ecx, one.edx, ebx7, ecx7, extended.ecx, extended.edx];
        let names = FLAGS
            .iter()
            .filter(|(word, bit, _)| words[*word] >> bit & 1 != 0)
            .map(|(_, _, name)| *name);
        let flags: Vec<&str> = names
            .chain(["constant_tsc", "nonstop_tsc", "rep_good", "nopl"])
            .collect();
        let vendor = [zero.ebx, zero.edx, zero.ecx]
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect::<Vec<_>>();
        let (family, model) = (one.eax >> 8 & 15, one.eax >> 4 & 15);
        let (more_family, more_model) = (one.eax >> 20 & 0xff, one.eax >> 16 & 15);
        Self {
            vendor: String::from_utf8_lossy(&vendor).into_owned(),
            family: if family == 15 {
                family + more_family
            } else {
                family
            },
            model: if matches!(family, 6 | 15) {
                more_model << 4 | model
            } else {
                model
            },
            stepping: one.eax & 15,
            flags: flags.join(" "),
        }
    }

    fn brand() -> String {
        let words = (0x8000_0002u32..=0x8000_0004).map(core::arch::x86_64::__cpuid);
        let bytes: Vec<u8> = words
            .flat_map(|l| [l.eax, l.ebx, l.ecx, l.edx])
            .flat_map(u32::to_le_bytes)
            .filter(|&b| b != 0)
            .collect();
        String::from(String::from_utf8_lossy(&bytes).trim())
    }
}

fn meminfo() -> String {
    let memory = providers::get().memory();
    let kib = |bytes: u64| bytes / 1024;
    let (total, free) = (kib(memory.total), kib(memory.free));
    let (shared, slabs, objects) = (
        kib(memory.in_memory_files),
        kib(memory.slabs),
        kib(memory.objects),
    );
    // As on Linux, files in memory count as cached but can't be let go.
    let cached = kib(memory.cached) + shared;
    let lines = [
        ("MemTotal:", total),
        ("MemFree:", free),
        ("MemAvailable:", free + cached - shared),
        ("Buffers:", 0),
        ("Cached:", cached),
        ("SwapCached:", 0),
        ("Active:", total - free.min(total)),
        ("Inactive:", 0),
        ("SwapTotal:", 0),
        ("SwapFree:", 0),
        ("Dirty:", 0),
        ("Writeback:", 0),
        (
            "AnonPages:",
            total.saturating_sub(free + cached + slabs + kib(memory.kept_for_tables)),
        ),
        ("Mapped:", 0),
        ("Shmem:", shared),
        ("Slab:", slabs),
        ("SReclaimable:", slabs.saturating_sub(objects)),
        ("SUnreclaim:", objects),
        ("KernelStack:", 0),
        ("PageTables:", kib(memory.tables)),
        ("CommitLimit:", total),
        ("Committed_AS:", total - free.min(total)),
        ("VmallocTotal:", 34_359_738_367),
        ("VmallocUsed:", 0),
        ("AnonHugePages:", 0),
    ];
    let mut out = String::new();
    for (name, value) in lines {
        let _ = writeln!(out, "{name:<16}{value:>8} kB");
    }
    out.push_str("HugePages_Total:       0\nHugePages_Free:        0\nHugepagesize:       2048 kB\n");
    out
}

fn busy_ticks() -> u64 {
    let tasks = providers::get();
    let all = tasks
        .processes()
        .into_iter()
        .filter_map(|pid| tasks.task(pid, pid));
    all.map(|t| t.user_ns + t.system_ns).sum::<u64>() / (1_000_000_000 / TICKS)
}

fn stat() -> String {
    let providers = providers::get();
    let (cpus, up) = (
        providers.cpus() as u64,
        providers.uptime_ns() / (1_000_000_000 / TICKS),
    );
    let busy = busy_ticks().min(up * cpus);
    let line = |user: u64, idle: u64| format!("{user} 0 0 {idle} 0 0 0 0 0 0\n");
    let mut out = format!("cpu  {}", line(busy, up * cpus - busy));
    for cpu in 0..cpus {
        let _ = write!(
            out,
            "cpu{cpu} {}",
            line(busy / cpus, up.saturating_sub(busy / cpus))
        );
    }
    let boot = providers.now()[0].saturating_sub((providers.uptime_ns() / 1_000_000_000) as i64);
    let processes = providers.processes().len();
    let _ = write!(
        out,
        "intr 0\nctxt 0\nbtime {boot}\nprocesses {processes}\nprocs_running 1\nprocs_blocked 0\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n"
    );
    out
}

fn uptime() -> String {
    let hundredths = providers::get().uptime_ns() / 10_000_000;
    let idle = (hundredths * providers::get().cpus() as u64).saturating_sub(busy_ticks());
    format!(
        "{}.{:02} {}.{:02}\n",
        hundredths / 100,
        hundredths % 100,
        idle / 100,
        idle % 100
    )
}

fn loadavg() -> String {
    let processes = providers::get().processes();
    let last = processes.iter().max().copied().unwrap_or(1);
    let threads = providers::get().all_threads();
    format!("0.00 0.00 0.00 1/{threads} {last}\n")
}

fn vmstat() -> String {
    let memory = providers::get().memory();
    format!(
        "nr_free_pages {}\nnr_file_pages {}\npgfault 0\npgmajfault 0\n",
        memory.free / 4096,
        memory.cached / 4096
    )
}

/// `/proc/PID/mounts`.
pub fn mounts() -> String {
    let mut out = String::new();
    for mount in mount::all() {
        let access = if mount.read_only { "ro" } else { "rw" };
        let _ = writeln!(
            out,
            "{} {} {} {access},relatime 0 0",
            mount.kind,
            escaped(&mount.path),
            mount.kind
        );
    }
    out
}

/// `/proc/PID/mountinfo`.
pub fn mountinfo() -> String {
    let mut out = String::new();
    let mounts = mount::all();
    for mount in &mounts {
        let parent = match path::split_last(&mount.path) {
            Some((above, _)) => mounts
                .iter()
                .filter(|m| path::below(&m.path, above).is_some())
                .max_by_key(|m| m.path.len())
                .map_or(1, |m| m.id),
            None => 1,
        };
        let access = if mount.read_only { "ro" } else { "rw" };
        let (major, minor) = split_dev(mount.device().unwrap_or(0));
        let path = escaped(&mount.path);
        let _ = writeln!(
            out,
            "{} {parent} {major}:{minor} / {path} {access},relatime - {1} {1} {access}",
            mount.id, mount.kind
        );
    }
    out
}

/// A path as the mount tables write it: octal for what would be taken for a separator.
pub fn escaped(path: &[u8]) -> String {
    let mut out = String::new();
    for part in path.utf8_chunks() {
        for c in part.valid().chars() {
            match c {
                ' ' | '\t' | '\n' | '\\' => {
                    let _ = write!(out, "\\{:03o}", c as u32);
                }
                c => out.push(c),
            }
        }
        if !part.invalid().is_empty() {
            out.push('\u{fffd}');
        }
    }
    out
}

fn ignore(_: &[u8]) -> crate::errno::SysResult<()> {
    Ok(())
}

fn setting(value: &'static str) -> Item {
    Item::Writable(
        Arc::new(move || Ok(format!("{value}\n").into_bytes())),
        Arc::new(ignore),
    )
}

fn uuid() -> String {
    let mut b = [0u8; 16];
    // Without randomness the zero UUID, which nobody takes for unique.
    let _ = providers::get().random(&mut b);
    b[6] = b[6] & 15 | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let hex: Vec<String> = b.iter().map(|b| format!("{b:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}\n",
        hex[..4].concat(),
        hex[4..6].concat(),
        hex[6..8].concat(),
        hex[8..10].concat(),
        hex[10..].concat()
    )
}

static BOOT_ID: spin::Lazy<String> = spin::Lazy::new(uuid);

fn sys() -> Item {
    let random = Fixed::default()
        .with("uuid", made(uuid))
        .with("boot_id", made(|| BOOT_ID.clone()))
        .with("entropy_avail", text("256\n"))
        .with("poolsize", text("256\n"));
    let host_name = made(|| [&providers::get().host_name()[..], b"\n"].concat());
    let kernel = Fixed::default()
        .with("osrelease", text("6.1.0-cloak\n"))
        .with("ostype", text("Linux\n"))
        .with("version", text("#1 SMP PREEMPT_DYNAMIC\n"))
        .with("hostname", host_name)
        .with("domainname", text("(none)\n"))
        .with("pid_max", text("4194304\n"))
        .with("threads-max", text("63450\n"))
        .with("ngroups_max", text("65536\n"))
        .with("cap_last_cap", text("40\n"))
        .with("core_pattern", setting("core"))
        .with("core_uses_pid", setting("0"))
        .with("randomize_va_space", setting("2"))
        .with("sched_child_runs_first", setting("0"))
        .with("perf_event_paranoid", text("4\n"))
        .with("kptr_restrict", text("2\n"))
        .with("dmesg_restrict", text("1\n"))
        .with(
            "seccomp",
            Fixed::default().with("actions_avail", text("\n")).done(),
        )
        .with("shmmax", text("18446744073692774399\n"))
        .with("shmall", text("18446744073692774399\n"))
        .with("shmmni", text("4096\n"))
        .with("sem", text("32000\t1024000000\t500\t32000\n"))
        .with("msgmax", text("8192\n"))
        .with("msgmnb", text("16384\n"))
        .with("msgmni", text("32000\n"))
        .with("tainted", text("0\n"))
        .with("random", random.done());
    let vm = Fixed::default()
        .with("overcommit_memory", setting("0"))
        .with("overcommit_ratio", setting("50"))
        .with("max_map_count", setting("65530"))
        .with("mmap_min_addr", text("65536\n"))
        .with("swappiness", setting("60"))
        .with("nr_hugepages", text("0\n"));
    let files = Fixed::default()
        .with("file-max", text("1048576\n"))
        .with("file-nr", made(|| format!("{}\t0\t1048576\n", fd::open_files())))
        .with("nr_open", text("1048576\n"))
        .with("pipe-max-size", text("1048576\n"))
        .with("pipe-user-pages-soft", text("16384\n"))
        .with("aio-max-nr", text("65536\n"))
        .with("protected_hardlinks", text("0\n"))
        .with("protected_symlinks", text("0\n"))
        .with(
            "inotify",
            Fixed::default()
                .with("max_queued_events", text("16384\n"))
                .with("max_user_instances", text("1024\n"))
                .with("max_user_watches", text("65536\n"))
                .done(),
        )
        .with(
            "epoll",
            Fixed::default()
                .with("max_user_watches", text("1048576\n"))
                .done(),
        );
    let core = Fixed::default()
        .with("somaxconn", text("4096\n"))
        .with("rmem_max", text("212992\n"))
        .with("wmem_max", text("212992\n"))
        .with("rmem_default", text("212992\n"))
        .with("wmem_default", text("212992\n"));
    let ipv4 = Fixed::default()
        .with("ip_local_port_range", text("32768\t60999\n"))
        .with("tcp_rmem", text("4096\t131072\t6291456\n"))
        .with("tcp_wmem", text("4096\t16384\t4194304\n"))
        .with("tcp_fin_timeout", text("60\n"))
        .with("tcp_max_syn_backlog", text("512\n"))
        .with("ip_unprivileged_port_start", text("1024\n"))
        .with("tcp_congestion_control", text("cubic\n"));
    Fixed::default()
        .with("kernel", kernel.done())
        .with("vm", vm.done())
        .with("fs", files.done())
        .with(
            "net",
            Fixed::default()
                .with("core", core.done())
                .with("ipv4", ipv4.done())
                .done(),
        )
        .done()
}
