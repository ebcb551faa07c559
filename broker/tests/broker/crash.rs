//! `kill -9` at any point: what was acknowledged is there, and the log is whole. Once under load, at random times; once
//! before the nth change of a file or answer, for each n.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloak_attestation::token::Ear;
use cloak_broker::audit::{Action, Decision, Head, Outcome};
use cloak_broker::store::PAGE;
use cloak_broker::{Client, Config};

use crate::harness::{Folder, GOOD, HOST_KEY, path, policy_for, skip, software};
use crate::process::Process;

const ROUNDS: u64 = 25;
/// With fewer releases the kills came before there was anything to lose; on a busy machine that takes more rounds.
const ENOUGH: usize = 20;
const WORKERS: usize = 6;
/// Of the one worker, where each call is met.
const STEPS: u32 = 10;

/// What the broker said yes to.
#[derive(Default)]
struct Acknowledged {
    written: HashSet<String>,
    released: Vec<(String, String)>,
}

/// Writes a secret, its policy, and fetches it, `steps` times (true) or until an answer stays away.
async fn work(
    mut client: Client,
    admin: String,
    worker: String,
    acknowledged: Arc<Mutex<Acknowledged>>,
    steps: u32,
) -> bool {
    let Ok(session) = client.attest(&software(&HOST_KEY)).await else {
        return false;
    };
    let subject = subject(session.token());
    for number in 0..steps {
        let name = format!("crash/{worker}/{number}");
        if client.put(&admin, &path(&name), name.as_bytes()).await.is_err() {
            return false;
        }
        acknowledged.lock().unwrap().written.insert(name.clone());
        if client
            .put_policy(&admin, &path(&name), &policy_for(GOOD))
            .await
            .is_err()
        {
            return false;
        }
        match client.get(&session, &path(&name)).await {
            Ok(secret) => assert_eq!(&secret[..], name.as_bytes()),
            Err(_) => return false,
        }
        acknowledged
            .lock()
            .unwrap()
            .released
            .push((subject.clone(), name));
    }
    true
}

/// The token's `jti`. Its signature was the broker's a moment ago, so it is only read.
fn subject(token: &str) -> String {
    use base64::Engine as _;
    let payload = token.split('.').nth(1).expect("a payload");
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(payload)
        .expect("base64url");
    let claims: serde_json::Value = serde_json::from_slice(&payload).expect("JSON");
    claims["jti"].as_str().expect("jti").to_owned()
}

