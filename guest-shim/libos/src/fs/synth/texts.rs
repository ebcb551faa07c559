//! The texts of `/proc/PID` files, as proc(5) describes them.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use super::machine::{TICKS, escaped};
use crate::fs::attributes::split_dev;
use crate::fs::providers::{self, Area, Task, Usage};

const PAGE: u64 = 4096;

fn ticks(ns: u64) -> u64 {
    ns / (1_000_000_000 / TICKS)
}

/// `stat`: 52 fields on one line.
pub fn stat(t: &Task) -> Vec<u8> {
    let name = String::from_utf8_lossy(&t.comm);
    let [start_code, end_code, stack] = t.code;
    let pages = t.resident_bytes / PAGE;
    let priority = 20 + t.nice;
    let mut out = format!(
        "{} ({name}) {} {} {} {} 0 -1 4194304 0 0 0 0 ",
        t.tid, t.state, t.ppid, t.group, t.session
    );
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "{} {} 0 0 {priority} {} {} 0 {} {} {pages} 18446744073709551615 {start_code} {end_code} {stack} 0 0 {} {} {} {} \
         0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        ticks(t.user_ns),
        ticks(t.system_ns),
        t.nice,
        t.threads,
        ticks(t.start_ns),
        t.virtual_bytes,
        t.signals[0] & 0x7fff_ffff,
        t.signals[2] & 0x7fff_ffff,
        t.signals[3] & 0x7fff_ffff,
        t.signals[4] & 0x7fff_ffff,
    );
    out.into_bytes()
}

/// `statm`: pages.
pub fn statm(t: &Task) -> Vec<u8> {
    let pages = |bytes: u64| bytes / PAGE;
    let sizes = providers::get().sizes(t.pid);
    let (size, resident) = (pages(t.virtual_bytes), pages(sizes.resident));
    let (shared, data) = (
        pages(sizes.file + sizes.memory_file),
        pages(sizes.data + sizes.stack),
    );
    format!("{size} {resident} {shared} 0 0 {data} 0\n").into_bytes()
}

/// `status`.
pub fn status(t: &Task) -> Vec<u8> {
    let state = match t.state {
        'R' => "R (running)",
        'D' => "D (disk sleep)",
        'T' => "T (stopped)",
        'Z' => "Z (zombie)",
        _ => "S (sleeping)",
    };
    let ids = |ids: [u32; 4]| format!("{}\t{}\t{}\t{}", ids[0], ids[1], ids[2], ids[3]);
    let groups: String = t.groups.iter().map(|g| format!("{g} ")).collect();
    let kib = |bytes: u64| bytes / 1024;
    let (size, sizes) = (kib(t.virtual_bytes), providers::get().sizes(t.pid));
    let cpus = providers::get().cpus().clamp(1, 64);
    let mask = if cpus == 64 { u64::MAX } else { (1 << cpus) - 1 };
    let capabilities: u64 = if t.uid[1] == 0 { 0x1ff_ffff_ffff } else { 0 };
    let umask = providers::get()
        .fs(t.pid)
        .map_or(0o022, |fs| fs.umask.load(core::sync::atomic::Ordering::Relaxed));
    let slots = providers::get()
        .files(t.pid)
        .map_or(64, |f| f.numbers().len().next_power_of_two().max(64));
    let mut out = format!(
        "Name:\t{}\nUmask:\t{umask:04o}\nState:\t{state}\nTgid:\t{}\nNgid:\t0\nPid:\t{}\nPPid:\t{}\nTracerPid:\t0\n\
         Uid:\t{}\nGid:\t{}\nFDSize:\t{slots}\nGroups:\t{groups}\n",
        String::from_utf8_lossy(&t.comm),
        t.pid,
        t.tid,
        t.ppid,
        ids(t.uid),
        ids(t.gid),
    );
    let _ = write!(
        out,
        "VmPeak:\t{size:8} kB\nVmSize:\t{size:8} kB\nVmLck:\t       0 kB\nVmPin:\t       0 kB\nVmHWM:\t{:8} kB\n\
         VmRSS:\t{:8} kB\nRssAnon:\t{:8} kB\nRssFile:\t{:8} kB\nRssShmem:\t{:8} kB\nVmData:\t{:8} kB\n\
         VmStk:\t{:8} kB\nVmExe:\t       0 kB\nVmLib:\t       0 kB\nVmPTE:\t       0 kB\nVmSwap:\t       0 kB\n",
        kib(sizes.most),
        kib(sizes.resident),
        kib(sizes.anonymous()),
        kib(sizes.file),
        kib(sizes.memory_file),
        kib(sizes.data),
        kib(sizes.stack),
    );
    let _ = write!(
        out,
        "Threads:\t{}\nSigQ:\t0/63450\nSigPnd:\t{:016x}\nShdPnd:\t{:016x}\nSigBlk:\t{:016x}\n\
         SigIgn:\t{:016x}\nSigCgt:\t{:016x}\n",
        t.threads, t.signals[0], t.signals[1], t.signals[2], t.signals[3], t.signals[4],
    );
    let _ = write!(
        out,
        "CapInh:\t0000000000000000\nCapPrm:\t{capabilities:016x}\nCapEff:\t{capabilities:016x}\n\
         CapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t0\nSeccomp_filters:\t0\n\
         Cpus_allowed:\t{mask:x}\nCpus_allowed_list:\t0-{}\nMems_allowed:\t1\nMems_allowed_list:\t0\n\
         voluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n",
        cpus - 1,
    );
    out.into_bytes()
}

