//! The table, as Markdown, and the document it goes into.

use crate::machine;
use crate::peer::Peer;
use crate::results::Results;
use crate::rows::{self, Row, Target};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs, io};

/// What a person wrote about the figures stands below this line and survives a new run.
const NOTES: &str = "## Notes";

/// The rows that have a figure, with each peer's ratio to native and the verdict on Cloak's.
pub fn table(results: &Results, peers: &[Peer]) -> String {
    let others: Vec<_> = peers.iter().filter(|peer| peer.name() != "native").collect();
    let mut text = String::from("| work | native | to reach |");
    for peer in &others {
        let _ = write!(text, " {} |", peer.name());
    }
    text += "\n|---|---|---|";
    text += &"---|".repeat(others.len());
    for row in rows::all() {
        let native = results.median(row.key, "native");
        let figures: Vec<_> = others
            .iter()
            .map(|peer| (peer.name(), results.median(row.key, peer.name())))
            .collect();
        if native.is_none() && figures.iter().all(|(_, figure)| figure.is_none()) {
            continue;
        }
        let native_text = native.map_or("–".into(), |figure| shown(figure, row.unit));
        let _ = write!(text, "\n| {} | {native_text} | {} |", row.title, target(row));
        for (name, figure) in figures {
            let _ = write!(
                text,
                " {} |",
                figure.map_or("–".into(), |figure| cell(row, name, native, figure))
            );
        }
    }
    text + "\n"
}

fn cell(row: &Row, peer: &str, native: Option<f64>, figure: f64) -> String {
    let mut text = shown(figure, row.unit);
    if let Some(native) = native {
        let _ = write!(text, ", {:.2}×", row.ratio(native, figure));
    }
    if peer == "cloak" {
        match row.reached(native, figure) {
            Some(true) => text = format!("**{text}**"),
            Some(false) => text += " (not reached)",
            None => {}
        }
    }
    text
}

fn target(row: &Row) -> String {
    match row.target {
        Target::CostRatio(times) => format!("at most {times}×"),
        Target::RateRatio(part) => format!("at least {part}×"),
        Target::AtMost(limit) => format!("at most {limit} {}", row.unit),
        Target::Report => "–".into(),
    }
}

/// Three digits that count, in the unit that fits.
fn shown(figure: f64, unit: &str) -> String {
    let (figure, unit) = match unit {
        "ns" if figure >= 1e6 => (figure / 1e6, " ms"),
        "ns" if figure >= 1e3 => (figure / 1e3, " us"),
        "ns" => (figure, " ns"),
        "/s" if figure >= 1e6 => (figure / 1e6, " M/s"),
        "/s" if figure >= 1e3 => (figure / 1e3, " k/s"),
        "ms" if figure >= 1e3 => (figure / 1e3, " s"),
        "ms" => (figure, " ms"),
        "MiB" => (figure, " MiB"),
        _ => (figure, "/s"),
    };
    let digits = if figure < 10.0 {
        2
    } else {
        usize::from(figure < 100.0)
    };
    format!("{figure:.digits$}{unit}")
}

/// What stands above the table of `make bench`.
pub fn introduction(rounds: usize) -> String {
    format!(
        "# Benchmarks\n\n`make bench` wrote this page: medians of {rounds} interleaved rounds, each figure with its ratio to \
         native in the same run. Costs are better when smaller, rates (`/s`) when larger. A figure in bold reaches what it has to."
    )
}

/// The whole of a program that measures and writes the document that its only argument names. `document` is given what was there.
pub fn write_document(usage: &str, document: impl FnOnce(&str) -> io::Result<String>) -> ExitCode {
    let mut arguments = env::args().skip(1).map(PathBuf::from);
    let (Some(file), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: {usage}");
        return ExitCode::from(2);
    };
    match document(&fs::read_to_string(&file).unwrap_or_default()).and_then(|text| fs::write(&file, text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}

/// The whole document; the notes of the `old` one are kept.
pub fn document(introduction: &str, figures: &str, machine: &str, old: &str) -> String {
    let notes = old.find(NOTES).map_or("", |at| old[at + NOTES.len()..].trim());
    let notes = if notes.is_empty() { "None yet." } else { notes };
    let when = machine::when();
    format!("{introduction}\n\nMeasured on {when}: {machine}\n\n{figures}\n{NOTES}\n\n{notes}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let seen = [
            shown(118.97, "ns"),
            shown(3131.8, "ns"),
            shown(26.04, "ns"),
            shown(91_234.0, "/s"),
            shown(9.51, "ms"),
        ];
        assert_eq!(seen, ["119 ns", "3.13 us", "26.0 ns", "91.2 k/s", "9.51 ms"]);
    }

    #[test]
    fn a_table_has_only_rows_with_figures() {
        let mut results = Results::default();
        results.add("getpid", "native", 100.0);
        let text = table(&results, &[Peer::native()]);
        assert!(text.contains("`getpid`") && !text.contains("redis"), "{text}");
    }

    #[test]
    fn notes_survive() {
        let first = document("ABOVE", "TABLE", "a machine", "");
        let edited = first.replace("None yet.", "pread is slow because of X.");
        let second = document("ABOVE", "OTHER", "a machine", &edited);
        assert!(
            second.ends_with("OTHER\n## Notes\n\npread is slow because of X.\n"),
            "{second}"
        );
    }
}
