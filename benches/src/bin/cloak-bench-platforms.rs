//! Measures what differs between kinds of machine: launch by phase, memory that is accepted, evidence; and writes the document.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::{env, io};

use cloak_bench::{machine, table};

const USAGE: &str = "cloak-bench-platforms FILE";
const PLATFORMS: [&str; 2] = ["plain", "sim-snp"];
/// Rounds, of which the table has the medians. The platforms take turns.
const ROUNDS: usize = 5;
/// Blocks of 2 MiB that a program touches, and reports that it asks for.
const BLOCKS: u64 = 256;
const REPORTS: u64 = 8;

const INTRODUCTION: &str = "# Benchmarks of platforms

`make bench-platforms` wrote this page. `sim-snp` is simulated hardware ([platforms.md](platforms.md)): it traps by exits to the
monitor what real hardware does in an instruction, and where KVM interprets CPL 0 code, as it does here, the kernel's part costs
most. What these figures are good for is their course over time, not what an SNP machine will take.";

const TOUCH: &str = "import mmap, time\n\
    m = mmap.mmap(-1, BLOCKS << 21)\n\
    t = time.perf_counter()\n\
    for i in range(0, len(m), 2 << 20): m[i] = 1\n\
    print(time.perf_counter() - t)";

const EVIDENCE: &str = "import os, time\n\
    os.mkdir('/sys/kernel/config/tsm/report/r')\n\
    os.chdir('/sys/kernel/config/tsm/report/r')\n\
    t = time.perf_counter()\n\
    for i in range(REPORTS):\n    \
        open('inblob', 'wb').write(bytes([i]) * 64)\n    \
        assert len(open('outblob', 'rb').read()) == 1184\n\
    print(time.perf_counter() - t)";

fn main() -> ExitCode {
    table::write_document(USAGE, document)
}

fn document(old: &str) -> io::Result<String> {
    let machine = machine::description();
    let mut phases: BTreeMap<&str, Vec<(String, Vec<f64>)>> = BTreeMap::new();
    let mut touch: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut evidence = Vec::new();
    for round in 0..ROUNDS {
        eprintln!("round {} of {ROUNDS}", round + 1);
        for platform in PLATFORMS {
            let said = run(platform, &["--stats"], &["/bin/true"])?.1;
            add(phases.entry(platform).or_default(), &said);
            let script = TOUCH.replace("BLOCKS", &BLOCKS.to_string());
            let seconds = seconds(platform, &script)?;
            let per_gib = seconds * 512.0 / BLOCKS as f64;
            touch.entry(platform).or_default().push(1000.0 * per_gib);
        }
        let script = EVIDENCE.replace("REPORTS", &REPORTS.to_string());
        evidence.push(REPORTS as f64 / seconds("sim-snp", &script)?);
    }
    let sections = format!(
        "{}\n\n{}\n\n{}\n",
        launch(&phases),
        memory(&touch),
        reports(&mut evidence)
    );
    Ok(table::document(INTRODUCTION, &sections, &machine, old))
}

/// Runs a program; gives what it and `cloak` say.
fn run(platform: &str, options: &[&str], program: &[&str]) -> io::Result<(String, String)> {
    let cloak = env::var_os("CLOAK_BIN").unwrap_or_else(|| "target/release/cloak".into());
    let output = Command::new(cloak)
        .args(["run", "--platform", platform, "--memory", "1G"])
        .args(options)
        .arg("--")
        .args(program)
        .output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok((text(&output.stdout), text(&output.stderr)))
    } else {
        let said = text(&output.stderr);
        Err(io::Error::other(format!("{program:?} on {platform}: {said}")))
    }
}

fn seconds(platform: &str, script: &str) -> io::Result<f64> {
    let (said, _) = run(platform, &[], &["/usr/bin/python3", "-c", script])?;
    said.trim().parse().map_err(io::Error::other)
}

/// Adds the phases of a run: lines of `--stats` of the form `cloak: time, NAME  12.3 ms`.
fn add(phases: &mut Vec<(String, Vec<f64>)>, said: &str) {
    let lines = said.lines().filter_map(|line| line.strip_prefix("cloak: time, "));
    let parsed = lines.filter_map(|line| {
        let (name, time) = line.strip_suffix(" ms")?.trim_end().rsplit_once(' ')?;
        Some((name.trim_end(), time.parse::<f64>().ok()?))
    });
    for (name, time) in parsed {
        match phases.iter_mut().find(|(known, _)| known == name) {
            Some((_, times)) => times.push(time),
            None => phases.push((name.to_owned(), vec![time])),
        }
    }
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

fn launch(phases: &BTreeMap<&str, Vec<(String, Vec<f64>)>>) -> String {
    let mut text = "## Launch\n\n`true` on one vCPU; ms, medians. All up to the last line is before the program's first \
                    instruction.\n\n| phase | plain | sim-snp |\n|---|---|---|\n"
        .to_owned();
    let names = phases.values().next().into_iter().flatten();
    for (name, _) in names {
        let figures = PLATFORMS.map(|platform| {
            let all = phases.get(platform).into_iter().flatten();
            let times = all
                .filter(|(known, _)| known == name)
                .map(|(_, times)| times.clone());
            median(&mut times.flatten().collect::<Vec<_>>())
        });
        text += &format!("| {name} | {:.1} | {:.1} |\n", figures[0], figures[1]);
    }
    text.trim_end().to_owned()
}

fn memory(touch: &BTreeMap<&str, Vec<f64>>) -> String {
    let [plain, simulated] =
        PLATFORMS.map(|platform| median(&mut touch.get(platform).cloned().unwrap_or_default()));
    format!(
        "## Memory\n\nFirst touch of fresh memory by a program, one byte in each 2 MiB of {} MiB, to the GiB. On `sim-snp` each block is \
         made private, accepted and cleared then.\n\n| | plain | sim-snp | acceptance |\n|---|---|---|---|\n\
         | ms per GiB | {plain:.0} | {simulated:.0} | {:.0} |",
        BLOCKS * 2,
        simulated - plain
    )
}

fn reports(rates: &mut [f64]) -> String {
    format!(
        "## Evidence\n\nReports that a program gets by configfs-tsm on `sim-snp`, {REPORTS} in a row: {:.1} a second. Each is two \
         AES-256-GCM messages, sealed and opened by the kernel.",
        median(rates)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_read_as_they_are_printed() {
        let mut phases = Vec::new();
        let said = "cloak: halts      3\ncloak: time, first vCPU                       0.39 ms\ncloak: time, shim's start, loading the program   12.50 ms\n";
        add(&mut phases, said);
        add(&mut phases, said);
        let names: Vec<_> = phases
            .iter()
            .map(|(name, times)| (name.as_str(), times.len()))
            .collect();
        assert_eq!(
            names,
            [("first vCPU", 2), ("shim's start, loading the program", 2)]
        );
        assert!(phases[1].1[0] > 12.4);
    }
}
