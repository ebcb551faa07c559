//! PostgreSQL under `pgbench`: the server runs under a peer, the load generator always on the host.

use crate::measure::{Figure, MeasureError, World, run};
use crate::peer::Peer;
use crate::serving::client;
use cloak_tests::server::{Signal, free_port};
use cloak_tests::{Case, Scratch, Server};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// The user that PostgreSQL runs as where the benchmarks run as root, which it refuses.
const USER: &str = "postgres";

/// How long it may take to serve.
const START: Duration = Duration::from_secs(120);

/// What a client needs: a name that has no meaning on the host.
const OWNER: [&str; 4] = ["-h", "127.0.0.1", "-U", "owner"];

/// Select-only and TPC-B by 8 clients for 5 seconds each, on a database of 400,000 accounts. Natively and under Cloak: the
/// other launchers don't pass on the signal that a database is stopped by.
///
/// # Errors
/// When PostgreSQL is not there, or the server or its client fails.
pub fn postgresql(world: &World, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    if !matches!(peer.name(), "native" | "cloak") {
        return Ok(Vec::new());
    }
    let first = world.database()?;
    let own = Scratch::new();
    let data = own.join("data");
    succeeds("cp", Command::new("cp").arg("-a").arg(first).arg(&data))?;
    let port = free_port();
    let settings: [OsString; 8] = [
        "-D".into(),
        data.clone().into(),
        "-p".into(),
        port.to_string().into(),
        "-k".into(),
        data.into(),
        "-c".into(),
        "listen_addresses=127.0.0.1".into(),
    ];
    // Nobody else touches a server's data.
    let exclusive = format!("{0}:{0}:exclusive", own.path().display());
    let case = as_owner(peer, &program("postgres")?)
        .args(settings)
        .option("--volume")
        .option(&exclusive)
        .memory("2G");
    let mut started = peer.start(&case)?;
    let server = Server::attach(started.running.take().expect("it was just started"), port)?;
    let port = port.to_string();
    ready(&port)?;
    let mut figures = Vec::new();
    for (key, kind) in [("pgbench-select", "select-only"), ("pgbench-tpcb", "tpcb-like")] {
        let load = ["-p", &port, "-n", "-c", "8", "-T", "5", "-b", kind, "postgres"];
        let arguments: Vec<&str> = OWNER.into_iter().chain(load).collect();
        let said = client(&program("pgbench")?, &arguments)?;
        let figure = said.lines().find_map(|line| line.strip_prefix("tps = "));
        let figure = figure.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        let figure = figure.ok_or(MeasureError::NoFigure {
            what: "pgbench",
            output: said,
        })?;
        figures.push((key.to_owned(), figure));
    }
    // A fast shutdown: its processes must be gone before the files go.
    let _ = server.stop(Signal::INT);
    Ok(figures)
}

/// The files of a database with `pgbench`'s tables, made natively; every run gets a copy.
///
/// # Errors
/// When one of PostgreSQL's programs is not there or fails.
pub fn prepare(folder: &Path) -> Result<PathBuf, MeasureError> {
    fs::create_dir_all(folder).expect("scratch is writable");
    let data = folder.join("data");
    if is_root() {
        succeeds("chown", Command::new("chown").arg(USER).arg(folder))?;
    }
    let initdb = as_owner(&Peer::native(), &program("initdb")?)
        .arg("-D")
        .arg(&data)
        .args(["-A", "trust", "-U", "owner", "--no-sync"]);
    run("initdb", &Peer::native(), &initdb)?;
    let port = free_port();
    let case = as_owner(&Peer::native(), &program("postgres")?)
        .arg("-D")
        .arg(&data)
        .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-k"])
        .arg(&data);
    let mut started = Peer::native().start(&case)?;
    let server = Server::attach(started.running.take().expect("it was just started"), port)?;
    let port = port.to_string();
    ready(&port)?;
    let load = ["-p", &port, "-i", "-q", "-s", "4", "postgres"];
    let arguments: Vec<&str> = OWNER.into_iter().chain(load).collect();
    client(&program("pgbench")?, &arguments)?;
    let _ = server.stop(Signal::INT);
    Ok(data)
}

/// It listens before it serves: asks until it does.
fn ready(port: &str) -> Result<(), MeasureError> {
    let arguments: Vec<&str> = OWNER.into_iter().chain(["-p", port]).collect();
    let asked = program("pg_isready")?;
    let deadline = Instant::now() + START;
    loop {
        match client(&asked, &arguments) {
            Err(MeasureError::Failed { .. }) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(50));
            }
            answer => return answer.map(drop),
        }
    }
}

/// A run of `program` under a peer, by a user who owns the files and is not root.
fn as_owner(peer: &Peer, program: &Path) -> Case {
    if !is_root() {
        Case::new(program)
    } else if peer.name() == "cloak" {
        // Its launcher changes the user of the OS side, too.
        Case::new(program).option("--user").option(USER)
    } else {
        Case::new("/usr/bin/setpriv")
            .args(["--reuid", USER, "--regid", USER, "--keep-groups"])
            .arg(program)
    }
}

/// Whether the benchmarks run as root.
fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// One of PostgreSQL's programs, of the newest version that is installed.
fn program(name: &str) -> Result<PathBuf, MeasureError> {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .map(|(version, folder)| (version, folder.join("bin").join(name)))
        .filter(|(_, path)| path.is_file())
        .collect();
    found.sort();
    found
        .pop()
        .map(|(_, path)| path)
        .ok_or(MeasureError::Absent { what: "postgresql" })
}

fn succeeds(what: &'static str, command: &mut Command) -> Result<(), MeasureError> {
    let ended = command.status();
    if ended.is_ok_and(|status| status.success()) {
        Ok(())
    } else {
        Err(MeasureError::Unprepared { what })
    }
}
