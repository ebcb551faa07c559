//! Landlock: which files can be opened, whatever is asked.
//!
//! A descriptor that is open already is not concerned. Rules are for what lies below a directory, so the host's root,
//! shared read-only, is given entry by entry: without its `/proc` (memory of other processes) and, of its `/dev`, only
//! the devices that programs expect. So are the directories on the way to a file that is withheld (the key of a volume):
//! what is made in one of them later is then not given either.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    RulesetError,
};
use rustix::fs::{FileType, Mode, OFlags};

use super::JailError;

/// What of Landlock is asked for; on an older kernel, as much of it as there is.
const VERSION: ABI = ABI::V5;
/// Devices below `/dev` of a host root, with their right to be written.
pub const DEVICES: [&str; 8] = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts"];
/// Entries of a host root that are not given.
pub const WITHHELD: [&str; 2] = ["proc", "dev"];

/// A directory (or file) that may be used, and whether it may be changed.
#[derive(Debug)]
pub struct Granted<'f> {
    /// Opened, with `O_PATH` as well.
    pub file: BorrowedFd<'f>,
    /// Only read.
    pub read_only: bool,
}

fn reading() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir
}

/// All but running programs and making device nodes.
fn changing() -> BitFlags<AccessFs> {
    AccessFs::from_all(VERSION)
        & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev)
}

/// Rules that are ready to be closed.
#[derive(Debug)]
pub struct Rules(RulesetCreated);

impl Rules {
    /// Rules that grant this and nothing else; of a host root not the `withheld` files (absolute paths, without
    /// symbolic links).
    ///
    /// # Errors
    /// When they can't be made. A kernel without Landlock is no error: the other layers stand.
    pub fn new(granted: &[Granted<'_>], withheld: &[PathBuf]) -> Result<Self, JailError> {
        let mut rules = Ruleset::default()
            .handle_access(AccessFs::from_all(VERSION))?
            .create()?;
        for one in granted {
            rules = grant(rules, one, withheld)?;
        }
        Ok(Self(rules))
    }

    /// From now on the calling thread, and every thread that it starts, opens only what is granted. Processes outside
    /// can't be traced either, nor their memory be read.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn close(self) -> Result<(), JailError> {
        self.0.restrict_self()?;
        Ok(())
    }
}

fn grant(
    rules: RulesetCreated,
    one: &Granted<'_>,
    withheld: &[PathBuf],
) -> Result<RulesetCreated, JailError> {
    let wanted = if one.read_only { reading() } else { changing() };
    if one.read_only && is_host_root(one.file)? {
        return grant_host_root(rules, one.file, withheld);
    }
    Ok(add(rules, one.file, wanted)?)
}

/// One rule; a file takes the rights that a file can have.
fn add(
    rules: RulesetCreated,
    file: impl AsFd,
    wanted: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let wanted = if is(&file, FileType::Directory) {
        wanted
    } else {
        wanted & AccessFs::from_file(VERSION)
    };
    rules.add_rule(PathBeneath::new(file, wanted))
}

fn is_host_root(file: BorrowedFd<'_>) -> Result<bool, JailError> {
    let ours = std::fs::metadata("/").map_err(|source| JailError::System {
        step: "looking at the host's root",
        source,
    })?;
    let theirs = rustix::fs::fstat(file).map_err(|errno| JailError::System {
        step: "looking at a mount's root",
        source: errno.into(),
    })?;
    Ok((ours.dev(), ours.ino()) == (theirs.st_dev, theirs.st_ino))
}

fn grant_host_root(
    rules: RulesetCreated,
    root: BorrowedFd<'_>,
    withheld: &[PathBuf],
) -> Result<RulesetCreated, JailError> {
    let mut rules = grant_entries(rules, root, Path::new("/"), withheld)?;
    // Directories can be listed everywhere: a rule for the root's own list is one for all below.
    rules = add(rules, root, AccessFs::ReadDir.into())?;
    if let Some(devices) = below(root, "dev") {
        for name in DEVICES {
            if let Some(device) = below(devices.as_fd(), name) {
                let usable = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
                rules = add(rules, device, usable)?;
            }
        }
    }
    Ok(rules)
}

/// Grants the entries of a directory of the host's one by one, down to what is withheld.
fn grant_entries(
    mut rules: RulesetCreated,
    directory: BorrowedFd<'_>,
    path: &Path,
    withheld: &[PathBuf],
) -> Result<RulesetCreated, JailError> {
    let listed = std::fs::read_dir(path).map_err(|source| JailError::System {
        step: "listing a directory of the host's root",
        source,
    })?;
    for entry in listed.flatten() {
        let (name, full) = (entry.file_name(), entry.path());
        let system = path == Path::new("/") && WITHHELD.iter().any(|w| name == *w);
        if system || withheld.contains(&full) {
            continue;
        }
        // One that can't be opened, or is gone again, is one that can't be used.
        let Some(file) = below(directory, &name) else {
            continue;
        };
        rules = if withheld.iter().any(|file| file.starts_with(&full)) {
            grant_entries(rules, file.as_fd(), &full, withheld)?
        } else {
            add(rules, file, reading())?
        };
    }
    Ok(rules)
}

fn below(directory: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?;
    // A rule on a symbolic link is refused, and not needed: its target has its own.
    (!is(&file, FileType::Symlink)).then_some(file)
}

fn is(file: impl AsFd, kind: FileType) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == kind)
}
