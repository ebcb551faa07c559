//! What the tests of somebody else's suite came to, natively and cloaked, and how the two differ.

use crate::differences::Known;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What each test of a run came to: `ok`, `failed`, `error`, `skipped`, or `started` when it never ended.
pub type Results = BTreeMap<String, String>;

/// Both runs of one unit of a suite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Without Cloak.
    pub native: Results,
    /// Under it.
    pub cloaked: Results,
}

/// The comparison of two runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Tests that passed natively.
    pub native_passed: usize,
    /// Of those, the ones that passed cloaked.
    pub cloaked_passed: usize,
    /// Differences that no entry covers: test, native, cloaked.
    pub new: Vec<(String, String, String)>,
    /// Differences that an entry covers, with the entry's place in the list.
    pub known: Vec<(String, usize)>,
    /// Entries for this unit that cover nothing any more.
    pub vanished: Vec<String>,
}

impl Comparison {
    /// Compares the runs of the unit whose tests' identifiers begin with `prefix` against the known differences.
    pub fn of(prefix: &str, runs: &Runs, known: &[Known]) -> Self {
        let mut comparison = Comparison::default();
        let mut used = vec![false; known.len()];
        for (test, outcome) in &runs.native {
            let there = runs.cloaked.get(test).map_or("missing", String::as_str);
            comparison.native_passed += usize::from(outcome == "ok");
            comparison.cloaked_passed += usize::from(outcome == "ok" && there == "ok");
            if !differs(outcome, there) {
                continue;
            }
            match known.iter().position(|entry| entry.covers(test)) {
                Some(index) => {
                    used[index] = true;
                    comparison.known.push((test.clone(), index));
                }
                None => comparison.new.push((test.clone(), outcome.clone(), there.into())),
            }
        }
        let unused = known
            .iter()
            .zip(used)
            .filter(|(entry, used)| !used && entry.steady && entry.test.starts_with(prefix));
        comparison.vanished = unused.map(|(entry, _)| entry.test.clone()).collect();
        comparison
    }

    /// Whether there is nothing to look at.
    pub fn is_good(&self) -> bool {
        self.new.is_empty() && self.vanished.is_empty()
    }

    /// The line for the log, and a line for each thing to look at.
    pub fn report(&self, unit: &str) -> String {
        let mut text = format!(
            "{unit}: {} passed natively, {} of them cloaked, {} known differences",
            self.native_passed,
            self.cloaked_passed,
            self.known.len()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn results(pairs: &str) -> Results {
        let pairs = pairs.split(' ').filter_map(|pair| pair.split_once('='));
        pairs
            .map(|(test, outcome)| (format!("test.m.{test}"), outcome.into()))
            .collect()
    }

    fn runs(native: &str, cloaked: &str) -> Runs {
        Runs {
            native: results(native),
            cloaked: results(cloaked),
        }
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
        let comparison = Comparison::of("test.m.", &runs("A=ok B=ok C=failed", "A=ok B=failed C=ok"), &[]);
        assert_eq!(
            comparison.new,
            [("test.m.B".into(), "ok".into(), "failed".into())]
        );
        assert_eq!((comparison.native_passed, comparison.cloaked_passed), (2, 1));
        assert!(!comparison.is_good());
    }

    #[test]
    fn a_test_that_never_ended_or_never_began_differs() {
        let comparison = Comparison::of("test.m.", &runs("A=ok B=ok", "A=started"), &[]);
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
        let comparison = Comparison::of("test.m.", &runs("A=ok B1=ok", "A=ok B1=error"), &list);
        assert_eq!(comparison.known, [("test.m.B1".into(), 0)]);
        assert_eq!(
            (comparison.new.len(), comparison.vanished),
            (0, vec!["test.m.A".into()])
        );
    }
}
