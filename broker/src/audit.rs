//! The log of decisions. Each record holds the digest of the one before, so none can be changed, taken out or put in
//! unnoticed; whoever keeps the last digest elsewhere also notices when the end is cut off.
//!
//! A decision is answered only after its record is in the database for good ([`crate::store`]).

use cloak_attestation::time::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::path::ResourcePath;

const CONTEXT: &[u8] = b"cloak kbs audit 1\0";

/// What was decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Evidence against the attestation policy.
    Attest,
    /// The release of a secret.
    Release,
    /// Writing a secret.
    PutSecret,
    /// Writing a secret's policy.
    PutPolicy,
    /// Removing a secret.
    Remove,
    /// Reading the list of secrets.
    List,
    /// Reading this log.
    ReadAudit,
    /// Taking up changed configuration.
    Reload,
    /// The broker began to serve.
    Start,
}

/// How it was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Yes.
    Granted,
    /// No.
    Refused,
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Decision {
    /// Unix seconds.
    pub at: u64,
    /// What about.
    pub action: Action,
    /// How.
    pub outcome: Outcome,
    /// Who asked: the peer's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Identifier of the attested session's token; no credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Which secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<ResourcePath>,
    /// Version of the secret that was released or written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Kind of evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Launch measurement, if the evidence holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measurement: Option<String>,
    /// Digest of the policy that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

/// A decision in its place in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// From 1, without gaps.
    pub sequence: u64,
    /// [`Decision`] as JSON; the digest is over this text.
    pub record: String,
    /// Digest of the previous entry's digest, the sequence number and the record, in hexadecimal.
    pub digest: String,
}

/// Last sequence number and digest; zero in an empty log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Entries in the log.
    pub sequence: u64,
    /// Digest of the last.
    pub digest: [u8; 32],
}

/// A log that is not whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokenChain {
    /// A number is missing or doubled.
    #[error("entry {found} stands where {expected} belongs")]
    Sequence {
        /// What belongs there.
        expected: u64,
        /// What stands there.
        found: u64,
    },
    /// An entry's digest is not that of its record and its predecessor.
    #[error("entry {0} or its predecessor was changed")]
    Digest(u64),
}

impl Decision {
    /// A decision of now, about nothing in particular yet.
    pub fn new(action: Action, outcome: Outcome) -> Self {
        Self {
            at: Timestamp::now().0,
            action,
            outcome,
            peer: None,
            subject: None,
            resource: None,
            version: None,
            kind: None,
            measurement: None,
            policy: None,
            reasons: Vec::new(),
        }
    }
}

impl Head {
    /// The entry that `decision` becomes after this head, and the head after it.
    pub fn append(&self, decision: &Decision) -> (Entry, Head) {
        // A structure of text and numbers always has a JSON form.
        let record = serde_json::to_string(decision).unwrap_or_default();
        let next = self.after(&record);
        let entry = Entry {
            sequence: next.sequence,
            record,
            digest: hex::encode(next.digest),
        };
        (entry, next)
    }

    fn after(&self, record: &str) -> Head {
        let sequence = self.sequence + 1;
        let digest = Sha256::new_with_prefix(CONTEXT)
            .chain_update(self.digest)
            .chain_update(sequence.to_be_bytes())
            .chain_update(record)
            .finalize();
        Head {
            sequence,
            digest: digest.into(),
        }
    }

    /// Checks that `entry` follows and gives the head after it.
    ///
    /// # Errors
    /// [`BrokenChain`] if it doesn't.
    pub fn follow(&self, entry: &Entry) -> Result<Head, BrokenChain> {
        let next = self.after(&entry.record);
        if entry.sequence != next.sequence {
            return Err(BrokenChain::Sequence {
                expected: next.sequence,
                found: entry.sequence,
            });
        }
        if entry.digest != hex::encode(next.digest) {
            return Err(BrokenChain::Digest(entry.sequence));
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(length: usize) -> Vec<Entry> {
        let mut head = Head::default();
        let decision = Decision::new(Action::Release, Outcome::Granted);
        (0..length)
            .map(|_| {
                let (entry, next) = head.append(&decision);
                head = next;
                entry
            })
            .collect()
    }

    fn check(log: &[Entry]) -> Result<Head, BrokenChain> {
        log.iter()
            .try_fold(Head::default(), |head, entry| head.follow(entry))
    }

    #[test]
    fn a_changed_missing_or_moved_entry_breaks_the_chain() {
        let whole = log(5);
        assert_eq!(check(&whole).unwrap().sequence, 5);
        for index in 0..4 {
            let mut changed = whole.clone();
            changed[index].record = changed[index].record.replace("granted", "refused");
            assert!(check(&changed).is_err());
            let mut missing = whole.clone();
            missing.remove(index);
            assert!(check(&missing).is_err());
            let mut moved = whole.clone();
            moved.swap(index, index + 1);
            assert!(check(&moved).is_err());
        }
    }
}
