//! Measures Cloak beside native and its peers and prints the table; see [`cloak_bench`].

use cloak_bench::measure::{World, groups};
use cloak_bench::options::{Options, USAGE};
use cloak_bench::peer::Peer;
use cloak_bench::results::Results;
use cloak_bench::{machine, table};
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1)) {
        Ok(options) => options,
        Err(argument) => {
            eprintln!("cloak-bench: {argument} is not understood or lacks its value; {USAGE}");
            return ExitCode::from(2);
        }
    };
    let mut peers = Peer::all();
    peers.retain(|peer| peer.name() == "native" || Options::wants(&options.peers, peer.name()));
    let machine = machine::description();
    let results = measure(&options, &peers);
    let text = table::table(&results, &peers);
    println!("{machine}\n\n{text}");
    match options
        .write
        .as_deref()
        .map(|path| write(path, &text, &machine, options.rounds))
    {
        Some(Err(error)) => {
            eprintln!("cloak-bench: cannot write the table: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Peers take turns within a round, so that a slow minute of the machine falls on all of them, and each round begins
/// with another peer, so that none is always the one that finds the caches cold.
fn measure(options: &Options, peers: &[Peer]) -> Results {
    let (world, mut results) = (World::new(), Results::default());
    for round in 1..=options.rounds {
        for group in groups().filter(|group| Options::wants(&options.only, group.name)) {
            for turn in 0..peers.len() {
                let peer = &peers[(turn + round) % peers.len()];
                eprintln!(
                    "round {round} of {}: {} under {}",
                    options.rounds,
                    group.name,
                    peer.name()
                );
                match (group.run)(&world, peer) {
                    Ok(figures) => figures
                        .into_iter()
                        .for_each(|(row, figure)| results.add(&row, peer.name(), figure)),
                    Err(error) => eprintln!("  no figure: {error}"),
                }
            }
        }
    }
    results
}

fn write(path: &Path, text: &str, machine: &str, rounds: usize) -> std::io::Result<()> {
    let old = fs::read_to_string(path).unwrap_or_default();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let introduction = table::introduction(rounds);
    fs::write(path, table::document(&introduction, text, machine, &old))
}
