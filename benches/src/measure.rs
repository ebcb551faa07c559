//! The work: each [`Group`] is run once a round under each peer and fills some of the rows.

use crate::compile;
use crate::database;
use crate::peer::{Peer, Started};
use crate::{serving, volumes};
use cloak_tests::launcher::workspace_root;
use cloak_tests::process::RunError;
use cloak_tests::scratch::noise;
use cloak_tests::server::NoAnswer;
use cloak_tests::{Case, Outcome, Scratch};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(300);
const MIB: usize = 1 << 20;

/// Why a measurement gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The program did not run to its end.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A server did not come up.
    #[error(transparent)]
    Server(#[from] NoAnswer),
    /// It ran and failed.
    #[error("{what} ended with {status}: {stderr}")]
    Failed {
        /// The measurement.
        what: &'static str,
        /// How it ended.
        status: cloak_tests::Status,
        /// What it said.
        stderr: String,
    },
    /// It ran and its output was not understood.
    #[error("{what} printed what is no figure: {output}")]
    NoFigure {
        /// The measurement.
        what: &'static str,
        /// What it printed.
        output: String,
    },
    /// What it needs is not installed.
    #[error("{what} is not installed")]
    Absent {
        /// What is missing.
        what: &'static str,
    },
    /// Its files could not be made.
    #[error("{what} failed before the measurement")]
    Unprepared {
        /// The program that failed.
        what: &'static str,
    },
}

/// A figure for the row with this key.
pub type Figure = (String, f64);

/// What all measurements share: files that are made once.
pub struct World {
    scratch: Scratch,
    micro: PathBuf,
    database: OnceLock<Option<PathBuf>>,
}

impl World {
    /// Builds the guest-side program and makes the files.
    ///
    /// # Panics
    /// When that fails; there is nothing to measure then.
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let micro = scratch.join("micro");
        let source = workspace_root().join("benches/guest/micro.c");
        let built = Command::new("gcc")
            .args(["-O2", "-static", "-pthread", "-o"])
            .arg(&micro)
            .arg(&source)
            .status();
        assert!(
            built.is_ok_and(|status| status.success()),
            "{} does not build with gcc",
            source.display()
        );
        scratch.write("large", noise(256 * MIB, 1));
        scratch.write("medium", noise(2 * MIB, 2));
        scratch.write("1k", "x".repeat(1024));
        compile::write_project(&scratch.join("project"));
        World {
            scratch,
            micro,
            database: OnceLock::new(),
        }
    }
}

impl World {
    /// The folder with the files.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// A project in C with its `Makefile`.
    pub fn project(&self) -> PathBuf {
        self.scratch.join("project")
    }

    /// The files of a database, made when first asked for.
    ///
    /// # Errors
    /// When that fails, each time.
    pub fn database(&self) -> Result<&Path, MeasureError> {
        if let Some(made) = self.database.get() {
            return made
                .as_deref()
                .ok_or(MeasureError::Unprepared { what: "postgresql" });
        }
        let made = database::prepare(&self.scratch.join("database"));
        let kept = self.database.get_or_init(|| made.as_ref().ok().cloned());
        kept.as_deref()
            .ok_or_else(|| made.err().unwrap_or(MeasureError::Absent { what: "postgresql" }))
    }
}

impl Default for World {
    fn default() -> Self {
        World::new()
    }
}

/// A piece of work that gives figures.
#[derive(Clone, Copy)]
pub struct Group {
    /// Its name for `--only`.
    pub name: &'static str,
    /// Runs it once under a peer.
    pub run: fn(&World, &Peer) -> Result<Vec<Figure>, MeasureError>,
}

/// All groups, the long ones last.
pub const GROUPS: [Group; 11] = [
    Group {
        name: "start",
        run: start_up,
    },
    Group {
        name: "micro",
        run: micro,
    },
    Group {
        name: "shared-files",
        run: shared_files,
    },
    Group {
        name: "python",
        run: python_loop,
    },
    Group {
        name: "sha256",
        run: sha256,
    },
    Group {
        name: "memory",
        run: memory,
    },
    Group {
        name: "redis",
        run: serving::redis,
    },
    Group {
        name: "nginx",
        run: serving::nginx,
    },
    Group {
        name: "nginx-workers",
        run: serving::nginx_workers,
    },
    Group {
        name: "make",
        run: compile::make,
    },
    Group {
        name: "postgresql",
        run: database::postgresql,
    },
];

/// Files on a volume that is given read-only, as most of what programs read is.
fn micro(world: &World, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    let folder = world.scratch.path().display();
    let case = Case::new(&world.micro)
        .arg(world.scratch.join("medium"))
        .option("--volume")
        .option(&format!("{folder}:{folder}:ro"));
    figures_of(peer, &case)
}

/// Files on a volume that the host shares with the guest for writing: nothing of them is cached.
fn shared_files(world: &World, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    let case = Case::new(&world.micro)
        .arg(world.scratch.join("medium"))
        .arg("shared")
        .volume(world.scratch.path());
    figures_of(peer, &case)
}

fn figures_of(peer: &Peer, case: &Case) -> Result<Vec<Figure>, MeasureError> {
    figures("micro", peer, &case.clone().memory("1G"))
}

/// What a program prints that prints rows.
///
/// # Errors
/// As [`run`], and when it prints something else.
pub fn figures(what: &'static str, peer: &Peer, case: &Case) -> Result<Vec<Figure>, MeasureError> {
    let (outcome, _) = run(what, peer, case)?;
    let figures: Option<Vec<Figure>> = outcome.text().lines().map(row_of_micro).collect();
    figures.ok_or_else(|| MeasureError::NoFigure {
        what,
        output: outcome.text(),
    })
}

