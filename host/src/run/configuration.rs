//! What the guest's libos is told of a run ([`cloak_abi::config`]): the program with its arguments and environment, what it
//! inherits of the caller, mounts, volumes and their keys.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cloak_abi::config::{self, Anchored, Tag, Writer, mount_flags, run_flags};
use rustix::process::Resource;
use zeroize::Zeroizing;

use super::stated::Stated;
use super::{Environment, Network, RootTree, RunOptions, Segment, VolumeKey, network};
use crate::jail::privileges::Identity;
use crate::platform::Machine;
use crate::vm::error::{Step, VmError};
use crate::vm::resident::Resident;
use crate::vm::signals::Inherited;

/// Keys are in it, so it is wiped when it is dropped.
///
/// # Errors
/// When there is no randomness.
pub fn configuration<'a>(
    options: &RunOptions,
    stated: &Stated,
    program: &Path,
    user: &Identity,
    segments: impl Iterator<Item = &'a Segment>,
    exec: bool,
    signals: Inherited,
) -> Result<Zeroizing<Vec<u8>>, VmError> {
    let mut config = Writer::default();
    command(options, program, &mut config);
    config.put(
        Tag::Manifest,
        &[&stated.shim.0, stated.canonical.as_bytes()].concat(),
    );
    let next = mounts(options, &mut config);
    let ids = [user.uid, user.gid]
        .into_iter()
        .chain(user.groups.iter().copied());
    config.numbers(Tag::Ids, &ids.map(u64::from).collect::<Vec<_>>());
    config.put(Tag::HostName, context_name(options).as_bytes());
    config.numbers(Tag::Flags, &[flags(options, exec)]);
    if options.network == Network::Private {
        network::put(&options.published, &mut config);
    }
    config.put(Tag::Seed, &seed()?);
    of_caller(signals, &mut config);
    protected_volumes(options, next, &mut config);
    if let Some(limit) = kept_inside(options) {
        let index = u64::from(next) + options.protected.len() as u64;
        config.numbers(Tag::Resident, &[limit.bytes, index]);
    }
    for (index, segment) in (0..).zip(segments) {
        config.segment(index, segment.bytes, segment.name.as_bytes());
    }
    Ok(Zeroizing::new(config.finish()))
}

/// What the context is called, inside and by others.
pub fn context_name(options: &RunOptions) -> String {
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    options.name.clone().unwrap_or_else(host)
}

/// The limit on plaintext that the guest keeps by itself, where the monitor can't read its memory.
pub fn kept_inside(options: &RunOptions) -> Option<&Resident> {
    options
        .resident
        .as_ref()
        .filter(|_| !matches!(options.machine, Machine::Plain))
}

fn command(options: &RunOptions, program: &Path, config: &mut Writer) {
    let cwd = workdir(options);
    let absolute = if program.as_os_str().as_bytes().contains(&b'/') {
        cwd.join(program)
    } else {
        program.to_owned()
    };
    config.put(Tag::Program, absolute.as_os_str().as_bytes());
    for argument in &options.command {
        config.put(Tag::Arg, argument.as_bytes());
    }
    for variable in environment(&options.environment) {
        config.put(Tag::Env, &variable);
    }
    config.put(Tag::Cwd, cwd.as_os_str().as_bytes());
}

fn flags(options: &RunOptions, exec: bool) -> u64 {
    let flag = |on: bool, bit: u64| if on { bit } else { 0 };
    flag(options.trace, run_flags::TRACE)
        | flag(!options.patch, run_flags::NO_PATCH)
        | flag(options.network == Network::None, run_flags::NO_NETWORK)
        | flag(exec, run_flags::EXEC)
        | flag(options.network == Network::Private, run_flags::PRIVATE_NETWORK)
        | flag(options.machine.is_simulated(), run_flags::SIMULATED)
}

fn seed() -> Result<[u8; 32], VmError> {
    let mut seed = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut seed))
        .step("reading /dev/urandom")?;
    Ok(seed)
}

/// What a process has of the one that starts it.
fn of_caller(signals: Inherited, config: &mut Writer) {
    let files = rustix::process::getrlimit(Resource::Nofile);
    config.numbers(
        Tag::MaxFiles,
        &[files.current.unwrap_or(1 << 20), files.maximum.unwrap_or(1 << 20)],
    );
    config.numbers(Tag::Stdio, &[0, 1, 2].map(stream_mode));
    // It can only be asked for by a change.
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(umask);
    config.numbers(Tag::Umask, &[u64::from(umask.bits())]);
    config.numbers(Tag::Signals, &[signals.ignored, signals.blocked]);
}

