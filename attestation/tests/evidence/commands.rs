//! The commands, as a user runs them.

use std::path::{Path, PathBuf};

use clap::Parser;
use cloak_attestation::Policy;
use cloak_attestation::cli::{MeasureArgs, Outcome, PolicyArgs, VerifyArgs};
use cloak_attestation::evidence::Attestation;
use cloak_attestation::sim::{QuoteFields, TdxWorld};
use cloak_attestation::time::Timestamp;
use cloak_manifest::Manifest;
use serde_json::Value;

use crate::vectors::{dcap_qvl, sev, sev_milan};

#[derive(Parser)]
enum Cli {
    Verify(VerifyArgs),
    Policy(PolicyArgs),
    Measure(MeasureArgs),
}

struct Ran {
    outcome: Outcome,
    out: String,
    err: String,
}

fn cloak(arguments: &[&str]) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let outcome = match Cli::try_parse_from([&["cloak"], arguments].concat()).unwrap() {
        Cli::Verify(args) => args.run(&mut out, &mut err),
        Cli::Policy(args) => args.run(&mut out, &mut err),
        Cli::Measure(args) => args.run(&mut out, &mut err),
    };
    Ran {
        outcome,
        out: String::from_utf8(out).unwrap(),
        err: String::from_utf8(err).unwrap(),
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cloak-attestation-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn verify_a_bare_report() {
    let folder = Folder::new("report");
    let report = folder.put("report.bin", sev_milan().report);
    let vcek = folder.put("vcek.der", sev("tests/certs_data/vcek_milan.der"));
    let good = cloak(&["verify", &report, "--cert", &vcek, "--at", "2024-01-01"]);
    assert_eq!(good.outcome, Outcome::Verified, "{}", good.out);
    assert!(good.out.contains("✓ snp.report.signature"));
    assert!(good.out.contains("any measurement would have passed"));
    let late = cloak(&["verify", &report, "--cert", &vcek, "--at", "2031-01-01"]);
    assert_eq!(late.outcome, Outcome::Refused);
    assert!(
        late.out.contains("✗ chain.expired") && late.out.contains("refused: 1 of"),
        "{}",
        late.out
    );
    let nonce = cloak(&[
        "verify",
        &report,
        "--cert",
        &vcek,
        "--at",
        "2024-01-01",
        "--nonce",
        "00ff",
        "--json",
    ]);
    let json: Value = serde_json::from_str(&nonce.out).unwrap();
    assert_eq!(json["verdict"], "refused");
    assert_eq!(json["reasons"][0]["code"], "evidence.report-data.mismatch");
}

#[test]
fn verify_a_bare_quote() {
    let folder = Folder::new("quote");
    let quote = folder.put("quote.bin", dcap_qvl("sample/tdx_quote"));
    let collateral = folder.put("collateral.json", dcap_qvl("sample/tdx_quote_collateral.json"));
    let good = cloak(&[
        "verify",
        &quote,
        "--collateral",
        &collateral,
        "--at",
        "1750400000",
        "--json",
    ]);
    assert_eq!(good.outcome, Outcome::Verified, "{}", good.out);
    let json: Value = serde_json::from_str(&good.out).unwrap();
    assert_eq!(json["evidence"]["claims"]["tdx"]["tcb_status"], "UpToDate");
    assert_eq!(
        cloak(&["verify", &quote, "--at", "1750400000"]).outcome,
        Outcome::Refused
    );
}

#[test]
fn simulated_evidence_is_announced() {
    let folder = Folder::new("simulated");
    let world = TdxWorld::new(Timestamp(1_780_000_000)).unwrap();
    let tdx = world.attest(&QuoteFields::default(), &world.spec()).unwrap();
    let evidence = cloak_attestation::Evidence::from(Attestation::SimulatedTdx(tdx));
    let file = folder.put("evidence.cbor", evidence.to_cbor());
    let policy = folder.put("policy.toml", "platforms = [\"simulated-tdx\"]");
    let ran = cloak(&["verify", &file, "--policy", &policy, "--at", "1780000000"]);
    assert_eq!(ran.outcome, Outcome::Verified, "{}", ran.out);
    assert!(ran.out.starts_with("! simulated-tdx: this evidence says nothing"));
    assert_eq!(
        cloak(&["verify", &file, "--at", "1780000000"]).outcome,
        Outcome::Refused
    );
}

#[test]
fn what_is_no_evidence_is_not_judged() {
    let folder = Folder::new("nothing");
    let missing = cloak(&["verify", "/nowhere/at/all"]);
    assert_eq!(missing.outcome, Outcome::Unjudged);
    assert!(missing.err.contains("/nowhere/at/all"));
    let text = folder.put("text", "hello");
    let unknown = cloak(&["verify", &text]);
    assert_eq!(unknown.outcome, Outcome::Unjudged);
    assert!(unknown.err.contains("not evidence"), "{}", unknown.err);
    let report = folder.put("report.bin", sev_milan().report);
    let policy = folder.put("policy.toml", "allow_everything = true");
    let wrong = cloak(&["verify", &report, "--policy", &policy]);
    assert_eq!(wrong.outcome, Outcome::Unjudged);
    assert!(wrong.err.contains("allow_everything"), "{}", wrong.err);
}

const MANIFEST: &str = include_str!("../../../manifest/tests/full.toml");

/// What is measured and what evidence is judged by is what a manifest says, however its file is written.
#[test]
fn spacing_and_comments_of_a_manifest_do_not_count() {
    let folder = Folder::new("canonical");
    let image = folder.put(
        "image.toml",
        "version = 1\nname = \"shim\"\nrelease = \"1\"\n[[region]]\ngpa = 0x100000\nkind = \"zero\"\npages = 1\n\
         [snp.boot]\nrip = 0x100000\n",
    );
    let init = |manifest: &str| cloak(&["policy", "init", "--for", manifest, "--image", &image]);
    let plain = folder.put("cloak.toml", MANIFEST);
    let canonical = folder.put(
        "canonical.toml",
        include_str!("../../../manifest/tests/full.canonical.toml"),
    );
    let commented = folder.put("commented.toml", format!("# a comment\n\n{MANIFEST}"));
    let policy = init(&plain);
    assert_eq!(policy.outcome, Outcome::Verified, "{}", policy.err);
    assert_eq!(init(&canonical).out, policy.out);
    assert_eq!(init(&commented).out, policy.out);

    let world = TdxWorld::new(Timestamp(1_780_000_000)).unwrap();
    let fields = QuoteFields {
        mr_config_id: Manifest::parse(MANIFEST.as_bytes())
            .unwrap()
            .digests()
            .unwrap()
            .sha384
            .0
            .into(),
        ..QuoteFields::default()
    };
    let evidence = Attestation::SimulatedTdx(world.attest(&fields, &world.spec()).unwrap());
    let evidence = folder.put(
        "evidence.cbor",
        cloak_attestation::Evidence::from(evidence).to_cbor(),
    );
    let policy = folder.put("simulated.toml", "platforms = [\"simulated-tdx\"]");
    let verify = |option: &str, file: &str| {
        cloak(&[
            "verify",
            &evidence,
            "--policy",
            &policy,
            "--at",
            "1780000000",
            option,
            file,
        ])
    };
    assert_eq!(verify("--manifest", &commented).outcome, Outcome::Verified);
    assert_eq!(verify("--init-data", &canonical).outcome, Outcome::Verified);
    let raw = verify("--init-data", &commented);
    assert!(
        raw.outcome == Outcome::Refused && raw.out.contains("evidence.manifest.mismatch"),
        "{}",
        raw.out
    );
    let none = folder.put("none.toml", "program = \"/bin/true\"");
    for ran in [init(&none), verify("--manifest", &none)] {
        assert!(
            ran.outcome == Outcome::Unjudged && ran.err.contains("none.toml"),
            "{}",
            ran.err
        );
    }
}

#[test]
fn a_written_policy_accepts_what_was_measured() {
    let folder = Folder::new("init");
    let manifest = folder.put("cloak.toml", MANIFEST);
    folder.put("kernel.bin", [7; 5000]);
    let image = folder.put(
        "image.toml",
        "version = 1\nname = \"shim\"\nrelease = \"0.1.0\"\n[[region]]\ngpa = 0x100000\nkind = \"normal\"\n\
         file = \"kernel.bin\"\n[snp.boot]\nrip = 0x100000\n",
    );
    let measured = cloak(&["measure", "--platform", "snp", "--cpus", "2", &image]);
    assert_eq!(measured.outcome, Outcome::Verified, "{}", measured.err);
    let mrtd = cloak(&["measure", "--platform", "tdx", "--json", &image]);
    let mrtd: Value = serde_json::from_str(&mrtd.out).unwrap();
    assert_eq!((&mrtd["pages"], &mrtd["register"]), (&2.into(), &"MRTD".into()));
    let written = cloak(&[
        "policy", "init", "--for", &manifest, "--image", &image, "--cpus", "1,2",
    ]);
    assert_eq!(written.outcome, Outcome::Verified, "{}", written.err);
    let policy = Policy::from_toml(&written.out).unwrap();
    let reference = &policy.references[0];
    assert!(
        reference
            .snp_measurement
            .contains(&measured.out.trim().parse().unwrap())
    );
    assert_eq!(
        reference.mrtd.iter().next().unwrap().to_string(),
        mrtd["measurement"]
    );
    assert!(policy.require_reference && reference.snp_measurement.len() == 2);
    let digests = Manifest::parse(MANIFEST.as_bytes()).unwrap().digests().unwrap();
    assert_eq!(reference.host_data, [digests.sha256.0.into()].into());
    assert_eq!(reference.mr_config_id, [digests.sha384.0.into()].into());
    let file = folder.put("policy.toml", &written.out);
    assert_eq!(cloak(&["policy", "check", &file]).out, written.out);
    assert!(serde_json::from_str::<Value>(&cloak(&["policy", "schema"]).out).is_ok());
    assert!(Path::new(&file).exists());
}
