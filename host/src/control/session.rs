//! The side of who starts a process: its streams go to the process, what is typed and signalled as well.
//!
//! A stream that is no terminal is handed over as it is. A terminal never is: the OS service would read it from a process
//! group in the background, and be stopped or refused. Its bytes go through pipes, which this process serves; with a
//! terminal on both sides the process gets one of its own, inside, and this one is set to pass everything on raw.
//!
//! An unsafe island, for blocking signals and reading them from a descriptor.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use super::client::{Connection, Start, Target};
use super::wire::End;
use super::{ControlError, Step};

/// Signals that are passed on.
const PASSED_ON: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGCONT,
    libc::SIGWINCH,
];

/// Bytes carried at a time.
const PART: usize = 16 << 10;

/// Whether there is a terminal to type at and to show things on.
#[must_use]
pub fn has_terminal() -> bool {
    isatty(rustix::stdio::stdin()) && isatty(rustix::stdio::stdout())
}

/// Starts a process with this process's streams and stays until it ends. `terminal`: it gets a terminal of its own.
///
/// # Errors
/// [`ControlError`].
pub fn run(target: &Target, start: &Start<'_>, terminal: bool) -> Result<End, ControlError> {
    let signals = Signals::block()?;
    let connection = Connection::to(target)?;
    let mut streams = Streams::new(terminal)?;
    let start = Start {
        terminal: terminal.then(window),
        ..*start
    };
    let raw = terminal.then(Raw::set).transpose()?;
    let exec = connection.exec(&start, streams.theirs())?;
    streams.leave_theirs();
    let end = loop {
        let mut fds = vec![
            PollFd::new(&exec, PollFlags::IN),
            PollFd::new(&signals, PollFlags::IN),
        ];
        let first = fds.len();
        streams.poll(&mut fds);
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).step("waiting for the process (poll)"),
        }
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        streams.carry(&ready[first..])?;
        if !ready[1].is_empty() {
            for signal in signals.take() {
                match signal {
                    libc::SIGWINCH if terminal => exec.resize(window())?,
                    other => exec.signal(other as u32)?,
                }
            }
        }
        if !ready[0].is_empty() {
            break exec.end()?;
        }
    };
    streams.drain()?;
    drop(raw);
    Ok(end)
}

fn window() -> [u16; 2] {
    tcgetwinsize(rustix::stdio::stdin()).map_or([24, 80], |size| [size.ws_row, size.ws_col])
}

