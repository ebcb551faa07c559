//! `cloak pod`: several programs in one VM, each in a context of its own.

mod file;

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use cloak_host::control::folder::Name;
use cloak_host::run::{self, Ended, Outcome};

use self::file::Pod;

/// Exit code of Cloak's own failures.
const FAILED: u8 = 125;

/// Several programs in one VM, which see nothing of each other
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the contexts of a pod file, until the last one has ended
    Run(Run),
    /// Read a pod file and say what is in it
    Check(Check),
}

#[derive(Debug, clap::Args)]
struct Run {
    /// Tell counts of calls, exits and faults of each context on standard error at the end
    #[arg(long)]
    stats: bool,
    /// Name of the VM, in place of the file's. Under it `cloak ps`, `exec` and `inspect` find the contexts while it runs
    #[arg(long)]
    name: Option<Name>,
    /// The KVM device
    #[arg(long, value_name = "PATH", default_value = "/dev/kvm", hide = true)]
    device: PathBuf,
    /// The pod file
    file: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Check {
    /// The pod file
    file: PathBuf,
}

/// Carries out the command.
pub fn run(args: Args) -> ExitCode {
    let done = match args.command {
        Command::Run(run) => run.run(),
        Command::Check(check) => check.run(),
    };
    done.unwrap_or_else(|error| {
        eprintln!("cloak: {error}");
        ExitCode::from(FAILED)
    })
}

type Failure = Box<dyn std::error::Error>;

impl Check {
    fn run(self) -> Result<ExitCode, Failure> {
        let pod = Pod::read(&self.file)?;
        for context in &pod.contexts {
            println!("{}\t{}", context.name, context.command());
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Run {
    fn run(self) -> Result<ExitCode, Failure> {
        let pod = Pod::read(&self.file)?;
        let names: Vec<String> = pod.contexts.iter().map(|context| context.name.clone()).collect();
        let segments = pod.segments()?;
        let control = self.name.or(pod.name);
        let all = pod
            .contexts
            .into_iter()
            .map(|context| context.options(&self.device))
            .collect::<Result<Vec<_>, _>>()?;
        no_standard_input()?;
        let ended = run::run_all(all, segments, control.as_ref())?;
        Ok(tell(&names, ended, self.stats))
    }
}

/// Contexts would take each other's.
fn no_standard_input() -> Result<(), Failure> {
    let null = File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(())
}

/// Says how each context ended; the code is 0 when all ended well, else that of the first that did not.
fn tell(names: &[String], ended: Vec<Ended>, stats: bool) -> ExitCode {
    let mut first = 0;
    for (name, ended) in names.iter().zip(ended) {
        let (code, how) = match ended.outcome {
            Ok(Outcome::Exited(code)) => (code, format!("exited with {code}")),
            Ok(Outcome::Signalled(signal)) => (128 + signal, format!("ended by signal {signal}")),
            Ok(Outcome::Refused(code, why)) => (code, why),
            Err(error) => (FAILED, error.to_string()),
        };
        eprintln!("cloak: context {name}: {how}");
        if stats {
            eprint!("{}", ended.statistics);
        }
        if first == 0 {
            first = code;
        }
    }
    ExitCode::from(first)
}
