//! A child process in a group of its own, its output collected while it runs, and ended by number when it hangs.

use crate::outcome::{Outcome, Status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, test_kill_process_group};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long output may stay open after the process itself has ended.
const DRAIN: Duration = Duration::from_secs(20);

/// Why a run has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program or launcher could not be executed.
    #[error("cannot start {command}: {source}")]
    Start {
        /// The command line.
        command: String,
        /// The system's reason.
        source: io::Error,
    },
    /// It was still running when its time was up, and has been killed.
    #[error("{command} still ran after {seconds} s and was killed\nstdout: {stdout}\nstderr: {stderr}")]
    Hung {
        /// The command line.
        command: String,
        /// How long it had.
        seconds: u64,
        /// What it had written, the end of it.
        stdout: String,
        /// What it had written, the end of it.
        stderr: String,
    },
    /// It ended, but something that it started holds its output open.
    #[error("{command} ended and left a process behind that holds its output open")]
    LeftBehind {
        /// The command line.
        command: String,
    },
}

/// The same command, started by a caller that ignores SIGHUP, as `nohup` does, and SIGPIPE, as service managers do, and blocks
/// SIGUSR1 and a real-time signal. Needs perl.
#[must_use]
pub fn by_deaf_caller(command: &Command) -> Command {
    let mut caller = Command::new("/usr/bin/perl");
    caller.args([
        "-MPOSIX",
        "-e",
        "$SIG{$_} = 'IGNORE' for 'HUP', 'PIPE'; sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGUSR1, 63)); exec @ARGV",
        "--",
    ]);
    caller.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        caller.env(name, value.unwrap_or_default());
    }
    caller
}

/// A process that runs.
pub struct Running {
    child: Child,
    command: String,
    stdout: Collector,
    stderr: Collector,
    ended: bool,
}

impl Running {
    /// Starts `command` in a process group of its own and feeds it `input`.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn start(mut command: Command, input: Vec<u8>) -> Result<Self, RunError> {
        let name = format!("{command:?}");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().map_err(|source| RunError::Start {
            command: name.clone(),
            source,
        })?;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // A program may leave without reading all of its input, so a broken pipe is no failure here.
        thread::spawn(move || stdin.write_all(&input));
        let stdout = Collector::new(child.stdout.take().expect("stdout is piped"));
        let stderr = Collector::new(child.stderr.take().expect("stderr is piped"));
        Ok(Running {
            child,
            command: name,
            stdout,
            stderr,
            ended: false,
        })
    }

    /// The process's number, to signal it.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The command line that started it.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// What it has written on standard output up to now.
    pub fn stdout_so_far(&self) -> Vec<u8> {
        self.stdout.so_far()
    }

    /// What it has written on standard error up to now.
    pub fn stderr_so_far(&self) -> Vec<u8> {
        self.stderr.so_far()
    }

    /// Waits until `text` appears on standard output; false when the process ended or the time was up before.
    pub fn prints(&mut self, text: &str, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            let ended = self.has_ended();
            if contains(&self.stdout_so_far(), text.as_bytes()) {
                return true;
            }
            if ended || Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.ended = self.ended || matches!(self.child.try_wait(), Ok(Some(_)));
        self.ended
    }

    /// Waits for its end and collects what it left.
    ///
    /// # Errors
    /// When it hangs, or leaves something behind that keeps its output open.
    pub fn finish(mut self, patience: Duration) -> Result<Outcome, RunError> {
        if !self.wait(patience) {
            return Err(RunError::Hung {
                command: self.command.clone(),
                seconds: patience.as_secs(),
                stdout: tail(&self.stdout_so_far()),
                stderr: tail(&self.stderr_so_far()),
            });
        }
        let status = self
            .child
            .wait()
            .map(Status::from)
            .expect("the process has ended and was not waited for");
        self.ended = true;
        match (self.stdout.all(DRAIN), self.stderr.all(DRAIN)) {
            (Some(stdout), Some(stderr)) => Ok(Outcome {
                status,
                stdout,
                stderr,
            }),
            _ => Err(RunError::LeftBehind {
                command: self.command.clone(),
            }),
        }
    }

    /// True when it ended in time. The process stays unreaped, so its number cannot be anybody else's.
    fn wait(&self, patience: Duration) -> bool {
        if self.ended {
            return true;
        }
        let Ok(handle) = pidfd_open(self.pid(), PidfdFlags::empty()) else {
            return false;
        };
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)) {
                Ok(ready) => return ready > 0,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return false,
            }
        }
    }
}

impl Drop for Running {
    /// Nothing that a test starts outlives it.
    fn drop(&mut self) {
        let group = self.pid();
        if !self.ended {
            let _ = kill_process_group(group, Signal::KILL);
            let _ = self.child.wait();
        } else if test_kill_process_group(group).is_ok() {
            // The leader is gone but a child of it is not; while one lives the group's number is not reused.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Reads a stream to its end in a thread, and lets others look at what has come.
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    end: Receiver<()>,
}

impl Collector {
    fn new(mut stream: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let (send_end, end) = mpsc::channel();
        let sink = Arc::clone(&bytes);
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                sink.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(&buffer[..count]);
            }
            let _ = send_end.send(());
        });
        Collector { bytes, end }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn all(&self, patience: Duration) -> Option<Vec<u8>> {
        self.end.recv_timeout(patience).ok().map(|()| self.so_far())
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn tail(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Running {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script);
        Running::start(command, b"input\n".to_vec()).unwrap()
    }

    #[test]
    fn everything_is_collected() {
        let outcome = shell("cat; echo error >&2; exit 7")
            .finish(Duration::from_secs(60))
            .unwrap();
        let expected = Outcome {
            status: Status::Exit(7),
            stdout: b"input\n".to_vec(),
            stderr: b"error\n".to_vec(),
        };
        assert_eq!(outcome, expected);
    }

    #[test]
    fn death_by_signal_is_seen() {
        let outcome = shell("kill -TERM $$").finish(Duration::from_secs(60)).unwrap();
        assert_eq!(outcome.status, Status::Signal(15));
    }

    #[test]
    fn a_hang_is_ended_and_told() {
        let error = shell("echo before; sleep 1000")
            .finish(Duration::from_millis(500))
            .unwrap_err();
        assert!(
            matches!(&error, RunError::Hung { stdout, .. } if stdout == "before\n"),
            "{error}"
        );
    }

    #[test]
    fn output_is_seen_while_it_runs() {
        let mut running = shell("echo ready; sleep 1000");
        assert!(running.prints("ready", Duration::from_secs(60)));
        assert!(!running.has_ended());
    }

    #[test]
    fn what_is_dropped_is_killed() {
        let running = shell("sleep 1000; true");
        let pid = running.pid();
        drop(running);
        // The shell's own child is reaped by init, which takes a moment.
        while test_kill_process_group(pid).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
