//! The OS service as a process, driven by a guest in miniature.

mod files;
mod guest;
mod ring;
mod sockets;
mod waiting;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if let Some(code) = cloak_host::os::main_if_service() {
        return code;
    }
    let mut trials: Vec<Trial> = Vec::new();
    for (name, test) in [ring::TESTS, files::TESTS, sockets::TESTS, waiting::TESTS].concat() {
        trials.push(Trial::test(name, move || {
            test();
            Ok(())
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
