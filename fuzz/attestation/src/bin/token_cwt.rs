//! CWT results: nothing unsigned passes, and whatever the right key signed is refused or read and written again.
#![no_main]

use cloak_attestation::token::Ear;
use cloak_fuzz_attestation::{NOW, ear, signing_key};
use cloak_fuzz_seeds::plant;
use coset::{CborSerializable as _, CoseSign1, CoseSign1Builder, HeaderBuilder, iana};
use libfuzzer_sys::fuzz_target;
use p256::ecdsa::Signature;
use p256::ecdsa::signature::Signer as _;

/// Claims, as the payload of a token has them.
fn claims() -> [Vec<u8>; 1] {
    let token = CoseSign1::from_slice(&ear().to_cwt(&signing_key())).expect("COSE_Sign1");
    [token.payload.expect("a payload")]
}

fuzz_target!(init: plant(claims), |claims: &[u8]| {
    let key = signing_key();
    assert!(Ear::from_cwt(claims, key.verifying_key(), NOW).is_err());
    let token = CoseSign1Builder::new()
        .protected(HeaderBuilder::new().algorithm(iana::Algorithm::ES256).build())
        .payload(claims.to_vec())
        .create_signature(&[], |bytes| {
            let signature: Signature = key.sign(bytes);
            signature.to_bytes().to_vec()
        })
        .build();
    let token = token.to_vec().expect("it was just built");
    if let Ok(ear) = Ear::from_cwt(&token, key.verifying_key(), NOW) {
        assert_eq!(Ear::from_cwt(&ear.to_cwt(&key), key.verifying_key(), NOW), Ok(ear));
    }
});
