//! Names of secrets: `repository/type/tag`, as the protocol has them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A part has at most this many characters.
const MAX_PART: usize = 128;

/// `repository/type/tag`. Each part has letters, digits, `.`, `_` and `-`, and is neither `.` nor `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourcePath(String);

/// What a list says of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub path: ResourcePath,
    /// Its version.
    pub version: u64,
    /// Whether it has a policy.
    pub policy: bool,
}

/// A text that names no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not REPOSITORY/TYPE/TAG with letters, digits, '.', '_' and '-', {MAX_PART} at most in each part"
)]
pub struct PathError(String);

impl ResourcePath {
    /// Puts a path together.
    ///
    /// # Errors
    /// [`PathError`] if a part is not a name.
    pub fn new(repository: &str, kind: &str, tag: &str) -> Result<Self, PathError> {
        let text = format!("{repository}/{kind}/{tag}");
        if [repository, kind, tag].into_iter().all(is_name) {
            Ok(Self(text))
        } else {
            Err(PathError(text))
        }
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_name(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=MAX_PART).contains(&part.len()) && part.chars().all(allowed) && part != "." && part != ".."
}

impl FromStr for ResourcePath {
    type Err = PathError;

    /// Reads `repository/type/tag`, with or without `kbs:///` before it.
    fn from_str(text: &str) -> Result<Self, PathError> {
        let parts: Vec<&str> = text.strip_prefix("kbs:///").unwrap_or(text).split('/').collect();
        match parts.as_slice() {
            [repository, kind, tag] => Self::new(repository, kind, tag),
            _ => Err(PathError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for ResourcePath {
    type Error = PathError;

    fn try_from(text: String) -> Result<Self, PathError> {
        text.parse()
    }
}

impl From<ResourcePath> for String {
    fn from(path: ResourcePath) -> Self {
        path.0
    }
}

impl fmt::Display for ResourcePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms_and_nothing_else() {
        let path: ResourcePath = "kbs:///default/key/1".parse().unwrap();
        assert_eq!("default/key/1".parse(), Ok(path));
        let long = "a".repeat(MAX_PART + 1);
        for text in [
            "",
            "a/b",
            "a/b/c/d",
            "a//c",
            "a/../c",
            "a/b/c d",
            "a/b/%2e",
            "ä/b/c",
            &format!("a/b/{long}"),
        ] {
            assert!(text.parse::<ResourcePath>().is_err(), "{text}");
        }
    }
}
