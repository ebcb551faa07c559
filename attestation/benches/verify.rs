//! How long a verdict takes, beside the signature work of `sev` and `dcap-qvl` on the same evidence in the same run.
//!
//! `make bench-attestation` runs it and keeps the table. Contenders take turns, verdict by verdict for times and slice by
//! slice for rates, so a busy moment of the machine falls on all of them. One table row is one pair: theirs first.

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

/// Verdicts of each contender: p99 is then the tenth worst.
const ROUNDS: usize = 1000;
/// How long each contender runs for its rate, in slices.
const SLICES: u32 = 10;
const SLICE: Duration = Duration::from_millis(200);
/// What a verdict may cost, of the others' signature work.
const LIMIT: f64 = 1.1;
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

type Run<'a> = Box<dyn Fn() + Sync + 'a>;

/// The same evidence: what another library does with it, and the whole verdict.
struct Pair<'a> {
    title: &'static str,
    theirs: Run<'a>,
    ours: Run<'a>,
}

/// p50 and p99 in microseconds, and runs a second on one and on two threads.
struct Figures {
    p50: f64,
    p99: f64,
    rates: [f64; 2],
}

impl Pair<'_> {
    /// Theirs, ours.
    fn measure(&self) -> [Figures; 2] {
        let runs = [&self.theirs, &self.ours];
        let mut times = [Vec::with_capacity(ROUNDS), Vec::with_capacity(ROUNDS)];
        for round in 0..ROUNDS {
            // Neither is always the one that finds the caches as the other left them.
            for turn in [round % 2, (round + 1) % 2] {
                let start = Instant::now();
                runs[turn]();
                times[turn].push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
        let mut rates = [[0.0; 2]; 2];
        for _ in 0..SLICES {
            for (run, rates) in runs.iter().zip(&mut rates) {
                for (threads, rate) in (1..).zip(rates) {
                    *rate += rate_of(threads, run) / f64::from(SLICES);
                }
            }
        }
        let figures = |mut times: Vec<f64>, rates| {
            times.sort_unstable_by(f64::total_cmp);
            Figures {
                p50: times[ROUNDS / 2],
                p99: times[ROUNDS * 99 / 100],
                rates,
            }
        };
        let [theirs, ours] = times;
        [figures(theirs, rates[0]), figures(ours, rates[1])]
    }

    fn print(&self) {
        let [theirs, ours] = self.measure();
        let (p50, p99) = (ours.p50 / theirs.p50, ours.p99 / theirs.p99);
        let verdict = |ratio: f64| if ratio <= LIMIT { "" } else { " (not reached)" };
        println!(
            "| {} | {:.0}, {:.0} us | {:.0}, {:.0} us | {p50:.2}×{}, {p99:.2}×{} | {:.0}, {:.0} /s | {:.0}, {:.0} /s |",
            self.title,
            theirs.p50,
            theirs.p99,
            ours.p50,
            ours.p99,
            verdict(p50),
            verdict(p99),
            theirs.rates[0],
            theirs.rates[1],
            ours.rates[0],
            ours.rates[1],
        );
    }
}

fn rate_of(threads: usize, run: &(dyn Fn() + Sync)) -> f64 {
    let start = Instant::now();
    let worker = || {
        let mut count = 0u32;
        while start.elapsed() < SLICE {
            run();
            count += 1;
        }
        f64::from(count)
    };
    let total: f64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let counts = workers.into_iter().map(|worker| worker.join().expect("no panic"));
        counts.sum()
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
    let signatures = || {
        let vcek = Certificate::from_der(&vcek).expect("VCEK");
        let report = AttestationReport::from_bytes(&report).expect("a report");
        (vcek, report)
    };
    let not_cached = Pair {
        title: "SNP report, chain not cached; `sev`: chain and report",
        theirs: Box::new(|| {
            let (vek, report) = signatures();
            let ca = ca::Chain {
                ark: milan::ark().expect("ARK"),
                ask: milan::ask().expect("ASK"),
            };
            (&Chain { ca, vek }, &report).verify().expect("it verifies");
        }),
        ours: Box::new(|| {
            let fresh = Verifier::new(Policy::default());
            fresh.verify(&evidence, &SNP_TIME).expect("it verifies");
        }),
    };
    let cached = Pair {
        title: "SNP report, chain cached; `sev`: report alone",
        theirs: Box::new(|| {
            let (vek, report) = signatures();
            (&vek, &report).verify().expect("it verifies");
        }),
        ours: Box::new(|| {
            verifier.verify(&evidence, &SNP_TIME).expect("it verifies");
        }),
    };
    not_cached.print();
    cached.print();
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
    let pair = Pair {
        title: "TDX quote; `dcap-qvl`: all it checks",
        theirs: Box::new(|| {
            let theirs = QuoteVerifier::<RustCryptoConfig>::new_with_config(root.to_vec());
            theirs
                .verify(&quote, &collateral, TDX_TIME.now.0)
                .expect("it verifies");
        }),
        ours: Box::new(|| {
            verifier.verify(&evidence, &TDX_TIME).expect("it verifies");
        }),
    };
    pair.print();
}

fn main() {
    println!(
        "| evidence | theirs: p50, p99 | Cloak, all checks: p50, p99 | Cloak to theirs, at most {LIMIT}× | theirs on one and on two cores | Cloak on one and on two cores |"
    );
    println!("|---|---|---|---|---|---|");
    snp();
    tdx();
}
