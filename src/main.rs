//! The `cloak` command: parse, call a library, map errors to exit codes.

mod commands;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs Linux programs so that the operating system beneath manages but can't read or change them.
#[derive(Debug, Parser)]
#[command(
    name = "cloak",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a program in a cloaked VM
    Run(commands::run::Args),
    /// Look at the machine: what is there, what is missing, what it costs
    Doctor(commands::doctor::Args),
    /// Print measurements (digests): of the shim, or predicted for an image on SNP and TDX
    Measure(commands::measure::Args),
    /// Judge evidence of what runs, offline
    Verify(cloak_attestation::cli::VerifyArgs),
    /// Write and check policies
    Policy(cloak_attestation::cli::PolicyArgs),
}

fn main() -> ExitCode {
    if let Some(code) = cloak_host::os::main_if_service() {
        return code;
    }
    match Cli::parse().command {
        Command::Run(args) => commands::run::run(args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Measure(args) => commands::measure::run(&args),
        Command::Verify(args) => args
            .run(&mut io::stdout().lock(), &mut io::stderr().lock())
            .into(),
        Command::Policy(args) => args
            .run(&mut io::stdout().lock(), &mut io::stderr().lock())
            .into(),
    }
}
