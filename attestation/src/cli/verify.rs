//! `cloak verify EVIDENCE`: judges evidence and prints every check.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::outcome::{CommandError, Outcome, conclude, read, read_manifest};
use crate::bytes::Bytes64;
use crate::evidence::{Companions, Evidence, EvidenceError};
use crate::time::Timestamp;
use crate::verdict::{Check, Refused, VerifiedEvidence};
use crate::{Policy, Request, Verifier};

/// Judge evidence: exit code 0 verified, 1 refused, 2 could not be judged.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A CBOR envelope, a report, a quote, an HCL report or JSON of Confidential Containers.
    evidence: PathBuf,
    /// Policy; without one, the strict default that names no measurement.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// Judge as of this time: Unix seconds, 2026-02-05 or 2026-02-05T01:04:33Z. Default: now.
    #[arg(long)]
    at: Option<Timestamp>,
    /// REPORT_DATA that the evidence has to have, up to 64 bytes in hexadecimal; zeros follow.
    #[arg(long, value_parser = nonce)]
    nonce: Option<Bytes64>,
    /// Certificates beside a bare report, DER or PEM: VCEK or VLEK, ASK, ARK.
    #[arg(long = "cert", value_name = "FILE")]
    certificates: Vec<PathBuf>,
    /// Certificate table beside a bare report (configfs-tsm's auxblob).
    #[arg(long, value_name = "FILE")]
    cert_table: Option<PathBuf>,
    /// Revocation lists beside a bare report, DER.
    #[arg(long = "crl", value_name = "FILE")]
    crls: Vec<PathBuf>,
    /// QuoteCollateralV3 JSON beside a bare quote.
    #[arg(long, value_name = "FILE")]
    collateral: Option<PathBuf>,
    /// Manifest whose digest the machine was launched with.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// What another system launched the machine with the digest of, as it is.
    #[arg(long, value_name = "FILE", conflicts_with = "manifest")]
    init_data: Option<PathBuf>,
    /// A bare report or quote is of a simulated machine. Only a policy that names that kind accepts it
    #[arg(long)]
    simulated: bool,
    /// Print the verdict as JSON.
    #[arg(long)]
    json: bool,
}

fn nonce(text: &str) -> Result<Bytes64, String> {
    let bytes = hex::decode(text).map_err(|error| error.to_string())?;
    let mut nonce = Bytes64::ZERO;
    let place = nonce.0.get_mut(..bytes.len()).ok_or("more than 64 bytes")?;
    place.copy_from_slice(&bytes);
    Ok(nonce)
}

impl VerifyArgs {
    /// Judges and prints.
    pub fn run(&self, out: &mut dyn Write, err: &mut dyn Write) -> Outcome {
        conclude(self.judge(out), err)
    }

    fn judge(&self, out: &mut dyn Write) -> Result<Outcome, CommandError> {
        let verifier = Verifier::new(self.read_policy()?);
        let evidence = self.read_evidence()?;
        let request = Request {
            now: self.at.unwrap_or_else(Timestamp::now),
            report_data: self.nonce,
        };
        let verdict = verifier.verify(&evidence, &request);
        if self.json {
            print_json(out, &evidence, &verdict)?;
        } else {
            print_table(out, &evidence, &verdict)?;
        }
        Ok(if verdict.is_ok() {
            Outcome::Verified
        } else {
            Outcome::Refused
        })
    }

    fn read_policy(&self) -> Result<Policy, CommandError> {
        let Some(path) = &self.policy else {
            return Ok(Policy::default());
        };
        let text = String::from_utf8_lossy(&read(path)?).into_owned();
        Policy::from_toml(&text).map_err(|error| CommandError::Policy {
            path: path.clone(),
            source: Box::new(error),
        })
    }

