//! How a context ended, and what it did until then.

use std::fmt;

use cloak_abi::ring::{STATS, Stat};

use super::error::VmError;
use super::phases::Phases;
use super::resident::Paging;

/// How a context ended.
#[derive(Debug)]
pub struct Ended {
    /// How its program ended, or why it could not go on.
    pub outcome: Result<Outcome, VmError>,
    /// What it did.
    pub statistics: Statistics,
}

/// How the program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With this exit code.
    Exited(u8),
    /// By this signal.
    Signalled(u8),
    /// It could not be started: exit code for the caller, and why.
    Refused(u8, String),
}

/// Counters of a run, indexed by [`cloak_abi::ring::Stat`], and exits to the monitor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Counters that the libos left.
    pub guest: [u64; STATS],
    /// Exits to the monitor, of all vCPUs.
    pub exits: u64,
    /// Where the time went.
    pub phases: Phases,
    /// What the pager did, if there was one.
    pub paging: Option<Paging>,
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            (Stat::Calls, "system calls"),
            (Stat::Trapped, "  by trap"),
            (Stat::Patched, "sites patched"),
            (Stat::Forwarded, "requests to the host"),
            (Stat::Doorbells, "  doorbells"),
            (Stat::Faults, "page faults served"),
            (Stat::Exceptions, "exceptions"),
            (Stat::Kcalls, "kernel calls"),
            (Stat::Interrupts, "interrupts"),
            (Stat::Dropped, "  dropped"),
            (Stat::Switches, "thread switches"),
            (Stat::Halts, "halts"),
            (Stat::Signals, "signals delivered"),
            (Stat::Frames, "frames in use at the end"),
            (Stat::HostFiles, "  host descriptors"),
            (Stat::Threads, "  threads"),
        ];
        for (stat, name) in rows {
            writeln!(f, "cloak: {name:<22} {:>12}", self.guest[stat as usize])?;
        }
        writeln!(f, "cloak: {:<22} {:>12}", "exits to the monitor", self.exits)?;
        if let Some(paging) = &self.paging {
            for (name, count) in paging.rows() {
                writeln!(f, "cloak: {name:<22} {count:>12}")?;
            }
        }
        for (name, time) in self.phases.iter() {
            writeln!(
                f,
                "cloak: time, {name:<34} {:>8.2} ms",
                time.as_secs_f64() * 1000.0
            )?;
        }
        Ok(())
    }
}
