//! The lines of the table about volumes and cloaking. What stands in the column of native is said in each title.

use crate::rows::{Row, Target};

const fn rate(key: &'static str, title: &'static str, target: Target) -> Row {
    Row {
        key,
        title,
        unit: "/s",
        target,
    }
}

const fn cost(key: &'static str, title: &'static str, unit: &'static str, target: Target) -> Row {
    Row {
        key,
        title,
        unit,
        target,
    }
}

const SLOWER: Target = Target::RateRatio(0.7);

/// The five kinds of work on a file of a protected volume, beside one peer.
macro_rules! beside {
    ($peer:literal, $native:literal, $target:expr) => {
        [
            rate(
                concat!($peer, "-read-64k"),
                concat!("protected volume, 64 KiB read in a row, bytes; native: ", $native),
                $target,
            ),
            rate(
                concat!($peer, "-write-64k"),
                "the same, written, synced at the end",
                $target,
            ),
            rate(
                concat!($peer, "-write-new-64k"),
                "the same, written to a new file, as a volume always writes to new blocks",
                Target::Report,
            ),
            rate(
                concat!($peer, "-read-4k"),
                "the same, 4 KiB read at random",
                $target,
            ),
            rate(
                concat!($peer, "-write-4k"),
                "the same, 4 KiB written at random, synced at the end",
                $target,
            ),
        ]
    };
}

/// These rows, in the table's order.
pub fn all() -> impl Iterator<Item = &'static Row> {
    BESIDE.iter().flatten().chain(&ROWS)
}

static BESIDE: [[Row; 5]; 3] = [
    beside!("volume", "the slower of the host's file and the cipher", SLOWER),
    beside!("gocryptfs", "`gocryptfs` on the host", Target::Report),
    beside!(
        "fscrypt",
        "ext4 with `fscrypt` on the host, which caches plaintext and checks nothing",
        Target::Report
    ),
];

static ROWS: [Row; 12] = [
    rate(
        "measured-read-64k",
        "measured file, warm, 64 KiB read, bytes; native: the same file shared, under Cloak",
        Target::RateRatio(0.95),
    ),
    cost(
        "seal",
        "sealing a page of 4 KiB; native: the library's cipher alone",
        "ns",
        Target::CostRatio(1.11),
    ),
    cost(
        "open",
        "opening one; native: the library's cipher alone",
        "ns",
        Target::CostRatio(1.11),
    ),
    cost(
        "bookkeeping",
        "bookkeeping for 16 GiB of guest memory, all in use",
        "MiB",
        // 0.8 % of it.
        Target::AtMost(131.0),
    ),
    cost(
        "marking",
        "marking all pages of 16 GiB",
        "ms",
        Target::AtMost(50.0),
    ),
    cost(
        "resident-fits",
        "a pass over memory that fits `--resident`, processor time, least of 15; native: under Cloak without it",
        "ms",
        Target::CostRatio(1.01),
    ),
    rate(
        "paging-in-a-row",
        "pages of a working set twice the limit, in a row; native: under a cgroup's limit, with the kernel's swap",
        Target::RateRatio(0.5),
    ),
    rate("paging-at-random", "the same, at random", Target::RateRatio(0.5)),
    rate(
        "inside-in-a-row",
        "pages of a working set twice the limit, in a row, by the guest's own pager on a simulated SNP machine; native: by the monitor's, \
         on plain KVM",
        Target::Report,
    ),
    rate("inside-at-random", "the same, at random", Target::Report),
    rate(
        "cipher-seal",
        "the cipher of volumes alone, sealing, bytes",
        Target::Report,
    ),
    rate("cipher-open", "the same, opening", Target::Report),
];
