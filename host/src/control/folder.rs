//! The runtime folder: `NAME.sock` and `NAME.token` of each running VM that has a name.
//!
//! The monitor can't remove its socket: its jail has no file at all. So what an ended VM leaves is stale, and swept by who
//! looks next: a socket on which nobody listens. Sockets come and go under a lock, so that one which is just being made is
//! not taken for stale.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use super::{ControlError, Step};

/// Bytes of a token.
pub const TOKEN: usize = 32;

/// Longest name.
const NAME_MAX: usize = 64;
/// Callers that may wait to be accepted.
const BACKLOG: i32 = 16;

/// A name that a VM can have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// [`ControlError::Name`].
    pub fn new(text: &str) -> Result<Self, ControlError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let good = text.len() <= NAME_MAX
            && text.chars().all(plain)
            && text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(ControlError::Name(text.to_owned()))
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Name {
    type Err = ControlError;

    fn from_str(text: &str) -> Result<Self, ControlError> {
        Self::new(text)
    }
}

/// Where sockets lie: `CLOAK_RUNTIME_DIR`, or root's `/run/cloak`, or `cloak` in `XDG_RUNTIME_DIR`. It need not exist.
///
/// # Errors
/// [`ControlError::NoFolder`].
pub fn path() -> Result<PathBuf, ControlError> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = named("CLOAK_RUNTIME_DIR") {
        return Ok(folder.into());
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/run/cloak".into());
    }
    let folder = named("XDG_RUNTIME_DIR").ok_or(ControlError::NoFolder)?;
    Ok(Path::new(&folder).join("cloak"))
}

/// The folder as no OS service may have it: without symbolic links, whether it exists or not. None: there can be none.
#[must_use]
pub fn withheld() -> Option<PathBuf> {
    let folder = path().ok()?;
    let parent = folder.parent()?.canonicalize().ok()?;
    Some(parent.join(folder.file_name()?))
}

/// The folder, which is this user's alone.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Opens it, and makes it if it is not there.
    ///
    /// # Errors
    /// [`ControlError`]; others must not be able to look in.
    pub fn open() -> Result<Self, ControlError> {
        let path = path()?;
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).step("making the folder for control sockets");
            }
            _ => {}
        }
        let known = fs::symlink_metadata(&path).step("looking at the folder for control sockets")?;
        let wrong = |why| ControlError::Folder {
            path: path.clone(),
            why,
        };
        if !known.is_dir() {
            return Err(wrong("is no folder; control sockets need one"));
        }
        if known.uid() != rustix::process::geteuid().as_raw() {
            return Err(wrong(
                "belongs to another user; control sockets need a folder of one's own",
            ));
        }
        if known.mode() & 0o077 != 0 {
            return Err(wrong("is open to others; it has to have mode 0700"));
        }
        Ok(Self { path })
    }

    fn socket(&self, name: &Name) -> PathBuf {
        self.path.join(format!("{}.sock", name.0))
    }

    fn token_file(&self, name: &Name) -> PathBuf {
        self.path.join(format!("{}.token", name.0))
    }

    fn lock(&self) -> Result<File, ControlError> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.join(".lock"))
            .step("opening the lock of the folder for control sockets")?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .step("locking the folder for control sockets")?;
        Ok(file)
    }

    /// Makes the socket of a VM, with a new token.
    ///
    /// # Errors
    /// [`ControlError::Taken`] and others.
    pub fn bind(&self, name: &Name) -> Result<Bound, ControlError> {
        let _lock = self.lock()?;
        if self.try_connect(name)?.is_some() {
            return Err(ControlError::Taken(name.0.clone()));
        }
        self.remove(name)?;
        let mut token = [0; TOKEN];
        File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut token))
            .step("drawing a token (/dev/urandom)")?;
        let text: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.token_file(name))
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .step("writing the token of the control socket")?;
        let listener = new_socket()?;
        let address = SocketAddrUnix::new(self.socket(name)).step("naming the control socket")?;
        bind(&listener, &address).step("binding the control socket")?;
        listen(&listener, BACKLOG).step("listening on the control socket")?;
        Ok(Bound {
            name: name.clone(),
            listener,
            token: text,
        })
    }

    /// Connects to the VM of a name; gives the connection and the token to show.
    ///
    /// # Errors
    /// [`ControlError::Nobody`] and others.
    pub fn connect(&self, name: &Name) -> Result<(OwnedFd, String), ControlError> {
        let connection = self
            .try_connect(name)?
            .ok_or_else(|| ControlError::Nobody(name.0.clone()))?;
        let token =
            fs::read_to_string(self.token_file(name)).step("reading the token of the control socket")?;
        Ok((connection, token))
    }

    /// None when nobody listens there.
    fn try_connect(&self, name: &Name) -> Result<Option<OwnedFd>, ControlError> {
        let address = SocketAddrUnix::new(self.socket(name)).step("naming the control socket")?;
        let connection = new_socket()?;
        match connect(&connection, &address) {
            Ok(()) => Ok(Some(connection)),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => Ok(None),
            Err(error) => Err(error).step("connecting to the control socket"),
        }
    }

    fn remove(&self, name: &Name) -> Result<(), ControlError> {
        for file in [self.socket(name), self.token_file(name)] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).step("removing what an ended VM left");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Names of those that run, in order. What ended ones left is removed.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn names(&self) -> Result<Vec<Name>, ControlError> {
        let _lock = self.lock()?;
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)
            .step("listing control sockets")?
            .flatten()
        {
            let file = entry.file_name();
            let name = file
                .to_str()
                .and_then(|file| file.strip_suffix(".sock"))
                .and_then(|name| Name::new(name).ok());
            let Some(name) = name else { continue };
            if self.try_connect(&name)?.is_some() {
                names.push(name);
            } else {
                self.remove(&name)?;
            }
        }
        names.sort();
        Ok(names)
    }
}

