//! The same on PostgreSQL, where there is one to start.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cloak_broker::Config;
use cloak_broker::audit::{Action, Outcome};
use cloak_broker::server::start;

use crate::harness::{Broker, Folder, GOOD, OTHER, attest, path, policy_for, refusal, skip};

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

/// Writes a file that belongs to the user PostgreSQL runs as, and is for nobody else.
fn put(path: &Path, contents: &str) {
    let mut child = command(Path::new("sh"))
        .args(["-c", "umask 077; cat >\"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .current_dir("/tmp")
        .spawn()
        .expect("a shell");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(contents.as_bytes()).expect("written");
    drop(pipe);
    assert!(child.wait().expect("it ends").success(), "{}", path.display());
}

impl Server {
    fn start() -> Option<Self> {
        Self::start_with(|_| {}, &["-c", "listen_addresses="])
    }

    /// `prepare` finds the folder of the database, before it serves with `settings`.
    fn start_with(prepare: impl FnOnce(&Path), settings: &[&str]) -> Option<Self> {
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
        prepare(&data);
        let child = command(&bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(settings)
            .arg("-k")
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/tmp")
            .spawn()
            .ok()?;
        let server = Self { folder, child };
        for _ in 0..300 {
            let mut files = std::fs::read_dir(server.folder.path()).ok()?.flatten();
            if files.any(|file| file.file_name().as_encoded_bytes().starts_with(b".s.PGSQL.")) {
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

/// A broker, as soon as the database answers: its socket is there a moment before.
async fn serve(folder: &Folder) -> Broker<'_> {
    let mut why = None;
    for _ in 0..100 {
        let config = Config::load(&folder.file("kbs.toml")).unwrap();
        match start(config).await {
            Ok(running) => return Broker { folder, running },
            Err(error) => why = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!(
        "the database does not answer within ten seconds: {}",
        why.unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_tls_is_reached_by_tls_only_and_has_to_be_the_right_one() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    drop(taken);
    let prepare = |data: &Path| {
        put(&data.join("server.key"), &made.signing_key.serialize_pem());
        put(&data.join("server.crt"), &made.cert.pem());
        // Without TLS nobody gets in.
        put(&data.join("pg_hba.conf"), "hostssl all all 127.0.0.1/32 trust\n");
    };
    let settings = format!("-c ssl=on -c listen_addresses=127.0.0.1 -c port={port}");
    let settings: Vec<_> = settings.split(' ').collect();
    let Some(_server) = Server::start_with(prepare, &settings) else {
        skip(
            "broker on PostgreSQL",
            "no PostgreSQL that can be started here (Debian: postgresql)",
        );
        return;
    };
    let folder = Folder::new();
    let url = format!("postgres://postgres@localhost:{port}/postgres");
    folder.edit(
        "database = \"sqlite:kbs.db\"",
        &format!("database = \"{url}\"\ndatabase_ca = \"database.crt\""),
    );
    std::fs::write(folder.file("database.crt"), made.cert.pem()).unwrap();
    let broker = serve(&folder).await;
    broker.put("default/key/disk", b"the secret", GOOD).await;
    let mut client = broker.client();
    let session = attest(&mut client, GOOD).await;
    assert_eq!(
        &client.get(&session, &path("default/key/disk")).await.unwrap()[..],
        b"the secret"
    );
    broker.running.stop().await.unwrap();

    let refused = async || {
        let config = Config::load(&folder.file("kbs.toml")).unwrap();
        start(config).await.err().expect("no database").to_string()
    };
    std::fs::copy(folder.file("tls.crt"), folder.file("database.crt")).unwrap();
    let error = refused().await;
    assert!(error.contains("certificate"), "{error}");
    std::fs::write(folder.file("database.crt"), "").unwrap();
    let error = refused().await;
    assert!(error.starts_with("database_ca: "), "{error}");
    folder.edit("database_ca = \"database.crt\"", "");
    let error = refused().await;
    assert!(error.contains("pg_hba.conf"), "{error}");
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
    let broker = serve(&folder).await;
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
