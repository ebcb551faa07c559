//! Compares modules of CPython's regression suite from the command line: `cpython-compare MODULE...`.
//!
//! One line a module in the form that `tests/suites/run` counts, and a line for each thing to look at.
#![forbid(unsafe_code)]

use cloak_tests::{Launcher, cpython};
use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    let launcher = Launcher::under_test();
    let mut all_good = true;
    for module in env::args().skip(1) {
        let comparison = match cpython::compare(&module, &launcher) {
            Ok(comparison) => comparison,
            Err(nothing) => {
                println!("skipped {module}: {nothing}");
                continue;
            }
        };
        let good = comparison.new.is_empty() && comparison.vanished.is_empty();
        all_good &= good;
        println!(
            "{} {}",
            if good { "ok" } else { "FAILED" },
            comparison.report(&module)
        );
    }
    if all_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
