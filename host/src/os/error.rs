//! What can go wrong while the OS service starts or runs.

use rustix::io::Errno;

/// Failure of the OS service itself. What a request does wrong is that request's answer, never this.
#[derive(Debug, thiserror::Error)]
pub enum OsError {
    /// A system call that the service can't do without failed.
    #[error("OS service: {step} failed: {errno}")]
    System {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        errno: Errno,
    },
    /// The shared region has another size than both sides were built for.
    #[error(
        "OS service: the shared region has {found} bytes, expected {expected}: monitor and service differ"
    )]
    RegionSize {
        /// Bytes found.
        found: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// The shared region's header is not what this build writes.
    #[error("OS service: the shared region's header has version {found}, expected {expected}")]
    RegionVersion {
        /// Version found; 0 when the magic number is wrong.
        found: u32,
        /// Version of this build.
        expected: u32,
    },
    /// More vCPUs or mounts than the contract allows, or none.
    #[error("OS service: {what}: {found}, must be from {least} to {most}")]
    Count {
        /// What was counted.
        what: &'static str,
        /// How many there were.
        found: usize,
        /// Least allowed.
        least: usize,
        /// Most allowed.
        most: usize,
    },
    /// The jail could not be closed.
    #[error("OS service: {0}")]
    Jail(#[source] crate::jail::JailError),
    /// The hidden command line is not what [`super::spawn()`] writes.
    #[error("OS service: argument {0:?} was not written by this build")]
    Argument(String),
}

impl OsError {
    /// Names the step of a failed system call, for `map_err`.
    pub(super) fn at(step: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::System { step, errno }
    }
}
