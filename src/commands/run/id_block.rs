//! `--id-block`, `--id-auth`: who vouches for an SNP guest. The firmware checks both when the launch ends; here they are checked
//! before it begins, where more can be said.

use std::fs;
use std::path::{Path, PathBuf};

use cloak_attestation::cli::Platform;
use cloak_attestation::measure::ImageError;
use cloak_attestation::snp::{GuestPolicy, IdAuth, IdBlock, IdBlockError};
use cloak_host::kvm::snp::{self, POLICY};
use cloak_host::run::RunOptions;

use crate::commands::image;

/// Why they can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not this machine.
    #[error("--id-block is for --platform snp and sim-snp: no other firmware takes one")]
    NoFirmware,
    /// Not a file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The firmware would refuse it.
    #[error("{}: {problem}", path.display())]
    Wrong {
        /// Which of the files.
        path: PathBuf,
        /// What is wrong with it.
        problem: Box<IdBlockError>,
    },
    /// The block of another guest.
    #[error(
        "{}: {problem}; a block for this one has the digest of `cloak measure --platform snp --cpus {cpus}` and the policy {POLICY:#x}",
        path.display()
    )]
    Other {
        /// The block's file.
        path: PathBuf,
        /// How they differ.
        problem: Box<IdBlockError>,
        /// Number of vCPUs.
        cpus: usize,
    },
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Puts the ID block of these files into the options of a run, if the firmware will take it.
///
/// # Errors
/// [`Error`].
pub fn add(options: &mut RunOptions, block: &Path, auth: &Path) -> Result<(), Error> {
    if !options.machine.has_id_block() {
        return Err(Error::NoFirmware);
    }
    let cpus = options.vcpus();
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |problem| Error::Wrong {
            path,
            problem: Box::new(problem),
        }
    };
    let vouched = IdAuth::parse(&read(auth)?).map_err(wrong(auth))?;
    let stated = IdBlock::parse(&read(block)?).map_err(wrong(block))?;
    vouched.verify(&stated).map_err(wrong(auth))?;
    let vcpus = u32::try_from(cpus).unwrap_or(u32::MAX);
    let measured = image::embedded(Platform::Snp, vcpus)?.snp_measurement(vcpus)?;
    let agreed = stated.agree(measured, GuestPolicy(POLICY));
    agreed.map_err(|problem| Error::Other {
        path: block.to_owned(),
        problem: Box::new(problem),
        cpus,
    })?;
    options.id_block = Some(snp::IdBlock {
        block: *stated.raw(),
        auth: Box::new(*vouched.raw()),
        author_key: vouched.has_author(),
    });
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}
