//! The service's half: from `main` to serving.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

use super::error::OsError;
use crate::jail::files::{self, Granted};
use crate::jail::namespaces::{self, Network, Owners};
use crate::jail::{JailError, calls, limits, privileges};

use super::handed::Handed;
use super::handover::{DOORBELL, Handover, LIFELINE, MARK, REGION, STREAMS, WAKES};
use super::region::Region;
use super::server::{Parts, Server};
use super::table::{Entry, Kind, Table};
use super::{filesystems, stdio, sys};

/// Exit code when the service fails by itself.
const FAILED: u8 = 125;
/// Descriptors that the guest can't have: ours, and room for paths on their way.
const OWN_DESCRIPTORS: u32 = 256;

/// Runs the service if this process was started by [`super::spawn()`]; none otherwise. To be called first
/// thing in `main`, before any thread is started or file opened.
#[must_use]
pub fn main_if_service() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(MARK) {
        return None;
    }
    match serve(arguments) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("cloak: {error}");
            Some(ExitCode::from(FAILED))
        }
    }
}

fn serve(arguments: impl Iterator<Item = String>) -> Result<(), OsError> {
    let handover = Handover::parse(arguments)?;
    let inherited = |step, number| sys::inherited(number).map_err(OsError::at(step));
    sys::close_from(handover.end()).map_err(OsError::at("closing what was not handed over"))?;
    let region = Region::map(inherited("taking the shared region", REGION)?.as_fd())?;
    let wakes = (WAKES..)
        .take(handover.vcpus)
        .map(|fd| inherited("taking a wake-up", fd));
    let wakes = wakes.collect::<Result<Vec<_>, _>>()?;
    let roots = roots(&handover)?;
    let granted: Vec<Granted<'_>> = roots.iter().map(granted).collect();
    let rules = files::Rules::new(&granted, &handover.withheld).map_err(OsError::Jail)?;
    let owners = owners(&roots);
    let parts = Parts {
        table: table(roots)?,
        doorbell: inherited("taking the doorbell", DOORBELL)?,
        lifeline: inherited("taking the lifeline", LIFELINE)?,
        handed: Handed::new(inherited("taking the socket for streams", STREAMS)?),
        region,
        wakes,
        spin: handover.spin,
    };
    let server = Server::new(parts)?;
    settle()?;
    enter_jail(rules, &handover, owners).map_err(OsError::Jail)?;
    server.run()
}

/// The very last step: from here on nothing but the guest's requests is done.
fn enter_jail(rules: files::Rules, handover: &Handover, owners: Owners) -> Result<(), JailError> {
    limits::set(limits::SERVICE)?;
    let network = if handover.network {
        Network::Host
    } else {
        Network::Empty
    };
    namespaces::enter(network, owners)?;
    if let Some(user) = &handover.user {
        privileges::become_user(user)?;
    }
    privileges::drop_capabilities(&privileges::KEPT)?;
    rules.close()?;
    calls::close(if handover.network {
        &calls::SERVICE
    } else {
        &calls::OFFLINE
    })
}

/// Containers are files, and have no owners in them for a guest to see.
fn owners(roots: &[Entry]) -> Owners {
    let is_file = |root: &Entry| {
        rustix::fs::fstat(root)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
    };
    if roots.iter().all(is_file) {
        Owners::DoNotMatter
    } else {
        Owners::Matter
    }
}

fn granted(root: &Entry) -> Granted<'_> {
    Granted {
        file: root.as_fd(),
        read_only: root.read_only,
    }
}

fn roots(handover: &Handover) -> Result<Vec<Entry>, OsError> {
    let first_root = WAKES + handover.vcpus as i32;
    let roots = (0..handover.roots).map(|n| {
        let directory = sys::inherited(first_root + n as i32).map_err(OsError::at("taking a root"))?;
        let read_only = handover.read_only >> n & 1 != 0;
        let severed = namespaces::severed(directory.as_fd(), read_only).map_err(OsError::Jail)?;
        root(severed.unwrap_or(directory), read_only)
    });
    roots.collect()
}

fn table(roots: Vec<Entry>) -> Result<Table, OsError> {
    let limit = raise_file_limit().saturating_sub(OWN_DESCRIPTORS);
    Ok(Table::new(
        standard_streams().map_err(OsError::at("taking the standard streams"))?,
        roots,
        limit,
    ))
}

/// The entry of a mount's root.
///
/// # Errors
/// When its file system can't be asked what it is.
pub fn root(directory: OwnedFd, read_only: bool) -> Result<Entry, OsError> {
    let stat = sys::fstat(directory.as_fd()).map_err(OsError::at("fstat of a root"))?;
    let remote = filesystems::is_remote(directory.as_fd()).map_err(OsError::at("fstatfs of a root"))?;
    let mut entry = Entry::new(directory, Kind::Location);
    entry.device = stat.device();
    entry.read_only = read_only;
    entry.remote = remote;
    Ok(entry)
}

/// Copies of the standard streams, for the table. [`settle`] leaves `/dev/null` in their places: a number that is free could become
/// some file of the guest's, and a panic message would end up in it.
fn standard_streams() -> Result<[Entry; 3], Errno> {
    let copy = |fd| rustix::io::fcntl_dupfd_cloexec(fd, 3).and_then(stdio::stream);
    let streams = [
        copy(rustix::stdio::stdin())?,
        copy(rustix::stdio::stdout())?,
        copy(rustix::stdio::stderr())?,
    ];
    Ok(streams)
}

/// As many open files as the user may have: a guest's files are this process's.
fn raise_file_limit() -> u32 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // A limit that stays low is a limit that the guest meets as EMFILE.
    let current = match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    current.and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX)
}

/// Signals that are for the program, and so the monitor's business; and those by which a terminal or a
/// closed pipe would stop or end us.
const IGNORED: [i32; 12] = [
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGWINCH,
    libc::SIGPIPE,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGXFSZ,
];

/// The last steps before serving, after which errors have nowhere to go.
fn settle() -> Result<(), OsError> {
    for signal in IGNORED {
        sys::ignore_signal(signal).map_err(OsError::at("ignoring a signal"))?;
    }
    sys::unblock_signals().map_err(OsError::at("unblocking signals"))?;
    // The libos applies the program's mask.
    rustix::process::umask(Mode::empty());
    // Nobody of the same user reads or writes this process through procfs or ptrace.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(OsError::at("becoming undumpable"))?;
    privileges::no_new_privileges().map_err(OsError::Jail)?;
    super::machine::open_memory_information();
    rustix::process::chdir("/").map_err(OsError::at("chdir to /"))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(OsError::at("opening /dev/null"))?;
    rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .and_then(|()| rustix::stdio::dup2_stderr(&null))
        .map_err(OsError::at("leaving the standard streams"))?;
    // Half a service is worse than none: the monitor sees the end of the process and says so.
    std::panic::set_hook(Box::new(|_| std::process::abort()));
    Ok(())
}