    fn read_evidence(&self) -> Result<Evidence, CommandError> {
        let mut companions = Companions::default();
        let blame = |path: &PathBuf| {
            let path = path.clone();
            move |source: EvidenceError| CommandError::Evidence { path, source }
        };
        for path in &self.certificates {
            companions.add_certificates(&read(path)?).map_err(blame(path))?;
        }
        if let Some(path) = &self.cert_table {
            companions
                .add_certificate_table(&read(path)?)
                .map_err(blame(path))?;
        }
        for path in &self.crls {
            companions.add_crl(read(path)?);
        }
        if let Some(path) = &self.collateral {
            companions.add_collateral(&read(path)?).map_err(blame(path))?;
        }
        if let Some(path) = &self.manifest {
            companions.add_manifest(read_manifest(path)?);
        }
        if let Some(path) = &self.init_data {
            companions.add_manifest(read(path)?);
        }
        let evidence = Evidence::read(&read(&self.evidence)?, companions).map_err(blame(&self.evidence))?;
        Ok(if self.simulated {
            evidence.as_simulated()
        } else {
            evidence
        })
    }
}

type Verdict = Result<VerifiedEvidence, Refused>;

fn print_json(out: &mut dyn Write, evidence: &Evidence, verdict: &Verdict) -> Result<(), CommandError> {
    let value = match verdict {
        Ok(verified) => json!({ "verdict": "verified", "evidence": verified }),
        Err(refused) => json!({
            "verdict": "refused",
            "kind": evidence.kind(),
            "reasons": refused.reasons,
            "checks": refused.checks,
        }),
    };
    serde_json::to_writer_pretty(&mut *out, &value)?;
    writeln!(out)?;
    Ok(())
}

fn print_table(out: &mut dyn Write, evidence: &Evidence, verdict: &Verdict) -> Result<(), CommandError> {
    let kind = evidence.kind();
    if !kind.is_hardware() {
        writeln!(
            out,
            "! {kind}: this evidence says nothing about confidential hardware\n"
        )?;
    }
    let checks = match verdict {
        Ok(verified) => verified.checks(),
        Err(refused) => &refused.checks,
    };
    let width = checks
        .iter()
        .map(|check| check.code.as_str().len())
        .max()
        .unwrap_or(0);
    for check in checks {
        print_check(out, check, width)?;
    }
    match verdict {
        Ok(verified) => print_verified(out, verified),
        Err(refused) => {
            writeln!(
                out,
                "\nrefused: {} of {} checks failed",
                refused.reasons.len(),
                refused.checks.len()
            )?;
            Ok(())
        }
    }
}

fn print_check(out: &mut dyn Write, check: &Check, width: usize) -> Result<(), CommandError> {
    let Check {
        code,
        at,
        expected,
        found,
        ..
    } = check;
    if check.passed {
        writeln!(out, "✓ {:width$}  {at}: {}", code.as_str(), clip(found))?;
    } else {
        writeln!(out, "✗ {:width$}  {at}", code.as_str())?;
        writeln!(out, "    {}", code.meaning())?;
        writeln!(out, "    expected {expected}")?;
        writeln!(out, "    found    {found}")?;
    }
    Ok(())
}

fn print_verified(out: &mut dyn Write, verified: &VerifiedEvidence) -> Result<(), CommandError> {
    writeln!(
        out,
        "\nverified: {}, as of {}",
        verified.kind(),
        verified.verified_at()
    )?;
    if let Some(reference) = verified.reference() {
        writeln!(out, "it is     {} {}", reference.name, reference.version)?;
    }
    writeln!(out, "measured  {}", verified.measurement())?;
    let pins = verified.pins();
    for (pinned, what, how) in [
        (pins.measurement, "measurement", "a [[reference]] in the policy"),
        (
            pins.manifest,
            "manifest",
            "host_data or mr_config_id in the reference",
        ),
        (pins.report_data, "REPORT_DATA", "--nonce"),
    ] {
        if !pinned {
            writeln!(out, "! any {what} would have passed: ask for one with {how}")?;
        }
    }
    Ok(())
}

/// Long values are for the JSON form.
fn clip(text: &str) -> String {
    const SHOWN: usize = 64;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
