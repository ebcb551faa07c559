//! The process that fetches quotes: the monitor's jail has no socket, and the quoting service's is a path on the host or another
//! VM.
//!
//! ```text
//!   domain ─ GetQuote ─▶ monitor ── line: report ──▶ courier ── unix or vsock ──▶ quoting service
//!                               ◀─ quote or reason ─
//! ```
//! It is this very program, started before the monitor closes itself in, with one line (a socket that keeps messages apart) for
//! each quote that may be under way. It has nothing of the guest's: reports go to a service that tells them from others by
//! itself, and quotes are judged by who relies on them. It ends when the monitor has closed its lines, or has died.

use std::ffi::CString;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, sendmsg, socketpair,
};
use rustix::process::DumpableBehavior;

use super::buffer::AT_ONCE;
use super::qgs::{self, REPORT_BYTES};
use super::service::{Address, PATIENCE, QuoteError, QuoteSource};
use crate::jail::{calls, files, limits, privileges};
use crate::os::sys;

/// First argument of a process that is the courier.
const MARK: &str = "__quote-courier";
/// Number of its first line.
const LINES: i32 = 3;
/// Longest text of a reason.
const TEXT: usize = 1024;

/// What an answer is, in its first byte.
mod kind {
    pub const QUOTE: u8 = 0;
    pub const UNREACHABLE: u8 = 1;
    pub const FAILED: u8 = 2;
}

/// The monitor's ends of the lines that are not in use.
#[derive(Debug)]
pub struct Courier(Mutex<Vec<OwnedFd>>);

impl Courier {
    /// Starts the process, which must call [`main_if_courier`] first thing in `main`.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn start(address: &Address) -> io::Result<Self> {
        let (ours, theirs) = lines()?;
        let end = LINES + AT_ONCE as i32;
        // Numbered where putting one into its place can't overwrite another.
        let copies = theirs
            .iter()
            .map(|line| rustix::io::fcntl_dupfd_cloexec(line, end))
            .collect::<Result<Vec<_>, _>>()?;
        let words = ["cloak-quote-courier", MARK, &address.to_string()].map(CString::new);
        let words = words
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map_err(io::Error::other)?;
        sys::start(&c"/proc/self/exe".to_owned(), &words, &copies, LINES)?;
        Ok(Self::of(ours))
    }

    fn of(lines: Vec<OwnedFd>) -> Self {
        Self(Mutex::new(lines))
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Vec<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line for each quote that may be under way: our ends, and the courier's. Ours wait a while longer than it does.
fn lines() -> io::Result<(Vec<OwnedFd>, Vec<OwnedFd>)> {
    let mut pairs = (Vec::new(), Vec::new());
    for _ in 0..AT_ONCE {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        set_socket_timeout(&ours, Timeout::Recv, Some(PATIENCE + Duration::from_secs(5)))?;
        pairs.0.push(ours);
        pairs.1.push(theirs);
    }
    Ok(pairs)
}

fn send(line: &impl AsFd, first: &[u8], second: &[u8]) -> io::Result<()> {
    let parts = [IoSlice::new(first), IoSlice::new(second)];
    let sent = rustix::io::retry_on_intr(|| {
        sendmsg(
            line,
            &parts,
            &mut SendAncillaryBuffer::default(),
            SendFlags::NOSIGNAL,
        )
    });
    Ok(sent.map(drop)?)
}

/// A message; empty: the other end is closed.
fn receive(line: &impl AsFd, most: usize) -> io::Result<Vec<u8>> {
    // One byte more, to see that it is longer.
    let mut message = vec![0; most + 1];
    let len = rustix::io::retry_on_intr(|| rustix::io::read(line, &mut *message))?;
    if len > most {
        return Err(io::ErrorKind::InvalidData.into());
    }
    message.truncate(len);
    Ok(message)
}

impl QuoteSource for Courier {
    fn quote(&self, report: &[u8; REPORT_BYTES]) -> Result<Vec<u8>, QuoteError> {
        let line = self.lines().pop();
        let line = line.ok_or_else(|| QuoteError::Courier(io::ErrorKind::NotConnected.into()))?;
        let answer = send(&line, report, &[]).and_then(|()| receive(&line, 1 + qgs::MOST));
        // A line whose answer is still to come would give it to the next who asks: it is closed.
        let answer = answer.map_err(QuoteError::Courier)?;
        let Some((kind, rest)) = answer.split_first() else {
            return Err(QuoteError::Courier(io::ErrorKind::UnexpectedEof.into()));
        };
        self.lines().push(line);
        match *kind {
            kind::QUOTE => Ok(rest.to_vec()),
            kind => Err(QuoteError::Told {
                unreachable: kind == kind::UNREACHABLE,
                text: printable(rest),
            }),
        }
    }
}

/// What it says, for a terminal.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(TEXT)]);
    text.chars()
        .map(|c| if c.is_control() { '.' } else { c })
        .collect()
}

/// Serves a line until its other end is closed.
fn serve_line(line: &OwnedFd, source: &impl QuoteSource) -> io::Result<()> {
    loop {
        let message = receive(line, REPORT_BYTES)?;
        let Ok(report) = message.as_slice().try_into() else {
            return Ok(());
        };
        match source.quote(report) {
            Ok(quote) => send(line, &[kind::QUOTE], &quote)?,
            Err(error) => {
                let kind = if error.is_unreachable() {
                    kind::UNREACHABLE
                } else {
                    kind::FAILED
                };
                let text = error.to_string();
                send(line, &[kind], &text.as_bytes()[..text.len().min(TEXT)])?;
            }
        }
    }
}