/// All groups: these, and those of other files.
pub fn groups() -> impl Iterator<Item = &'static Group> {
    GROUPS.iter().chain(&volumes::GROUPS)
}

fn row_of_micro(line: &str) -> Option<Figure> {
    let (name, figure) = line.split_once('\t')?;
    Some((name.into(), figure.parse().ok()?))
}

fn python_loop(_: &World, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    // Timed inside, so that only the loop counts.
    let script = "import time\ndef work():\n    x = 0\n    for i in range(3000000): x = (x * 31 + i) & 0xffffffff\n    return x\n\
        work()\nt = time.perf_counter(); work(); print((time.perf_counter() - t) * 1000)";
    let (outcome, _) = run(
        "python-loop",
        peer,
        &Case::new("/usr/bin/python3").arg("-c").arg(script),
    )?;
    let figure = outcome.text().trim().parse();
    let figure = figure.map_err(|_| MeasureError::NoFigure {
        what: "python-loop",
        output: outcome.text(),
    })?;
    Ok(vec![("python-loop".into(), figure)])
}

fn sha256(world: &World, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    let case = Case::new("/usr/bin/busybox")
        .arg("sha256sum")
        .arg(world.scratch.join("large"));
    let (_, took) = run("sha256sum", peer, &case.volume(world.scratch.path()))?;
    Ok(vec![("sha256sum".into(), milliseconds(took))])
}

fn start_up(_: &World, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    let busybox = Case::new("/usr/bin/busybox").arg("true");
    let python = Case::new("/usr/bin/python3").args(["-c", "pass"]);
    let mut figures = Vec::new();
    // Short, and so unsteady: the median of several in each round.
    for (key, case) in [("start-busybox", busybox), ("start-python", python)] {
        let mut times = Vec::new();
        for _ in 0..5 {
            times.push(milliseconds(run("start-up", peer, &case)?.1));
        }
        times.sort_by(f64::total_cmp);
        figures.push((key.to_owned(), times[times.len() / 2]));
    }
    Ok(figures)
}

/// What the launcher's own processes hold while a guest idles, without the guest's memory.
fn memory(_: &World, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    if peer.name() != "cloak" {
        return Ok(Vec::new());
    }
    let started = peer.start(&Case::new("/usr/bin/busybox").args(["sleep", "60"]))?;
    let running = started.running.as_ref().expect("it was just started");
    thread::sleep(Duration::from_secs(1));
    let kib: u64 = tree(running.pid().as_raw_nonzero().get())
        .into_iter()
        .map(resident_kib)
        .sum();
    Ok(vec![("vmm-memory".into(), kib as f64 / 1024.0)])
}

/// A process and all below it.
fn tree(root: i32) -> Vec<i32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let children =
            fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        found.extend(
            children
                .split_whitespace()
                .filter_map(|number| number.parse::<i32>().ok()),
        );
        next += 1;
    }
    found
}

/// Mappings of this size are the guest's memory: the launcher has no other that comes near.
const GUEST_KIB: u64 = 256 << 10;

/// Resident memory of a process, shared pages by their part, but for the guest's.
fn resident_kib(process: i32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{process}/smaps")).unwrap_or_default();
    own_kib(&maps)
}

fn own_kib(smaps: &str) -> u64 {
    let (mut sum, mut guest) = (0, false);
    for line in smaps.lines() {
        let number = || line.split_whitespace().nth(1)?.parse::<u64>().ok();
        if line.starts_with("Size:") {
            guest = number().is_some_and(|kib| kib >= GUEST_KIB);
        } else if line.starts_with("Pss:") && !guest {
            sum += number().unwrap_or(0);
        }
    }
    sum
}

/// Runs a case to its end, which must be a good one, and tells how long that took.
///
/// # Errors
/// When it does not end, or not well.
pub fn run(what: &'static str, peer: &Peer, case: &Case) -> Result<(Outcome, Duration), MeasureError> {
    let start = Instant::now();
    let mut started: Started = peer.start(case)?;
    let outcome = started
        .running
        .take()
        .expect("it was just started")
        .finish(PATIENCE)?;
    let took = start.elapsed();
    if outcome.status.shell_code() != 0 {
        return Err(MeasureError::Failed {
            what,
            status: outcome.status,
            stderr: outcome.error_text(),
        });
    }
    Ok((outcome, took))
}

/// A time as a figure.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::ROWS;

    #[test]
    fn the_guests_memory_is_not_the_launchers() {
        let smaps = "7f00-7f01 rw-p\nSize: 3145728 kB\nPss: 9000 kB\n55-56 r--p\nSize: 40 kB\nRss: 24 kB\nPss: 12 kB\n";
        assert_eq!(own_kib(smaps), 12);
    }

    #[test]
    fn a_line_of_the_guest_program_is_a_figure() {
        assert_eq!(row_of_micro("getpid\t118.97"), Some(("getpid".into(), 118.97)));
        assert_eq!(row_of_micro("getpid 118.97"), None);
    }

    #[test]
    fn the_guest_program_prints_rows_of_the_table() {
        let source = include_str!("../guest/micro.c");
        let names = source
            .lines()
            .filter_map(|line| line.trim().strip_prefix("row(\""));
        let names: Vec<_> = names.filter_map(|rest| rest.split('"').next()).collect();
        assert!(names.len() > 10);
        for name in names {
            assert!(ROWS.iter().any(|row| row.key == name), "{name} has no row");
        }
    }
}
