//! The same on PostgreSQL, where there is one to start.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cloak_broker::audit::{Action, Outcome};

use crate::harness::{Folder, GOOD, OTHER, attest, path, policy_for, refusal, skip};

/// A server of this test's own, on a Unix socket in a folder of its own.
struct Server {
    folder: tempfile::TempDir,
    child: Child,
}

fn programs() -> Option<PathBuf> {
    let mut versions: Vec<_> = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten().collect();
    versions.sort_by_key(|entry| entry.file_name());
    versions
        .iter()
        .rev()
        .map(|entry| entry.path().join("bin"))
        .find(|bin| bin.join("initdb").exists())
}

/// PostgreSQL refuses to run as root, so root runs it as the user that Debian's package makes.
fn command(program: &Path) -> Command {
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    if !root {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program);
    command
}

impl Server {
    fn start() -> Option<Self> {
        let bin = programs()?;
        // Not under the working folder, which another user may not enter.
        let folder = tempfile::Builder::new()
            .prefix("cloak-pg")
            .tempdir_in("/tmp")
            .ok()?;
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).ok()?;
        let data = folder.path().join("data");
        let made = command(&bin.join("initdb"))
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .current_dir("/tmp")
            .status();
        if !made.is_ok_and(|status| status.success()) {
            return None;
        }
        let child = command(&bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=", "-k"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/tmp")
            .spawn()
            .ok()?;
        let server = Self { folder, child };
        let socket = server.folder.path().join(".s.PGSQL.5432");
        for _ in 0..300 {
            if socket.exists() {
                return Some(server);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the server was started and has no socket after half a minute");
    }

    fn url(&self) -> String {
        let folder = self.folder.path().display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{folder}/postgres")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The postmaster says who it is; the child may be runuser.
        let pid = std::fs::read_to_string(self.folder.path().join("data/postmaster.pid")).unwrap_or_default();
        if let Some(pid) = pid.lines().next() {
            let _ = Command::new("kill").args(["-s", "INT", pid]).status();
        }
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_policies_and_the_log_are_kept_in_postgresql() {
    let Some(server) = Server::start() else {
        skip(
            "broker on PostgreSQL",
            "no PostgreSQL that can be started here (Debian: postgresql)",
        );
        return;
    };
    let folder = Folder::new();
    folder.edit("sqlite:kbs.db", &server.url());
    // The socket is there a moment before the server answers.
    let mut broker = None;
    for _ in 0..100 {
        let config = cloak_broker::Config::load(&folder.file("kbs.toml")).unwrap();
        match cloak_broker::server::start(config).await {
            Ok(running) => {
                broker = Some(crate::harness::Broker {
                    folder: &folder,
                    running,
                });
                break;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    let broker = broker.expect("the database answers within ten seconds");
    broker.put("default/key/disk", b"the secret", GOOD).await;
    broker.put("default/key/other", b"other", OTHER).await;
    let mut client = broker.client();
    let session = attest(&mut client, GOOD).await;
    assert_eq!(
        &client.get(&session, &path("default/key/disk")).await.unwrap()[..],
        b"the secret"
    );
    assert_eq!(
        refusal(client.get(&session, &path("default/key/other")).await).0,
        403
    );
    client
        .put_policy(broker.admin(), &path("default/key/other"), &policy_for(GOOD))
        .await
        .unwrap();
    assert!(client.get(&session, &path("default/key/other")).await.is_ok());
    client
        .remove(broker.admin(), &path("default/key/other"))
        .await
        .unwrap();
    assert_eq!(
        refusal(client.get(&session, &path("default/key/other")).await).0,
        404
    );
    assert_eq!(client.list(broker.admin()).await.unwrap().len(), 1);
    // Many decisions at once, from two brokers on one database, are one chain.
    let second = folder.serve().await;
    let workers: Vec<_> = [&broker, &second]
        .into_iter()
        .flat_map(|broker| (0..4).map(|_| broker.client()))
        .map(|mut client| {
            tokio::spawn(async move {
                let session = attest(&mut client, GOOD).await;
                for _ in 0..10 {
                    client
                        .get(&session, &path("default/key/disk"))
                        .await
                        .expect("the secret");
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    let log = second.decisions().await;
    let released = log
        .iter()
        .filter(|d| d.action == Action::Release && d.outcome == Outcome::Granted)
        .count();
    assert_eq!(released, 2 + 80);
    // The table defends itself.
    let (database, connection) = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    for statement in [
        "UPDATE audit SET record = '{}'",
        "DELETE FROM audit",
        "TRUNCATE audit",
    ] {
        assert!(database.batch_execute(statement).await.is_err(), "{statement}");
    }
    drop(database);
    second.running.stop().await.unwrap();
    broker.running.stop().await.unwrap();
}
