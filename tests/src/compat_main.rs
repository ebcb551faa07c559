//! Compares units of suites that nobody here wrote, from the command line.
//!
//! One line a unit in the form that `tests/suites/run` counts, and a line for each thing to look at. Results are kept in
//! `target/test-suites/compat`; a unit that has some is not run again unless `COMPAT_AGAIN` is set: to `differences` for its
//! differences alone, to anything else for all of it.
#![forbid(unsafe_code)]

use cloak_tests::Launcher;
use cloak_tests::compat::doctest::DocTests;
use cloak_tests::compat::libtest::TestBinary;
use cloak_tests::compat::record::Records;
use cloak_tests::compat::redis::RedisUnit;
use cloak_tests::compat::table;
use cloak_tests::cpython::Module;
use cloak_tests::differences::known_differences;
use cloak_tests::results::{Comparison, Runs};
use cloak_tests::unit::{Unit, another_chance, run_both_ways};
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

const USAGE: &str = "usage:
  compat cpython MODULE...
  compat redis FOLDER UNIT...
  compat libtest SUITE FOLDER NAME=BINARY...
  compat doctest SUITE FOLDER [ARGUMENT OF CARGO]...
  compat table FILE";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["cpython", modules @ ..] => all(modules
            .iter()
            .map(|name| compare("cpython", name, &Module::new(name)))),
        ["redis", folder, units @ ..] => all(units
            .iter()
            .map(|name| compare("redis", name, &RedisUnit::new(Path::new(folder), name)))),
        ["libtest", suite, folder, binaries @ ..] => all(binaries
            .iter()
            .filter_map(|word| word.split_once('='))
            .map(|(name, path)| {
                let binary = TestBinary::new(name, Path::new(path), Path::new(folder));
                if binary.is_empty() {
                    println!("skipped {suite} {name}: nothing in it is for this system and these features");
                    return Records::of(suite).write(name, &Runs::default()).map(|()| true);
                }
                compare(suite, name, &binary)
            })),
        ["doctest", suite, folder, ..] => {
            let tests = DocTests::new(Path::new(folder), &arguments[3..]);
            compare(suite, "doc", &tests)
        }
        ["table", file] => fs::write(file, table::print()).map(|()| true),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("compat: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all are good; one that is not does not keep the others from running.
fn all(units: impl Iterator<Item = io::Result<bool>>) -> io::Result<bool> {
    let verdicts: Vec<bool> = units.collect::<io::Result<_>>()?;
    Ok(verdicts.into_iter().all(|good| good))
}

fn compare(suite: &str, name: &str, unit: &dyn Unit) -> io::Result<bool> {
    let known = known_differences(suite);
    let runs = runs_of(suite, name, unit)?;
    if runs.native.is_empty() {
        println!("FAILED {suite} {name}: the native run told of no test");
        return Ok(false);
    }
    if !runs.native.values().any(|outcome| outcome == "ok") {
        println!("skipped {suite} {name}: no test of it passes natively, so there is nothing to compare");
        return Ok(true);
    }
    let comparison = Comparison::of(&unit.prefix(), &runs, &known);
    let verdict = if comparison.is_good() { "ok" } else { "FAILED" };
    println!("{verdict} {suite} {}", comparison.report(name));
    Ok(comparison.is_good())
}

fn runs_of(suite: &str, name: &str, unit: &dyn Unit) -> io::Result<Runs> {
    let records = Records::of(suite);
    let known = known_differences(suite);
    let runs = match (env::var("COMPAT_AGAIN").ok().as_deref(), records.read(name)) {
        (None, Some(runs)) => return Ok(runs),
        (Some("differences"), Some(mut runs)) => {
            another_chance(unit, &Launcher::under_test(), &known, &mut runs);
            runs
        }
        _ => run_both_ways(unit, &Launcher::under_test(), &known),
    };
    // A run that told of nothing was kept from running, and may do better another time.
    if !runs.native.is_empty() {
        records.write(name, &runs)?;
    }
    Ok(runs)
}
