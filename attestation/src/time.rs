//! The instant at which evidence is judged.
//!
//! No check reads the machine's clock: a caller passes the instant, so yesterday's evidence can be judged as of
//! yesterday and a test does not age.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use x509_cert::der::DateTime;

/// Seconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

/// A text that is neither Unix seconds nor an RFC 3339 instant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time: write Unix seconds, 2026-02-05 or 2026-02-05T01:04:33Z")]
pub struct TimestampError(String);

impl Timestamp {
    /// What the machine's clock says now; the epoch if the clock stands before it.
    pub fn now() -> Self {
        Self(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |age| age.as_secs()),
        )
    }

    /// This instant and `seconds` more, or the last instant there is.
    pub fn plus_seconds(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// This instant less `seconds`, or the epoch.
    pub fn minus_seconds(self, seconds: u64) -> Self {
        Self(self.0.saturating_sub(seconds))
    }
}

impl From<x509_cert::time::Time> for Timestamp {
    fn from(time: x509_cert::time::Time) -> Self {
        Self(time.to_unix_duration().as_secs())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from_unix_duration(Duration::from_secs(self.0)) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "{} s after 1970", self.0),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        if let Ok(seconds) = text.parse() {
            return Ok(Self(seconds));
        }
        let instant = if text.len() == 10 {
            format!("{text}T00:00:00Z")
        } else {
            text.to_owned()
        };
        let time: DateTime = instant.parse().map_err(|_| TimestampError(text.to_owned()))?;
        Ok(Self(time.unix_duration().as_secs()))
    }
}

/// The span in which something signed may be used, ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First instant.
    pub from: Timestamp,
    /// Last instant.
    pub until: Timestamp,
}

/// Where an instant lies with respect to a [`Window`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The window has not opened.
    Before,
    /// Within, ends included.
    Inside,
    /// The window has closed.
    After,
}

impl Window {
    /// Where `now` lies, when two clocks may differ by `tolerance_seconds`.
    pub fn position(&self, now: Timestamp, tolerance_seconds: u64) -> Position {
        if now.plus_seconds(tolerance_seconds) < self.from {
            Position::Before
        } else if now.minus_seconds(tolerance_seconds) > self.until {
            Position::After
        } else {
            Position::Inside
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.from, self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_seconds_dates_and_instants() {
        assert_eq!("86400".parse(), Ok(Timestamp(86400)));
        assert_eq!("1970-01-02".parse(), Ok(Timestamp(86400)));
        assert_eq!("1970-01-02T00:00:01Z".parse(), Ok(Timestamp(86401)));
        assert!("tomorrow".parse::<Timestamp>().is_err());
        assert!("1970-01-02T00:00".parse::<Timestamp>().is_err());
    }

    #[test]
    fn a_window_includes_its_ends_and_tolerance_widens_it() {
        let window = Window {
            from: Timestamp(10),
            until: Timestamp(20),
        };
        let at = |now, tolerance| window.position(Timestamp(now), tolerance);
        assert_eq!([at(9, 0), at(10, 0), at(20, 0), at(21, 0)], {
            use Position::*;
            [Before, Inside, Inside, After]
        });
        assert_eq!(
            (at(8, 2), at(22, 2), at(23, 2)),
            (Position::Inside, Position::Inside, Position::After)
        );
        assert_eq!(at(u64::MAX, 5), Position::After);
    }
}
