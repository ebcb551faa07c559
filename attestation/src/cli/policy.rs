//! `cloak policy`: writes a policy, checks one, prints the schema.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::measure::Platform;
use super::outcome::{CommandError, Outcome, conclude, read, read_manifest};
use crate::bytes::Bytes32;
use crate::evidence::EvidenceKind;
use crate::measure::{Image, ImageError};
use crate::policy::{Policy, json_schema, policy_for};

/// Write and check policies.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the policy that accepts one image with one manifest.
    Init(InitArgs),
    /// Read a policy and print it with its defaults written out.
    Check {
        /// Policy, TOML.
        policy: PathBuf,
    },
    /// Print the JSON schema of policies.
    Schema,
}

#[derive(Debug, Args)]
struct InitArgs {
    /// Manifest of what should run.
    #[arg(long = "for", value_name = "MANIFEST")]
    manifest: PathBuf,
    /// Image description that it will run in (default: the shim that this program carries).
    #[arg(long)]
    image: Option<PathBuf>,
    /// Platforms to accept.
    #[arg(long, value_delimiter = ',', default_values = ["snp", "tdx"])]
    platform: Vec<Platform>,
    /// Numbers of vCPUs to accept on SNP, where each gives another measurement.
    #[arg(long, value_delimiter = ',', default_values_t = [1])]
    cpus: Vec<u32>,
    /// Accept machines that are simulated, instead of real ones. They protect nothing: for tests.
    #[arg(long)]
    simulated: bool,
    /// SHA-256 of a root certificate (DER) that simulated evidence has to come from (repeatable; default: any).
    #[arg(long, value_name = "HEX", requires = "simulated")]
    simulated_root: Vec<Bytes32>,
}

/// Reports of guests of this project's shim name VMPL 1: it gives the key of VMPL 0 away before any program runs, so that no
/// program can ask for what follows from it. Nothing else runs at either level.
const VMPL_OF_REPORTS: u32 = 1;

impl PolicyArgs {
    /// Does what was asked and prints.
    pub fn run(&self, out: &mut dyn Write, err: &mut dyn Write) -> Outcome {
        self.run_with(|_, _| Err(ImageError::NoDescription), out, err)
    }

    /// As [`PolicyArgs::run`], with the image of the shim that the program carries, for a platform and a number of vCPUs.
    pub fn run_with(
        &self,
        embedded: impl Fn(Platform, u32) -> Result<Image, ImageError>,
        out: &mut dyn Write,
        err: &mut dyn Write,
    ) -> Outcome {
        let result = match &self.command {
            Command::Init(args) => args.write(&embedded, out),
            Command::Check { policy } => check(policy, out),
            Command::Schema => schema(out),
        };
        conclude(result, err)
    }
}

impl InitArgs {
    fn write(
        &self,
        embedded: &impl Fn(Platform, u32) -> Result<Image, ImageError>,
        out: &mut dyn Write,
    ) -> Result<Outcome, CommandError> {
        let manifest = read_manifest(&self.manifest)?;
        let image = |platform, cpus| match &self.image {
            Some(path) => Image::load(path),
            None => embedded(platform, cpus),
        };
        let mut snp = BTreeSet::new();
        let mut tdx = BTreeSet::new();
        let mut named = None;
        if self.platform.contains(&Platform::Snp) {
            for &cpus in &self.cpus {
                let image = image(Platform::Snp, cpus)?;
                snp.insert(image.snp_measurement(cpus)?);
                named = Some(image);
            }
        }
        if self.platform.contains(&Platform::Tdx) {
            let image = image(Platform::Tdx, 1)?;
            tdx.insert(image.mrtd()?);
            named.get_or_insert(image);
        }
        let named = named.unwrap_or_default();
        let mut policy = policy_for(&named.name, &named.release, &manifest, snp, tdx);
        if self.image.is_none() {
            policy.snp.maximum_vmpl = VMPL_OF_REPORTS;
        }
        if self.simulated {
            policy.platforms = policy.platforms.into_iter().map(simulated).collect();
            policy.simulated.root_digests = self.simulated_root.iter().copied().collect();
        }
        write!(out, "{}", policy.to_toml()?)?;
        Ok(Outcome::Verified)
    }
}

fn simulated(kind: EvidenceKind) -> EvidenceKind {
    match kind {
        EvidenceKind::SevSnp => EvidenceKind::SimulatedSnp,
        EvidenceKind::Tdx => EvidenceKind::SimulatedTdx,
        other => other,
    }
}

fn check(path: &Path, out: &mut dyn Write) -> Result<Outcome, CommandError> {
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    let policy = Policy::from_toml(&text).map_err(|error| CommandError::Policy {
        path: path.to_owned(),
        source: Box::new(error),
    })?;
    write!(out, "{}", policy.to_toml()?)?;
    Ok(Outcome::Verified)
}

fn schema(out: &mut dyn Write) -> Result<Outcome, CommandError> {
    serde_json::to_writer_pretty(&mut *out, &json_schema())?;
    writeln!(out)?;
    Ok(Outcome::Verified)
}
