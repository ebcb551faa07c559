//! `cloak image`: the shim's image for launchers other than this one, and for who predicts its measurement.
//!
//! The host crate describes the image ([`LaunchImage`]); here it becomes what `attestation` measures and an IGVM file.

use std::path::PathBuf;
use std::process::ExitCode;

use cloak_abi::layout::MAX_VCPUS;
use cloak_attestation::cli::Platform;
use cloak_attestation::measure::{Gpa, Image, ImageError, PageKind, Region, Segment, Vmsa};
use cloak_host::image::program::Shim;
use cloak_host::image::registers::{CODE, CR0, CR4, DATA, EFER, Registers};
use cloak_host::image::{Kind, LaunchImage, Measuring};
use cloak_host::vm::error::VmError;

mod igvm_file;

/// What to do with it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Write the image to a file
    Export {
        /// An IGVM file for SNP and TDX
        #[arg(long, value_name = "FILE")]
        igvm: PathBuf,
        /// Number of vCPUs. On SNP the state of each is in the file, and measured
        #[arg(long, default_value_t = 1)]
        cpus: u32,
    },
}

/// What an export may die of.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("the image makes no IGVM file: {0}")]
    Igvm(#[from] igvm::Error),
    #[error("{path}: {source}", path = path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

/// Writes it.
pub fn run(args: &Args) -> ExitCode {
    let Command::Export { igvm, cpus } = &args.command;
    match export(igvm, *cpus) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloak: {error}");
            ExitCode::from(super::super::FAILED)
        }
    }
}

fn export(path: &std::path::Path, cpus: u32) -> Result<(), ExportError> {
    let [snp, tdx] = [Platform::Snp, Platform::Tdx].map(|platform| embedded(platform, cpus));
    let bytes = igvm_file::bytes(&snp?, &tdx?, cpus)?;
    std::fs::write(path, bytes).map_err(|source| ExportError::Write {
        path: path.to_owned(),
        source,
    })
}

/// The image of the shim that this program carries.
///
/// # Errors
/// [`ImageError::Vcpus`]: more than the shim has room for.
pub fn embedded(platform: Platform, cpus: u32) -> Result<Image, ImageError> {
    if cpus == 0 || cpus as usize > MAX_VCPUS {
        return Err(ImageError::Vcpus("the shim has room for 1 to 64 vCPUs"));
    }
    let platform = match platform {
        Platform::Snp => Measuring::Snp,
        Platform::Tdx => Measuring::Tdx,
    };
    let damaged = |error: VmError| ImageError::Embedded(Box::new(error));
    let shim = Shim::embedded().map_err(damaged)?;
    LaunchImage::new(&shim, platform).map_err(damaged).map(measured)
}

/// The image as `attestation` measures it: pages of a kind in a row are one region.
fn measured(launch: LaunchImage) -> Image {
    let mut image = Image {
        name: "cloak-shim".to_owned(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        ..Image::default()
    };
    if launch.platform == Measuring::Snp {
        image.boot_vmsa = Some(state(launch.first));
        image.application_vmsa = Some(state(launch.others));
    }
    for page in launch.pages {
        let kind = match page.kind {
            Kind::Measured => PageKind::Normal,
            Kind::Unmeasured => PageKind::Unmeasured,
            Kind::Secrets => PageKind::Secrets,
            Kind::Cpuid => PageKind::Cpuid,
        };
        let contents: &[u8] = if kind == PageKind::Normal {
            &page.contents[..]
        } else {
            &[]
        };
        match image.regions.last_mut() {
            Some(last) if last.kind == kind && last.gpa.0 + last.pages * 4096 == page.gpa => {
                last.pages += 1;
                last.contents.extend_from_slice(contents);
            }
            _ => image.regions.push(Region {
                gpa: Gpa(page.gpa),
                kind,
                pages: 1,
                contents: contents.to_vec(),
            }),
        }
    }
    image
}

/// CR4.MCE, which the architecture forces on in an SNP guest.
const MCE: u64 = 1 << 6;
/// EFER.SVME, which each VMSA has.
const SVME: u64 = 1 << 12;

fn state(registers: Registers) -> Vmsa {
    let segment = |(selector, attributes)| Segment {
        selector,
        attributes,
        limit: u32::MAX,
        base: 0,
    };
    let (code, data) = (segment(CODE), segment(DATA));
    Vmsa {
        segments: [data, code, data, data, data, data],
        efer: EFER | SVME,
        cr0: CR0,
        cr3: registers.root,
        cr4: CR4 | MCE,
        rip: registers.rip,
        rdi: registers.rdi,
        ..Vmsa::protected_mode(0)
    }
}

#[cfg(test)]
mod tests;
