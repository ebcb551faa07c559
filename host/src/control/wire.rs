//! The messages: one packet each, JSON and what is not text behind it, with descriptors.
//!
//! `u32 length of the JSON | JSON | bytes`. Both ends are of one user; a caller's numbers are checked all the same.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Changes with the messages.
pub const VERSION: u32 = 2;
/// Most bytes of a message.
pub const MESSAGE_MAX: usize = 192 << 10;
/// Most descriptors of one.
const DESCRIPTORS: usize = 3;

/// What a caller says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What the token file holds.
    pub token: String,
    /// Which context; none: the only one.
    pub context: Option<String>,
    /// What is wanted.
    pub ask: Ask,
}

/// What is wanted of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// What it is. Answer: [`Reply::Info`].
    Info,
    /// One more process. With three descriptors, its streams, and records of [`cloak_abi::config`] (program, arguments,
    /// environment, working directory, signals). Answers: [`Reply::Started`], [`Reply::Ended`]; in between the caller may say more.
    Exec {
        /// Its streams are the other side of a terminal.
        terminal: bool,
        /// Rows and columns of it.
        window: [u16; 2],
    },
    /// A signal for the process that this connection started.
    Signal(u32),
    /// Its terminal has another size.
    Window([u16; 2]),
    /// A page, seen from both sides. Answer: [`Reply::Looked`].
    Look(Where),
    /// The file of the OS view. Answer: [`Reply::View`] with a descriptor.
    View,
    /// The caller has mapped the view at `base` and registered it; with its userfaultfd. Answer: [`Reply::Attached`]; the
    /// mapping is served while the connection is open.
    Attach {
        /// Address of the mapping.
        base: u64,
    },
}

/// Which page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Where {
    /// That of a guest-physical address.
    Page(u64),
    /// The first that holds this text.
    Text(String),
    /// One with much text in it.
    AnyText,
}

/// What the monitor answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// What the VM is.
    Info(Info),
    /// The process is on its way.
    Started,
    /// It has ended.
    Ended(End),
    /// A page: its plaintext (nothing, if that is withheld), then its ciphertext stand behind.
    Looked(Looked),
    /// The view's file.
    View {
        /// Pages.
        pages: u64,
        /// Whether a page is sealed when it is touched: then the caller has to attach, or sees holes. Else the file holds
        /// what was sealed until now.
        at_touch: bool,
    },
    /// The mapping is served.
    Attached,
    /// No.
    Refused(String),
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Its name.
    pub name: String,
    /// Process number of its monitor.
    pub pid: u32,
    /// Seconds since it started.
    pub seconds: u64,
    /// Its contexts.
    pub contexts: Vec<ContextInfo>,
}

/// A context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextInfo {
    /// Its name.
    pub name: String,
    /// What it runs.
    pub command: String,
    /// Whether that has ended.
    pub ended: bool,
    /// vCPUs.
    pub cpus: usize,
    /// Guest memory, bytes.
    pub memory: u64,
    /// Most plaintext, bytes, if there is a limit.
    pub resident: Option<u64>,
    /// Whether further processes may be started, and its plaintext be shown.
    pub exec: bool,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// With this code.
    Exited(u8),
    /// By this signal.
    Signalled(u8),
    /// It was never started: code for the caller, and why.
    Refused(u8, String),
}

/// A page, but for its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    /// Guest-physical address.
    pub gpa: u64,
    /// Number of its context.
    pub context: u64,
    /// State before this look: `plain`, `clean`, `sealed` or `zero`.
    pub state: String,
    /// Version that it is sealed as.
    pub version: u64,
    /// Tag of that sealing, hexadecimal.
    pub tag: String,
    /// Why the plaintext is not there.
    pub withheld: Option<String>,
}

/// A message as it came.
#[derive(Debug)]
pub struct Received<T> {
    /// The JSON.
    pub message: T,
    /// The bytes behind it.
    pub bytes: Vec<u8>,
    /// What came along.
    pub descriptors: Vec<OwnedFd>,
}

/// Why there is no message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side has closed.
    #[error("the connection is closed")]
    Closed,
    /// The system says.
    #[error(transparent)]
    System(#[from] Errno),
    /// It is none.
    #[error("not a message: {0}")]
    Shape(String),
}

/// Sends one.
///
/// # Errors
/// [`WireError`].
pub fn send(
    to: impl AsFd,
    message: &impl Serialize,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    let json = serde_json::to_vec(message).map_err(|error| WireError::Shape(error.to_string()))?;
    if json.len() + bytes.len() + 4 > MESSAGE_MAX {
        return Err(WireError::Shape(format!("it has more than {MESSAGE_MAX} bytes")));
    }
    let len = (json.len() as u32).to_le_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let parts = [IoSlice::new(&len), IoSlice::new(&json), IoSlice::new(bytes)];
    match sendmsg(to, &parts, &mut ancillary, SendFlags::NOSIGNAL) {
        Ok(_) => Ok(()),
        Err(Errno::PIPE | Errno::CONNRESET) => Err(WireError::Closed),
        Err(errno) => Err(errno.into()),
    }
}

/// Waits for one.
///
/// # Errors
/// [`WireError`].
pub fn receive<T: DeserializeOwned>(from: impl AsFd) -> Result<Received<T>, WireError> {
    let mut packet = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let parts = &mut [IoSliceMut::new(&mut packet)];
        match recvmsg(&from, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(got) => break got,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Err(WireError::Closed),
            Err(errno) => return Err(errno.into()),
        }
    };
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if got.bytes == 0 {
        return Err(WireError::Closed);
    }
    packet.truncate(got.bytes);
    let short = || WireError::Shape("it is cut off".to_owned());
    let (len, rest) = packet.split_first_chunk::<4>().ok_or_else(short)?;
    let (json, bytes) = rest
        .split_at_checked(u32::from_le_bytes(*len) as usize)
        .ok_or_else(short)?;
    Ok(Received {
        message: serde_json::from_slice(json).map_err(|error| WireError::Shape(error.to_string()))?,
        bytes: bytes.to_vec(),
        descriptors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("sockets")
    }

    #[test]
    fn messages_carry_bytes_and_descriptors() {
        let (one, other) = pair();
        let request = Request {
            version: VERSION,
            token: "t".to_owned(),
            context: Some("web".to_owned()),
            ask: Ask::Exec {
                terminal: true,
                window: [24, 80],
            },
        };
        send(&one, &request, &[7; 9], &[one.as_fd(), other.as_fd()]).expect("sent");
        let got: Received<Request> = receive(&other).expect("received");
        assert_eq!((got.message, got.bytes), (request, vec![7; 9]));
        assert_eq!(got.descriptors.len(), 2);
        drop(one);
        drop(got.descriptors);
        assert!(matches!(receive::<Request>(&other), Err(WireError::Closed)));
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (one, other) = pair();
        for packet in [
            &b"x"[..],
            &[255; 8],
            &[2, 0, 0, 0, b'{', b'}'],
            &[9, 0, 0, 0, b'1'],
        ] {
            rustix::io::write(&one, packet).expect("sent");
            assert!(matches!(receive::<Request>(&other), Err(WireError::Shape(_))));
        }
        assert!(send(&one, &Reply::Started, &vec![0; MESSAGE_MAX], &[]).is_err());
    }
}
