//! Measures what differs between kinds of machine: launch by phase, memory that is accepted, evidence, paging, ways out of the
//! guest; and writes the document.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::{env, fs, io};

use cloak_bench::{machine, table};
use cloak_tests::Scratch;

const USAGE: &str = "cloak-bench-platforms FILE";
const PLATFORMS: [&str; 3] = ["plain", "sim-snp", "sim-tdx"];
/// Rounds, of which the table has the medians; another number in `PLATFORM_ROUNDS`. The platforms take turns.
const ROUNDS: usize = 5;
/// Blocks of 2 MiB that a program touches, reports that it asks for, and calls that it makes beyond those of its start.
const BLOCKS: u64 = 256;
const REPORTS: u64 = 8;
const CALLS: u64 = 20_000;
/// MiB that a program goes through, how often, and MiB of them that may be plaintext.
const SET: u64 = 96;
const PASSES: u64 = 2;
const RESIDENT: u64 = 32;

const INTRODUCTION: &str = "# Benchmarks of platforms

`make bench-platforms` wrote this page. `sim-snp` and `sim-tdx` are simulated hardware ([platforms.md](platforms.md)): they trap by
exits to the monitor what real hardware does in an instruction, and where KVM interprets CPL 0 code, as it does here, the kernel's
part costs most. What these figures are good for is their course over time, not what an SNP or TDX machine will take.";

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
        assert len(open('outblob', 'rb').read()) >= 1184\n\
    print(time.perf_counter() - t)";

const PAGING: &str = "import mmap, time\n\
    m = mmap.mmap(-1, SET << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n\
    for i in range(0, len(m), 4096): m[i:i + 8] = i.to_bytes(8, 'little')\n\
    t = time.perf_counter()\n\
    for _ in range(PASSES): assert all(m[i:i + 8] == i.to_bytes(8, 'little') for i in range(0, len(m), 4096))\n\
    print(time.perf_counter() - t)";

const FORWARDED: &str = "import os\n\
    f = os.open('/forwarded/file', os.O_RDONLY)\n\
    for i in range(CALLS): assert os.pread(f, 1, i % 4096) == b'x'";

/// Figures of one kind, by platform.
type Figures = BTreeMap<&'static str, Vec<f64>>;

fn main() -> ExitCode {
    table::write_document(USAGE, document)
}

fn document(old: &str) -> io::Result<String> {
    let machine = machine::description();
    let rounds = rounds()?;
    let mut phases: BTreeMap<&str, Vec<(String, Vec<f64>)>> = BTreeMap::new();
    let [mut touch, mut evidence, mut pages, mut exits, mut sleeps] = [const { Figures::new() }; 5];
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for platform in PLATFORMS {
            let said = run(platform, &["--stats"], &["/bin/true"])?.1;
            add(phases.entry(platform).or_default(), &said);
            let script = TOUCH.replace("BLOCKS", &BLOCKS.to_string());
            let per_gib = seconds(platform, &[], &script)? * 512.0 / BLOCKS as f64;
            touch.entry(platform).or_default().push(1000.0 * per_gib);
            pages.entry(platform).or_default().push(paging(platform)?);
            let [own, asleep] = exits_per_call(platform)?;
            exits.entry(platform).or_default().push(own);
            sleeps.entry(platform).or_default().push(asleep);
            if platform != "plain" {
                let script = EVIDENCE.replace("REPORTS", &REPORTS.to_string());
                let rate = REPORTS as f64 / seconds(platform, &[], &script)?;
                evidence.entry(platform).or_default().push(rate);
            }
        }
    }
    let sections = [
        format!("Rounds, of which these are medians: {rounds}."),
        launch(&phases),
        memory(&touch),
        reports(&evidence),
        resident(&pages),
        ways_out(&exits, &sleeps),
    ];
    Ok(table::document(
        INTRODUCTION,
        &(sections.join("\n\n") + "\n"),
        &machine,
        old,
    ))
}

