//! `cloak policy`: writes a policy, checks one, prints the schema.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::measure::Platform;
use super::outcome::{CommandError, Outcome, conclude, read, read_manifest};
use crate::measure::Image;
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
    /// Image description that it will run in.
    #[arg(long)]
    image: PathBuf,
    /// Platforms to accept.
    #[arg(long, value_delimiter = ',', default_values = ["snp", "tdx"])]
    platform: Vec<Platform>,
    /// Numbers of vCPUs to accept on SNP, where each gives another measurement.
    #[arg(long, value_delimiter = ',', default_values_t = [1])]
    cpus: Vec<u32>,
}

impl PolicyArgs {
    /// Does what was asked and prints.
    pub fn run(&self, out: &mut dyn Write, err: &mut dyn Write) -> Outcome {
        let result = match &self.command {
            Command::Init(args) => args.write(out),
            Command::Check { policy } => check(policy, out),
            Command::Schema => schema(out),
        };
        conclude(result, err)
    }
}

impl InitArgs {
    fn write(&self, out: &mut dyn Write) -> Result<Outcome, CommandError> {
        let manifest = read_manifest(&self.manifest)?;
        let image = Image::load(&self.image)?;
        let mut snp = BTreeSet::new();
        let mut tdx = BTreeSet::new();
        if self.platform.contains(&Platform::Snp) {
            for &cpus in &self.cpus {
                snp.insert(image.snp_measurement(cpus)?);
            }
        }
        if self.platform.contains(&Platform::Tdx) {
            tdx.insert(image.mrtd()?);
        }
        let policy = policy_for(&image.name, &image.release, &manifest, snp, tdx);
        write!(out, "{}", policy.to_toml()?)?;
        Ok(Outcome::Verified)
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
