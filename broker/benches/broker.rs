//! How many guests a broker serves: attest and get, whole, over TLS, with every decision on the disk before its answer.
//!
//! `make bench-attestation` runs it and keeps the table: p50 and p99 of one exchange, and exchanges a second, for one guest
//! after another and for many at once. Guests and broker share the machine's processors, and the guests' own work (keys, evidence, TLS)
//! is part of the figures. A connection is kept for all exchanges of a guest.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use cloak_attestation::Evidence;
use cloak_attestation::bytes::{Bytes, Bytes32, Bytes64};
use cloak_attestation::evidence::Attestation;
use cloak_attestation::sim::{QuoteFields, TdxWorld};
use cloak_attestation::time::Timestamp;
use cloak_broker::attester::{Attester, AttesterError, Software};
use cloak_broker::cli::{KbsArgs, Outcome};
use cloak_broker::protocol::Tee;
use cloak_broker::server::start;
use cloak_broker::{Client, Config, ResourcePath};
use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate as _;
use sha2::{Digest, Sha256};

const SPAN: Duration = Duration::from_secs(5);
const MEASUREMENT: [u8; 48] = [0x11; 48];

#[derive(Parser)]
struct Kbs {
    #[command(flatten)]
    kbs: KbsArgs,
}

struct Simulated(TdxWorld);

impl Attester for Simulated {
    fn tee(&self) -> Tee {
        Tee::SimulatedTdx
    }

    fn attest(&self, report_data: &Bytes64) -> Result<Evidence, AttesterError> {
        let fields = QuoteFields {
            mrtd: Bytes(MEASUREMENT),
            report_data: *report_data,
            ..QuoteFields::default()
        };
        let evidence = self.0.attest(&fields, &self.0.spec()).expect("a quote");
        Ok(Attestation::SimulatedTdx(evidence).into())
    }
}

fn init(folder: &Path, key: &SigningKey) -> String {
    let arguments = [
        "kbs",
        "init",
        "--listen",
        "127.0.0.1:0",
        folder.to_str().expect("a path"),
    ];
    let outcome = Kbs::parse_from(arguments)
        .kbs
        .run(&mut std::io::sink(), &mut std::io::stderr());
    assert!(outcome == Outcome::Done);
    let file = folder.join("kbs.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let text = text.replace("requests_per_second = 50", "requests_per_second = 1000000");
    std::fs::write(file, text.replace("burst = 200", "burst = 1000000")).expect("the configuration");
    let digest = hex::encode(Sha256::digest(
        key.verifying_key().to_sec1_point(false).as_bytes(),
    ));
    let measurement = hex::encode(MEASUREMENT);
    let policy = format!(
        "platforms = [\"simulated-tdx\", \"software\"]\n[software]\nkey_digests = [\"{digest}\"]\n[[reference]]\n\
         name = \"guest\"\nversion = \"1\"\nmrtd = [\"{measurement}\"]\nsoftware_measurement = [\"{measurement}\"]\n"
    );
    std::fs::write(folder.join("policy.toml"), &policy).expect("the policy");
    policy
}

async fn guest(
    url: String,
    roots: PathBuf,
    attester: Arc<dyn Attester>,
    until: Instant,
    done: Arc<AtomicUsize>,
) -> Vec<Duration> {
    let mut client = Client::new(&url, &roots).expect("a client");
    let path: ResourcePath = "bench/key/1".parse().expect("a path");
    let mut times = Vec::new();
    while Instant::now() < until {
        let start = Instant::now();
        let session = client.attest(attester.as_ref()).await.expect("good evidence");
        client.get(&session, &path).await.expect("the secret");
        times.push(start.elapsed());
        done.fetch_add(1, Ordering::Relaxed);
    }
    times
}

async fn measure(name: &str, guests: usize, url: &str, roots: &Path, attester: &Arc<dyn Attester>) {
    let done = Arc::new(AtomicUsize::new(0));
    let begin = Instant::now();
    let tasks: Vec<_> = (0..guests)
        .map(|_| {
            let (url, roots, attester) = (url.to_owned(), roots.to_owned(), Arc::clone(attester));
            tokio::spawn(guest(url, roots, attester, begin + SPAN, Arc::clone(&done)))
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.expect("a guest ends well"));
    }
    let rate = done.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64();
    times.sort_unstable();
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("| {name} | {guests} | {p50:.1?} | {p99:.1?} | {rate:.0} |");
}

fn main() {
    let keep = tempfile::tempdir().expect("a folder");
    let folder = keep.path().join("kbs");
    let key = SigningKey::generate();
    // The command has a runtime of its own.
    let policy = init(&folder, &key);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(serve_and_measure(&folder, key, policy));
}

async fn serve_and_measure(folder: &Path, key: SigningKey, policy: String) {
    let running = start(Config::load(&folder.join("kbs.toml")).expect("a configuration"))
        .await
        .expect("it serves");
    let url = format!("https://localhost:{}", running.address().port());
    let roots = folder.join("tls.crt");
    let admin = std::fs::read_to_string(folder.join("admin.token")).expect("the token");
    let path: ResourcePath = "bench/key/1".parse().expect("a path");
    let mut client = Client::new(&url, &roots).expect("a client");
    client.put(&admin, &path, &[7; 32]).await.expect("written");
    client.put_policy(&admin, &path, &policy).await.expect("written");
    let software: Arc<dyn Attester> = Arc::new(Software {
        key,
        measurement: Bytes(MEASUREMENT),
        manifest_digest: Bytes32::ZERO,
    });
    let simulated: Arc<dyn Attester> = Arc::new(Simulated(TdxWorld::new(Timestamp::now()).expect("a world")));
    println!("| evidence | guests at a time | p50 | p99 | exchanges a second |");
    println!("|---|---|---|---|---|");
    for (name, attester) in [
        ("software evidence", &software),
        ("simulated TDX quote", &simulated),
    ] {
        for guests in [1, 16, 128] {
            measure(name, guests, &url, &roots, attester).await;
        }
    }
    running.stop().await.expect("it stops");
}
