//! `cloak simulated-collateral`: what Intel's service is for real machines. Examples and tests give it to a verifier.

use std::process::ExitCode;

use cloak_attestation::time::Timestamp;
use cloak_sim::keys;

/// What to print.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the SHA-256 of the root, as a policy names it
    #[arg(long)]
    root_digest: bool,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Keys(#[from] keys::KeyError),
    #[error("making collateral: {0}")]
    Collateral(#[from] cloak_attestation::sim::SimError),
    #[error("writing collateral: {0}")]
    Json(#[from] serde_json::Error),
}

/// Prints it.
pub fn run(args: &Args) -> ExitCode {
    match text(args.root_digest) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => super::failed(&error),
    }
}

fn text(root_digest: bool) -> Result<String, Error> {
    let world = keys::tdx_world(Timestamp::now())?;
    if root_digest {
        return Ok(world.root_digest().to_string());
    }
    let evidence = world.complete(Vec::new(), &world.spec())?;
    Ok(serde_json::to_string(&evidence.collateral)?)
}
