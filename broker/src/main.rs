//! `cloak kbs` alone, for a machine that runs no guests.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use cloak_broker::cli::KbsArgs;

#[derive(Debug, Parser)]
#[command(name = "cloak-kbs", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    kbs: KbsArgs,
}

fn main() -> ExitCode {
    Cli::parse().kbs.run(&mut io::stdout(), &mut io::stderr()).into()
}
