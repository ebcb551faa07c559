//! A broker in a temporary folder, and guests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use cloak_attestation::Evidence;
use cloak_attestation::bytes::{Bytes, Bytes32, Bytes48, Bytes64};
use cloak_attestation::evidence::Attestation;
use cloak_attestation::sim::{QuoteFields, TdxWorld};
use cloak_attestation::time::Timestamp;
use cloak_broker::attester::{Attester, AttesterError, Software};
use cloak_broker::client::Session;
use cloak_broker::protocol::Tee;
use cloak_broker::server::{Running, start};
use cloak_broker::{Client, ClientError, Config, ResourcePath};
use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate as _;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

static WORLD: LazyLock<TdxWorld> = LazyLock::new(|| TdxWorld::new(Timestamp::now()).expect("a world"));

/// What good guests measure.
pub const GOOD: Bytes48 = Bytes([0x11; 48]);
/// What another guest measures.
pub const OTHER: Bytes48 = Bytes([0x22; 48]);

/// A guest with a simulated quote.
pub struct Simulated(pub Bytes48);

impl Attester for Simulated {
    fn tee(&self) -> Tee {
        Tee::SimulatedTdx
    }

    fn attest(&self, report_data: &Bytes64) -> Result<Evidence, AttesterError> {
        let fields = QuoteFields {
            report_data: *report_data,
            mrtd: self.0,
            ..QuoteFields::default()
        };
        let evidence = WORLD.attest(&fields, &WORLD.spec()).expect("a quote");
        Ok(Attestation::SimulatedTdx(evidence).into())
    }
}

/// A guest on a host whose key the broker's policy names.
pub fn software(key: &SigningKey) -> Software {
    Software {
        key: key.clone(),
        measurement: GOOD,
        manifest_digest: Bytes32::ZERO,
    }
}

/// The one host key of all tests.
pub static HOST_KEY: LazyLock<SigningKey> = LazyLock::new(SigningKey::generate);

/// Accepts what the tests' guests show, whatever it measures.
pub fn attestation_policy() -> String {
    let key = hex::encode(Sha256::digest(
        HOST_KEY.verifying_key().to_sec1_point(false).as_bytes(),
    ));
    format!("platforms = [\"simulated-tdx\", \"software\"]\n[software]\nkey_digests = [\"{key}\"]\n")
}

/// Accepts one measurement.
pub fn policy_for(measurement: Bytes48) -> String {
    format!(
        "{}\n[[reference]]\nname = \"guest\"\nversion = \"1\"\nmrtd = [\"{measurement}\"]\n\
         software_measurement = [\"{measurement}\"]\n",
        attestation_policy()
    )
}

/// A folder as `cloak kbs init` makes it, with the tests' attestation policy.
pub struct Folder {
    _keep: TempDir,
    pub path: PathBuf,
    pub admin: String,
}

impl Folder {
    pub fn new() -> Self {
        let keep = tempfile::tempdir().expect("a folder");
        let path = keep.path().join("kbs");
        let status = Command::new(env!("CARGO_BIN_EXE_cloak-kbs"))
            .args(["init", "--listen", "127.0.0.1:0"])
            .arg(&path)
            .stdout(std::process::Stdio::null())
            .status()
            .expect("cloak-kbs runs");
        assert!(status.success());
        let admin = std::fs::read_to_string(path.join("admin.token")).expect("the token");
        let folder = Self {
            _keep: keep,
            path,
            admin,
        };
        folder.write_policy(&attestation_policy());
        // Tests ask from one address and as fast as they can.
        folder.edit("requests_per_second = 50", "requests_per_second = 1000000");
        folder.edit("burst = 200", "burst = 1000000");
        folder
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn write_policy(&self, policy: &str) {
        std::fs::write(self.file("policy.toml"), policy).expect("the policy");
    }

    pub fn edit(&self, from: &str, to: &str) {
        let file = self.file("kbs.toml");
        let text = std::fs::read_to_string(&file).expect("the configuration");
        assert!(text.contains(from), "{from} in {text}");
        std::fs::write(file, text.replace(from, to)).expect("the configuration");
    }

    pub async fn serve(&self) -> Broker<'_> {
        let config = Config::load(&self.file("kbs.toml")).expect("a configuration");
        Broker {
            folder: self,
            running: start(config).await.expect("it serves"),
        }
    }

    pub fn client(&self, port: u16) -> Client {
        Client::new(&format!("https://localhost:{port}"), &self.file("tls.crt")).expect("a client")
    }
}

/// A broker in this process.
pub struct Broker<'a> {
    pub folder: &'a Folder,
    pub running: Running,
}

impl Broker<'_> {
    pub fn client(&self) -> Client {
        self.folder.client(self.running.address().port())
    }

    pub fn admin(&self) -> &str {
        &self.folder.admin
    }

    /// Writes a secret with a policy for `measurement`.
    pub async fn put(&self, name: &str, secret: &[u8], measurement: Bytes48) {
        let mut client = self.client();
        client
            .put(self.admin(), &path(name), secret)
            .await
            .expect("written");
        let policy = policy_for(measurement);
        client
            .put_policy(self.admin(), &path(name), &policy)
            .await
            .expect("written");
    }

    /// Records of the audit log, checked to be whole.
    pub async fn decisions(&self) -> Vec<cloak_broker::audit::Decision> {
        let mut head = cloak_broker::audit::Head::default();
        let entries = self.client().audit(self.admin(), 0).await.expect("the log");
        let read = |entry: &cloak_broker::audit::Entry| {
            head = head.follow(entry).expect("a whole chain");
            serde_json::from_str(&entry.record).expect("a decision")
        };
        entries.iter().map(read).collect()
    }
}

pub fn path(name: &str) -> ResourcePath {
    name.parse().expect("a path")
}

pub async fn attest(client: &mut Client, measurement: Bytes48) -> Session {
    client
        .attest(&Simulated(measurement))
        .await
        .expect("good evidence")
}

/// Status and problem of a refusal.
pub fn refusal<T>(result: Result<T, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::Refused { status, problem, .. }) => (status, problem),
        Err(other) => panic!("no refusal: {other}"),
        Ok(_) => panic!("no refusal: it was granted"),
    }
}

/// Says on the terminal and to the summary that a test could not run.
pub fn skip(test: &str, reason: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
    if let Some(file) = std::env::var_os("CLOAK_TEST_SKIPS") {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(Path::new(&file))
            .expect("the list");
        writeln!(file, "{test}: {reason}").expect("the list");
    }
}
