//! What one client can make the broker do is bounded.

use serde_json::json;

use crate::harness::{Folder, GOOD, attest};
use crate::process::Http;

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_asks_too_often_is_told_to_wait() {
    let folder = Folder::new();
    folder.edit("requests_per_second = 1000000", "requests_per_second = 1");
    folder.edit("burst = 1000000", "burst = 5");
    let broker = folder.serve().await;
    let mut http = Http::new(&broker);
    let ask = json!({"version": "0.4.0", "tee": "snp", "extra-params": ""});
    let mut statuses = Vec::new();
    for _ in 0..8 {
        statuses.push(http.post("/auth", None, &ask).await.problem().0);
    }
    assert_eq!(statuses[..5], [200; 5]);
    assert!(statuses[5..].contains(&429), "{statuses:?}");
    // Who watches the broker is not held up.
    let health = http
        .send(hyper::Method::GET, "/health/ready", None, String::new())
        .await;
    assert_eq!(health.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_bodies_and_odd_requests_are_bounded() {
    let folder = Folder::new();
    folder.edit("sessions = 65536", "sessions = 3");
    folder.edit("body_kibibytes = 1024", "body_kibibytes = 64");
    let broker = folder.serve().await;
    let mut http = Http::new(&broker);
    let ask = json!({"version": "0.4.0", "tee": "snp", "extra-params": ""});
    for _ in 0..3 {
        assert_eq!(http.post("/auth", None, &ask).await.status, 200);
    }
    assert_eq!(http.post("/auth", None, &ask).await.problem(), (503, "Busy"));
    let large = json!({"version": "0.4.0", "tee": "x".repeat(70_000)});
    assert_eq!(
        http.post("/auth", None, &large).await.problem(),
        (413, "TooLarge")
    );
    for (body, expected) in [
        (
            json!({"version": "0.3.0", "tee": "snp", "extra-params": ""}),
            (401, "AttestationError"),
        ),
        (
            json!({"version": "0.4.0", "tee": "sgx", "extra-params": ""}),
            (401, "AttestationError"),
        ),
        (
            json!({"version": "0.4.0", "tee": "snp", "extra-params": {"supported-hash-algorithms": ["sm3"]}}),
            (401, "AttestationError"),
        ),
        (json!({"version": 4}), (400, "SerdeError")),
        (json!([]), (400, "SerdeError")),
    ] {
        assert_eq!(
            http.post("/auth", None, &body).await.problem(),
            expected,
            "{body}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn room_for_evidence_is_bounded_and_comes_back() {
    let folder = Folder::new();
    folder.edit("evidence_mebibytes = 512", "evidence_mebibytes = 0");
    let broker = folder.serve().await;
    let refused = broker.client().attest(&crate::harness::Simulated(GOOD)).await;
    assert_eq!(crate::harness::refusal(refused), (503, "Busy".to_owned()));
    broker.running.stop().await.unwrap();
    folder.edit("evidence_mebibytes = 0", "evidence_mebibytes = 1");
    let broker = folder.serve().await;
    attest(&mut broker.client(), GOOD).await;
}
