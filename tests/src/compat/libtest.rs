//! Test binaries that cargo built, run test by test.
//!
//! libtest's JSON is not stable, so its lines are read; a test whose line is lost among what the tests print themselves,
//! or whose binary died or hung before it, runs once more alone and is judged by the exit code.

use crate::case::Case;
use crate::launcher::Launcher;
use crate::process::RunError;
use crate::results::Results;
use crate::scratch::Scratch;
use crate::unit::Unit;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A test of mio's moves a million messages; natively it takes ten seconds.
const WHOLE: Duration = Duration::from_secs(1800);
const ALONE: Duration = Duration::from_secs(900);
/// What libtest's main returns when a test failed.
const TESTS_FAILED: i32 = 101;

/// One test binary.
pub struct TestBinary {
    path: PathBuf,
    folder: PathBuf,
    name: String,
}

impl TestBinary {
    /// The binary at `path`, as cargo runs it: in its package's `folder`.
    pub fn new(name: &str, path: &Path, folder: &Path) -> Self {
        TestBinary {
            path: path.into(),
            folder: folder.into(),
            name: name.into(),
        }
    }

    fn case(&self, scratch: &Scratch) -> Case {
        Case::new(&self.path)
            .env("TMPDIR", &scratch.path().display().to_string())
            .env("CARGO_MANIFEST_DIR", &self.folder.display().to_string())
            .in_folder(&self.folder)
            .volume(scratch.path())
            .memory("2G")
    }

    fn identifier(&self, test: &str) -> String {
        format!("{}{test}", self.prefix())
    }

    /// Whether it has nothing to run: what is for another system, or for features that are not asked for, compiles to
    /// that.
    pub fn is_empty(&self) -> bool {
        self.tests().is_empty()
    }

    /// What it would run; a list is asked for natively, whichever way it runs later.
    fn tests(&self) -> Vec<String> {
        let scratch = Scratch::new();
        let case = self.case(&scratch).args(["--list", "--format", "terse"]);
        let outcome = case.run(&Launcher::Native);
        assert_eq!(
            outcome.status.shell_code(),
            0,
            "{} does not list its tests",
            self.path.display()
        );
        outcome
            .text()
            .lines()
            .filter_map(|line| line.strip_suffix(": test"))
            .map(str::to_owned)
            .collect()
    }

    fn whole(&self, launcher: &Launcher) -> Results {
        let scratch = Scratch::new();
        let case = self.case(&scratch);
        let output = match case.start(launcher).finish(WHOLE) {
            Ok(outcome) => outcome.text(),
            Err(RunError::Hung { stdout, .. }) => stdout,
            Err(RunError::LeftBehind { .. }) => String::new(),
            Err(error) => panic!("{error}"),
        };
        parse(&output)
    }

    fn alone(&self, test: &str, launcher: &Launcher) -> String {
        let scratch = Scratch::new();
        let case = self.case(&scratch).args(["--exact", test, "--test-threads", "1"]);
        let outcome = match case.start(launcher).finish(ALONE) {
            Ok(outcome) => outcome,
            Err(RunError::Hung { .. }) => return "hung".into(),
            Err(error) => return format!("not run: {error}"),
        };
        let told = parse(&outcome.text()).remove(test);
        match outcome.status.shell_code() {
            0 => told.unwrap_or_else(|| "ok".into()),
            TESTS_FAILED => "failed".into(),
            code => format!("died, {code}"),
        }
    }
}

impl Unit for TestBinary {
    fn prefix(&self) -> String {
        format!("{}::", self.name)
    }

    fn run(&self, launcher: &Launcher, _: &Results) -> Results {
        let mut told = self.whole(launcher);
        let outcome = |test: String| {
            let outcome = told.remove(&test).unwrap_or_else(|| self.alone(&test, launcher));
            (self.identifier(&test), outcome)
        };
        self.tests().into_iter().map(outcome).collect()
    }

    fn again(&self, tests: &[String], launcher: &Launcher) -> Results {
        let name = |test: &String| test.strip_prefix(&self.prefix()).unwrap_or(test).to_owned();
        tests
            .iter()
            .map(|test| (test.clone(), self.alone(&name(test), launcher)))
            .collect()
    }
}

/// The tests that libtest's lines tell of.
pub(super) fn parse(text: &str) -> Results {
    let lines = text.lines().filter_map(|line| line.strip_prefix("test "));
    lines
        .filter_map(|line| line.rsplit_once(" ... "))
        .filter_map(|(test, outcome)| Some((test, outcome_of(outcome)?)))
        .map(|(test, outcome)| {
            let name = test.split_once(" - should panic").map_or(test, |(name, _)| name);
            (name.to_owned(), outcome.to_owned())
        })
        .collect()
}

fn outcome_of(text: &str) -> Option<&'static str> {
    match text.split([',', ' ']).next()? {
        "ok" => Some("ok"),
        "FAILED" => Some("failed"),
        "ignored" => Some("skipped"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_libtest_are_read() {
        let text = "running 5 tests\n\
            test a::b ... ok\n\
            test c - should panic ... ok\n\
            noise test d ... ok\n\
            test e ... FAILED\n\
            test f ... ignored, needs root\n\
            test src/lib.rs - g (line 7) ... ok\n\
            test h has been running for over 60 seconds\n";
        let told: Vec<_> = parse(text).into_iter().collect();
        let expected = [
            ("a::b", "ok"),
            ("c", "ok"),
            ("e", "failed"),
            ("f", "skipped"),
            ("src/lib.rs - g (line 7)", "ok"),
        ];
        assert_eq!(
            told,
            expected.map(|(test, outcome)| (test.to_owned(), outcome.to_owned()))
        );
    }
}