/// The program's working directory.
pub fn workdir(options: &RunOptions) -> PathBuf {
    let own = || std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    options.workdir.clone().unwrap_or_else(own)
}

fn flag(on: bool, flag: u32) -> u32 {
    if on { flag } else { 0 }
}

/// All mounts but the protected volumes; gives the number of the first of those. The numbers are those of the service's roots
/// (`open_roots`).
fn mounts(options: &RunOptions, config: &mut Writer) -> u32 {
    let mut next = 0..;
    let mut number = || next.next().unwrap_or(u32::MAX);
    if let Some(root) = options.host_root {
        let flags = match root {
            RootTree::Overlay => mount_flags::OVERLAY,
            RootTree::ReadOnly => mount_flags::READ_ONLY,
        };
        config.mount(number(), flags, b"/");
        config.mount(0, mount_flags::MEMORY, b"/tmp");
    }
    for volume in &options.volumes {
        let flags =
            flag(volume.read_only, mount_flags::READ_ONLY) | flag(volume.exclusive, mount_flags::EXCLUSIVE);
        config.mount(number(), flags, volume.guest.as_os_str().as_bytes());
    }
    for (_, guest) in &options.measured.volumes {
        let flags = mount_flags::READ_ONLY | mount_flags::MEASURED;
        config.mount(number(), flags, guest.as_bytes());
    }
    for (guest, only_read) in &options.memory_volumes {
        let flags = mount_flags::MEMORY | flag(*only_read, mount_flags::READ_ONLY);
        config.mount(0, flags, guest.as_os_str().as_bytes());
    }
    if !matches!(options.machine, Machine::Plain) {
        // The libos has files and links from the manifest itself.
        return number();
    }
    for (digest, path) in &options.measured.files {
        config.measured_file(digest, path.as_bytes());
    }
    for (path, target) in &options.measured.links {
        config.measured_link(path.as_bytes(), target.as_bytes());
    }
    number()
}

fn protected_volumes(options: &RunOptions, first: u32, config: &mut Writer) {
    let mut anchors = 0..;
    for (index, volume) in (first..).zip(&options.protected) {
        let path = volume.guest.as_os_str().as_bytes();
        let key = match &volume.key {
            VolumeKey::Given(key) => key,
            VolumeKey::Inside => &[0; 32],
            VolumeKey::Nobody => {
                config.mount(index, mount_flags::READ_ONLY | mount_flags::CIPHERTEXT, path);
                continue;
            }
        };
        let anchor = volume.anchor.as_ref().map(|anchor| Anchored {
            number: anchors.next().unwrap_or_default(),
            seen: anchor.seen(),
        });
        config.protected(&config::Protected {
            index,
            flags: flag(volume.read_only, mount_flags::READ_ONLY),
            anchor,
            key,
            path,
        });
    }
}

/// File mode of a standard stream; 0 when it is closed.
fn stream_mode(number: i32) -> u64 {
    let path = format!("/proc/self/fd/{number}");
    std::fs::metadata(path).map_or(0, |m| u64::from(m.mode()))
}

/// The strings of the environment that is wanted, of which later ones have replaced earlier ones of their name.
pub fn environment(wanted: &Environment) -> Vec<Vec<u8>> {
    let mut all: Vec<(OsString, OsString)> = if wanted.clear {
        Vec::new()
    } else {
        std::env::vars_os().collect()
    };
    let mut set = |name: &OsStr, value: OsString| {
        all.retain(|(n, _)| n != name);
        all.push((name.to_owned(), value));
    };
    for variable in &wanted.set {
        match variable.split_once('=') {
            Some((name, value)) => set(OsStr::new(name), value.into()),
            None => {
                if let Some(value) = std::env::var_os(variable) {
                    set(OsStr::new(variable), value);
                }
            }
        }
    }
    all.into_iter()
        .map(|(name, value)| [name.into_vec(), b"=".to_vec(), value.into_vec()].concat())
        .collect()
}

#[cfg(test)]
mod tests;
