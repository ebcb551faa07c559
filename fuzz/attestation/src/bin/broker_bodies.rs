//! Bodies of the key broker's protocol: what is read is written the same, keys and evidence are taken or refused.
#![no_main]

use cloak_broker::jwe::{Recipient, TeeKey};
use cloak_broker::protocol::{
    Attestation, Challenge, ErrorInformation, HashAlgorithm, Request, Response, Tee, read_primary_evidence,
    report_data,
};
use cloak_fuzz_seeds::{own_folder, plant};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn read<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Option<T> {
    let body: T = serde_json::from_slice(bytes).ok()?;
    let written = serde_json::to_string(&body).expect("a body has a JSON form");
    let again: T = serde_json::from_str(&written).expect("what was written is read");
    assert_eq!(serde_json::to_string(&again).expect("as before"), written);
    Some(body)
}

fuzz_target!(init: plant(|| own_folder("broker/tests/golden")), |bytes: &[u8]| {
    if let Some(request) = read::<Request>(bytes) {
        let _ = (request.version_fits(), request.hash_algorithm(), Tee::from_name(&request.tee));
    }
    let _ = read::<Challenge>(bytes);
    let _ = read::<ErrorInformation>(bytes);
    if let Some(attestation) = read::<Attestation>(bytes) {
        let additional = &attestation.tee_evidence.additional_evidence;
        let _ = report_data(&attestation.runtime_data, additional, HashAlgorithm::Sha512);
        if let Ok(recipient) = Recipient::try_from(&attestation.runtime_data.tee_pubkey) {
            let _ = recipient.encrypt(b"secret");
        }
        for tee in Tee::ALL {
            let _ = read_primary_evidence(&attestation, tee);
        }
    }
    if let Some(response) = read::<Response>(bytes) {
        let key = TeeKey::generate().expect("a key");
        assert!(key.decrypt(&response).is_err(), "it was not made for this key");
    }
});
