//! Ten thousand sessions at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cloak_broker::client::answer_to;
use cloak_broker::jwe::TeeKey;
use cloak_broker::protocol::{Challenge, Response};
use serde_json::json;

use crate::harness::{Folder, GOOD, HOST_KEY, software};
use crate::process::Http;

const SESSIONS: usize = 10_000;
const CONNECTIONS: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_sessions_are_open_at_once_and_each_gets_the_secret() {
    let folder = Folder::new();
    folder.edit("challenge_seconds = 60", "challenge_seconds = 600");
    folder.edit("session_seconds = 300", "session_seconds = 600");
    let broker = folder.serve().await;
    broker.put("default/key/disk", b"the secret", GOOD).await;
    // Nobody goes on before all sessions have a challenge, nobody fetches before all are attested.
    let challenged = Arc::new(tokio::sync::Barrier::new(CONNECTIONS));
    let attested = Arc::new(tokio::sync::Barrier::new(CONNECTIONS));
    let served = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let http = Http::new(&broker);
            let barriers = (Arc::clone(&challenged), Arc::clone(&attested));
            tokio::spawn(guests(http, barriers, Arc::clone(&served)))
        })
        .collect();
    for worker in workers {
        worker.await.expect("each is served");
    }
    assert_eq!(served.load(Ordering::Relaxed), SESSIONS);
    let mut http = Http::new(&broker);
    let metrics = http
        .send(hyper::Method::GET, "/metrics", None, String::new())
        .await
        .text;
    for line in [
        "cloak_kbs_sessions 10000",
        "cloak_kbs_attestations_total{kind=\"software\",outcome=\"granted\"} 10000",
        "cloak_kbs_releases_total{outcome=\"granted\"} 10000",
        // Start, two writes, and two decisions for each session.
        "cloak_kbs_audit_head 20003",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    broker.running.stop().await.expect("it stops");
}

type Barriers = (Arc<tokio::sync::Barrier>, Arc<tokio::sync::Barrier>);

async fn guests(mut http: Http, (challenged, attested): Barriers, served: Arc<AtomicUsize>) {
    let ask = json!({"version": "0.4.0", "tee": "software", "extra-params": ""});
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS / CONNECTIONS {
        let answer = http.post("/auth", None, &ask).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let challenge: Challenge = serde_json::from_value(answer.json).unwrap();
        sessions.push((answer.cookie.unwrap(), challenge));
    }
    challenged.wait().await;
    let mut keys = Vec::new();
    for (cookie, challenge) in sessions {
        let key = TeeKey::generate().unwrap();
        let body = answer_to(&challenge, &key, &software(&HOST_KEY)).unwrap();
        let answer = http
            .post("/attest", Some(&cookie), &serde_json::to_value(&body).unwrap())
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        keys.push((answer.json["token"].as_str().unwrap().to_owned(), key));
    }
    attested.wait().await;
    for (token, key) in keys {
        let answer = http.get("/resource/default/key/disk", Some(&token)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let sealed: Response = serde_json::from_value(answer.json).unwrap();
        assert_eq!(&key.decrypt(&sealed).unwrap()[..], b"the secret");
        served.fetch_add(1, Ordering::Relaxed);
    }
}
