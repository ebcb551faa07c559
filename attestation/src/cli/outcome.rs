//! How a command ends.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cloak_manifest::{Manifest, ManifestError};

use crate::evidence::EvidenceError;
use crate::measure::ImageError;
use crate::policy::PolicyError;

/// What the exit code says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Verified, or done. Exit code 0.
    Verified,
    /// Judged and refused. Exit code 1.
    Refused,
    /// Could not be judged, or could not be done. Exit code 2.
    Unjudged,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        ExitCode::from(match outcome {
            Outcome::Verified => 0,
            Outcome::Refused => 1,
            Outcome::Unjudged => 2,
        })
    }
}

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file with evidence that is none.
    #[error("{path}: {source}")]
    Evidence {
        /// Which.
        path: PathBuf,
        /// Why.
        source: EvidenceError,
    },
    /// A file with a policy that is none.
    #[error("{path}: {source}")]
    Policy {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<PolicyError>,
    },
    /// A file with a manifest that is none.
    #[error("{path}: {source}")]
    Manifest {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<ManifestError>,
    },
    /// An image that cannot be measured.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Output that cannot be written.
    #[error("writing the result: {0}")]
    Output(#[from] std::io::Error),
    /// A result without a text form.
    #[error("writing the result: {0}")]
    Json(#[from] serde_json::Error),
    /// A policy without a text form.
    #[error("writing the policy: {0}")]
    Toml(#[from] toml::ser::Error),
}

/// Turns an error into words and [`Outcome::Unjudged`].
pub(super) fn conclude(result: Result<Outcome, CommandError>, err: &mut dyn Write) -> Outcome {
    result.unwrap_or_else(|error| {
        // Where even that cannot be written, the exit code still says it.
        let _ = writeln!(err, "error: {error}");
        Outcome::Unjudged
    })
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, CommandError> {
    std::fs::read(path).map_err(|source| CommandError::File {
        path: path.to_owned(),
        source,
    })
}

/// A manifest in its canonical form, of which a machine is launched with the digest. How the file is written does not count.
pub(super) fn read_manifest(path: &Path) -> Result<Vec<u8>, CommandError> {
    let bytes = read(path)?;
    let canonical = Manifest::parse(&bytes).and_then(|manifest| manifest.canonical());
    canonical
        .map(String::into_bytes)
        .map_err(|source| CommandError::Manifest {
            path: path.to_owned(),
            source: Box::new(source),
        })
}
