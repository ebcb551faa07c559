//! The OS service as a process, driven by a guest in miniature; and the process that fetches quotes.

mod files;
mod flow;
mod guest;
mod handed;
mod hostile;
mod quotes;
mod ring;
mod sockets;
mod streams;
mod waiting;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if let Some(code) = cloak_host::os::main_if_service() {
        return code;
    }
    if let Some(code) = cloak_host::tdvmcall::courier::main_if_courier() {
        return code;
    }
    if let Some(code) = streams::main_if_probe() {
        return code;
    }
    let mut trials: Vec<Trial> = Vec::new();
    for (name, test) in [
        ring::TESTS,
        files::TESTS,
        sockets::TESTS,
        flow::TESTS,
        waiting::TESTS,
        hostile::TESTS,
        streams::TESTS,
        handed::TESTS,
        quotes::TESTS,
    ]
    .concat()
    {
        trials.push(Trial::test(name, move || {
            test();
            Ok(())
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Ignores a signal in this process.
fn ignore(signal: i32) {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}
