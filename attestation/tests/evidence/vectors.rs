//! Finds real evidence. Packages that carry some are found where cargo keeps them, so a fresh machine tests real
//! evidence too; the larger collection beside the repository is used when it is there and counted when it is not.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use cloak_attestation::evidence::{Attestation, SnpEvidence, TdxEvidence};
use cloak_attestation::{Evidence, Policy, Refused, Request, VerifiedEvidence, Verifier};

/// A file of the collection beside the repository, or `None`, said on the terminal and counted.
pub fn shared(path: &str) -> Option<Vec<u8>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/vectors")
        .join(path);
    match std::fs::read(&file) {
        Ok(bytes) => Some(bytes),
        Err(_) => {
            let reason = format!("no ../shared/vectors/{path}");
            skip("real evidence beside the repository", &reason);
            None
        }
    }
}

/// Says on the terminal and to the summary of `make test` what could not be tested here.
pub fn skip(what: &str, reason: &str) {
    // Not `eprintln`, which the test harness would keep to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED {what}: {reason}");
    if let Some(file) = std::env::var_os("CLOAK_TEST_SKIPS") {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
            .expect("the list of skips");
        writeln!(file, "{what}: {reason}").expect("the list of skips");
    }
}

/// A file that the `sev` package carries.
pub fn sev(path: &str) -> Vec<u8> {
    static DIR: LazyLock<PathBuf> = LazyLock::new(|| package_dir("sev"));
    std::fs::read(DIR.join(path)).expect("the sev package carries its test data")
}

/// A file that the `dcap-qvl` package carries.
pub fn dcap_qvl(path: &str) -> Vec<u8> {
    static DIR: LazyLock<PathBuf> = LazyLock::new(|| package_dir("dcap-qvl"));
    std::fs::read(DIR.join(path)).expect("the dcap-qvl package carries its samples")
}

fn package_dir(name: &str) -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
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

/// The Milan report, version 2, that `sev` carries: policy 0x30000, VCEK 2023-04-03 to 2030-04-03.
pub fn sev_milan() -> SnpEvidence {
    let text = sev("tests/certs_data/report_milan.hex");
    SnpEvidence {
        report: hex::decode(text.trim_ascii()).expect("hexadecimal"),
        vek: Some(sev("tests/certs_data/vcek_milan.der")),
        ..Default::default()
    }
}

/// A quote that `dcap-qvl` carries.
pub fn tdx(name: &str) -> TdxEvidence {
    let json = dcap_qvl(&format!("sample/{name}_collateral.json"));
    TdxEvidence {
        quote: dcap_qvl(&format!("sample/{name}")),
        collateral: Some(Box::new(
            serde_json::from_slice(&json).expect("QuoteCollateralV3"),
        )),
        root: None,
    }
}

pub fn snp_evidence(snp: SnpEvidence) -> Evidence {
    Attestation::SevSnp(snp).into()
}

pub fn tdx_evidence(tdx: TdxEvidence) -> Evidence {
    Attestation::Tdx(tdx).into()
}

pub fn at(time: &str) -> Request {
    Request::at(time.parse().expect("a time"))
}

pub fn judge(policy: &Policy, evidence: &Evidence, time: &str) -> Result<VerifiedEvidence, Refused> {
    Verifier::new(policy.clone()).verify(evidence, &at(time))
}

/// The codes of a refusal, each once, in order.
pub fn codes(verdict: Result<VerifiedEvidence, Refused>) -> Vec<&'static str> {
    let mut codes: Vec<_> = verdict
        .expect_err("a refusal")
        .codes()
        .iter()
        .map(|code| code.as_str())
        .collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}