/// The terminal passes every byte on, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn set() -> Result<Self, ControlError> {
        let before = tcgetattr(rustix::stdio::stdin()).step("asking the terminal for its settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &raw)
            .step("setting the terminal to pass everything on")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _gone = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// An output that is carried.
struct Out {
    from: OwnedFd,
    to_errors: bool,
}

/// The streams: those that are handed over, and what is carried.
struct Streams {
    theirs: Option<[OwnedFd; 3]>,
    /// To the process, and what waits for room in it.
    input: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    outputs: Vec<Out>,
}

impl Streams {
    fn new(terminal: bool) -> Result<Self, ControlError> {
        let mut own = Self {
            theirs: None,
            input: None,
            waiting: VecDeque::new(),
            outputs: Vec::new(),
        };
        let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().step("copying a stream");
        let stdin = if terminal || isatty(rustix::stdio::stdin()) {
            let (read, write) = new_pipe()?;
            own.input = Some(non_blocking(write)?);
            read
        } else {
            copy(rustix::stdio::stdin())?
        };
        let mut output = |stream: BorrowedFd<'_>, to_errors| {
            if !terminal && !isatty(stream) {
                return copy(stream);
            }
            let (read, write) = new_pipe()?;
            own.outputs.push(Out {
                from: non_blocking(read)?,
                to_errors,
            });
            Ok(write)
        };
        let stdout = output(rustix::stdio::stdout(), false)?;
        // A terminal has one way out.
        let stderr = if terminal {
            copy(stdout.as_fd())?
        } else {
            output(rustix::stdio::stderr(), true)?
        };
        own.theirs = Some([stdin, stdout, stderr]);
        Ok(own)
    }

    fn theirs(&self) -> [BorrowedFd<'_>; 3] {
        let theirs = self
            .theirs
            .as_ref()
            .expect("they are there until the process has them");
        [theirs[0].as_fd(), theirs[1].as_fd(), theirs[2].as_fd()]
    }

    /// The process has them: ours would keep pipes open.
    fn leave_theirs(&mut self) {
        self.theirs = None;
    }

    fn poll<'f>(&'f self, fds: &mut Vec<PollFd<'f>>) {
        match &self.input {
            Some(pipe) if !self.waiting.is_empty() => fds.push(PollFd::new(pipe, PollFlags::OUT)),
            Some(_) => fds.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN)),
            None => {}
        }
        for out in &self.outputs {
            fds.push(PollFd::new(&out.from, PollFlags::IN));
        }
    }

    /// Carries what [`Streams::poll`] asked about and is ready.
    fn carry(&mut self, ready: &[PollFlags]) -> Result<(), ControlError> {
        let mut ready = ready.iter();
        if self.input.is_some() && ready.next().is_some_and(|bits| !bits.is_empty()) {
            self.carry_in();
        }
        let mut over = Vec::new();
        for (index, (out, bits)) in self.outputs.iter().zip(ready).enumerate() {
            if !bits.is_empty() && out.carry()?.is_none() {
                over.push(index);
            }
        }
        for index in over.into_iter().rev() {
            self.outputs.remove(index);
        }
        Ok(())
    }

    fn carry_in(&mut self) {
        if self.waiting.is_empty() {
            let mut part = [0; PART];
            match rustix::io::read(rustix::stdio::stdin(), &mut part) {
                Ok(0) => self.input = None,
                Ok(len) => self.waiting.extend(&part[..len]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                // The terminal is gone.
                Err(_) => self.input = None,
            }
        }
        let Some(pipe) = &self.input else { return };
        let (part, _) = self.waiting.as_slices();
        if part.is_empty() {
            return;
        }
        match rustix::io::write(pipe, part) {
            Ok(len) => drop(self.waiting.drain(..len)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // The process reads no more.
            Err(_) => self.input = None,
        }
    }

    /// What is still in the pipes when the process has ended.
    fn drain(&self) -> Result<(), ControlError> {
        for out in &self.outputs {
            while let Some(1..) = out.carry()? {}
        }
        Ok(())
    }
}

impl Out {
    /// Carries some; gives how many bytes, or none at the end.
    fn carry(&self) -> Result<Option<usize>, ControlError> {
        let mut part = [0; PART];
        let len = match rustix::io::read(&self.from, &mut part) {
            Ok(0) => return Ok(None),
            Ok(len) => len,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(Some(0)),
            Err(_) => return Ok(None),
        };
        let written = if self.to_errors {
            io::stderr().write_all(&part[..len])
        } else {
            let mut out = io::stdout().lock();
            out.write_all(&part[..len]).and_then(|()| out.flush())
        };
        written.step("writing what the process wrote")?;
        Ok(Some(len))
    }
}

fn new_pipe() -> Result<(OwnedFd, OwnedFd), ControlError> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step("making a pipe")
}

fn non_blocking(fd: OwnedFd) -> Result<OwnedFd, ControlError> {
    rustix::io::ioctl_fionbio(&fd, true).step("setting up a pipe")?;
    Ok(fd)
}

/// Signals come to a descriptor.
struct Signals(OwnedFd);

impl Signals {
    fn block() -> Result<Self, ControlError> {
        // SAFETY: sigset_t is plain data, made valid by sigemptyset; the other calls only read it.
        let raw = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in PASSED_ON {
                libc::sigaddset(&raw mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if raw < 0 {
            return Err(io::Error::last_os_error()).step("taking signals from a descriptor");
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(raw) }))
    }

    fn take(&self) -> Vec<i32> {
        let mut signals = Vec::new();
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        while let Ok(len) = rustix::io::read(&self.0, &mut info)
            && len == info.len()
        {
            // `ssi_signo`, the first field.
            let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            signals.push(number as i32);
        }
        signals
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
