//! How long a verdict takes, beside the signature work of `sev` and `dcap-qvl` on the same evidence in the same run.
//!
//! `cargo bench -p cloak-attestation`: p50, p99 and verdicts a second for one and two threads. Rounds of the
//! contenders alternate, so a busy machine slows all of them alike.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cloak_attestation::evidence::{Attestation, SnpEvidence, TdxEvidence};
use cloak_attestation::time::Timestamp;
use cloak_attestation::{Evidence, Policy, Request, Verifier};
use dcap_qvl::configs::RustCryptoConfig;
use dcap_qvl::verify::QuoteVerifier;
use sev::certs::snp::{Certificate, Chain, Verifiable as _, builtin::milan, ca};
use sev::firmware::guest::AttestationReport;
use sev::parser::ByteParser as _;

const ROUNDS: usize = 400;
const SNP_TIME: Request = Request {
    now: Timestamp(1_704_067_200),
    report_data: None,
};
const TDX_TIME: Request = Request {
    now: Timestamp(1_750_400_000),
    report_data: None,
};

fn package_dir(name: &str) -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let package = metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .find(|p| p["name"] == name);
    let manifest = package.expect("a dependency")["manifest_path"]
        .as_str()
        .expect("a path");
    Path::new(manifest).parent().expect("a folder").to_owned()
}

type Contender<'a> = (&'static str, Box<dyn Fn() + Sync + 'a>);

fn compare(contenders: &[Contender<'_>]) {
    let mut times: Vec<Vec<Duration>> = vec![Vec::with_capacity(ROUNDS); contenders.len()];
    for _ in 0..ROUNDS {
        for ((_, run), times) in contenders.iter().zip(&mut times) {
            let start = Instant::now();
            run();
            times.push(start.elapsed());
        }
    }
    println!(
        "{:34} {:>10} {:>10} {:>12} {:>12}",
        "", "p50", "p99", "1 thread /s", "2 threads /s"
    );
    for ((name, run), times) in contenders.iter().zip(&mut times) {
        times.sort_unstable();
        let (p50, p99) = (times[ROUNDS / 2], times[ROUNDS * 99 / 100]);
        println!(
            "{name:34} {p50:>10.1?} {p99:>10.1?} {:>12.0} {:>12.0}",
            rate(1, run),
            rate(2, run)
        );
    }
    println!();
}

fn rate(threads: usize, run: &(dyn Fn() + Sync)) -> f64 {
    let span = Duration::from_secs(2);
    let start = Instant::now();
    let worker = || {
        let mut count = 0u32;
        while start.elapsed() < span {
            run();
            count += 1;
        }
        f64::from(count)
    };
    let total: f64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic"))
            .sum()
    });
    total / start.elapsed().as_secs_f64()
}

fn snp() {
    let data = package_dir("sev").join("tests/certs_data");
    let text = std::fs::read_to_string(data.join("report_milan.hex")).expect("the report");
    let report = hex::decode(text.trim()).expect("hexadecimal");
    let vcek = std::fs::read(data.join("vcek_milan.der")).expect("the VCEK");
    let evidence = Evidence::from(Attestation::SevSnp(SnpEvidence {
        report: report.clone(),
        vek: Some(vcek.clone()),
        ..Default::default()
    }));
    let verifier = Verifier::new(Policy::default());
    compare(&[
        (
            "sev: chain and report",
            Box::new(|| {
                let ca = ca::Chain {
                    ark: milan::ark().expect("ARK"),
                    ask: milan::ask().expect("ASK"),
                };
                let chain = Chain {
                    ca,
                    vek: Certificate::from_der(&vcek).expect("VCEK"),
                };
                let report = AttestationReport::from_bytes(&report).expect("a report");
                (&chain, &report).verify().expect("it verifies");
            }),
        ),
        (
            "cloak: all checks, nothing cached",
            Box::new(|| {
                Verifier::new(Policy::default())
                    .verify(&evidence, &SNP_TIME)
                    .expect("it verifies");
            }),
        ),
        (
            "sev: report alone",
            Box::new(|| {
                let vcek = Certificate::from_der(&vcek).expect("VCEK");
                let report = AttestationReport::from_bytes(&report).expect("a report");
                (&vcek, &report).verify().expect("it verifies");
            }),
        ),
        (
            "cloak: all checks, chain cached",
            Box::new(|| {
                verifier.verify(&evidence, &SNP_TIME).expect("it verifies");
            }),
        ),
    ]);
}

fn tdx() {
    let data = package_dir("dcap-qvl").join("sample");
    let quote = std::fs::read(data.join("tdx_quote")).expect("the quote");
    let json = std::fs::read(data.join("tdx_quote_collateral.json")).expect("the collateral");
    let collateral: dcap_qvl::QuoteCollateralV3 = serde_json::from_slice(&json).expect("collateral");
    let evidence = Evidence::from(Attestation::Tdx(TdxEvidence {
        quote: quote.clone(),
        collateral: Some(Box::new(collateral.clone())),
        root: None,
    }));
    let verifier = Verifier::new(Policy::default());
    let root = cloak_attestation::tdx::intel_root();
    compare(&[
        (
            "dcap-qvl: verify",
            Box::new(|| {
                let theirs = QuoteVerifier::<RustCryptoConfig>::new_with_config(root.to_vec());
                theirs
                    .verify(&quote, &collateral, TDX_TIME.now.0)
                    .expect("it verifies");
            }),
        ),
        (
            "cloak: all checks",
            Box::new(|| {
                verifier.verify(&evidence, &TDX_TIME).expect("it verifies");
            }),
        ),
    ]);
}

fn main() {
    snp();
    tdx();
}
