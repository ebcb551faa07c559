//! Who gets a secret, and who doesn't.

use std::time::Duration;

use cloak_broker::audit::{Action, Outcome};
use cloak_broker::client::answer_to;
use cloak_broker::jwe::TeeKey;
use cloak_broker::protocol::Challenge;
use serde_json::{Value, json};

use crate::harness::{Folder, GOOD, HOST_KEY, OTHER, Simulated, attest, path, policy_for, refusal, software};
use crate::process::Http;

#[tokio::test(flavor = "multi_thread")]
async fn good_evidence_gets_the_secret_and_each_decision_is_in_the_log() {
    let folder = Folder::new();
    let broker = folder.serve().await;
    broker.put("default/key/disk", b"the secret", GOOD).await;
    let mut client = broker.client();
    for session in [
        attest(&mut client, GOOD).await,
        client.attest(&software(&HOST_KEY)).await.expect("good evidence"),
    ] {
        let secret = client
            .get(&session, &path("default/key/disk"))
            .await
            .expect("the secret");
        assert_eq!(&secret[..], b"the secret");
    }
    let log = broker.decisions().await;
    let granted = |action| {
        log.iter()
            .filter(|d| d.action == action && d.outcome == Outcome::Granted)
            .count()
    };
    assert_eq!((granted(Action::Attest), granted(Action::Release)), (2, 2));
    let release = log.iter().find(|d| d.action == Action::Release).unwrap();
    assert_eq!(release.resource, Some(path("default/key/disk")));
    assert_eq!(release.measurement.as_deref(), Some(GOOD.to_string().as_str()));
    broker.running.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_measurement_gets_nothing() {
    let folder = Folder::new();
    let broker = folder.serve().await;
    broker.put("default/key/disk", b"the secret", GOOD).await;
    let mut client = broker.client();
    let session = attest(&mut client, OTHER).await;
    let got = client.get(&session, &path("default/key/disk")).await;
    assert_eq!(refusal(got), (403, "PolicyDeny".to_owned()));
    let log = broker.decisions().await;
    let refused = log.iter().find(|d| d.action == Action::Release).unwrap();
    assert_eq!(refused.outcome, Outcome::Refused);
    assert_eq!(refused.reasons, ["reference.measurement.unknown"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_that_the_attestation_policy_refuses_gets_no_session() {
    let folder = Folder::new();
    folder.write_policy(&policy_for(GOOD));
    let broker = folder.serve().await;
    let attested = broker.client().attest(&Simulated(OTHER)).await;
    assert_eq!(refusal(attested), (401, "AttestationError".to_owned()));
    // A host key that nobody named.
    let stranger = <p256::ecdsa::SigningKey as p256::elliptic_curve::Generate>::generate();
    let attested = broker.client().attest(&software(&stranger)).await;
    assert_eq!(refusal(attested), (401, "AttestationError".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_for_its_own_policy_and_one_without_is_for_nobody() {
    let folder = Folder::new();
    let broker = folder.serve().await;
    broker.put("default/key/mine", b"mine", GOOD).await;
    broker.put("default/key/other", b"other", OTHER).await;
    let mut client = broker.client();
    client
        .put(broker.admin(), &path("default/key/new"), b"new")
        .await
        .unwrap();
    let session = attest(&mut client, GOOD).await;
    assert!(client.get(&session, &path("default/key/mine")).await.is_ok());
    for name in ["default/key/other", "default/key/new"] {
        assert_eq!(
            refusal(client.get(&session, &path(name)).await),
            (403, "PolicyDeny".to_owned()),
            "{name}"
        );
    }
    let missing = client.get(&session, &path("default/key/none")).await;
    assert_eq!(refusal(missing), (404, "InvalidRequestPath".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_changed_meanwhile_counts_for_sessions_that_exist() {
    let folder = Folder::new();
    let broker = folder.serve().await;
    broker.put("default/key/disk", b"the secret", GOOD).await;
    let mut client = broker.client();
    let session = attest(&mut client, GOOD).await;
    assert!(client.get(&session, &path("default/key/disk")).await.is_ok());
    let stricter = policy_for(OTHER);
    client
        .put_policy(broker.admin(), &path("default/key/disk"), &stricter)
        .await
        .unwrap();
    assert_eq!(
        refusal(client.get(&session, &path("default/key/disk")).await).0,
        403
    );
    client
        .put_policy(broker.admin(), &path("default/key/disk"), &policy_for(GOOD))
        .await
        .unwrap();
    assert!(client.get(&session, &path("default/key/disk")).await.is_ok());
    // The attestation policy too.
    folder.write_policy(&policy_for(OTHER));
    broker.running.reload().await.expect("a good policy");
    assert_eq!(
        refusal(client.get(&session, &path("default/key/disk")).await).0,
        403
    );
    folder.write_policy("platforms = 7");
    broker.running.reload().await.expect_err("a bad policy");
    assert_eq!(
        refusal(client.get(&session, &path("default/key/disk")).await).0,
        403
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nonce_counts_once_and_for_its_session_only() {
    let folder = Folder::new();
    let broker = folder.serve().await;
    let mut http = Http::new(&broker);
    let ask = json!({"version": "0.4.0", "tee": "simulated-tdx", "extra-params": ""});
    let first = http.post("/auth", None, &ask).await;
    let second = http.post("/auth", None, &ask).await;
    let challenge: Challenge = serde_json::from_value(first.json.clone()).unwrap();
    let key = TeeKey::generate().unwrap();
    let answer = answer_to(&challenge, &key, &Simulated(GOOD)).unwrap();
    let body = serde_json::to_value(&answer).unwrap();
    // Another session's nonce. That session's own is used up by the attempt.
    let crossed = http.post("/attest", second.cookie.as_deref(), &body).await;
    assert_eq!(crossed.problem(), (401, "AttestationError"));
    let again = http.post("/attest", second.cookie.as_deref(), &body).await;
    assert_eq!(again.problem(), (401, "AttestationError"));
    // No session at all, and one that never was.
    assert_eq!(http.post("/attest", None, &body).await.status, 401);
    let unknown = "0".repeat(64);
    assert_eq!(http.post("/attest", Some(&unknown), &body).await.status, 401);
    // Its own session, once.
    assert_eq!(
        http.post("/attest", first.cookie.as_deref(), &body).await.status,
        200
    );
    let replayed = http.post("/attest", first.cookie.as_deref(), &body).await;
    assert_eq!(replayed.problem(), (401, "AttestationError"));
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_is_for_the_key_that_was_sent_with_it() {
    let folder = Folder::new();
    let broker = folder.serve().await;
    let mut http = Http::new(&broker);
    let ask = json!({"version": "0.4.0", "tee": "simulated-tdx", "extra-params": ""});
    let asked = http.post("/auth", None, &ask).await;
    let challenge: Challenge = serde_json::from_value(asked.json.clone()).unwrap();
    let mut answer = answer_to(&challenge, &TeeKey::generate().unwrap(), &Simulated(GOOD)).unwrap();
    answer.runtime_data.tee_pubkey = TeeKey::generate().unwrap().public();
    let body = serde_json::to_value(&answer).unwrap();
    let refused = http.post("/attest", asked.cookie.as_deref(), &body).await;
    assert_eq!(refused.problem(), (401, "AttestationError"));
    assert!(
        refused.json["detail"]
            .as_str()
            .unwrap()
            .contains("evidence.report-data"),
        "{}",
        refused.json
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_until_it_expires_and_no_other_does() {
    let folder = Folder::new();
    folder.edit("session_seconds = 300", "session_seconds = 5");
    let broker = folder.serve().await;
    broker.put("default/key/disk", b"the secret", GOOD).await;
    let mut client = broker.client();
    let session = attest(&mut client, GOOD).await;
    let mut http = Http::new(&broker);
    let target = "/resource/default/key/disk";
    let good = http.get(target, Some(session.token())).await;
    assert_eq!(good.status, 200);
    let mut fields: Vec<_> = good.json.as_object().unwrap().keys().cloned().collect();
    fields.sort();
    assert_eq!(fields, ["ciphertext", "encrypted_key", "iv", "protected", "tag"]);
    // Changed in each of its parts, and not a token at all.
    let parts: Vec<&str> = session.token().split('.').collect();
    let mut forged: Vec<String> = (0..3)
        .map(|part| {
            let mut parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
            let flipped = if parts[part].ends_with('A') { "Q" } else { "A" };
            let last = parts[part].len() - 1;
            parts[part].replace_range(last.., flipped);
            parts.join(".")
        })
        .collect();
    forged.extend(["".to_owned(), "x".to_owned(), folder.admin.clone()]);
    for token in forged {
        let refused = http.get(target, Some(&token)).await;
        assert_eq!(refused.problem(), (401, "TokenVerifierError"), "{token}");
    }
    tokio::time::sleep(Duration::from_millis(5100)).await;
    let late = http.get(target, Some(session.token())).await;
    assert_eq!(late.problem(), (401, "TokenVerifierError"));
    assert_eq!(
        refusal(client.get(&session, &path("default/key/disk")).await).0,
        401
    );
    // And no credentials whatever.
    assert_eq!(http.get(target, None).await.problem(), (401, "TokenNotFound"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_says_whose_it_is() {
    let folder = Folder::new();
    let broker = folder.serve().await;
    let session = attest(&mut broker.client(), GOOD).await;
    let payload = session.token().split('.').nth(1).unwrap();
    use base64::Engine as _;
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(payload)
        .unwrap();
    let claims: Value = serde_json::from_slice(&payload).unwrap();
    for claim in [
        "exp",
        "iat",
        "iss",
        "jti",
        "jwk",
        "tee-pubkey",
        "eat_profile",
        "submods",
    ] {
        assert!(claims.get(claim).is_some(), "{claim} in {claims}");
    }
    assert_eq!(claims["tee-pubkey"]["crv"], "P-256");
    assert_eq!(claims["submods"]["cloak"]["cloak.measurement"], GOOD.to_string());
}
