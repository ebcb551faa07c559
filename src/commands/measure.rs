//! `cloak measure`: digests that a verifier pins.

use std::process::ExitCode;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the SHA-384 of the shim that this binary carries
    #[arg(long, required = true)]
    shim: bool,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
}

/// Prints the digest.
pub fn run(args: &Args) -> ExitCode {
    let digest = cloak_host::shim_digest();
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    if args.json {
        println!("{{\"shim\":{{\"sha384\":\"{hex}\"}}}}");
    } else {
        println!("{hex}");
    }
    ExitCode::SUCCESS
}
