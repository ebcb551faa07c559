//! The document.

use std::collections::BTreeMap;

use cloak_libos::syscall::Status;

use crate::rows::Row;

/// `number name` of each x86-64 system call that Linux has, from `asm/unistd_64.h`.
const LINUX: &str = include_str!("linux.txt");

const HEAD: &str = "# System calls

Generated from the tables in `guest-shim/libos/src` by `cargo run --package cloak-libos --example syscalls-table \
-- --write`; a test fails when this page is stale. Change a row there, never here.

*Full*: what programs use of it, as Linux does it. *Partial*: the note says what is missing or different.
*Refused*: an error as from a Linux that lacks it; the note says why. What is not listed at all gives ENOSYS.
";

/// The whole page.
pub fn document(rows: &BTreeMap<usize, Row>) -> String {
    let mut out = String::from(HEAD);
    let unlisted = unlisted(rows);
    write_counts(&mut out, rows, unlisted.len());
    out.push_str("\n| number | name | status | note | served in |\n|---|---|---|---|---|\n");
    for (number, row) in rows {
        let status = status(row.status);
        let (name, note, area) = (&row.name, &row.note, &row.area);
        out.push_str(&format!(
            "| {number} | `{name}` | {status} | {note} | `{area}` |\n"
        ));
    }
    let unlisted = unlisted.join(", ");
    out.push_str(&format!("\n## Not listed: ENOSYS\n\n{unlisted}.\n"));
    out
}

fn write_counts(out: &mut String, rows: &BTreeMap<usize, Row>, unlisted: usize) {
    let count = |status| rows.values().filter(|r| r.status == status).count();
    let (full, partial) = (count(Status::Full), count(Status::Partial));
    let refused = count(Status::Refused);
    out.push_str(&format!(
        "\n{full} full, {partial} partial, {refused} refused, {unlisted} not listed.\n"
    ));
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Full => "full",
        Status::Partial => "partial",
        Status::Refused => "refused",
    }
}

fn unlisted(rows: &BTreeMap<usize, Row>) -> Vec<String> {
    LINUX
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(number, _)| number.parse().is_ok_and(|n| !rows.contains_key(&n)))
        .map(|(_, name)| format!("`{name}`"))
        .collect()
}
