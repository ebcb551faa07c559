//! The lists of known differences between native and cloaked results of suites that nobody here wrote, each with its
//! reason: `tests/data/SUITE-differences.toml`.

use crate::launcher::workspace_root;
use serde::Deserialize;
use std::fs;

/// One known difference, or a family of them.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// The identifier, or its beginning and `*`.
    pub test: String,
    /// Why it differs.
    pub reason: String,
    /// Whether it differs in every run.
    #[serde(default = "yes")]
    pub steady: bool,
}

fn yes() -> bool {
    true
}

impl Known {
    /// Whether `test` is it, or of it.
    pub fn covers(&self, test: &str) -> bool {
        match self.test.strip_suffix('*') {
            Some(beginning) => test.starts_with(beginning),
            None => test == self.test,
        }
    }
}

/// The file of known differences.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownDifferences {
    #[serde(default)]
    difference: Vec<Known>,
}

/// The known differences of a suite.
///
/// # Panics
/// When the file is missing or wrong.
pub fn known_differences(suite: &str) -> Vec<Known> {
    let path = workspace_root().join(format!("tests/data/{suite}-differences.toml"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let known: KnownDifferences =
        toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    known.difference
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compat::table::SUITES;

    #[test]
    fn the_lists_in_the_repository_parse_and_give_reasons() {
        for entry in SUITES.iter().flat_map(|suite| known_differences(suite.name)) {
            assert!(!entry.reason.trim().is_empty(), "{entry:?}");
        }
    }

    #[test]
    fn a_star_covers_what_begins_alike() {
        let family = Known {
            test: "test.m.A*".into(),
            reason: "r".into(),
            steady: true,
        };
        assert!(family.covers("test.m.A.x") && !family.covers("test.m.B"));
    }
}
