//! `docs/compat.md`, written from the results on disk and the lists of known differences.

use super::record::Records;
use crate::differences::{Known, known_differences};
use crate::results::Comparison;
use std::collections::BTreeMap;
use std::fmt::Write;

/// A suite with what the page says of it.
pub struct Suite {
    /// The name of its records and of its list of differences.
    pub name: &'static str,
    /// What it is and how it runs.
    what: &'static str,
    /// What the identifiers of a unit's tests begin with.
    prefix: fn(&str) -> String,
}

/// All suites.
pub const SUITES: [Suite; 5] = [
    Suite {
        name: "nix",
        what: "`nix` 0.32.0 from crates.io, all features: its unit tests and its four test binaries",
        prefix: |unit| format!("{unit}::"),
    },
    Suite {
        name: "mio",
        what: "`mio` from crates.io. The published 1.2.5 carries only its unit tests and its documentation's, which run; \
            the last published release with its folder of tests is 0.6.21, which runs whole",
        prefix: |unit| {
            if unit == "doc" {
                "doc: ".into()
            } else {
                format!("{unit}::")
            }
        },
    },
    Suite {
        name: "tokio",
        what: "`tokio` 1.54.1 from crates.io, features `full` and `test-util`: its unit tests and its folder of tests",
        prefix: |unit| format!("{unit}::"),
    },
    Suite {
        name: "redis",
        what: "the Tcl suite of Debian's source package `redis` 7.0.15 with Debian's `redis-server`: interpreter, \
            servers and clients in one VM",
        prefix: |unit| format!("{unit}: "),
    },
    Suite {
        name: "cpython",
        what: "the regression suite of Debian's Python 3.11 (`libpython3.11-testsuite`), without the resources that \
            `-u` adds",
        prefix: |unit| format!("test.{unit}."),
    },
];

/// What a suite's records come to.
struct Sum {
    native: usize,
    cloaked: usize,
    /// Units with results, and those without.
    units: (usize, Vec<String>),
    /// Units with results of which nothing passes natively.
    nothing: Vec<String>,
    /// By the entry's place in the list; `None` are those without one.
    differences: BTreeMap<Option<usize>, Vec<String>>,
}

/// The whole page.
pub fn print() -> String {
    let mut page = String::from(HEAD);
    let sums: Vec<(&Suite, Vec<Known>, Sum)> = SUITES
        .iter()
        .map(|suite| {
            let known = known_differences(suite.name);
            let sum = sum(suite, &known);
            (suite, known, sum)
        })
        .collect();
    for (suite, _, sum) in &sums {
        let _ = writeln!(
            page,
            "| {} | {} of {} | {} | {} | {} |",
            suite.name,
            sum.units.0,
            sum.units.0 + sum.units.1.len(),
            sum.native,
            sum.cloaked,
            percent(sum.cloaked, sum.native)
        );
    }
    for (suite, known, sum) in &sums {
        let _ = write!(page, "\n## {}\n{}.\n", suite.name, capital(suite.what));
        differences(&mut page, known, sum);
        let lists = [
            (
                "Run, and nothing of it passes natively on that machine",
                &sum.nothing,
            ),
            ("Not run", &sum.units.1),
        ];
        for (what, units) in lists.into_iter().filter(|(_, units)| !units.is_empty()) {
            let _ = writeln!(page, "\n{what}: {}.", units.join(", "));
        }
    }
    page
}

const HEAD: &str = "\
# Suites that nobody here wrote

Built or installed on the host, run natively and then as `cloak run`, and compared test by test. This page is written by
`make compat` from the results in `target/test-suites/compat` and from the reasons in `tests/data/*-differences.toml`; an
unlisted difference fails the suite, and a listed one that is gone is told. A test counts when it passed natively on the
machine of the run. What differs at first runs up to twice more, both ways, and the last result counts: some tests depend
on timing, natively too.

| suite | files of tests that were run | tests that passed natively | of those, passed under Cloak | |
|---|---|---|---|---|
";

fn sum(suite: &Suite, known: &[Known]) -> Sum {
    let records = Records::of(suite.name);
    let mut sum = Sum {
        native: 0,
        cloaked: 0,
        units: (0, records.missing()),
        nothing: Vec::new(),
        differences: BTreeMap::new(),
    };
    for unit in records.units() {
        let Some(runs) = records.read(&unit) else { continue };
        sum.units.0 += 1;
        if !runs.native.values().any(|outcome| outcome == "ok") {
            sum.nothing.push(unit);
            continue;
        }
        let comparison = Comparison::of(&(suite.prefix)(&unit), &runs, known);
        sum.native += comparison.native_passed;
        sum.cloaked += comparison.cloaked_passed;
        for (test, entry) in comparison.known {
            sum.differences.entry(Some(entry)).or_default().push(test);
        }
        for (test, native, cloaked) in comparison.new {
            let line = format!("{test} (natively {native}, cloaked {cloaked})");
            sum.differences.entry(None).or_default().push(line);
        }
    }
    sum
}

fn differences(page: &mut String, known: &[Known], sum: &Sum) {
    if sum.differences.is_empty() {
        page.push_str("\nNothing differs.\n");
        return;
    }
    page.push_str("\n| differs | tests | reason |\n|---|---|---|\n");
    for (entry, tests) in &sum.differences {
        match entry.and_then(|index| known.get(index)) {
            Some(entry) => {
                let _ = writeln!(
                    page,
                    "| `{}` | {} | {} |",
                    cell(&entry.test),
                    tests.len(),
                    cell(&entry.reason)
                );
            }
            None => {
                for test in tests {
                    let _ = writeln!(page, "| `{}` | 1 | not listed |", cell(test));
                }
            }
        }
    }
}

fn percent(part: usize, whole: usize) -> String {
    if whole == 0 {
        return "not run".into();
    }
    // Rounded down: 99.999 is not 100.
    let hundredths = part.saturating_mul(10_000) / whole;
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

/// A bar would end a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded_down() {
        assert_eq!(percent(99_999, 100_000), "99.99%");
        assert_eq!(percent(7, 7), "100.00%");
        assert_eq!(percent(0, 0), "not run");
    }
}