async fn log(client: &mut Client, admin: &str) -> Vec<Decision> {
    let mut head = Head::default();
    let mut decisions = Vec::new();
    loop {
        let page = client.audit(admin, head.sequence).await.expect("the log");
        for entry in &page {
            head = head.follow(entry).expect("a whole chain");
            decisions.push(serde_json::from_str(&entry.record).expect("a decision"));
        }
        if page.len() < PAGE as usize {
            return decisions;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_nothing_that_was_acknowledged() {
    let folder = Folder::new();
    let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
    let mut round = 0;
    while round < ROUNDS || acknowledged.lock().unwrap().released.len() < ENOUGH {
        assert!(round < 8 * ROUNDS, "no kill leaves room for work");
        let process = Process::serve(&folder);
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let client = folder.client(process.port);
                let name = format!("{round}-{worker}");
                tokio::spawn(work(
                    client,
                    folder.admin.clone(),
                    name,
                    Arc::clone(&acknowledged),
                    u32::MAX,
                ))
            })
            .collect();
        // From before the first request to well within the work, at a point that differs from run to run.
        let random = u64::from(cloak_broker::random::random::<1>().unwrap()[0]);
        tokio::time::sleep(Duration::from_millis(round * 20 + random / 4)).await;
        process.signal("KILL");
        drop(process);
        for worker in workers {
            worker.await.expect("a worker gets right answers or none");
        }
        round += 1;
    }
    let acknowledged = std::mem::take(&mut *acknowledged.lock().unwrap());
    let starts = check(&folder, &acknowledged).await;
    assert_eq!(starts as u64, round + 1);
}

/// A kill when a thread of the broker makes its first, its second, its third... call that changes a file or answers, in
/// the start and in the work after it, up to the first broker that ends its work. Where the other threads are then
/// differs from run to run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_before_a_change_loses_nothing_that_was_acknowledged() {
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        return skip(
            "a_kill_before_a_change_loses_nothing_that_was_acknowledged",
            "no strace",
        );
    }
    let folder = Folder::new();
    let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
    let mut started = 0;
    let mut kills = 0;
    for call in [
        "pwrite64",
        "fdatasync",
        "ftruncate",
        "unlink",
        "sendto,writev,write",
    ] {
        for count in 1.. {
            assert!(count < 500, "{call}: the kills don't end");
            let Some(process) = Process::serve_until(&folder, call, count) else {
                kills += 1;
                continue;
            };
            started += 1;
            let name = format!("{}-{count}", call.replace(',', "-"));
            let client = folder.client(process.port);
            if work(
                client,
                folder.admin.clone(),
                name,
                Arc::clone(&acknowledged),
                STEPS,
            )
            .await
            {
                break;
            }
            drop(process);
            kills += 1;
        }
    }
    assert!(kills > 50, "only {kills} kills: were the calls met?");
    let acknowledged = std::mem::take(&mut *acknowledged.lock().unwrap());
    let starts = check(&folder, &acknowledged).await;
    // A kill between the entry in the log and the line that says so.
    assert!(starts > started, "{starts} starts in the log, {started} seen");
}

/// What was acknowledged is there and in the log, and nothing else is.
async fn check(folder: &Folder, acknowledged: &Acknowledged) -> usize {
    let process = Process::serve(folder);
    let mut client = folder.client(process.port);
    let listed: HashSet<String> = client
        .list(&folder.admin)
        .await
        .unwrap()
        .into_iter()
        .map(|secret| secret.path.to_string())
        .collect();
    let log = log(&mut client, &folder.admin).await;
    let granted = |action: Action| {
        log.iter()
            .filter(move |decision| decision.action == action && decision.outcome == Outcome::Granted)
    };
    let released: HashSet<(String, String)> = granted(Action::Release)
        .map(|decision| {
            (
                decision.subject.clone().unwrap(),
                decision.resource.as_ref().unwrap().to_string(),
            )
        })
        .collect();
    let written: HashSet<String> = granted(Action::PutSecret)
        .map(|decision| decision.resource.as_ref().unwrap().to_string())
        .collect();
    for name in &acknowledged.written {
        assert!(listed.contains(name), "{name} was acknowledged and is gone");
        assert!(
            written.contains(name),
            "{name} was acknowledged and is not in the log"
        );
    }
    for release in &acknowledged.released {
        assert!(
            released.contains(release),
            "{release:?} was acknowledged and is not in the log"
        );
    }
    // The other way round too: secrets and log were written together.
    assert_eq!(listed, written);
    // A secret from before the first kill is still what it was.
    let session = client.attest(&software(&HOST_KEY)).await.unwrap();
    let (_, first) = &acknowledged.released[0];
    assert_eq!(
        &client.get(&session, &path(first)).await.unwrap()[..],
        first.as_bytes()
    );
    let config = Config::load(&folder.file("kbs.toml")).unwrap();
    assert!(
        Ear::from_jwt(
            session.token(),
            &token_key(&config),
            cloak_attestation::time::Timestamp::now()
        )
        .is_ok()
    );
    granted(Action::Start).count()
}

fn token_key(config: &Config) -> p256::ecdsa::VerifyingKey {
    use p256::pkcs8::DecodePrivateKey as _;
    let pem = std::fs::read_to_string(&config.token_key).unwrap();
    *p256::ecdsa::SigningKey::from_pkcs8_pem(&pem)
        .unwrap()
        .verifying_key()
}
