//! The other half: what `cloak ps`, `cloak exec` and `cloak inspect` ask.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cloak_abi::config::{Tag, Writer};
use cloak_memory::view::ViewMapping;
use cloak_memory::{Page, PageBytes};

use super::ControlError;
use super::folder::{Folder, Name};
use super::wire::{
    Ask, End, Info, Looked, Received, Reply, Request, VERSION, Where, WireError, receive, send,
};
use crate::vm::signals::Inherited;

/// A VM or a context of one: `NAME`, `NAME/CONTEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    vm: Name,
    context: Option<String>,
}

impl std::str::FromStr for Target {
    type Err = ControlError;

    fn from_str(text: &str) -> Result<Self, ControlError> {
        let (vm, context) = match text.split_once('/') {
            Some((vm, context)) => (vm, Some(context.to_owned())),
            None => (text, None),
        };
        Ok(Self {
            vm: Name::new(vm)?,
            context,
        })
    }
}

/// What runs.
///
/// # Errors
/// [`ControlError`].
pub fn running() -> Result<Vec<Info>, ControlError> {
    let folder = Folder::open()?;
    let mut all = Vec::new();
    for vm in folder.names()? {
        let target = Target { vm, context: None };
        match Connection::open(&folder, &target).and_then(|connection| connection.info()) {
            Ok(info) => all.push(info),
            // It ended just now.
            Err(ControlError::Nobody(_) | ControlError::Gone) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// A connection to a VM.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    token: String,
    context: Option<String>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// [`ControlError::Nobody`] and others.
    pub fn to(target: &Target) -> Result<Self, ControlError> {
        Self::open(&Folder::open()?, target)
    }

    fn open(folder: &Folder, target: &Target) -> Result<Self, ControlError> {
        let (socket, token) = folder.connect(&target.vm)?;
        Ok(Self {
            socket,
            token,
            context: target.context.clone(),
        })
    }

    fn ask(&self, ask: Ask, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), ControlError> {
        let request = Request {
            version: VERSION,
            token: self.token.clone(),
            context: self.context.clone(),
            ask,
        };
        send(&self.socket, &request, bytes, descriptors).map_err(unsent)
    }

    fn answer(&self) -> Result<Received<Reply>, ControlError> {
        let received = receive::<Reply>(&self.socket).map_err(unsent)?;
        match received.message {
            Reply::Refused(why) => Err(ControlError::Refused(why)),
            _ => Ok(received),
        }
    }

    fn info(self) -> Result<Info, ControlError> {
        self.ask(Ask::Info, &[], &[])?;
        match self.answer()?.message {
            Reply::Info(info) => Ok(info),
            other => Err(unexpected(&other)),
        }
    }

    /// A page from both sides: what is told of it, its plaintext if that is shown, its ciphertext.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn look(self, place: Where) -> Result<(Looked, Option<PageBytes>, PageBytes), ControlError> {
        self.ask(Ask::Look(place), &[], &[])?;
        let received = self.answer()?;
        let Reply::Looked(looked) = received.message else {
            return Err(unexpected(&received.message));
        };
        let (pages, rest) = received.bytes.as_chunks();
        match (pages, rest) {
            ([plain, sealed], []) => Ok((looked, Some(*plain), *sealed)),
            ([sealed], []) => Ok((looked, None, *sealed)),
            _ => Err(ControlError::Answer("a page of another size".to_owned())),
        }
    }

    /// Starts a process with these streams.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn exec(self, program: &Start<'_>, streams: [BorrowedFd<'_>; 3]) -> Result<Exec, ControlError> {
        let mut records = Writer::default();
        if let Some(name) = program.command.first() {
            records.put(Tag::Program, name);
        }
        for argument in program.command {
            records.put(Tag::Arg, argument);
        }
        for variable in program.environment {
            records.put(Tag::Env, variable);
        }
        if let Some(folder) = program.workdir {
            records.put(Tag::Cwd, folder);
        }
        records.numbers(Tag::Signals, &[program.signals.ignored, program.signals.blocked]);
        let ask = Ask::Exec {
            terminal: program.terminal.is_some(),
            window: program.terminal.unwrap_or_default(),
        };
        self.ask(ask, &records.finish(), &streams)?;
        match self.answer()?.message {
            Reply::Started => Ok(Exec(self)),
            other => Err(unexpected(&other)),
        }
    }
}

/// What to start.
#[derive(Debug, Clone, Copy)]
pub struct Start<'s> {
    /// Program and arguments, not empty.
    pub command: &'s [Vec<u8>],
    /// Variables besides the program's own.
    pub environment: &'s [Vec<u8>],
    /// Working directory; none: the context's.
    pub workdir: Option<&'s [u8]>,
    /// Rows and columns of the terminal whose other side the streams are.
    pub terminal: Option<[u16; 2]>,
    /// What it is to find ignored and blocked.
    pub signals: Inherited,
}

/// A process that was started.
#[derive(Debug)]
pub struct Exec(Connection);

impl Exec {
    /// Sends it a signal.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn signal(&self, signal: u32) -> Result<(), ControlError> {
        self.0.ask(Ask::Signal(signal), &[], &[])
    }

    /// Its terminal has another size.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn resize(&self, window: [u16; 2]) -> Result<(), ControlError> {
        self.0.ask(Ask::Window(window), &[], &[])
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`ControlError::Gone`] when the VM ended with it.
    pub fn end(&self) -> Result<End, ControlError> {
        match self.0.answer()?.message {
            Reply::Ended(end) => Ok(end),
            other => Err(unexpected(&other)),
        }
    }
}

impl AsFd for Exec {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// The OS view, as the OS side has it.
#[derive(Debug)]
pub struct OsView {
    mapping: ViewMapping,
    pages: u64,
    // The mapping is served while this is open; none where nothing has to be sealed.
    _attached: Option<Connection>,
}

impl OsView {
    /// Maps it.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn map(target: &Target) -> Result<Self, ControlError> {
        let asked = Connection::to(target)?;
        asked.ask(Ask::View, &[], &[])?;
        let mut received = asked.answer()?;
        let (Reply::View { pages, at_touch }, Some(file)) = (received.message, received.descriptors.pop())
        else {
            return Err(ControlError::Answer("there is no view in it".to_owned()));
        };
        if !at_touch {
            let mapping = ViewMapping::unattended(file, pages)?;
            return Ok(Self {
                mapping,
                pages,
                _attached: None,
            });
        }
        let (mapping, uffd) = ViewMapping::attach(file, pages)?;
        let attached = Connection::to(target)?;
        let base = mapping.base();
        attached.ask(Ask::Attach { base }, &[], &[uffd.as_fd()])?;
        match attached.answer()?.message {
            Reply::Attached => Ok(Self {
                mapping,
                pages,
                _attached: Some(attached),
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// How many pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// A page of it.
    #[must_use]
    pub fn read(&self, number: u64) -> Option<PageBytes> {
        self.mapping.read(Page::new(number)?)
    }
}

fn unsent(error: WireError) -> ControlError {
    match error {
        WireError::Closed => ControlError::Gone,
        WireError::System(errno) => ControlError::System {
            step: "talking to the monitor",
            source: errno.into(),
        },
        WireError::Shape(why) => ControlError::Answer(why),
    }
}

fn unexpected(reply: &Reply) -> ControlError {
    let text = format!("{reply:?}");
    ControlError::Answer(text.chars().take(60).collect())
}
