//! One run of one program, described once and run natively and cloaked.

use crate::launcher::Launcher;
use crate::needs;
use crate::outcome::Outcome;
use crate::process::Running;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Long enough for anything but a hang, also on a busy machine of two processors.
const PATIENCE: Duration = Duration::from_secs(180);

/// A program with everything that its run depends on.
#[derive(Clone, Debug)]
pub struct Case {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: BTreeMap<String, String>,
    workdir: Option<PathBuf>,
    volumes: Vec<PathBuf>,
    processors: u32,
    memory: Option<String>,
    options: Vec<OsString>,
    stdin: Vec<u8>,
    patience: Duration,
}

impl Case {
    /// A run of `program` without arguments, with an empty standard input, on two processors.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let environment = [
            (
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            ),
            ("HOME", "/root"),
            ("LANG", "C.UTF-8"),
            ("TZ", "UTC"),
        ];
        Case {
            program: program.into(),
            arguments: Vec::new(),
            environment: environment.map(|(key, value)| (key.into(), value.into())).into(),
            workdir: None,
            volumes: Vec::new(),
            processors: 2,
            memory: None,
            options: Vec::new(),
            stdin: Vec::new(),
            patience: PATIENCE,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.insert(key.into(), value.into());
        self
    }

    /// Sets the current folder.
    pub fn in_folder(mut self, folder: &Path) -> Self {
        self.workdir = Some(folder.into());
        self
    }

    /// Gives the program this host folder, writable, at the same path.
    pub fn volume(mut self, folder: &Path) -> Self {
        self.volumes.push(folder.into());
        self
    }

    /// Sets the number of virtual processors.
    pub fn cpus(mut self, count: u32) -> Self {
        self.processors = count;
        self
    }

    /// Sets the VM's memory, as `--memory` takes it.
    pub fn memory(mut self, size: &str) -> Self {
        self.memory = Some(size.into());
        self
    }

    /// Adds an option of `cloak run`; a native run ignores it.
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.into());
        self
    }

    /// Sets what the program finds on standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Sets how long a run may take before it counts as hung.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Runs the case one way.
    ///
    /// # Panics
    /// When the program cannot be started, or hangs.
    pub fn run(&self, launcher: &Launcher) -> Outcome {
        let mut outcome = self
            .start(launcher)
            .finish(self.patience * launcher.slowness())
            .unwrap_or_else(|error| panic!("{error}"));
        // Where all areas run on another machine, tests know nothing of it.
        if needs::other_platform().is_some() {
            outcome.forget_notice();
        }
        outcome
    }

    /// Starts the case one way and leaves it running.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn start(&self, launcher: &Launcher) -> Running {
        Running::start(launcher.command(self), self.stdin.clone()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs the case natively and under the launcher under test; both must do the same, which is given back.
    ///
    /// # Panics
    /// When they differ.
    pub fn same_as_native(&self) -> Outcome {
        self.same_under(&Launcher::under_test())
    }

    /// As [`Case::same_as_native`], and the run must end with exit code 0.
    ///
    /// # Panics
    /// When the runs differ or fail.
    pub fn succeeds_as_native(&self) -> Outcome {
        let outcome = self.same_as_native();
        assert!(
            outcome.status.shell_code() == 0,
            "both runs of {} fail: {}\n{}\n{}",
            self.program.display(),
            outcome.status,
            outcome.text(),
            outcome.error_text()
        );
        outcome
    }

    /// As [`Case::same_as_native`], for any launcher.
    ///
    /// # Panics
    /// When the runs differ.
    pub fn same_under(&self, launcher: &Launcher) -> Outcome {
        let native = self.run(&Launcher::Native);
        let mut cloaked = self.run(launcher);
        cloaked.forget_notice();
        if let Some(difference) = cloaked.difference_from(&native) {
            panic!("{} {:?}: {difference}", self.program.display(), self.arguments);
        }
        native
    }

    /// The program's path.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its arguments, without its name.
    pub fn arguments(&self) -> &[OsString] {
        &self.arguments
    }

    /// Its whole environment.
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// Its current folder, where one is set.
    pub fn workdir(&self) -> Option<&Path> {
        self.workdir.as_deref()
    }

    /// The host folders that it may write to.
    pub fn volumes(&self) -> &[PathBuf] {
        &self.volumes
    }

    /// Its virtual processors.
    pub fn processors(&self) -> u32 {
        self.processors
    }

    /// Its memory, where it is set.
    pub fn memory_size(&self) -> Option<&str> {
        self.memory.as_deref()
    }

    /// Further options of `cloak run`.
    pub fn options(&self) -> &[OsString] {
        &self.options
    }
}
