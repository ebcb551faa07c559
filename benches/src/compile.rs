//! A build: `make -j2` of a small project in C, from nothing to the linked program.

use crate::measure::{Figure, MeasureError, World, milliseconds, run};
use crate::peer::Peer;
use cloak_tests::{Case, Scratch};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Source files beside the one with `main`.
const FILES: usize = 23;
/// Functions in each.
const FUNCTIONS: usize = 40;

/// Builds a copy of the project, in a folder of its own that the peer may write to.
///
/// # Errors
/// When the build fails.
pub fn make(world: &World, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    let own = Scratch::new();
    for entry in fs::read_dir(world.project())
        .expect("the project was written")
        .flatten()
    {
        fs::copy(entry.path(), own.path().join(entry.file_name())).expect("scratch is writable");
    }
    let case = Case::new("/usr/bin/make")
        .args(["-s", "-j2", "-C"])
        .arg(own.path())
        .volume(own.path());
    let (_, took) = run("make", peer, &case)?;
    Ok(vec![("make-j2".into(), milliseconds(took))])
}

/// Writes the project's files: each includes what C programs usually do, and calls the next.
///
/// # Panics
/// When they can't be written.
pub fn write_project(folder: &Path) {
    let write = |name: &str, text: &str| {
        fs::write(folder.join(name), text).unwrap_or_else(|error| panic!("cannot write {name}: {error}"));
    };
    fs::create_dir_all(folder).expect("scratch is writable");
    write(
        "Makefile",
        "objects = $(patsubst %.c,%.o,$(wildcard *.c))\nCFLAGS = -O1\nprogram: $(objects)\n\t$(CC) -o $@ $^\n",
    );
    let declarations: String = (0..FILES)
        .map(|file| format!("long part{file}(long);\n"))
        .collect();
    write(
        "parts.h",
        &format!(
            "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n{declarations}"
        ),
    );
    for file in 0..FILES {
        write(&format!("part{file}.c"), &part(file));
    }
    write(
        "main.c",
        "#include \"parts.h\"\nint main(void) { printf(\"%ld\\n\", part0(1)); return 0; }\n",
    );
}

fn part(file: usize) -> String {
    let mut text = String::from("#include \"parts.h\"\n");
    for function in 0..FUNCTIONS {
        let _ = writeln!(
            text,
            "static long f{function}(long x) {{ char text[64]; long sum = {function};\n\
             for (int i = 0; i < 20; i++) {{ snprintf(text, sizeof text, \"%ld\", x + i); sum += strtol(text, NULL, 10) * (long)strlen(text); }}\n\
             return sum; }}"
        );
    }
    let calls: Vec<String> = (0..FUNCTIONS).map(|function| format!("f{function}(x)")).collect();
    let next = if file + 1 < FILES {
        format!(" + part{}(x + 1)", file + 1)
    } else {
        String::new()
    };
    let _ = writeln!(
        text,
        "long part{file}(long x) {{ return {}{next}; }}",
        calls.join(" + ")
    );
    text
}
