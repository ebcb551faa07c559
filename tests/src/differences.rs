//! The list of known differences between native and cloaked results of CPython's tests, each with its reason.

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

/// The known differences of the repository.
///
/// # Panics
/// When the file is missing or wrong.
pub fn known_differences() -> Vec<Known> {
    let path = workspace_root().join("tests/data/cpython-differences.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let known: KnownDifferences =
        toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    known.difference
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_in_the_repository_parses_and_gives_reasons() {
        for entry in known_differences() {
            assert!(
                entry.test.starts_with("test.") && !entry.reason.trim().is_empty(),
                "{entry:?}"
            );
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
