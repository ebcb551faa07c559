//! Redis's own test suite in Tcl: the whole of it, interpreter, servers and clients, runs natively and in one VM.

use crate::case::Case;
use crate::launcher::Launcher;
use crate::process::RunError;
use crate::results::Results;
use crate::unit::Unit;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest file of tests takes some minutes natively; another's work may make that ten times as much.
const WHOLE: Duration = Duration::from_secs(5400);
/// The suite's own limit, in seconds, on the time in which no test ends.
const WITHOUT_PROGRESS: &str = "1800";

/// One file of the suite's tests, such as `unit/dump`.
pub struct RedisUnit {
    folder: PathBuf,
    name: String,
}

impl RedisUnit {
    /// The file `name` of the suite in `folder`.
    pub fn new(folder: &Path, name: &str) -> Self {
        RedisUnit {
            folder: folder.into(),
            name: name.into(),
        }
    }
}

impl Unit for RedisUnit {
    fn prefix(&self) -> String {
        format!("{}: ", self.name)
    }

    fn run(&self, launcher: &Launcher, _: &Results) -> Results {
        // `--durable` goes on after an exception.
        let case = Case::new("/usr/bin/tclsh")
            .args(["tests/test_helper.tcl", "--single", &self.name])
            .args(["--clients", "1", "--durable", "--timeout", WITHOUT_PROGRESS])
            .args(["--baseport", &first_port().to_string(), "--portcount", "400"])
            .in_folder(&self.folder)
            .memory("4G");
        let (output, errors) = match case.start(launcher).finish(WHOLE) {
            Ok(outcome) => (outcome.text(), outcome.error_text()),
            Err(RunError::Hung { stdout, stderr, .. }) => (stdout, stderr),
            Err(error) => panic!("{error}"),
        };
        let results = parse(&self.prefix(), &output);
        if results.is_empty() {
            eprintln!("{} told of no test:\n{output}{errors}", self.name);
        }
        results
    }

    /// Tests of a file build on those before them, so the file runs as a whole.
    fn again(&self, tests: &[String], launcher: &Launcher) -> Results {
        let mut results = self.run(launcher, &Results::new());
        results.retain(|test, _| tests.contains(test));
        results
    }
}

/// A range of ports for this process, below those that the system gives out: the suite looks for free ones in it, and
/// somebody else's run of it must not be in the way.
fn first_port() -> u32 {
    21_111 + std::process::id() % 20 * 500
}

/// The suite prints `[ok]: NAME (7 ms)`, `[err]: NAME in FILE`, `[skip]: NAME` and `[ignore]: NAME: WHY`, with colours.
/// A name that comes twice is one test here, as good as its worst.
fn parse(prefix: &str, text: &str) -> Results {
    let mut results = Results::new();
    for line in without_colours(text).lines() {
        let Some((kind, rest)) = line.strip_prefix('[').and_then(|line| line.split_once("]: ")) else {
            continue;
        };
        let (test, outcome) = match kind {
            "ok" => (rest.rsplit_once(" (").map_or(rest, |(name, _)| name), "ok"),
            "err" => (
                rest.rsplit_once(" in tests/").map_or(rest, |(name, _)| name),
                "failed",
            ),
            "skip" => (rest, "skipped"),
            "ignore" => (rest.rsplit_once(": ").map_or(rest, |(name, _)| name), "skipped"),
            _ => continue,
        };
        let known = results
            .entry(format!("{prefix}{}", without_chance(test)))
            .or_insert_with(|| outcome.to_owned());
        if outcome == "failed" {
            *known = outcome.into();
        }
    }
    results
}

/// A name without what a run draws by lot: `Set #3 to replicate from #4`, `NAME (x = 16)`.
fn without_chance(name: &str) -> String {
    let name = name.split_once(" (x = ").map_or(name, |(name, _)| name);
    // Elsewhere it is the number of a bug.
    if !name.contains("Set #") {
        return name.into();
    }
    let mut parts = name.split('#');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| {
        name + "#" + part.trim_start_matches(|c: char| c.is_ascii_digit())
    })
}

fn without_colours(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_suite_are_read() {
        let text = "[\u{1b}[0;32;49mok\u{1b}[0m]: A (of two) (7 ms)\n\
            [\u{1b}[0;31;49merr\u{1b}[0m]: B in tests/unit/b.tcl\n\
            Expected x\n\
            [ok]: B (1 ms)\n\
            [skip]: C\n\
            [ignore]: D: Tag: large\n\
            [ok]: Set #3 to follow #4 (1 ms)\n\
            [ok]: Set #0 to follow #12 (1 ms)\n\
            [ok]: after #3080 (1 ms)\n\
            [ok]: E after load (x = 7) (1 ms)\n\
            [err]: E after load (x = 19) in tests/unit/b.tcl\n\
            [1/1 done]: unit/b (2 seconds)\n";
        let told: Vec<_> = parse("unit/b: ", text).into_iter().collect();
        let expected = [
            ("unit/b: A (of two)", "ok"),
            ("unit/b: B", "failed"),
            ("unit/b: C", "skipped"),
            ("unit/b: D: Tag", "skipped"),
            ("unit/b: E after load", "failed"),
            ("unit/b: Set # to follow #", "ok"),
            ("unit/b: after #3080", "ok"),
        ];
        assert_eq!(
            told,
            expected.map(|(test, outcome)| (test.to_owned(), outcome.to_owned()))
        );
    }
}
