//! Writes the policy that accepts exactly one image with exactly one manifest.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256, Sha384};

use super::{Policy, Reference};
use crate::bytes::{Bytes32, Bytes48};
use crate::evidence::EvidenceKind;

/// Default policy plus one reference value: the measurements given, and the digests of `manifest`, which has to be the
/// form that a machine is launched with: the canonical one of `cloak-manifest`.
///
/// A platform without a measurement is left out of `platforms`.
pub fn policy_for(
    name: &str,
    version: &str,
    manifest: &[u8],
    snp_measurements: BTreeSet<Bytes48>,
    mrtds: BTreeSet<Bytes48>,
) -> Policy {
    let mut platforms = BTreeSet::new();
    if !snp_measurements.is_empty() {
        platforms.insert(EvidenceKind::SevSnp);
    }
    if !mrtds.is_empty() {
        platforms.insert(EvidenceKind::Tdx);
    }
    let reference = Reference {
        name: name.to_owned(),
        version: version.to_owned(),
        snp_measurement: snp_measurements,
        host_data: BTreeSet::from([Bytes32::from(<[u8; 32]>::from(Sha256::digest(manifest)))]),
        mrtd: mrtds,
        mr_config_id: BTreeSet::from([Bytes48::from(<[u8; 48]>::from(Sha384::digest(manifest)))]),
        ..Reference::default()
    };
    Policy {
        platforms,
        require_reference: true,
        references: vec![reference],
        ..Policy::default()
    }
}
