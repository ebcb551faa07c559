//! `cloak doctor`: what this machine can do for Cloak.

use std::process::ExitCode;

use cloak_host::doctor::{Finding, Verdict, examine};

/// How to tell.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Machine-readable output
    #[arg(long)]
    json: bool,
}

/// Prints the findings; fails when Cloak can't run here.
pub fn run(args: &Args) -> ExitCode {
    let findings = examine();
    if args.json {
        let lines: Vec<String> = findings.iter().map(json).collect();
        println!("[{}]", lines.join(","));
    } else {
        findings.iter().for_each(print);
    }
    if findings.iter().any(|f| f.verdict == Verdict::Blocking) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn print(finding: &Finding) {
    let mark = match finding.verdict {
        Verdict::Good => "ok     ",
        Verdict::Missing => "missing",
        Verdict::Blocking => "BLOCKS ",
    };
    println!("{mark}  {:<22} {}", finding.subject, finding.found);
    if !finding.advice.is_empty() {
        println!("         {:<22} {}", "", finding.advice);
    }
}

fn json(finding: &Finding) -> String {
    let verdict = format!("{:?}", finding.verdict).to_lowercase();
    format!(
        "{{\"subject\":{:?},\"verdict\":{verdict:?},\"found\":{:?},\"advice\":{:?}}}",
        finding.subject, finding.found, finding.advice
    )
}
