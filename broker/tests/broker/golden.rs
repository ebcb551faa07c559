//! Bodies as the published protocol has them: the files under `golden` were written from its field definitions, and
//! `kbs-types`, which Confidential Containers' own client and server use, reads what is sent here and writes what is
//! read here.

use cloak_attestation::EvidenceKind;
use cloak_attestation::bytes::Bytes64;
use cloak_broker::jwe::{Recipient, TeeKey};
use cloak_broker::protocol::{
    Attestation, Challenge, HashAlgorithm, Request, Tee, TeePublicKey, read_primary_evidence, report_data,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha384};

use crate::harness::{Folder, GOOD, attest, path};
use crate::process::Http;

fn golden(name: &str) -> Value {
    let file = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(file).expect("the golden file")).expect("JSON")
}

/// Both ways, through this crate's type.
fn same<T: serde::Serialize + serde::de::DeserializeOwned>(name: &str) -> T {
    let body = golden(name);
    let read: T = serde_json::from_value(body.clone()).expect("it is read");
    assert_eq!(
        serde_json::to_value(&read).expect("it is written"),
        body,
        "{name}"
    );
    read
}

/// The same body through the other implementation's type.
fn theirs<T: serde::Serialize + serde::de::DeserializeOwned>(body: &Value) -> T {
    let read: T = serde_json::from_value(body.clone()).expect("kbs-types reads it");
    let mut written = serde_json::to_value(&read).expect("kbs-types writes it");
    // It writes an absent init-data as null.
    if let Some(object) = written.as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
    assert_eq!(&written, body);
    read
}

#[test]
fn requests_and_challenges_are_the_published_ones() {
    let plain: Request = same("request");
    assert!(plain.version_fits());
    assert_eq!(plain.hash_algorithm(), Some(HashAlgorithm::Sha384));
    assert_eq!(Tee::from_name(&plain.tee), Some(Tee::Snp));
    let choosing: Request = same("request-hashes");
    assert_eq!(choosing.hash_algorithm(), Some(HashAlgorithm::Sha384));
    theirs::<kbs_types::Request>(&golden("request"));
    let listed = theirs::<kbs_types::Request>(&golden("request-hashes"));
    let all: Vec<String> = kbs_types::HashAlgorithm::list_all()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(listed.extra_params["supported-hash-algorithms"], json!(all));
    for name in ["challenge", "challenge-hash"] {
        same::<Challenge>(name);
        theirs::<kbs_types::Challenge>(&golden(name));
    }
}

#[test]
fn attestations_are_the_published_ones_for_every_kind_of_key() {
    for name in ["attestation-snp-ec", "attestation-tdx-rsa"] {
        same::<Attestation>(name);
        theirs::<kbs_types::Attestation>(&golden(name));
    }
    let snp: Attestation = same("attestation-snp-ec");
    let evidence = read_primary_evidence(&snp, Tee::Snp).expect("CoCo's form of a report");
    assert_eq!(evidence.kind(), EvidenceKind::SevSnp);
    let manifest = snp.init_data.as_ref().expect("init data").body.clone();
    assert_eq!(evidence.manifest, Some(manifest.into_bytes()));
    assert!(
        read_primary_evidence(&snp, Tee::Tdx).is_err(),
        "the session was for another kind"
    );
    let tdx: Attestation = same("attestation-tdx-rsa");
    let evidence = read_primary_evidence(&tdx, Tee::Tdx).expect("CoCo's form of a quote");
    assert_eq!(evidence.kind(), EvidenceKind::Tdx);
    let mut devices = tdx;
    devices.tee_evidence.additional_evidence = "{\"nvidia\":{}}".to_owned();
    assert!(
        read_primary_evidence(&devices, Tee::Tdx).is_err(),
        "nobody would look at the device"
    );
}

#[test]
fn report_data_is_what_their_client_computes() {
    // Their client: the canonical form of the three fields, SHA-384, the rest zero.
    for name in ["attestation-snp-ec", "attestation-tdx-rsa"] {
        let body: kbs_types::Attestation = theirs(&golden(name));
        let fields = json!({
            "tee-pubkey": body.runtime_data.tee_pubkey,
            "nonce": body.runtime_data.nonce,
            "additional-evidence": body.tee_evidence.additional_evidence,
        });
        let mut expected = Bytes64::ZERO;
        expected.0[..48].copy_from_slice(&Sha384::digest(canonical(&fields)));
        let ours: Attestation = same(name);
        let found = report_data(
            &ours.runtime_data,
            &ours.tee_evidence.additional_evidence,
            HashAlgorithm::Sha384,
        );
        assert_eq!(found, expected, "{name}");
    }
}

