//! Verifies an SNP report with its VCEK and prints what it says.
//!
//! `cargo run -p cloak-attestation --example verify_report -- report.bin vcek.der`

use cloak_attestation::evidence::Companions;
use cloak_attestation::time::Timestamp;
use cloak_attestation::{Evidence, Policy, Request, Verifier};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(report), Some(vcek)) = (arguments.next(), arguments.next()) else {
        return Err("usage: verify_report REPORT VCEK".into());
    };
    let mut companions = Companions::default();
    companions.add_certificates(&std::fs::read(vcek)?)?;
    let evidence = Evidence::read(&std::fs::read(report)?, companions)?;
    let verifier = Verifier::new(Policy::default());
    match verifier.verify(&evidence, &Request::at(Timestamp::now())) {
        Ok(verified) => println!("verified: {}", serde_json::to_string_pretty(verified.claims())?),
        Err(refused) => refused.reasons.iter().for_each(|reason| println!("{reason}")),
    }
    Ok(())
}
