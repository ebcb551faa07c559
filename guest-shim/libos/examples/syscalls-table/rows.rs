//! Reads the rows `full(..)`, `partial(..)` and `refused(..)` of every `SYSCALLS` constant.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cloak_libos::syscall::Status;
use syn::{Expr, Item, Lit};

/// One system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub name: String,
    pub status: Status,
    pub note: String,
    /// First folder or file below `src`.
    pub area: String,
}

/// All rows below `sources`, by number.
pub fn read(sources: &Path) -> BTreeMap<usize, Row> {
    let mut rows = BTreeMap::new();
    let mut folders = vec![sources.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the sources can be listed") {
            let path = entry.expect("the sources can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                read_file(sources, &path, &mut rows);
            }
        }
    }
    rows
}

fn read_file(sources: &Path, path: &Path, rows: &mut BTreeMap<usize, Row>) {
    let text = fs::read_to_string(path).expect("the sources can be read");
    if !text.contains("const SYSCALLS") {
        return;
    }
    let below = path.strip_prefix(sources).expect("found below it");
    let first = below.components().next().expect("a file has a name");
    let area = first.as_os_str().to_string_lossy().replace(".rs", "");
    for item in syn::parse_file(&text).expect("the sources are Rust").items {
        let Item::Const(constant) = item else { continue };
        if constant.ident == "SYSCALLS" {
            read_table(&constant.expr, &area, rows);
        }
    }
}

fn read_table(table: &Expr, area: &str, rows: &mut BTreeMap<usize, Row>) {
    let Expr::Reference(reference) = table else {
        panic!("SYSCALLS of {area} is not a reference");
    };
    // `&JOINED` joins what other files list.
    let Expr::Array(array) = &*reference.expr else {
        return;
    };
    for element in &array.elems {
        let (number, row) = read_row(element, area);
        let before = rows.insert(number, row);
        assert!(before.is_none(), "number {number} is listed twice");
    }
}

fn read_row(row: &Expr, area: &str) -> (usize, Row) {
    let Expr::Call(call) = row else {
        panic!("a row in {area} is not a call of full, partial or refused");
    };
    let Expr::Path(function) = &*call.func else {
        panic!("a row in {area} is not a call of full, partial or refused");
    };
    let function = function
        .path
        .segments
        .last()
        .expect("a path has a segment")
        .ident
        .to_string();
    let literal = |n: usize| match &call.args[n] {
        Expr::Lit(literal) => &literal.lit,
        _ => panic!("argument {n} of {function} in {area} is not a literal"),
    };
    let text = |n: usize| match literal(n) {
        Lit::Str(text) => text.value(),
        _ => panic!("argument {n} of {function} in {area} is not a text"),
    };
    let Lit::Int(number) = literal(0) else {
        panic!("the number of a row in {area} is not one");
    };
    let (status, note) = match function.as_str() {
        "full" => (Status::Full, String::new()),
        "partial" => (Status::Partial, text(3)),
        "refused" => (Status::Refused, text(2)),
        other => panic!("{other} is not full, partial or refused ({area})"),
    };
    let area = area.to_owned();
    let number = number.base10_parse().expect("a system call has a number");
    (
        number,
        Row {
            name: text(1),
            status,
            note,
            area,
        },
    )
}
