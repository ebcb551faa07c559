//! The monitor's half: starting the service and learning of its end.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use super::error::OsError;
use super::handover::{Handover, MARK, REGION};
use super::{spin, sys};
use crate::jail::privileges::Identity;

/// Root of a mount.
#[derive(Debug, Clone, Copy)]
pub struct Root<'c> {
    /// The directory, opened with `O_PATH`.
    pub directory: BorrowedFd<'c>,
    /// Whether the guest may change what is below.
    pub access: Access,
}

/// What a guest may do below a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read and write, as far as the user may.
    ReadWrite,
    /// Read only: the service itself refuses changes, whatever the guest asks.
    ReadOnly,
}

/// What the service is to work with. Descriptors are borrowed: the service gets copies.
#[derive(Debug, Clone)]
pub struct SpawnConfig<'c> {
    /// memfd of the shared region, `SHARED_LEN` bytes, header written.
    pub region: BorrowedFd<'c>,
    /// eventfd that the guest's doorbell port writes.
    pub doorbell: BorrowedFd<'c>,
    /// Socket ([`super::handed::channel`]) on which this process hands over further standard streams.
    pub streams: BorrowedFd<'c>,
    /// One eventfd for each vCPU, which its halt waits on.
    pub wakes: Vec<BorrowedFd<'c>>,
    /// Roots, by mount number.
    pub roots: Vec<Root<'c>>,
    /// Longest time that the service polls before it sleeps; [`SpawnConfig::SPIN`] unless there is a reason.
    pub spin: Duration,
    /// Whether the guest gets sockets of the host.
    pub network: bool,
    /// As whom the service works; none: as the caller.
    pub user: Option<Identity>,
    /// Files of the host that the service is not to read, wherever they lie: keys. Absolute, without symbolic links.
    pub withheld: Vec<PathBuf>,
}

impl SpawnConfig<'_> {
    /// The usual longest time to poll.
    pub const SPIN: Duration = spin::MOST;

    fn handover(&self) -> Result<Handover, OsError> {
        let read_only = self
            .roots
            .iter()
            .enumerate()
            .filter(|(_, root)| root.access == Access::ReadOnly);
        Handover {
            vcpus: self.wakes.len(),
            roots: self.roots.len(),
            read_only: read_only.fold(0, |bits, (n, _)| bits | 1u64.checked_shl(n as u32).unwrap_or(0)),
            spin: self.spin,
            network: self.network,
            user: self.user.clone(),
            withheld: self.withheld.clone(),
        }
        .checked()
    }

    /// Copies of all descriptors in the order of the handover, numbered `end` and up, so that putting one
    /// into its place can't overwrite another.
    fn copies(&self, lifeline: BorrowedFd<'_>, end: i32) -> Result<Vec<OwnedFd>, OsError> {
        [self.region, self.doorbell, lifeline, self.streams]
            .into_iter()
            .chain(self.wakes.iter().copied())
            .chain(self.roots.iter().map(|root| root.directory))
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, end))
            .collect::<Result<_, Errno>>()
            .map_err(OsError::at("copying a descriptor"))
    }
}

/// How the service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

/// The running service. Dropping it ends the service.
#[derive(Debug)]
pub struct OsService {
    pidfd: OwnedFd,
    ended: Option<Ended>,
    // Closing it is what ends the service when this process dies without dropping anything.
    lifeline: Option<OwnedFd>,
}

/// Starts the service: this very program, which must call [`super::main_if_service`] first thing in `main`.
///
/// # Errors
/// When a count is out of range, or the process can't be started.
pub fn spawn(config: &SpawnConfig<'_>) -> Result<OsService, OsError> {
    let handover = config.handover()?;
    let (lifeline, held) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(OsError::at("making the lifeline"))?;
    let copies = config.copies(lifeline.as_fd(), handover.end())?;
    let program = c"/proc/self/exe".to_owned();
    let told = [MARK.to_owned()].into_iter().chain(handover.arguments());
    let told = told.map(|text| CString::new(text.clone()).map_err(|_| OsError::Argument(text)));
    let arguments = std::iter::once(Ok(c"cloak-os-service".to_owned()))
        .chain(told)
        .collect::<Result<Vec<_>, _>>()?;
    let pid = sys::start(&program, &arguments, &copies, REGION).map_err(OsError::at(
        "starting the service (posix_spawn of /proc/self/exe)",
    ))?;
    let pid = Pid::from_raw(pid).ok_or(OsError::System {
        step: "starting the service",
        errno: Errno::SRCH,
    })?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(OsError::at("pidfd_open of the service"))?;
    Ok(OsService {
        pidfd,
        ended: None,
        lifeline: Some(held),
    })
}

impl OsService {
    /// Readable (poll, epoll) once the service has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How the service ended, if it has.
    ///
    /// # Errors
    /// When the process can't be waited for.
    pub fn try_wait(&mut self) -> Result<Option<Ended>, OsError> {
        self.reap(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Ends the service at once and waits for that. What a worker is doing is cut off, as by a power failure
    /// between two system calls: the guest has to have seen an answer to count on it.
    ///
    /// # Errors
    /// When the process can't be waited for.
    pub fn stop(mut self) -> Result<Option<Ended>, OsError> {
        self.kill_and_reap()
    }

    fn kill_and_reap(&mut self) -> Result<Option<Ended>, OsError> {
        if self.ended.is_none() {
            // Fails when it is dead already, or works as another user and this process has no right left to signal
            // others.
            if pidfd_send_signal(&self.pidfd, Signal::KILL).is_err() {
                self.lifeline = None;
            }
        }
        self.reap(WaitIdOptions::EXITED)
    }

    fn reap(&mut self, options: WaitIdOptions) -> Result<Option<Ended>, OsError> {
        while self.ended.is_none() {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Ok(Some(status)) => {
                    let exited = status.exit_status().map(Ended::Exited);
                    self.ended = exited.or(status.terminating_signal().map(Ended::Signalled));
                }
                Ok(None) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(OsError::at("waiting for the service")(errno)),
            }
        }
        Ok(self.ended)
    }
}

impl Drop for OsService {
    fn drop(&mut self) {
        // Nobody is left to tell; the lifeline ends the service if killing it failed.
        let _unreaped = self.kill_and_reap();
    }
}