fn rounds() -> io::Result<usize> {
    let Ok(rounds) = env::var("PLATFORM_ROUNDS") else {
        return Ok(ROUNDS);
    };
    let rounds = rounds.parse().ok().filter(|&rounds| rounds > 0);
    rounds.ok_or_else(|| io::Error::other("PLATFORM_ROUNDS is not a number of rounds"))
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

fn seconds(platform: &str, options: &[&str], script: &str) -> io::Result<f64> {
    let (said, _) = run(platform, options, &["/usr/bin/python3", "-c", script])?;
    said.trim().parse().map_err(io::Error::other)
}

/// Pages a second that come back as a program goes through more memory than it may keep.
fn paging(platform: &str) -> io::Result<f64> {
    let scratch = Scratch::new();
    let swap = scratch.join("swap").display().to_string();
    let script = PAGING
        .replace("SET", &SET.to_string())
        .replace("PASSES", &PASSES.to_string());
    let resident = format!("{RESIDENT}M");
    let seconds = seconds(platform, &["--resident", &resident, "--swap", &swap], &script)?;
    if fs::metadata(&swap)?.len() < (SET - RESIDENT) << 20 {
        return Err(io::Error::other(format!("too little left memory on {platform}")));
    }
    Ok(((PASSES * SET) << 8) as f64 / seconds)
}

/// Exits to the monitor for a call that the OS service answers, what a program of many calls has beyond one of none: of the call
/// itself, and of a vCPU that sleeps until the answer is there.
fn exits_per_call(platform: &str) -> io::Result<[f64; 2]> {
    let scratch = Scratch::new();
    scratch.write("file", [b'x'; 4096]);
    let volume = format!("{}:/forwarded", scratch.path().display());
    let counts = |calls: u64| {
        let script = FORWARDED.replace("CALLS", &calls.to_string());
        let options = ["--stats", "--volume", &volume];
        let (_, said) = run(platform, &options, &["/usr/bin/python3", "-c", &script])?;
        let count = |name| counter(&said, name);
        Ok::<_, io::Error>([
            count("requests to the host")?,
            count("exits to the monitor")?,
            count("halts")?,
        ])
    };
    let (none, many) = (counts(0)?, counts(CALLS)?);
    let [requests, exits, halts] = [0, 1, 2].map(|i| many[i] - none[i]);
    if requests < CALLS as f64 / 2.0 {
        return Err(io::Error::other(format!(
            "only {requests} of {CALLS} calls were forwarded"
        )));
    }
    Ok([(exits - halts) / requests, halts / requests])
}

/// A count of `--stats`: a line of the form `cloak: NAME  12`.
fn counter(said: &str, name: &str) -> io::Result<f64> {
    let mut lines = said.lines().filter_map(|line| line.strip_prefix("cloak: "));
    let count = lines.find_map(|line| line.trim_start().strip_prefix(name)?.trim().parse().ok());
    count.ok_or_else(|| io::Error::other(format!("--stats does not count {name}")))
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

/// The medians of the platforms that have figures.
fn medians(figures: &Figures) -> [f64; PLATFORMS.len()] {
    PLATFORMS.map(|platform| median(&mut figures.get(platform).cloned().unwrap_or_default()))
}

fn launch(phases: &BTreeMap<&str, Vec<(String, Vec<f64>)>>) -> String {
    let mut text =
        "## Launch\n\n`true` on one vCPU; ms. All up to the last line is before the program's first \
                    instruction.\n\n| phase | plain | sim-snp | sim-tdx |\n|---|---|---|---|\n"
            .to_owned();
    let names = phases.values().next().into_iter().flatten();
    for (name, _) in names {
        let [plain, snp, tdx] = PLATFORMS.map(|platform| {
            let all = phases.get(platform).into_iter().flatten();
            let times = all
                .filter(|(known, _)| known == name)
                .map(|(_, times)| times.clone());
            median(&mut times.flatten().collect::<Vec<_>>())
        });
        text += &format!("| {name} | {plain:.1} | {snp:.1} | {tdx:.1} |\n");
    }
    text.trim_end().to_owned()
}

fn memory(touch: &Figures) -> String {
    let [plain, snp, tdx] = medians(touch);
    format!(
        "## Memory\n\nFirst touch of fresh memory by a program, one byte in each 2 MiB of {} MiB, to the GiB. On the simulated machines \
         each block is made private, accepted and cleared then.\n\n| | plain | sim-snp | sim-tdx |\n|---|---|---|---|\n\
         | ms per GiB | {plain:.0} | {snp:.0} | {tdx:.0} |\n| of it acceptance | - | {:.0} | {:.0} |",
        BLOCKS * 2,
        snp - plain,
        tdx - plain
    )
}

fn reports(rates: &Figures) -> String {
    let [_, snp, tdx] = medians(rates);
    format!(
        "## Evidence\n\nWhat a program gets by configfs-tsm, {REPORTS} in a row. On `sim-snp` each is two AES-256-GCM messages, sealed and \
         opened by the kernel; on `sim-tdx` a report of the module and a quote, over the host.\n\n| | sim-snp | sim-tdx |\n|---|---|---|\n\
         | a second | {snp:.1} | {tdx:.1} |"
    )
}

fn resident(pages: &Figures) -> String {
    let [plain, snp, tdx] = medians(pages);
    format!(
        "## Paging\n\nA program goes through {SET} MiB {PASSES} times, one page after the other, with `--resident {RESIDENT}M`: a page comes \
         back and another leaves at nearly each step. On `plain` the monitor does it, on the simulated machines the guest's own \
         pager.\n\n| | plain | sim-snp | sim-tdx |\n|---|---|---|---|\n| pages a second | {plain:.0} | {snp:.0} | {tdx:.0} |\n\
         | of plain's | 1 | {:.2} | {:.2} |",
        snp / plain,
        tdx / plain
    )
}

fn ways_out(exits: &Figures, sleeps: &Figures) -> String {
    let [[plain, snp, tdx], [plain_asleep, snp_asleep, tdx_asleep]] = [medians(exits), medians(sleeps)];
    format!(
        "## Exits\n\nExits to the monitor for a call that the OS service answers, in {CALLS} reads of a byte of a shared file. A vCPU that \
         sleeps until the answer is there leaves for that; on a machine with processors to spare it looks for the answer instead. The \
         exits by which simulated hardware stands for instructions are not counted.\n\n| exits a call | plain | sim-snp | sim-tdx |\n\
         |---|---|---|---|\n| of the call | {plain:.4} | {snp:.4} | {tdx:.4} |\n| to sleep until the answer | {plain_asleep:.4} | \
         {snp_asleep:.4} | {tdx_asleep:.4} |"
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

    #[test]
    fn counts_are_read_as_they_are_printed() {
        let said = "cloak: requests to the host             50\ncloak:   doorbells                      41\n";
        assert_eq!(counter(said, "requests to the host").ok(), Some(50.0));
        assert_eq!(counter(said, "doorbells").ok(), Some(41.0));
        assert!(counter(said, "exits to the monitor").is_err());
    }
}
