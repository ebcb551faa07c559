//! Software evidence: accepted from a named key, within its age, and from nobody else.

use cloak_attestation::bytes::{Bytes32, Bytes48, Bytes64};
use cloak_attestation::evidence::{Attestation, SoftwareEvidence};
use cloak_attestation::software::SoftwareClaims;
use cloak_attestation::time::Timestamp;
use cloak_attestation::{Evidence, Policy, Request, Verifier};
use p256::ecdsa::SigningKey;
use sha2::{Digest, Sha256};

use crate::vectors::codes;

const NOW: Timestamp = Timestamp(1_780_000_000);

fn signed(key: &SigningKey, issued_at: Timestamp) -> SoftwareEvidence {
    let claims = SoftwareClaims {
        measurement: Bytes48::from([1; 48]),
        manifest_digest: Bytes32::from([2; 32]),
        report_data: Bytes64::from([3; 64]),
        issued_at,
    };
    claims.sign(key)
}

fn judge(evidence: SoftwareEvidence, policy: &str) -> Result<(), Vec<&'static str>> {
    let policy = Policy::from_toml(policy).unwrap();
    let evidence = Evidence::from(Attestation::Software(evidence));
    let verdict = Verifier::new(policy).verify(&evidence, &Request::at(NOW));
    if verdict.is_ok() {
        Ok(())
    } else {
        Err(codes(verdict))
    }
}

#[test]
fn only_a_named_key_and_kind_pass() {
    let key = SigningKey::from_slice(&[9; 32]).unwrap();
    let good = signed(&key, NOW);
    let digest = hex::encode(Sha256::digest(&good.key));
    let named = format!("platforms = [\"software\"]\n[software]\nkey_digests = [\"{digest}\"]");
    assert_eq!(judge(good.clone(), &named), Ok(()));
    let by_default = ["evidence.kind.not-allowed", "software.key.not-allowed"];
    assert_eq!(judge(good.clone(), ""), Err(by_default.to_vec()));
    assert_eq!(
        judge(good.clone(), "platforms = [\"software\"]"),
        Err(vec!["software.key.not-allowed"])
    );
    let other = SigningKey::from_slice(&[8; 32]).unwrap();
    let forged = SoftwareEvidence {
        key: good.key.clone(),
        ..signed(&other, NOW)
    };
    assert_eq!(judge(forged, &named), Err(vec!["software.signature"]));
    let old = signed(&key, NOW.minus_seconds(301));
    assert_eq!(judge(old, &named), Err(vec!["software.expired"]));
    let future = signed(&key, NOW.plus_seconds(1));
    assert_eq!(judge(future, &named), Err(vec!["software.not-yet-valid"]));
    for length in 0..good.statement.len() {
        let cut = SoftwareEvidence {
            statement: good.statement[..length].to_vec(),
            ..good.clone()
        };
        assert_eq!(judge(cut, &named), Err(vec!["software.malformed"]), "{length}");
    }
    for bit in 0..good.statement.len() * 8 {
        let mut changed = good.clone();
        changed.statement[bit / 8] ^= 1 << (bit % 8);
        assert!(judge(changed, &named).is_err(), "bit {bit}");
    }
}