fn new_socket() -> Result<OwnedFd, ControlError> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .step("making a socket")
}

/// A socket that nobody serves yet.
#[derive(Debug)]
pub struct Bound {
    /// Of the VM.
    pub name: Name,
    /// Listens.
    pub listener: OwnedFd,
    /// What callers have to show.
    pub token: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn folder() -> (tempfile::TempDir, Folder) {
        let scratch = tempfile::tempdir().expect("a folder");
        let path = scratch.path().to_owned();
        (scratch, Folder { path })
    }

    #[test]
    fn names_stay_in_the_folder() {
        for good in ["a", "web-1", "A.b_c", &"x".repeat(64)] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            ".lock",
            "a/b",
            "../a",
            "-a",
            "a b",
            "a\0",
            "ä",
            &"x".repeat(65),
        ] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_is_taken_while_somebody_listens_and_stale_ones_are_swept() {
        let (scratch, folder) = folder();
        let name = Name::new("one").expect("a name");
        let bound = folder.bind(&name).expect("free");
        assert!(matches!(folder.bind(&name), Err(ControlError::Taken(_))));
        assert_eq!(folder.names().expect("readable"), std::slice::from_ref(&name));
        let token = scratch.path().join("one.token");
        assert_eq!(
            fs::metadata(&token).expect("there").permissions().mode() & 0o777,
            0o600
        );
        let (_connection, shown) = folder.connect(&name).expect("it listens");
        assert_eq!(shown, bound.token);
        drop(bound);
        assert!(
            scratch.path().join("one.sock").exists(),
            "the monitor can't remove it"
        );
        assert!(matches!(folder.connect(&name), Err(ControlError::Nobody(_))));
        assert_eq!(folder.names().expect("readable"), []);
        assert!(!scratch.path().join("one.sock").exists() && !token.exists());
        let again = folder.bind(&name).expect("free again");
        assert_ne!(again.token, shown, "a token is good for one VM");
    }
}
