//! A running VM's control socket: who started a VM by a name can ask it for things while it runs.
//!
//! ```text
//!   cloak ps, exec, inspect ── client ──▶ NAME.sock ──▶ server, a thread of the monitor ──▶ vm::exec, vm::view
//!              │                                            ▲
//!              └── reads NAME.token ── shown with each ask ─┘
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`folder`] | where sockets and tokens lie, names, what is stale |
//! | [`wire`] | the messages |
//! | [`server`] | the monitor's half, inside its jail |
//! | [`client`], [`session`] | the other half; the streams and the terminal of who starts a process |
//!
//! The socket takes callers of the monitor's own user only, and believes none that doesn't show the token. The user alone is
//! not enough: OS services run as that user too and may connect to Unix sockets, and one that was taken over shall not get
//! a program started or a page shown. The token lies in a folder that no OS service can open ([`crate::jail`]).

pub mod client;
pub mod folder;
pub mod server;
pub mod session;
pub mod wire;

use std::io;
use std::path::PathBuf;

/// What can go wrong around a control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no place for it.
    #[error(
        "there is no folder for control sockets: XDG_RUNTIME_DIR is not set (and this is not root, whose folder is /run/cloak); \
         set it, or CLOAK_RUNTIME_DIR"
    )]
    NoFolder,
    /// The folder can't be used.
    #[error("{path}: {why}", path = path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// Not a name.
    #[error(
        "{0:?} is not a name: 1 to 64 letters, digits, `.`, `_` and `-`, beginning with a letter or digit"
    )]
    Name(String),
    /// Somebody has it.
    #[error("a VM with the name {0} is running; choose another one (cloak ps lists them)")]
    Taken(String),
    /// Nobody has it.
    #[error("no VM with the name {0} is running (cloak ps lists them)")]
    Nobody(String),
    /// A system call failed.
    #[error("{step}: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The other side says no.
    #[error("{0}")]
    Refused(String),
    /// The other side does not speak as it should.
    #[error("the monitor's answer can't be read: {0}; is it of another version of cloak?")]
    Answer(String),
    /// The VM ended meanwhile.
    #[error("the VM has ended")]
    Gone,
    /// The OS view can't be mapped.
    #[error(transparent)]
    Memory(#[from] cloak_memory::MemoryError),
}

pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, ControlError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, ControlError> {
        self.map_err(|source| ControlError::System {
            step,
            source: source.into(),
        })
    }
}