/// RFC 8785 for objects and text: keys sorted, no white space.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| format!("{}:{}", json!(name), canonical(value)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
        other => other.to_string(),
    }
}

#[test]
fn secrets_are_encrypted_as_their_client_expects() {
    let key = TeeKey::generate().unwrap();
    let TeePublicKey::Ec(public) = key.public() else {
        panic!("an EC key")
    };
    assert_eq!(
        (public.alg.as_str(), public.crv.as_str()),
        ("ECDH-ES+A256KW", "P-256")
    );
    let answer = Recipient::try_from(&key.public())
        .unwrap()
        .encrypt(b"secret")
        .unwrap();
    let written = serde_json::to_value(&answer).unwrap();
    let mut fields: Vec<_> = written.as_object().unwrap().keys().cloned().collect();
    fields.sort();
    let mut published: Vec<_> = golden("response").as_object().unwrap().keys().cloned().collect();
    published.sort();
    assert_eq!(fields, published);
    let theirs: kbs_types::Response = serde_json::from_value(written).unwrap();
    assert_eq!(
        (theirs.protected.alg.as_str(), theirs.protected.enc.as_str()),
        ("ECDH-ES+A256KW", "A256GCM")
    );
    assert_eq!(theirs.protected.other_fields["epk"]["crv"], "P-256");
    // It writes the header again before it authenticates it, so the order of the fields has to be the one it has.
    assert_eq!(
        theirs.protected.generate_aad().unwrap(),
        answer.protected.as_bytes()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_on_the_wire_are_the_published_ones() {
    let folder = Folder::new();
    let broker = folder.serve().await;
    broker.put("default/key/disk", b"the secret", GOOD).await;
    let mut http = Http::new(&broker);
    let asked = http.post("/auth", None, &golden("request")).await;
    assert_eq!(asked.status, 200);
    theirs::<kbs_types::Challenge>(&asked.json);
    assert_eq!(asked.json["extra-params"], "");
    let cookie = asked.set_cookie.unwrap();
    for attribute in ["kbs-session-id=", "Path=/kbs", "HttpOnly", "Secure", "Max-Age="] {
        assert!(cookie.contains(attribute), "{attribute} in {cookie}");
    }
    let chosen = http.post("/auth", None, &golden("request-hashes")).await;
    assert_eq!(
        chosen.json["extra-params"],
        golden("challenge-hash")["extra-params"]
    );
    let mut client = broker.client();
    let session = attest(&mut client, GOOD).await;
    let secret = http
        .get("/resource/default/key/disk", Some(session.token()))
        .await;
    let _: kbs_types::Response = serde_json::from_value(secret.json).expect("kbs-types reads it");
    let refused = http.get("/resource/default/key/disk", None).await;
    let theirs: kbs_types::ErrorInformation = serde_json::from_value(refused.json.clone()).unwrap();
    assert_eq!(theirs.error_type, golden("error")["type"]);
    let mut fields: Vec<_> = refused.json.as_object().unwrap().keys().cloned().collect();
    fields.sort();
    assert_eq!(fields, ["detail", "type"]);
    assert!(client.get(&session, &path("default/key/disk")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn their_evidence_is_judged_over_the_wire_and_an_old_report_is_not_fresh() {
    let folder = Folder::new();
    folder.write_policy("");
    let broker = folder.serve().await;
    let mut http = Http::new(&broker);
    let asked = http.post("/auth", None, &golden("request")).await;
    let mut body = golden("attestation-snp-ec");
    body["runtime-data"]["nonce"] = asked.json["nonce"].clone();
    let refused = http.post("/attest", asked.cookie.as_deref(), &body).await;
    assert_eq!(refused.problem(), (401, "AttestationError"));
    // It is a real report, read from their form down to its REPORT_DATA, which is somebody else's.
    let detail = refused.json["detail"].as_str().unwrap();
    assert!(detail.contains("evidence.report-data"), "{detail}");
    assert!(
        !detail.contains("snp.report.size") && !detail.contains("signature"),
        "{detail}"
    );
}