/// Runs the courier if this process was started by [`Courier::start`]; none otherwise. To be called first thing in `main`, as
/// [`crate::os::main_if_service`].
#[must_use]
pub fn main_if_courier() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(MARK) {
        return None;
    }
    match serve(&arguments.next().unwrap_or_default()) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("cloak: the process that fetches quotes: {error}");
            Some(ExitCode::FAILURE)
        }
    }
}

fn serve(address: &str) -> io::Result<()> {
    let address: Address = address.parse().map_err(io::Error::other)?;
    sys::close_from(LINES + AT_ONCE as i32)?;
    let lines = (LINES..).take(AT_ONCE).map(sys::inherited);
    let lines = lines.collect::<Result<Vec<_>, _>>()?;
    let nothing = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    enter_jail().map_err(io::Error::other)?;
    // Who reads what the program says must not wait for a quote that nobody wants any more.
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    std::thread::scope(|scope| {
        for line in &lines {
            let address = &address;
            // A line that breaks is one that nobody hears any more.
            std::thread::Builder::new().spawn_scoped(scope, move || serve_line(line, address))?;
        }
        calls::close(&calls::COURIER).map_err(io::Error::other)
    })
}

/// All but the calls, which its threads are not made under. It keeps the way through folders of others: the service's socket is
/// the service's.
fn enter_jail() -> Result<(), crate::jail::JailError> {
    privileges::no_new_privileges()?;
    limits::set(limits::SERVICE)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|errno| {
        crate::jail::JailError::System {
            step: "making the courier undumpable",
            source: errno.into(),
        }
    })?;
    privileges::drop_capabilities(&privileges::COURIER)?;
    files::Rules::new(&[], &[])?.close()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A courier in a thread, of which one line is served.
    fn courier(source: impl QuoteSource + Send + 'static) -> Courier {
        let (mut ours, mut theirs) = lines().expect("sockets");
        ours.truncate(1);
        theirs.truncate(1);
        std::thread::spawn(move || serve_line(&theirs[0], &source));
        Courier::of(ours)
    }

    struct Said(fn() -> Result<Vec<u8>, QuoteError>);

    impl QuoteSource for Said {
        fn quote(&self, report: &[u8; REPORT_BYTES]) -> Result<Vec<u8>, QuoteError> {
            assert!(report.iter().all(|&byte| byte == 7), "the report");
            self.0()
        }
    }

    const REPORT: [u8; REPORT_BYTES] = [7; REPORT_BYTES];

    #[test]
    fn quotes_come_back_one_after_another() {
        let courier = courier(Said(|| Ok(vec![3; qgs::MOST])));
        for _ in 0..3 {
            assert_eq!(courier.quote(&REPORT).expect("a quote"), vec![3; qgs::MOST]);
        }
    }

    #[test]
    fn reasons_come_back_and_are_harmless_on_a_terminal() {
        let nobody = courier(Said(|| {
            Err(QuoteError::Unreachable {
                address: "unix:/nowhere\x1b[2J".parse().expect("an address"),
                source: io::ErrorKind::NotFound.into(),
            })
        }));
        let error = nobody.quote(&REPORT).expect_err("nobody");
        let text = error.to_string();
        assert!(error.is_unreachable() && text.contains("/nowhere.[2J"), "{text}");
        let garbage = courier(Said(|| Err(QuoteError::Answer("it ends early"))));
        let error = garbage.quote(&REPORT).expect_err("garbage");
        assert!(!error.is_unreachable() && error.to_string().contains("ends early"));
        // The line is good for the next.
        assert!(
            garbage
                .quote(&REPORT)
                .is_err_and(|error| matches!(error, QuoteError::Told { .. }))
        );
    }

    /// One that was taken over: says nothing, says too much, dies.
    #[test]
    fn a_courier_that_misbehaves_costs_its_line_and_nothing_else() {
        let (mut ours, mut theirs) = lines().expect("sockets");
        let (line, other) = (ours.pop().expect("four"), theirs.pop().expect("four"));
        let misbehaving = Courier::of(vec![line]);
        send(&other, &vec![0; 1 + qgs::MOST], &[1]).expect("sent");
        let error = misbehaving.quote(&REPORT).expect_err("too long");
        assert!(
            matches!(&error, QuoteError::Courier(e) if e.kind() == io::ErrorKind::InvalidData),
            "{error}"
        );
        assert!(
            matches!(misbehaving.quote(&REPORT), Err(QuoteError::Courier(_))),
            "no line is left"
        );
        let (line, other) = (ours.pop().expect("three"), theirs.pop().expect("three"));
        let dead = Courier::of(vec![line]);
        drop(other);
        assert!(matches!(dead.quote(&REPORT), Err(QuoteError::Courier(_))));
        let (line, _silent) = (ours.pop().expect("two"), theirs.pop().expect("two"));
        set_socket_timeout(&line, Timeout::Recv, Some(Duration::from_millis(20))).expect("a bound");
        let silent = Courier::of(vec![line]);
        assert!(matches!(silent.quote(&REPORT), Err(QuoteError::Courier(_))));
    }
}