fn area_line(out: &mut Vec<u8>, area: &Area) {
    let bit = |mask: u32, c: char| if area.protection & mask != 0 { c } else { '-' };
    let (major, minor) = split_dev(area.file.0);
    let head = format!(
        "{:08x}-{:08x} {}{}{}{} {:08x} {major:02x}:{minor:02x} {} ",
        area.start,
        area.end,
        bit(1, 'r'),
        bit(2, 'w'),
        bit(4, 'x'),
        if area.shared { 's' } else { 'p' },
        area.offset,
        area.file.1,
    );
    out.extend_from_slice(head.as_bytes());
    if !area.name.is_empty() {
        out.resize(out.len() + 73usize.saturating_sub(head.len()), b' ');
        out.extend_from_slice(escaped(&area.name).replace("\\040", " ").as_bytes());
    }
    out.push(b'\n');
}

/// `maps`.
pub fn maps(pid: i32) -> Vec<u8> {
    let mut out = Vec::new();
    providers::get()
        .areas(pid, false)
        .iter()
        .for_each(|area| area_line(&mut out, area));
    out
}

fn sizes(size: u64, usage: &Usage) -> String {
    let kib = |bytes: u64| format!("{:8} kB", bytes / 1024);
    let (size, resident, part) = (kib(size), kib(usage.resident()), kib(usage.part));
    let (file, shared, private) = (kib(usage.file), kib(usage.shared), kib(usage.private));
    let (anonymous, left) = (kib(usage.shared + usage.private), kib(usage.left));
    format!(
        "Size:           {size}\nKernelPageSize:        4 kB\nMMUPageSize:           4 kB\n\
         Rss:            {resident}\nPss:            {part}\nShared_Clean:   {file}\n\
         Shared_Dirty:   {shared}\nPrivate_Clean:         0 kB\nPrivate_Dirty:  {private}\n\
         Referenced:     {resident}\nAnonymous:      {anonymous}\nAnonHugePages:         0 kB\n\
         Swap:           {left}\nLocked:                0 kB\n"
    )
}

/// `smaps`.
pub fn smaps(pid: i32) -> Vec<u8> {
    let mut out = Vec::new();
    for area in providers::get().areas(pid, true) {
        area_line(&mut out, &area);
        out.extend_from_slice(sizes(area.end - area.start, &area.usage).as_bytes());
        out.extend_from_slice(b"THPeligible:    0\nVmFlags: rd wr mr mw me ac\n");
    }
    out
}

/// `smaps_rollup`.
pub fn smaps_rollup(pid: i32) -> Vec<u8> {
    let areas = providers::get().areas(pid, true);
    let usage = areas.iter().map(|area| area.usage).sum();
    let (start, end) = (
        areas.first().map_or(0, |a| a.start),
        areas.last().map_or(0, |a| a.end),
    );
    let text = sizes(0, &usage);
    let from = text.find("Rss:").unwrap_or(0);
    let head = format!("{start:08x}-{end:08x} ---p 00000000 00:00 0                          [rollup]\n");
    [head.as_bytes(), &text.as_bytes()[from..]].concat()
}

const LIMITS: [(&str, &str); 16] = [
    ("Max cpu time", "seconds"),
    ("Max file size", "bytes"),
    ("Max data size", "bytes"),
    ("Max stack size", "bytes"),
    ("Max core file size", "bytes"),
    ("Max resident set", "bytes"),
    ("Max processes", "processes"),
    ("Max open files", "files"),
    ("Max locked memory", "bytes"),
    ("Max address space", "bytes"),
    ("Max file locks", "locks"),
    ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"),
    ("Max nice priority", ""),
    ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
];

/// `limits`.
pub fn limits(pid: i32) -> String {
    let value = |v: u64| {
        if v == u64::MAX {
            String::from("unlimited")
        } else {
            format!("{v}")
        }
    };
    let mut out = format!(
        "{:<25} {:<20} {:<20} {:<10}\n",
        "Limit", "Soft Limit", "Hard Limit", "Units"
    );
    for ((name, unit), [soft, hard]) in LIMITS.iter().zip(providers::get().limits(pid)) {
        let _ = writeln!(
            out,
            "{name:<25} {:<20} {:<20} {unit:<10}",
            value(soft),
            value(hard)
        );
    }
    out
}
