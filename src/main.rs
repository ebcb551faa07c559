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
    Run(Box<commands::run::Args>),
    /// Run several programs in one VM, each in a context of its own
    Pod(commands::pod::Args),
    /// List running VMs that have a name (cloak run --name)
    Ps(commands::ps::Args),
    /// Start one more program in a running context
    Exec(commands::exec::Args),
    /// Show a page of a running context as the program sees it and as the operating system does
    Inspect(commands::inspect::Args),
    /// Look at the machine: what is there, what is missing, what it costs
    Doctor(commands::doctor::Args),
    /// Print measurements (digests): of the shim, or predicted for an image on SNP and TDX
    Measure(commands::measure::Args),
    /// Write the image of the shim for other launchers
    Image(commands::image::Args),
    /// Judge evidence of what runs, offline
    Verify(cloak_attestation::cli::VerifyArgs),
    /// Write and check policies
    Policy(cloak_attestation::cli::PolicyArgs),
    /// Run a key broker, and use one: secrets for guests that prove what they are
    Kbs(cloak_broker::cli::KbsArgs),
    /// Write and check manifests: what to run, and what it may see
    Manifest(cloak_manifest::cli::ManifestArgs),
    /// Make root keys, which the keys of contexts follow from
    Key(commands::key::Args),
    /// Inside a context: fetch what the manifest says is released to it, and become its program
    #[command(hide = true, name = cloak_host::run::stated::START)]
    GuestStart(commands::guest_start::Args),
    /// Print what a verifier needs of simulated TDX: collateral that holds for a month, or the root's digest
    #[command(hide = true)]
    SimulatedCollateral(commands::simulated::Args),
    /// Make, list, check protected volumes, and give them new keys
    Volume(cloak_volumes::cli::VolumeArgs),
}

/// Exit code of Cloak's own failures.
const FAILED: u8 = 125;

fn main() -> ExitCode {
    if let Some(code) = cloak_host::tdvmcall::courier::main_if_courier() {
        return code;
    }
    if let Some(code) = cloak_host::os::main_if_service() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => {
            // Help and version are no failures; a wrong option is Cloak's own, with Cloak's own code.
            let failed = told.use_stderr();
            let _ = told.print();
            return if failed {
                ExitCode::from(FAILED)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match cli.command {
        Command::Run(args) => commands::run::run(*args),
        Command::Pod(args) => commands::pod::run(args),
        Command::Ps(args) => commands::ps::run(&args),
        Command::Exec(args) => commands::exec::run(args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Measure(args) => commands::measure::run(&args),
        Command::Image(args) => commands::image::run(&args),
        Command::Verify(args) => args
            .run(&mut io::stdout().lock(), &mut io::stderr().lock())
            .into(),
        Command::Policy(args) => args
            .run_with(
                commands::image::embedded,
                &mut io::stdout().lock(),
                &mut io::stderr().lock(),
            )
            .into(),
        Command::Kbs(args) => args.run(&mut io::stdout(), &mut io::stderr()).into(),
        Command::Manifest(args) => args
            .run(&mut io::stdout().lock(), &mut io::stderr().lock())
            .into(),
        Command::Key(args) => commands::key::run(&args),
        Command::GuestStart(args) => commands::guest_start::run(&args),
        Command::SimulatedCollateral(args) => commands::simulated::run(&args),
        Command::Volume(args) => args
            .run(
                &commands::key::OfManifests,
                &mut io::stdout().lock(),
                &mut io::stderr().lock(),
            )
            .into(),
    }
}
