//! `/sys`: CPUs with their topology and caches, one NUMA node, a control group of nothing.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Fixed, Item, Source, made, text};
use crate::errno::{Errno, SysResult};
use crate::fs::protected::pending;
use crate::fs::providers;
use crate::identity;
use crate::net::mode::{self, Mode};
use crate::net::private;

/// Its root.
pub fn root() -> Arc<dyn Source> {
    let empty = || Fixed::default().done();
    let system = Fixed::default()
        .with("cpu", Item::Directory(Arc::new(Cpus)))
        .with("node", node());
    let devices = Fixed::default()
        .with("system", system.done())
        .with("virtual", empty());
    let huge = Fixed::default()
        .with("enabled", text("always [madvise] never\n"))
        .with("defrag", text("always defer defer+madvise [madvise] never\n"))
        .with(
            "shmem_enabled",
            text("always within_size advise [never] deny force\n"),
        )
        .with("use_zero_page", text("0\n"))
        .with("hpage_pmd_size", text("2097152\n"));
    let mm = Fixed::default()
        .with("transparent_hugepage", huge.done())
        .with("hugepages", empty());
    let cgroup = Fixed::default()
        .with("cgroup.controllers", text("\n"))
        .with("cgroup.subtree_control", text("\n"))
        .with("cgroup.procs", made(|| lines(&providers::get().processes())));
    let fs = Fixed::default().with("cgroup", cgroup.done());
    let class = Fixed::default().with("net", interfaces()).with("block", empty());
    Arc::new(
        Fixed::default()
            .with("devices", devices.done())
            .with(
                "kernel",
                Fixed::default()
                    .with("cloak", cloak())
                    .with("config", super::tsm::config())
                    .with("mm", mm.done())
                    .done(),
            )
            .with("fs", fs.done())
            .with("class", class.done())
            .with("block", empty())
            .with("bus", empty())
            .with("dev", empty())
            .with("module", empty()),
    )
}

/// The interfaces of a private network. Those of the host are not shown.
fn interfaces() -> Item {
    if mode::get() != Mode::Private {
        return Fixed::default().done();
    }
    let all = private::interfaces::ALL.iter();
    let all = all.fold(Fixed::default(), |all, interface| {
        let files = private::texts::attributes(interface).into_iter();
        let files = files.fold(Fixed::default(), |files, (name, content)| {
            files.with(name, text(content))
        });
        all.with(interface.name, files.done())
    });
    all.done()
}

/// What the context is: as hexadecimal digits, and the manifest that it follows from.
fn cloak() -> Item {
    let all = Fixed::default()
        .with("identity", made(identity::text))
        .with("manifest", made(identity::manifest))
        .with("platform", made(|| format!("{}\n", providers::get().platform())));
    if !pending::is_waiting() {
        return all.done();
    }
    let none = Arc::new(|| Err(Errno::EACCES));
    all.with("root_key", Item::Writable(none, Arc::new(pending::take)))
        .done()
}

fn lines(numbers: &[i32]) -> String {
    numbers.iter().map(|n| format!("{n}\n")).collect()
}

/// `0-3`, as lists of CPUs are written.
fn cpu_list() -> String {
    match providers::get().cpus() {
        0 | 1 => String::from("0\n"),
        n => format!("0-{}\n", n - 1),
    }
}

/// A mask of CPUs: words of 32 bits, the highest first.
fn cpu_mask(from: usize, count: usize) -> String {
    let words = providers::get().cpus().div_ceil(32).max(1);
    let bit = |cpu: usize| (from..from + count).contains(&cpu);
    let word = |w: usize| (0..32).filter(|b| bit(w * 32 + b)).fold(0u32, |m, b| m | 1 << b);
    let text: Vec<String> = (0..words).rev().map(|w| format!("{:08x}", word(w))).collect();
    format!("{}\n", text.join(","))
}

fn node() -> Item {
    let zero = Fixed::default()
        .with("cpulist", made(cpu_list))
        .with("cpumap", made(|| cpu_mask(0, providers::get().cpus())))
        .with("distance", text("10\n"))
        .with(
            "meminfo",
            made(|| {
                let memory = providers::get().memory();
                format!(
                    "Node 0 MemTotal: {} kB\nNode 0 MemFree: {} kB\n",
                    memory.total / 1024,
                    memory.free / 1024
                )
            }),
        );
    Fixed::default()
        .with("online", text("0\n"))
        .with("possible", text("0\n"))
        .with("has_cpu", text("0\n"))
        .with("has_memory", text("0\n"))
        .with("node0", zero.done())
        .done()
}

struct Cpus;

const LISTS: [&[u8]; 4] = [b"online", b"possible", b"present", b"kernel_max"];

impl Source for Cpus {
    fn names(&self) -> SysResult<Vec<Vec<u8>>> {
        let cpus = (0..providers::get().cpus()).map(|n| format!("cpu{n}").into_bytes());
        let others = [&b"offline"[..], b"isolated"]
            .into_iter()
            .chain(LISTS)
            .map(<[u8]>::to_vec);
        Ok(cpus.chain(others).collect())
    }

    fn find(&self, name: &[u8]) -> Option<Item> {
        match name {
            b"online" | b"possible" | b"present" => return Some(made(cpu_list)),
            b"offline" | b"isolated" => return Some(text("\n")),
            b"kernel_max" => return Some(text("63\n")),
            _ => {}
        }
        let number = core::str::from_utf8(name).ok()?.strip_prefix("cpu")?;
        let cpu = number
            .parse::<usize>()
            .ok()
            .filter(|&n| n < providers::get().cpus())?;
        // No leading zeros: one CPU has one name.
        (format!("{cpu}") == number).then(|| one(cpu))
    }
}

fn one(cpu: usize) -> Item {
    let own = move || cpu_mask(cpu, 1);
    let all = || cpu_mask(0, providers::get().cpus());
    let id = format!("{cpu}\n");
    let topology = Fixed::default()
        .with("physical_package_id", text("0\n"))
        .with("die_id", text("0\n"))
        .with("core_id", text(id.clone()))
        .with("thread_siblings", made(own))
        .with("thread_siblings_list", text(id.clone()))
        .with("core_cpus", made(own))
        .with("core_cpus_list", text(id.clone()))
        .with("core_siblings", made(all))
        .with("core_siblings_list", made(cpu_list))
        .with("package_cpus", made(all))
        .with("package_cpus_list", made(cpu_list));
    let cache = |level: u32, kind: &'static str, size: &'static str, shared: bool| {
        Fixed::default()
            .with("level", text(format!("{level}\n")))
            .with("type", text(format!("{kind}\n")))
            .with("size", text(format!("{size}\n")))
            .with("coherency_line_size", text("64\n"))
            .with("ways_of_associativity", text("8\n"))
            .with(
                "shared_cpu_list",
                if shared { made(cpu_list) } else { text(id.clone()) },
            )
            .with("shared_cpu_map", if shared { made(all) } else { made(own) })
            .done()
    };
    let caches = Fixed::default()
        .with("index0", cache(1, "Data", "32K", false))
        .with("index1", cache(1, "Instruction", "32K", false))
        .with("index2", cache(2, "Unified", "1024K", false))
        .with("index3", cache(3, "Unified", "32768K", true));
    Fixed::default()
        .with("online", text("1\n"))
        .with("topology", topology.done())
        .with("cache", caches.done())
        .done()
}
