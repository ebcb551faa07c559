//! The administrator's verbs, signals, and the commands.

use std::process::{Command, Output};

use cloak_broker::audit::{Action, Outcome};
use hyper::Method;

use crate::harness::{Folder, GOOD, HOST_KEY, OTHER, path, policy_for, refusal};
use crate::process::{Http, Process};

#[tokio::test(flavor = "multi_thread")]
async fn only_the_administrator_changes_lists_and_reads_the_log() {
    let folder = Folder::new();
    let broker = folder.serve().await;
    broker.put("default/key/disk", b"the secret", GOOD).await;
    let mut client = broker.client();
    let name = path("default/key/disk");
    for wrong in ["", "x", &"0".repeat(64)] {
        assert_eq!(
            refusal(client.put(wrong, &name, b"evil").await),
            (401, "AdminAuth".to_owned())
        );
        assert_eq!(
            refusal(client.put_policy(wrong, &name, &policy_for(OTHER)).await).0,
            401
        );
        assert_eq!(refusal(client.remove(wrong, &name).await).0, 401);
        assert_eq!(refusal(client.list(wrong).await).0, 401);
        assert_eq!(refusal(client.audit(wrong, 0).await).0, 401);
    }
    let refused = broker
        .decisions()
        .await
        .into_iter()
        .filter(|d| d.outcome == Outcome::Refused)
        .count();
    assert_eq!(refused, 15, "each attempt is in the log");
    let list = client.list(broker.admin()).await.unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(
        (list[0].path.as_str(), list[0].version, list[0].policy),
        ("default/key/disk", 2, true)
    );
    client.remove(broker.admin(), &name).await.unwrap();
    assert!(client.list(broker.admin()).await.unwrap().is_empty());
    assert_eq!(refusal(client.remove(broker.admin(), &name).await).0, 404);
    let removed = broker
        .decisions()
        .await
        .into_iter()
        .find(|d| d.action == Action::Remove && d.outcome == Outcome::Granted);
    assert_eq!(removed.unwrap().version, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_has_to_name_what_may_run() {
    let folder = Folder::new();
    let broker = folder.serve().await;
    let mut client = broker.client();
    let name = path("default/key/disk");
    assert_eq!(
        refusal(client.put(broker.admin(), &name, b"").await),
        (400, "SerdeError".to_owned()),
        "an empty one is a mistake"
    );
    client.put(broker.admin(), &name, b"x").await.unwrap();
    for policy in [
        "",
        "platforms = [\"simulated-tdx\"]",
        "version = 9",
        "[[reference]]\nname = \"a\"\nversion = \"1\"",
    ] {
        assert_eq!(
            refusal(client.put_policy(broker.admin(), &name, policy).await),
            (400, "SerdeError".to_owned())
        );
    }
    let missing = client
        .put_policy(broker.admin(), &path("a/b/c"), &policy_for(GOOD))
        .await;
    assert_eq!(refusal(missing).0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_metrics_and_the_document_are_served() {
    let folder = Folder::new();
    let broker = folder.serve().await;
    broker.put("default/key/disk", b"the secret", GOOD).await;
    let mut http = Http::new(&broker);
    for path in ["/health/live", "/health/ready"] {
        assert_eq!(
            http.send(Method::GET, path, None, String::new()).await.status,
            204
        );
    }
    let metrics = http.send(Method::GET, "/metrics", None, String::new()).await;
    assert!(
        metrics.text.contains("cloak_kbs_audit_head 3"),
        "{}",
        metrics.text
    );
    assert!(
        metrics.text.contains("cloak_kbs_requests_total"),
        "{}",
        metrics.text
    );
    let document = http.send(Method::GET, "/openapi.json", None, String::new()).await;
    assert_eq!(document.json["openapi"], "3.1.0");
    assert_eq!(
        http.send(Method::GET, "/nothing", None, String::new())
            .await
            .problem(),
        (404, "InvalidRequestPath")
    );
    let other = http.send(Method::PUT, "/kbs/v0/auth", None, String::new()).await;
    assert_eq!(other.problem(), (405, "MethodNotAllowed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_holds_cannot_be_moved_or_loosened() {
    let folder = Folder::new();
    let broker = folder.serve().await;
    broker.put("default/key/a", b"secret a", OTHER).await;
    broker.put("default/key/b", b"secret b", GOOD).await;
    let database = rusqlite::Connection::open(folder.file("kbs.db")).unwrap();
    let bytes = std::fs::read(folder.file("kbs.db-wal")).unwrap_or_default();
    let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    assert!(
        holds(b"default/key/a") && !holds(b"secret a"),
        "secrets are not in the clear"
    );
    let mut client = broker.client();
    let session = client.attest(&crate::harness::Simulated(GOOD)).await.unwrap();
    // Someone who can write to the database gives the other secret a policy that this guest passes...
    let loosen = "UPDATE resource SET policy = (SELECT policy FROM resource WHERE path = 'default/key/b') WHERE path = 'default/key/a'";
    assert_eq!(database.execute(loosen, []).unwrap(), 1);
    assert_eq!(refusal(client.get(&session, &path("default/key/a")).await).0, 500);
    // ... or puts it where this guest may read.
    let swap = "UPDATE resource SET sealed = (SELECT sealed FROM resource WHERE path = 'default/key/a') WHERE path = 'default/key/b'";
    assert_eq!(database.execute(swap, []).unwrap(), 1);
    assert_eq!(refusal(client.get(&session, &path("default/key/b")).await).0, 500);
    // The log is not to be changed either.
    assert!(database.execute("UPDATE audit SET record = '{}'", []).is_err());
    assert!(database.execute("DELETE FROM audit", []).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_root_key_does_not_open_the_database() {
    let folder = Folder::new();
    folder.serve().await.running.stop().await.unwrap();
    std::fs::remove_file(folder.file("root.key")).unwrap();
    cloak_broker::seal::create_root_key(&folder.file("root.key")).unwrap();
    let config = cloak_broker::Config::load(&folder.file("kbs.toml")).unwrap();
    let error = cloak_broker::server::start(config)
        .await
        .err()
        .expect("it does not start");
    assert!(error.to_string().contains("another root key"), "{error}");
}

fn kbs(folder: &Folder, port: u16, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cloak-kbs"))
        .args(arguments)
        .env("CLOAK_KBS_URL", format!("https://localhost:{port}"))
        .env("CLOAK_KBS_CA", folder.file("tls.crt"))
        .env("CLOAK_KBS_ADMIN_TOKEN", folder.file("admin.token"))
        .current_dir(&folder.path)
        .output()
        .expect("cloak-kbs runs")
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn the_commands_do_the_whole_round() {
    let folder = Folder::new();
    let mut process = Process::serve(&folder);
    let port = process.port;
    let write = |name: &str, contents: &str| std::fs::write(folder.file(name), contents).unwrap();
    write("secret", "the secret");
    write("secret.toml", &policy_for(GOOD));
    use p256::pkcs8::EncodePrivateKey as _;
    write(
        "host.key",
        &HOST_KEY.to_pkcs8_pem(p256::pkcs8::LineEnding::LF).unwrap(),
    );
    let done = |arguments: &[&str]| {
        let output = kbs(&folder, port, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    done(&[
        "put",
        "default/key/disk",
        "--file",
        "secret",
        "--policy",
        "secret.toml",
    ]);
    assert_eq!(done(&["list"]), "default/key/disk  version 2\n");
    let measurement = GOOD.to_string();
    let get = [
        "get",
        "default/key/disk",
        "--software-key",
        "host.key",
        "--measurement",
        &measurement,
    ];
    assert_eq!(done(&get), "the secret");
    // Wrong measurement: the broker says no, with the reason.
    let other = OTHER.to_string();
    let refused = kbs(
        &folder,
        port,
        &[
            "get",
            "default/key/disk",
            "--software-key",
            "host.key",
            "--measurement",
            &other,
        ],
    );
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(
        text(&refused).contains("reference.measurement.unknown"),
        "{}",
        text(&refused)
    );
    // Nothing to show: it can't even be asked.
    let nothing = kbs(
        &folder,
        port,
        &["get", "default/key/disk", "--tsm", "/nonexistent"],
    );
    assert_eq!(nothing.status.code(), Some(2), "{}", text(&nothing));
    // A policy by itself, and the log both ways.
    write("other.toml", &policy_for(OTHER));
    done(&["set-policy", "default/key/disk", "other.toml"]);
    assert_eq!(kbs(&folder, port, &get).status.code(), Some(1));
    assert!(done(&["audit"]).contains("\"action\":\"put-policy\""));
    done(&["remove", "default/key/disk"]);
    assert_eq!(done(&["list"]), "");
    process.signal("TERM");
    assert_eq!(process.line(), "stopped");
    assert!(process.child.wait().unwrap().success());
    let offline = Command::new(env!("CARGO_BIN_EXE_cloak-kbs"))
        .args(["audit", "--config"])
        .arg(folder.file("kbs.toml"))
        .output()
        .unwrap();
    assert!(
        offline.status.success() && text(&offline).contains("whole: "),
        "{}",
        text(&offline)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_takes_up_policies_and_certificates_while_connections_go_on() {
    let folder = Folder::new();
    let mut process = Process::serve(&folder);
    let mut client = folder.client(process.port);
    let name = path("default/key/disk");
    client.put(&folder.admin, &name, b"the secret").await.unwrap();
    client
        .put_policy(&folder.admin, &name, &policy_for(GOOD))
        .await
        .unwrap();
    let session = client.attest(&crate::harness::Simulated(GOOD)).await.unwrap();
    // Another certificate: the old connection goes on, new ones see the new one only.
    let fresh = Folder::new();
    for file in ["tls.crt", "tls.key"] {
        std::fs::copy(fresh.file(file), folder.file(file)).unwrap();
    }
    let mut old = Http::to(&folder, process.port);
    process.signal("HUP");
    assert_eq!(process.line(), "reloaded");
    assert!(
        client.get(&session, &name).await.is_ok(),
        "sessions and connections outlive it"
    );
    assert_eq!(
        old.send(Method::GET, "/health/live", None, String::new())
            .await
            .status,
        204
    );
    // What cannot be read changes nothing.
    folder.write_policy("nonsense");
    process.signal("HUP");
    assert!(process.line().starts_with("not reloaded"));
    assert!(client.get(&session, &name).await.is_ok());
    folder.write_policy(&policy_for(OTHER));
    process.signal("HUP");
    assert_eq!(process.line(), "reloaded");
    assert_eq!(refusal(client.get(&session, &name).await).0, 403);
}
