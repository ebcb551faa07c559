//! JWT results: nothing unsigned passes, and whatever the right key signed is refused or read and written again.
#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cloak_attestation::token::Ear;
use cloak_fuzz_attestation::{NOW, ear, signing_key};
use cloak_fuzz_seeds::plant;
use libfuzzer_sys::fuzz_target;
use p256::ecdsa::Signature;
use p256::ecdsa::signature::Signer as _;

/// Claims, as the middle part of a token has them.
fn claims() -> [Vec<u8>; 1] {
    let token = ear().to_jwt(&signing_key());
    let payload = token.split('.').nth(1).expect("three parts");
    [URL_SAFE_NO_PAD.decode(payload).expect("base64url")]
}

fuzz_target!(init: plant(claims), |claims: &str| {
    let key = signing_key();
    assert!(Ear::from_jwt(claims, key.verifying_key(), NOW).is_err());
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","typ":"JWT"}"#);
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
    let signature: Signature = key.sign(signed.as_bytes());
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()));
    if let Ok((ear, more)) = Ear::from_jwt_with(&token, key.verifying_key(), NOW) {
        let again = ear.to_jwt_with(&key, more);
        assert_eq!(Ear::from_jwt(&again, key.verifying_key(), NOW), Ok(ear));
    }
});
