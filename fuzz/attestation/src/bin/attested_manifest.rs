//! A manifest beside evidence: any bytes are one, and only those with the attested digest pass.
#![no_main]

use cloak_attestation::bytes::Bytes32;
use cloak_attestation::{Evidence, Policy, Request, Verifier};
use cloak_fuzz_attestation::{NOW, signing_key, software};
use cloak_fuzz_seeds::{own_folder, plant};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

fuzz_target!(init: plant(|| own_folder("manifest/tests")), |manifest: &[u8]| {
    let key = signing_key();
    let key_digest = hex::encode(Sha256::digest(key.verifying_key().to_sec1_point(false).as_bytes()));
    let policy = format!("platforms = [\"software\"]\n[software]\nkey_digests = [\"{key_digest}\"]");
    let verifier = Verifier::new(Policy::from_toml(&policy).expect("a policy"));
    let right = Bytes32::from(<[u8; 32]>::from(Sha256::digest(manifest)));
    for (digest, passes) in [(right, true), (Bytes32::ZERO, false)] {
        let mut evidence = software(digest);
        evidence.manifest = Some(manifest.to_vec());
        let envelope = evidence.to_cbor();
        if let Ok(evidence) = Evidence::from_cbor(&envelope) {
            assert_eq!(verifier.verify(&evidence, &Request::at(NOW)).is_ok(), passes);
        }
    }
});
