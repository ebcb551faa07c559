//! A manifest beside evidence: any bytes are one, and only those with the attested digest pass.
#![no_main]

use cloak_attestation::bytes::{Bytes32, Bytes48, Bytes64};
use cloak_attestation::evidence::Attestation;
use cloak_attestation::software::SoftwareClaims;
use cloak_attestation::time::Timestamp;
use cloak_attestation::{Evidence, Policy, Request, Verifier};
use libfuzzer_sys::fuzz_target;
use p256::ecdsa::SigningKey;
use sha2::{Digest, Sha256};

fuzz_target!(|manifest: &[u8]| {
    let key = SigningKey::from_slice(&[7; 32]).expect("a key");
    let now = Timestamp(1_750_400_000);
    let key_digest = hex::encode(Sha256::digest(key.verifying_key().to_sec1_point(false).as_bytes()));
    let policy = format!("platforms = [\"software\"]\n[software]\nkey_digests = [\"{key_digest}\"]");
    let verifier = Verifier::new(Policy::from_toml(&policy).expect("a policy"));
    let right = Bytes32::from(<[u8; 32]>::from(Sha256::digest(manifest)));
    for (digest, passes) in [(right, true), (Bytes32::ZERO, false)] {
        let claims = SoftwareClaims {
            measurement: Bytes48::ZERO,
            manifest_digest: digest,
            report_data: Bytes64::ZERO,
            issued_at: now,
        };
        let mut evidence: Evidence = Attestation::Software(claims.sign(&key)).into();
        evidence.manifest = Some(manifest.to_vec());
        let envelope = evidence.to_cbor();
        if let Ok(evidence) = Evidence::from_cbor(&envelope) {
            assert_eq!(verifier.verify(&evidence, &Request::at(now)).is_ok(), passes);
        }
    }
});
