//! Measures verification and the key broker, by the benches of their own crates, and writes the document.

use std::process::{Command, ExitCode, Stdio};
use std::{env, io};

use cloak_bench::{machine, table};

const USAGE: &str = "cloak-bench-attestation FILE";

const INTRODUCTION: &str = "# Benchmarks of attestation and the key broker

`make bench-attestation` wrote this page.";

/// A crate, its bench, and what stands above its table.
const PARTS: [(&str, &str, &str); 2] = [
    (
        "cloak-attestation",
        "verify",
        "## Verification\n\n\
         Beside what others' verifiers do with the same evidence in the same run, verdict by verdict in turn, 1000 of each. They \
         check signatures; `dcap-qvl` dates, lists and TCB too. Cloak's figure has all of its checks in it ([attestation.md](attestation.md)).",
    ),
    (
        "cloak-broker",
        "broker",
        "## Key broker\n\n\
         A whole exchange: a challenge, evidence judged by two policies, a secret encrypted to the guest's key, and each decision on the \
         disk (SQLite, `synchronous = FULL`) before it is answered. Guests and broker share the machine, and what the guests do (keys, \
         evidence, their end of TLS) is part of the figures. A guest keeps its connection.",
    ),
];

fn main() -> ExitCode {
    table::write_document(USAGE, document)
}

fn document(old: &str) -> io::Result<String> {
    let machine = machine::description();
    let mut sections = String::new();
    for (package, bench, introduction) in PARTS {
        sections += &format!("{introduction}\n\n{}\n", run(package, bench)?);
    }
    Ok(table::document(INTRODUCTION, &sections, &machine, old))
}

fn run(package: &str, bench: &str) -> io::Result<String> {
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["bench", "--locked", "--package", package, "--bench", bench])
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    eprintln!("{text}");
    if output.status.success() {
        Ok(text)
    } else {
        Err(io::Error::other(format!("the bench of {package} failed")))
    }
}
