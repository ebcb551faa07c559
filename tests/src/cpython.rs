//! CPython's own regression modules, run natively and cloaked and compared test by test.
//!
//! `tests/data/run_cpython.py` runs inside and writes one line a test; this module runs it both ways, compares, runs
//! what differs once more by itself (some of these tests depend on timing, natively too), and holds the rest against
//! the list of known differences in `tests/data/cpython-differences.toml`.

use crate::case::Case;
use crate::differences::{Known, known_differences};
use crate::launcher::{Launcher, workspace_root};
use crate::process::RunError;
use crate::scratch::Scratch;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// The longest module takes a minute alone on this kind of machine.
const MODULE: Duration = Duration::from_secs(900);
/// A run of a few tests again.
const AGAIN: Duration = Duration::from_secs(180);

/// How often a module is taken up again after a test that ended its process.
const RESTARTS: usize = 8;
/// The line that only a run that got to its end has.
const FINISHED: &str = "the whole run";

/// What each test of a run came to: `ok`, `failed`, `error`, `skipped`, or `started` when it never ended.
pub type Results = BTreeMap<String, String>;

/// A module of which no test passes natively; these are its results.
#[derive(Debug, thiserror::Error)]
#[error("no test of it passes natively, so there is nothing to compare: {0:?}")]
pub struct NothingToCompare(Results);

/// A module's comparison.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Tests that passed natively.
    pub native_passed: usize,
    /// Of those, the ones that passed cloaked.
    pub cloaked_passed: usize,
    /// Differences that no entry covers: test, native, cloaked.
    pub new: Vec<(String, String, String)>,
    /// Differences that an entry covers.
    pub known: usize,
    /// Entries for this module that cover nothing any more.
    pub vanished: Vec<String>,
}

impl Comparison {
    /// Compares two runs of `module` against the known differences.
    pub fn of(module: &str, native: &Results, cloaked: &Results, known: &[Known]) -> Self {
        let mut comparison = Comparison::default();
        let mut used = vec![false; known.len()];
        for (test, outcome) in native {
            let there = cloaked.get(test).map_or("missing", String::as_str);
            comparison.native_passed += usize::from(outcome == "ok");
            comparison.cloaked_passed += usize::from(outcome == "ok" && there == "ok");
            if !differs(outcome, there) {
                continue;
            }
            match known.iter().position(|entry| entry.covers(test)) {
                Some(index) => {
                    used[index] = true;
                    comparison.known += 1;
                }
                None => comparison.new.push((test.clone(), outcome.clone(), there.into())),
            }
        }
        let of_module = format!("test.{module}");
        let unused = known
            .iter()
            .zip(used)
            .filter(|(entry, used)| !used && entry.steady);
        let unused = unused.filter(|(entry, _)| module_of(&entry.test) == of_module);
        comparison.vanished = unused.map(|(entry, _)| entry.test.clone()).collect();
        comparison
    }

    /// The line for the log, and a line for each thing to look at.
    pub fn report(&self, module: &str) -> String {
        let mut text = format!(
            "{module}: {} passed natively, {} of them cloaked, {} known differences",
            self.native_passed, self.cloaked_passed, self.known
        );
        for (test, native, cloaked) in &self.new {
            let _ = write!(
                text,
                "\n  new difference: {test}: natively {native}, cloaked {cloaked}"
            );
        }
        for test in &self.vanished {
            let _ = write!(
                text,
                "\n  no difference any more, take it out of the list: {test}"
            );
        }
        text
    }
}

/// A test that fails natively has nothing to say about Cloak; one that is skipped must be skipped for the same machine.
fn differs(native: &str, cloaked: &str) -> bool {
    native != cloaked && matches!(native, "ok" | "skipped" | "expected-failure")
}

fn module_of(test: &str) -> &str {
    let end = test
        .match_indices(['.', '*'])
        .nth(1)
        .map_or(test.len(), |(at, _)| at);
    &test[..end]
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

/// Runs `module` both ways and compares.
///
/// # Errors
/// When no test of it passes natively.
///
/// # Panics
/// When a run cannot be started.
pub fn compare(module: &str, launcher: &Launcher) -> Result<Comparison, NothingToCompare> {
    let known = known_differences();
    let mut native = run_module(module, &Launcher::Native, &Results::new());
    if !native.values().any(|outcome| outcome == "ok") {
        return Err(NothingToCompare(native));
    }
    let mut cloaked = run_module(module, launcher, &native);
    let suspects: Vec<String> = Comparison::of(module, &native, &cloaked, &known)
        .new
        .into_iter()
        .map(|(test, _, _)| test)
        .filter(|test| is_name(test))
        .collect();
    // A module that falls over as a whole is not made of unsteady tests.
    if !suspects.is_empty() && suspects.len() <= 30 {
        native.extend(run(&suspects, &Launcher::Native, AGAIN));
        cloaked.extend(run(&suspects, launcher, AGAIN));
    }
    Ok(Comparison::of(module, &native, &cloaked, &known))
}

/// Runs a whole module. A test that hangs or kills its process ends only the run that it is in: those of `expected`
/// that it kept from running get another, so that one such test costs one result and not all that come after it.
fn run_module(module: &str, launcher: &Launcher, expected: &Results) -> Results {
    let mut results = run(&[module.to_owned()], launcher, MODULE);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn results(lines: &str) -> Results {
        parse(
            &lines
                .split(' ')
                .map(|pair| format!("RESULT\ttest.m.{}\n", pair.replace('=', "\t")))
                .collect::<String>(),
        )
    }

    fn known(test: &str, steady: bool) -> Known {
        Known {
            test: test.into(),
            reason: "a reason".into(),
            steady,
        }
    }

    #[test]
    fn a_new_difference_is_told() {
        let comparison = Comparison::of(
            "m",
            &results("A=ok B=ok C=failed"),
            &results("A=ok B=failed C=ok"),
            &[],
        );
        assert_eq!(
            comparison.new,
            [("test.m.B".into(), "ok".into(), "failed".into())]
        );
        assert_eq!((comparison.native_passed, comparison.cloaked_passed), (2, 1));
    }

    #[test]
    fn a_test_that_never_ended_or_never_began_differs() {
        let comparison = Comparison::of("m", &results("A=ok B=ok"), &results("A=started"), &[]);
        let outcomes: Vec<_> = comparison
            .new
            .iter()
            .map(|(_, _, cloaked)| cloaked.as_str())
            .collect();
        assert_eq!(outcomes, ["started", "missing"]);
    }

    #[test]
    fn a_known_difference_is_covered_and_a_vanished_one_reported() {
        let list = [
            known("test.m.B*", true),
            known("test.m.A", true),
            known("test.m.Z", false),
            known("test.other.A", true),
        ];
        let comparison = Comparison::of("m", &results("A=ok B1=ok"), &results("A=ok B1=error"), &list);
        assert_eq!((comparison.known, comparison.new.len()), (1, 0));
        assert_eq!(comparison.vanished, ["test.m.A"]);
    }
}
