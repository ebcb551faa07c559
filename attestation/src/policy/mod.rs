//! What a relying party accepts, in TOML.
//!
//! An empty policy is a strict one: real SNP and TDX only, no debugging, no migration, no provisional trust in
//! dates. Everything looser has to be written down, and the dangerous words start with `dangerous_`. A word that is
//! not known is an error, so a typo cannot loosen anything.

mod reference;
mod schema;
mod sections;
mod write;

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use reference::{Reference, ReferenceName};
pub use schema::json_schema;
pub use sections::{
    AbiVersion, AdvisoryPolicy, MinimumTcb, SimulatedPolicy, SnpPolicy, SoftwarePolicy, TcbStatus, TdxPolicy,
};
pub use write::policy_for;

use crate::bytes::Bytes32;
use crate::evidence::EvidenceKind;

/// A policy is a few kilobytes; this bounds what a parser is asked to read.
const MAX_POLICY_BYTES: usize = 1024 * 1024;

/// Everything a relying party can ask for. See `docs/policy.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Version of this format: 1.
    pub version: PolicyVersion,
    /// Kinds of evidence that may pass. Default: `sev-snp` and `tdx`.
    pub platforms: BTreeSet<EvidenceKind>,
    /// How far the attester's and the vendor's clocks may be off from the verifier's, in seconds.
    pub clock_tolerance_seconds: u32,
    /// Whether revocation information has to come with SNP evidence. TDX collateral always has it.
    pub revocation: Revocation,
    /// Whether evidence has to match one of the reference values even if there is none.
    pub require_reference: bool,
    /// AMD SEV-SNP.
    pub snp: SnpPolicy,
    /// Intel TDX.
    pub tdx: TdxPolicy,
    /// Statements signed by a host key.
    pub software: SoftwarePolicy,
    /// Simulated signers.
    pub simulated: SimulatedPolicy,
    /// What may run. With at least one, evidence has to match one of them as a whole.
    #[serde(rename = "reference")]
    pub references: Vec<Reference>,
}

/// Version of the policy format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
pub struct PolicyVersion;

/// When revocation information is needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Revocation {
    /// Evidence without the root's current list is refused.
    Require,
    /// What comes along is checked, stale or forged lists are refused; nothing coming along is accepted.
    #[default]
    IfPresent,
}

/// Why a text is not a policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Larger than any policy.
    #[error("the policy has {0} bytes, more than {MAX_POLICY_BYTES}")]
    Size(usize),
    /// Not TOML, or not the TOML of a policy. The message gives line and column.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// A reference value that nothing could match or that everything would.
    #[error(
        "reference {name:?} pins nothing: give at least one of snp_measurement, mrtd, software_measurement"
    )]
    EmptyReference {
        /// Its name.
        name: String,
    },
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            version: PolicyVersion,
            platforms: BTreeSet::from([EvidenceKind::SevSnp, EvidenceKind::Tdx]),
            clock_tolerance_seconds: 0,
            revocation: Revocation::default(),
            require_reference: false,
            snp: SnpPolicy::default(),
            tdx: TdxPolicy::default(),
            software: SoftwarePolicy::default(),
            simulated: SimulatedPolicy::default(),
            references: Vec::new(),
        }
    }
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// [`PolicyError`] for anything but a policy of version 1 with known words only.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        if text.len() > MAX_POLICY_BYTES {
            return Err(PolicyError::Size(text.len()));
        }
        let policy: Self = toml::from_str(text)?;
        match policy
            .references
            .iter()
            .find(|reference| reference.pins_no_measurement())
        {
            Some(reference) => Err(PolicyError::EmptyReference {
                name: reference.name.clone(),
            }),
            None => Ok(policy),
        }
    }

    /// The whole policy as TOML, defaults written out.
    ///
    /// # Errors
    /// None in practice: every policy has a TOML form.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// SHA-256 over the policy with its defaults written out, so two texts that mean the same have one digest.
    pub fn digest(&self) -> Bytes32 {
        let canonical = serde_json::to_vec(self).unwrap_or_default();
        Bytes32::from(<[u8; 32]>::from(Sha256::digest(canonical)))
    }

    pub(crate) fn tolerance(&self) -> u64 {
        self.clock_tolerance_seconds.into()
    }
}

impl Serialize for PolicyVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(1)
    }
}

impl<'de> Deserialize<'de> for PolicyVersion {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            1 => Ok(Self),
            other => Err(serde::de::Error::custom(format!(
                "policy version {other}: this program reads version 1"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_written_is_the_default_and_the_default_round_trips() {
        let default = Policy::default();
        assert_eq!(Policy::from_toml("").unwrap(), default);
        assert_eq!(Policy::from_toml(&default.to_toml().unwrap()).unwrap(), default);
        assert_eq!(
            Policy::from_toml("version = 1").unwrap().digest(),
            default.digest()
        );
    }

    #[test]
    fn the_default_is_strict() {
        let policy = Policy::default();
        assert!(!policy.snp.dangerous_allow_debug && !policy.tdx.dangerous_allow_debug);
        assert!(!policy.platforms.contains(&EvidenceKind::Software));
        assert!(!policy.platforms.contains(&EvidenceKind::SimulatedSnp));
        assert!(!policy.platforms.contains(&EvidenceKind::SimulatedTdx));
    }

    #[test]
    fn unknown_words_versions_and_empty_references_are_errors() {
        for text in [
            "allow_debug = true",
            "[snp]\nallow_debug = true",
            "[snp.minimum_tcb.rome]\nsnp = 1",
            "version = 2",
            "platforms = [\"sgx\"]",
            "[[reference]]\nname = \"a\"\nversion = \"1\"",
            "[tdx]\ntcb_statuses = [\"Fine\"]",
        ] {
            assert!(Policy::from_toml(text).is_err(), "{text}");
        }
    }
}
