//! CPython's own regression modules, run natively and cloaked and compared test by test.
//!
//! `tests/data/run_cpython.py` runs inside and writes one line a test; this module runs it both ways. What differs is
//! held against the list of known differences in `tests/data/cpython-differences.toml`.

use crate::case::Case;
use crate::launcher::{Launcher, workspace_root};
use crate::process::RunError;
use crate::results::Results;
use crate::scratch::Scratch;
use crate::unit::Unit;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// The longest module takes some minutes alone on this kind of machine; another's work may make that ten times as much.
const MODULE: Duration = Duration::from_secs(2700);
/// A run of a few tests again.
const AGAIN: Duration = Duration::from_secs(1800);

/// How often a module is taken up again after a test that ended its process.
const RESTARTS: usize = 8;
/// The line that only a run that got to its end has.
const FINISHED: &str = "the whole run";

/// One module of the suite, such as `test_json`.
pub struct Module(String);

impl Module {
    /// The module of this name.
    pub fn new(name: &str) -> Self {
        Module(name.into())
    }
}

impl Unit for Module {
    fn prefix(&self) -> String {
        format!("test.{}.", self.0)
    }

    /// A test that hangs or kills its process ends only the run that it is in: those of `expected` that it kept from
    /// running get another, so that one such test costs one result and not all that come after it.
    fn run(&self, launcher: &Launcher, expected: &Results) -> Results {
        let mut results = run(std::slice::from_ref(&self.0), launcher, MODULE);
        for _ in 0..RESTARTS {
            let finished = results.remove(FINISHED).is_some();
            let left: Vec<String> = expected
                .keys()
                .filter(|test| !results.contains_key(*test) && is_name(test))
                .cloned()
                .collect();
            if finished || left.is_empty() {
                break;
            }
            results.extend(run(&left, launcher, MODULE));
        }
        results.remove(FINISHED);
        results
    }

    fn again(&self, tests: &[String], launcher: &Launcher) -> Results {
        let names: Vec<String> = tests.iter().filter(|test| is_name(test)).cloned().collect();
        let mut results = run(&names, launcher, AGAIN);
        results.remove(FINISHED);
        results
    }
}

/// Whether the module is on this machine, from Debian's package or beside it.
pub fn is_there(module: &str) -> bool {
    let folders = [PathBuf::from("/usr/lib/python3.11/test"), more_tests()];
    folders
        .iter()
        .any(|folder| folder.join(module).is_dir() || folder.join(format!("{module}.py")).is_file())
}

/// Where `scripts/install-test-packages` puts the modules that Debian does not package.
fn more_tests() -> PathBuf {
    workspace_root().join("tests/.cache/cpython")
}

/// Identifiers of failed fixtures and generated tests carry descriptions, by which a test cannot be called.
fn is_name(test: &str) -> bool {
    !test.contains(['(', ' ']) && test != FINISHED
}

/// Runs modules or single tests one way; a run that hangs gives what it had got to.
fn run(tests: &[String], launcher: &Launcher, patience: Duration) -> Results {
    let scratch = Scratch::new();
    let file = scratch.write("results", "");
    let script = fs::read(workspace_root().join("tests/data/run_cpython.py"))
        .expect("the script is in the repository");
    let script = scratch.write("run_cpython.py", script);
    let case = Case::new("/usr/bin/python3")
        .arg(script)
        .arg(&file)
        .args(tests)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TMPDIR", &scratch.path().display().to_string())
        .env("CPYTHON_MORE_TESTS", &more_tests().display().to_string())
        .in_folder(scratch.path())
        .volume(scratch.path())
        .memory("2G");
    match case.start(launcher).finish(patience) {
        Ok(_) | Err(RunError::Hung { .. } | RunError::LeftBehind { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    parse(&String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()))
}

fn parse(text: &str) -> Results {
    let lines = text.lines().filter_map(|line| line.strip_prefix("RESULT\t"));
    lines
        .filter_map(|line| line.split_once('\t'))
        .map(|(test, outcome)| (test.into(), outcome.into()))
        .collect()
}
