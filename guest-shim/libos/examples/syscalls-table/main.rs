//! Writes `docs/syscalls.md` from the tables of system calls in the libos's sources.
//!
//! The sources are read, not the library: half of the areas exist in the bare build only, whose handlers need a
//! guest around them. Where the library of the host has an area as well, the two are compared.
//!
//! `cargo run --package cloak-libos --example syscalls-table -- --write`

mod render;
mod rows;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let text = render::document(&rows::read(&sources()));
    if std::env::args().any(|a| a == "--write") {
        if let Err(e) = std::fs::write(document(), text) {
            eprintln!("writing {}: {e}", document().display());
            return ExitCode::FAILURE;
        }
    } else {
        print!("{text}");
    }
    ExitCode::SUCCESS
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/syscalls.md")
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloak_libos::syscall::TABLE;

    #[test]
    fn document_is_up_to_date() {
        let written = std::fs::read_to_string(document()).expect("docs/syscalls.md is in the tree");
        assert!(
            written == render::document(&rows::read(&sources())),
            "docs/syscalls.md is stale: cargo run --package cloak-libos --example syscalls-table -- --write"
        );
    }

    #[test]
    fn rows_are_those_of_the_table() {
        let rows = rows::read(&sources());
        for entry in TABLE.iter().flatten() {
            let row = rows
                .get(&entry.number)
                .expect("every entry is a row of a source file");
            assert_eq!(
                (row.name.as_str(), row.status, row.note.as_str()),
                (entry.name, entry.status, entry.note)
            );
        }
    }

    /// An area that no one joined into the table would be documented and not served.
    #[test]
    fn what_the_hosted_table_lacks_is_of_the_bare_build() {
        for (number, row) in rows::read(&sources()) {
            let bare = ["ipc", "mem", "process", "signal"].contains(&row.area.as_str());
            assert!(
                bare || TABLE[number].is_some(),
                "{} ({}) is not in syscall::AREAS",
                row.name,
                row.area
            );
        }
    }
}
