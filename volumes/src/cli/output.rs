//! What commands print.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::check::Report;
use crate::store::Store;
use crate::view::CiphertextView;

#[derive(Serialize)]
struct JsonFinding<'a> {
    place: &'a str,
    what: &'a str,
}

#[derive(Serialize)]
struct JsonReport<'a> {
    good: bool,
    counter: u64,
    inodes: u64,
    blocks: u64,
    findings: Vec<JsonFinding<'a>>,
    notes: &'a [String],
}

/// A check's result.
pub fn report(report: &Report, json: bool, out: &mut dyn Write) -> io::Result<()> {
    if json {
        let findings = report.findings.iter().map(|f| JsonFinding {
            place: &f.place,
            what: &f.what,
        });
        let printed = JsonReport {
            good: report.is_good(),
            counter: report.counter,
            inodes: report.inodes,
            blocks: report.blocks,
            findings: findings.collect(),
            notes: &report.notes,
        };
        serde_json::to_writer_pretty(&mut *out, &printed)?;
        return writeln!(out);
    }
    for finding in &report.findings {
        writeln!(out, "{}: {}", finding.place, finding.what)?;
    }
    for note in &report.notes {
        writeln!(out, "note: {note}")?;
    }
    let word = match report.findings.len() {
        0 => "good".to_owned(),
        1 => "1 fault".to_owned(),
        n => format!("{n} faults"),
    };
    let Report {
        inodes,
        blocks,
        counter,
        ..
    } = report;
    writeln!(out, "{word}: {inodes} inodes, {blocks} blocks, counter {counter}")
}

#[derive(Serialize)]
struct JsonOpaque {
    name: String,
    offset: u64,
    size: u64,
}

/// A container without its key.
pub fn opaque<S: Store>(view: &CiphertextView<S>, json: bool, out: &mut dyn Write) -> io::Result<()> {
    let pieces = view.pieces();
    if json {
        let all: Vec<JsonOpaque> = pieces
            .map(|p| JsonOpaque {
                name: p.name,
                offset: p.offset,
                size: p.len,
            })
            .collect();
        serde_json::to_writer_pretty(&mut *out, &all)?;
        return writeln!(out);
    }
    for piece in pieces {
        writeln!(out, "{:>12} {}", piece.len, piece.name)?;
    }
    Ok(())
}

/// Says now and then how far something is, to a person: not into files and pipes.
pub struct Progress<'a> {
    what: &'static str,
    to: Option<&'a mut dyn Write>,
    last: Instant,
    written: bool,
}

impl<'a> Progress<'a> {
    /// Of so many of something.
    pub fn new(what: &'static str, to: &'a mut dyn Write) -> Self {
        Self {
            what,
            to: io::stderr().is_terminal().then_some(to),
            last: Instant::now(),
            written: false,
        }
    }

    /// It is at this number.
    pub fn at(&mut self, number: u64) {
        if let Some(to) = &mut self.to
            && self.last.elapsed() > Duration::from_millis(500)
        {
            // Progress that can't be shown is no failure.
            let _ = write!(to, "\r{number} {}", self.what).and_then(|()| to.flush());
            (self.last, self.written) = (Instant::now(), true);
        }
    }

    /// Ends the line.
    pub fn done(self) {
        if let Some(to) = self.to
            && self.written
        {
            let _ = writeln!(to);
        }
    }
}
