//! `cloak exec`: one more program in a running context.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::ExitCode;

use cloak_host::control::client::{Start, Target};
use cloak_host::control::session;
use cloak_host::control::wire::End;
use cloak_host::run;
use cloak_host::vm::signals::Inherited;

use super::run::parse_variable;

/// Start one more program in a running context
///
/// The program has the context's files, network, user and environment, and shares its memory and processes; the streams are
/// the caller's, and so is the exit code. With a terminal on standard input and output it gets a terminal of its own. A
/// context that runs what a manifest says refuses, unless the manifest has `exec = true` for its program.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Set a variable besides the context's own, or pass the caller's on (repeatable)
    #[arg(long = "env", short = 'e', value_name = "NAME[=VALUE]", value_parser = parse_variable)]
    environment: Vec<String>,
    /// Working directory of the program (default: where the context began)
    #[arg(long, short = 'w', value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// No terminal for the program, even if the caller has one
    #[arg(long, short = 'T')]
    no_terminal: bool,
    /// Keep standard input open (always so; accepted for habit)
    #[arg(short = 'i', long, hide = true)]
    interactive: bool,
    /// Use the terminal (always so when there is one; accepted for habit)
    #[arg(short = 't', long, hide = true)]
    tty: bool,
    /// The VM, as named by cloak run --name; with a pod, NAME/CONTEXT
    #[arg(value_name = "NAME[/CONTEXT]")]
    target: Target,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    command: Vec<OsString>,
}

/// Starts it; gives its exit code, or ends by its signal.
pub fn run(args: Args) -> ExitCode {
    let terminal = !args.no_terminal && session::has_terminal();
    let mut environment: Vec<Vec<u8>> = args
        .environment
        .iter()
        .filter_map(|text| variable(text))
        .collect();
    let names = |name: &[u8]| environment.iter().any(|known| known.starts_with(name));
    if terminal && !names(b"TERM=") {
        environment.extend(variable("TERM"));
    }
    let command: Vec<Vec<u8>> = args.command.into_iter().map(OsString::into_vec).collect();
    let workdir = args.workdir.map(|folder| folder.into_os_string().into_vec());
    let start = Start {
        command: &command,
        environment: &environment,
        workdir: workdir.as_deref(),
        terminal: None,
        signals: Inherited::now(),
    };
    match session::run(&args.target, &start, terminal) {
        Ok(End::Exited(code)) => ExitCode::from(code),
        Ok(End::Signalled(signal)) => run::die_by(signal),
        Ok(End::Refused(code, why)) => {
            eprintln!("cloak: {why}");
            ExitCode::from(code)
        }
        Err(error) => super::failed(&error),
    }
}

fn variable(text: &str) -> Option<Vec<u8>> {
    if text.contains('=') {
        return Some(text.as_bytes().to_vec());
    }
    let value = std::env::var_os(text)?.into_vec();
    Some([text.as_bytes(), b"=", &value].concat())
}
