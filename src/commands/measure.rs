//! `cloak measure`: digests that a verifier pins.

use std::io;
use std::process::ExitCode;

use cloak_attestation::cli::MeasureArgs;

use super::image;

/// What to measure.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Print the SHA-384 of the shim that this binary carries
    #[arg(long, exclusive = true)]
    shim: bool,
    #[command(flatten)]
    image: Option<MeasureArgs>,
}

/// Prints the digest.
pub fn run(args: &Args) -> ExitCode {
    match &args.image {
        Some(image) if !args.shim => image
            .run_with(
                image::embedded,
                &mut io::stdout().lock(),
                &mut io::stderr().lock(),
            )
            .into(),
        None if !args.shim => {
            eprintln!(
                "cloak: say what to measure: --shim, or --platform, with an image description if it is not this program's shim"
            );
            ExitCode::from(2)
        }
        _ => {
            let hex: String = cloak_host::shim_digest()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            println!("{hex}");
            ExitCode::SUCCESS
        }
    }
}
