//! The checks of one verification, in the order in which they ran.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

use super::ReasonCode;
use crate::time::{Position, Timestamp, Window};

/// One check: what was asked of which part of the evidence, and what came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The code under which the check fails.
    pub code: ReasonCode,
    /// Whether it held.
    pub passed: bool,
    /// Where in the evidence: a field with its offsets, a certificate, a file.
    pub at: Cow<'static, str>,
    /// What was required.
    pub expected: String,
    /// What the evidence says.
    pub found: String,
}

/// A check that failed.
pub type Reason = Check;

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}: expected {}, found {}",
            self.code, self.at, self.expected, self.found
        )
    }
}

/// The evidence is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused: {}", self.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Refused {
    /// Every check that failed; never empty.
    pub reasons: Vec<Reason>,
    /// Every check that ran, in order, for a report to a person.
    pub checks: Vec<Check>,
}

impl Refused {
    /// The codes of the reasons, in the order of the checks.
    pub fn codes(&self) -> Vec<ReasonCode> {
        self.reasons.iter().map(|reason| reason.code).collect()
    }
}

/// Collects checks while a verification runs.
#[derive(Debug, Default)]
pub(crate) struct Appraisal {
    checks: Vec<Check>,
}

impl Appraisal {
    /// Records that `holds` was required at `at`, and hands `holds` back.
    pub(crate) fn require(
        &mut self,
        code: ReasonCode,
        at: impl Into<Cow<'static, str>>,
        holds: bool,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> bool {
        let (at, expected, found) = (at.into(), expected.into(), found.into());
        self.checks.push(Check {
            code,
            passed: holds,
            at,
            expected,
            found,
        });
        holds
    }

    /// Records that two values must be the same.
    pub(crate) fn require_equal<T: PartialEq + fmt::Display>(
        &mut self,
        code: ReasonCode,
        at: impl Into<Cow<'static, str>>,
        expected: &T,
        found: &T,
    ) -> bool {
        self.require(
            code,
            at,
            expected == found,
            expected.to_string(),
            found.to_string(),
        )
    }

    /// Records a failure for which there is no passing counterpart.
    pub(crate) fn refuse(
        &mut self,
        code: ReasonCode,
        at: impl Into<Cow<'static, str>>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) {
        self.require(code, at, false, expected, found);
    }

    /// Records that `now` must lie in `window`; `codes` are those for before and after.
    pub(crate) fn require_current(
        &mut self,
        codes: (ReasonCode, ReasonCode),
        at: impl Into<Cow<'static, str>>,
        window: &Window,
        now: Timestamp,
        tolerance_seconds: u64,
    ) -> bool {
        let position = window.position(now, tolerance_seconds);
        let code = if position == Position::Before {
            codes.0
        } else {
            codes.1
        };
        self.require(
            code,
            at,
            position == Position::Inside,
            window.to_string(),
            now.to_string(),
        )
    }

    /// Whether a check with this code has failed.
    pub(crate) fn has_failed(&self, code: ReasonCode) -> bool {
        self.checks
            .iter()
            .any(|check| !check.passed && check.code == code)
    }

    /// Whether every check so far held.
    pub(crate) fn all_passed(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }

    /// The checks, or the refusal that they amount to.
    pub(crate) fn conclude(self) -> Result<Vec<Check>, Refused> {
        let reasons: Vec<Reason> = self
            .checks
            .iter()
            .filter(|check| !check.passed)
            .cloned()
            .collect();
        if reasons.is_empty() {
            Ok(self.checks)
        } else {
            Err(Refused {
                reasons,
                checks: self.checks,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_is_a_reason() {
        let mut appraisal = Appraisal::default();
        appraisal.require(ReasonCode::SnpVmpl, "a", true, "0", "0");
        appraisal.require(ReasonCode::SnpVmpl, "b", false, "0", "1");
        appraisal.refuse(ReasonCode::ChainExpired, "c", "x", "y");
        let refused = appraisal.conclude().unwrap_err();
        assert_eq!(refused.codes(), [ReasonCode::SnpVmpl, ReasonCode::ChainExpired]);
        assert_eq!(refused.checks.len(), 3);
    }
}
