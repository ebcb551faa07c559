//! The lines of the table: what is measured, in which unit, and what Cloak has to reach.

use crate::volume_rows;

/// What a figure has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// A cost: at most this many times native's.
    CostRatio(f64),
    /// A rate: at least this part of native's.
    RateRatio(f64),
    /// At most this, whatever native's is.
    AtMost(f64),
    /// Nothing: it is shown.
    Report,
}

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// The name in measurements.
    pub key: &'static str,
    /// What a reader sees.
    pub title: &'static str,
    /// The unit of its figures.
    pub unit: &'static str,
    /// What Cloak has to reach.
    pub target: Target,
}

impl Row {
    /// The row's figure as a multiple of native's.
    pub fn ratio(&self, native: f64, figure: f64) -> f64 {
        figure / native
    }

    /// Whether a figure is good enough; `None` when that needs a native figure and there is none.
    pub fn reached(&self, native: Option<f64>, figure: f64) -> Option<bool> {
        match self.target {
            Target::AtMost(limit) => Some(figure <= limit),
            Target::Report => None,
            Target::CostRatio(limit) => native.map(|native| self.ratio(native, figure) <= limit),
            Target::RateRatio(limit) => native.map(|native| self.ratio(native, figure) >= limit),
        }
    }
}

const fn cost(key: &'static str, title: &'static str, unit: &'static str, times: f64) -> Row {
    Row {
        key,
        title,
        unit,
        target: Target::CostRatio(times),
    }
}

const fn rate(key: &'static str, title: &'static str, part: f64) -> Row {
    Row {
        key,
        title,
        unit: "/s",
        target: Target::RateRatio(part),
    }
}

const fn reported(key: &'static str, title: &'static str) -> Row {
    Row {
        key,
        title,
        unit: "/s",
        target: Target::Report,
    }
}

const fn at_most(key: &'static str, title: &'static str, unit: &'static str, limit: f64) -> Row {
    Row {
        key,
        title,
        unit,
        target: Target::AtMost(limit),
    }
}

/// Every row, in the table's order.
pub const ROWS: [Row; 37] = [
    cost("python-loop", "pure-Python loop", "ms", 1.03),
    cost("alu", "ALU loop, an iteration", "ns", 1.03),
    cost(
        "pointer-chase",
        "pointer chase through 256 MiB, a step",
        "ns",
        1.03,
    ),
    cost("copy-64m", "copy of 64 MiB", "ns", 1.03),
    cost("sha256sum", "`busybox sha256sum` of 256 MiB", "ms", 1.3),
    cost("getpid", "`getpid` by system call", "ns", 1.0),
    cost("clock_gettime-call", "`clock_gettime` by system call", "ns", 1.0),
    cost(
        "clock_gettime-vdso",
        "`clock_gettime` as libc calls it",
        "ns",
        1.5,
    ),
    cost("futex-wake", "`futex` wake, no waiter", "ns", 1.0),
    cost("pread-1", "1-byte `pread`", "ns", 4.0),
    cost("pread-64k", "64 KiB `pread`", "ns", 1.3),
    cost("open-close", "`open` and `close`", "ns", 4.0),
    cost("access", "`access`", "ns", 4.0),
    cost(
        "pread-1-shared",
        "1-byte `pread`, volume shared for writing",
        "ns",
        4.0,
    ),
    cost(
        "pread-64k-shared",
        "64 KiB `pread`, volume shared for writing",
        "ns",
        1.3,
    ),
    cost(
        "open-close-shared",
        "`open` and `close`, volume shared for writing",
        "ns",
        4.0,
    ),
    cost("access-shared", "`access`, volume shared for writing", "ns", 4.0),
    cost(
        "mmap-touch-munmap",
        "`mmap`, touch and `munmap` of 1 MiB",
        "ns",
        2.0,
    ),
    cost("fork-exit-wait", "`fork`, `_exit` and `wait`", "ns", 5.0),
    cost("spawn-true", "`posix_spawn` of `true` and `wait`", "ns", 4.0),
    cost(
        "spawn-python",
        "`posix_spawn` of `python3 -c pass` and `wait`",
        "ns",
        2.0,
    ),
    cost("pipe-ping-pong", "pipe ping-pong between two threads", "ns", 1.0),
    cost(
        "pipe-ping-pong-processes",
        "pipe ping-pong between two processes",
        "ns",
        2.0,
    ),
    cost("make-j2", "`make -j2` of 24 C files", "ms", 1.5),
    rate("redis-get-1", "redis GET, 50 clients, pipeline 1", 0.6),
    rate("redis-set-1", "redis SET, 50 clients, pipeline 1", 0.6),
    rate("redis-get-16", "redis GET, 50 clients, pipeline 16", 0.8),
    rate("redis-set-16", "redis SET, 50 clients, pipeline 16", 0.8),
    rate("nginx-1k", "nginx, 1 KiB, 32 connections", 0.5),
    reported(
        "nginx-1k-shared",
        "the same, files on a volume shared for writing",
    ),
    rate(
        "nginx-1k-workers",
        "nginx with 2 workers, 1 KiB, 32 connections",
        0.5,
    ),
    reported(
        "nginx-1k-workers-shared",
        "the same, files on a volume shared for writing",
    ),
    rate("pgbench-select", "`pgbench` select-only, 8 clients", 0.6),
    rate("pgbench-tpcb", "`pgbench` TPC-B, 8 clients", 0.6),
    at_most("start-python", "`python3 -c pass`, start to end", "ms", 80.0),
    at_most("start-busybox", "`busybox true`, start to end", "ms", 40.0),
    at_most(
        "vmm-memory",
        "resident memory of the launcher's processes beyond the guest's",
        "MiB",
        16.0,
    ),
];

/// All rows: these, and those of other files.
pub fn all() -> impl Iterator<Item = &'static Row> {
    ROWS.iter().chain(volume_rows::all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique() {
        let mut keys: Vec<_> = all().map(|row| row.key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all().count());
    }

    #[test]
    fn targets_are_judged_by_their_kind() {
        let [slow, fast] = [cost("a", "", "ns", 2.0), rate("b", "", 0.5)];
        assert_eq!(
            (slow.reached(Some(10.0), 20.0), slow.reached(Some(10.0), 20.1)),
            (Some(true), Some(false))
        );
        assert_eq!(
            (fast.reached(Some(10.0), 5.0), fast.reached(Some(10.0), 4.9)),
            (Some(true), Some(false))
        );
        assert_eq!(
            (
                slow.reached(None, 1.0),
                at_most("c", "", "ms", 3.0).reached(None, 3.5)
            ),
            (None, Some(false))
        );
    }
}
