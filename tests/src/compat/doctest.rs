//! A crate's documentation tests: `cargo test --doc` compiles each on the host and starts it with the runner that the
//! target's configuration names, here the launcher.

use super::libtest;
use crate::launcher::Launcher;
use crate::results::Results;
use crate::unit::Unit;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The documentation tests of the package in a folder.
pub struct DocTests {
    folder: PathBuf,
    arguments: Vec<String>,
}

impl DocTests {
    /// Those of the package in `folder`, built with these arguments for cargo.
    pub fn new(folder: &Path, arguments: &[String]) -> Self {
        DocTests {
            folder: folder.into(),
            arguments: arguments.into(),
        }
    }
}

impl Unit for DocTests {
    fn prefix(&self) -> String {
        "doc: ".into()
    }

    fn run(&self, launcher: &Launcher, _: &Results) -> Results {
        // They are started from there: a program's /tmp is its own, so the system's won't do.
        let room = self.folder.join("doctests");
        fs::create_dir_all(&room).expect("the crate's folder is writable");
        let mut command = Command::new("cargo");
        command
            .current_dir(&self.folder)
            .env("TMPDIR", &room)
            .args(["test", "--doc", "--target", TARGET])
            .args(&self.arguments)
            .stdin(Stdio::null());
        if let Launcher::Cloak(binary) = launcher {
            let runner = format!("target.{TARGET}.runner=[{binary:?}, \"run\", \"--cpus\", \"2\", \"--\"]");
            command.arg("--config").arg(runner);
        }
        let output = command.output().expect("cargo can be started");
        let told = libtest::parse(&String::from_utf8_lossy(&output.stdout));
        told.into_iter()
            .map(|(test, outcome)| (format!("doc: {test}"), outcome))
            .collect()
    }

    fn again(&self, tests: &[String], launcher: &Launcher) -> Results {
        let mut results = self.run(launcher, &Results::new());
        results.retain(|test, _| tests.contains(test));
        results
    }
}
