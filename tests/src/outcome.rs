//! What a run left behind, and how two runs differ.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It exited with this code.
    Exit(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Status {
    /// The number that a shell shows: the exit code, or 128 and the signal.
    ///
    /// Runs are compared by it, since a launcher may die by the program's signal or exit with the shell's number.
    pub fn shell_code(self) -> i32 {
        match self {
            Status::Exit(code) => code,
            Status::Signal(number) => 128 + number,
        }
    }
}

impl From<ExitStatus> for Status {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Status::Exit(code),
            (None, Some(number)) => Status::Signal(number),
            (None, None) => unreachable!("wait() reports only processes that have ended"),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Status::Exit(code) => write!(f, "exit code {code}"),
            Status::Signal(number) => write!(f, "death by signal {number}"),
        }
    }
}

/// A finished run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// Everything it wrote on standard output.
    pub stdout: Vec<u8>,
    /// Everything it wrote on standard error.
    pub stderr: Vec<u8>,
}

impl Outcome {
    /// Standard output as text; bytes that are no UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text; bytes that are no UTF-8 are replaced.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Leaves out the line by which a simulated machine says that it is one.
    pub fn forget_notice(&mut self) {
        forget_notice(&mut self.stderr);
    }

    /// Where `self`, the cloaked run, first differs from `native`; `None` when it does not.
    pub fn difference_from(&self, native: &Outcome) -> Option<Difference> {
        let what = if self.stdout != native.stdout {
            "standard output"
        } else if self.status.shell_code() != native.status.shell_code() {
            "the exit code"
        } else if self.stderr != native.stderr {
            "standard error"
        } else {
            return None;
        };
        Some(Difference {
            what,
            native: native.clone(),
            cloaked: self.clone(),
        })
    }
}

/// Leaves out the line by which a simulated machine says that it is one, if that is the first.
pub fn forget_notice(said: &mut Vec<u8>) {
    let end = said.iter().position(|&byte| byte == b'\n');
    if let Some(end) = end.filter(|_| said.starts_with(b"cloak: simulated ")) {
        said.drain(..=end);
    }
}

/// Two runs of one case that should have been alike.
#[derive(Debug)]
pub struct Difference {
    what: &'static str,
    native: Outcome,
    cloaked: Outcome,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} differs between the native and the cloaked run", self.what)?;
        writeln!(
            f,
            "native:  {}; cloaked: {}",
            self.native.status, self.cloaked.status
        )?;
        show_first_difference(f, "stdout", &self.native.stdout, &self.cloaked.stdout)?;
        show_first_difference(f, "stderr", &self.native.stderr, &self.cloaked.stderr)
    }
}

fn show_first_difference(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    native: &[u8],
    cloaked: &[u8],
) -> fmt::Result {
    if native == cloaked {
        return Ok(());
    }
    let same = native.iter().zip(cloaked).take_while(|(a, b)| a == b).count();
    writeln!(
        f,
        "{name}: {} bytes native, {} cloaked, alike up to byte {same}",
        native.len(),
        cloaked.len()
    )?;
    writeln!(f, "  native:  …{}", excerpt(native, same))?;
    writeln!(f, "  cloaked: …{}", excerpt(cloaked, same))
}

/// The neighbourhood of `at`, escaped: enough to recognise the line, short enough for a terminal.
fn excerpt(bytes: &[u8], at: usize) -> String {
    let start = at.saturating_sub(80);
    let end = bytes.len().min(at + 400);
    bytes[start.min(end)..end].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(code: i32, stdout: &str) -> Outcome {
        Outcome {
            status: Status::Exit(code),
            stdout: stdout.into(),
            stderr: Vec::new(),
        }
    }

    #[test]
    fn death_by_signal_equals_its_shell_code() {
        let native = Outcome {
            status: Status::Signal(11),
            ..outcome(0, "x")
        };
        assert!(outcome(139, "x").difference_from(&native).is_none());
        assert!(outcome(138, "x").difference_from(&native).is_some());
    }

    #[test]
    fn a_changed_byte_is_shown() {
        let difference = outcome(0, "the quick fox")
            .difference_from(&outcome(0, "the quack fox"))
            .unwrap();
        let shown = difference.to_string();
        assert!(
            shown.contains("alike up to byte 6") && shown.contains("quack"),
            "{shown}"
        );
    }

    #[test]
    fn a_changed_stderr_is_a_difference() {
        let loud = Outcome {
            stderr: b"warning".to_vec(),
            ..outcome(0, "x")
        };
        assert!(loud.difference_from(&outcome(0, "x")).is_some());
    }
}
