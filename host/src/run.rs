//! From what a user asks for to a running VM, and back to how the program ended. [`stated`] does the same for a manifest.

mod configuration;
mod network;
mod options;
mod service;
pub mod stated;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::control::folder::{Folder, Name};
use crate::control::wire::ContextInfo;
use crate::jail::calls;
use crate::jail::privileges::Identity;
use crate::platform::Machine;
use crate::user;
use crate::vm::error::VmError;
use crate::vm::signals::Inherited;
use crate::vm::{self, ContextOptions, Options, Statistics};

pub use cloak_abi::config::Published;

pub use crate::vm::anchors::{Anchor, Mark};
pub use crate::vm::resident::Resident;
pub use crate::vm::{Ended, Outcome};

use self::configuration::{configuration, context_name};
pub use self::options::{Environment, Network, Protected, RootTree, RunOptions, Segment, Volume, VolumeKey};
use self::service::{OsSide, watch, withheld};
use self::stated::Stated;

/// Runs a program to its end, in a VM of its own.
///
/// # Errors
/// When Cloak itself failed; how the program ended is an [`Outcome`].
pub fn run(mut options: RunOptions) -> Result<(Outcome, Statistics), VmError> {
    let control = options.control.take();
    let ended = run_all(vec![options], Vec::new(), control.as_ref())?
        .pop()
        .ok_or(VmError::Shim("the VM ended without its context"))?;
    Ok((ended.outcome?, ended.statistics))
}

/// Runs programs to their ends, each in a context of its own, all in one VM. Devices other than the first one's are not
/// asked for. With `control`, the owner may ask for things under that name while it runs.
///
/// # Errors
/// When Cloak itself failed before all had ended.
pub fn run_all(
    mut all: Vec<RunOptions>,
    segments: Vec<Segment>,
    control: Option<&Name>,
) -> Result<Vec<Ended>, VmError> {
    // Signals must be blocked before any thread exists, so that none is lost.
    let signals = vm::signals::block();
    let caller = user::caller()?;
    let sides = all.iter().map(OsSide::of).collect::<Result<Vec<_>, _>>()?;
    let withheld = withheld(&all)?;
    let contexts = all
        .iter_mut()
        .zip(&sides)
        .enumerate()
        .map(|(index, (options, side))| {
            let own = segments
                .iter()
                .filter(|segment| segment.contexts.contains(&index));
            context(
                options,
                side.user.as_ref().unwrap_or(&caller),
                own,
                control.is_some(),
                signals,
            )
        })
        .collect::<Result<Vec<_>, _>>()?;
    let first = all.first_mut().ok_or(VmError::Shim("no program"))?;
    let machine = std::mem::take(&mut first.machine);
    let options = Options {
        device: first.device.clone(),
        own_tables: contexts.len() == 1 && !first.kernel_tables,
        contexts,
        segments: segments.into_iter().map(Segment::place).collect(),
        control: control.map(|name| Folder::open()?.bind(name)).transpose()?,
    };
    let mut prepared = vm::prepare(options, machine)?;
    let mut services = Vec::new();
    for (border, side) in prepared.borders.iter().zip(sides) {
        services.push(side.start(border, &caller, &withheld)?);
    }
    prepared.phases.done("starting the OS service");
    let running = prepared.start()?;
    for (index, service) in services.iter().enumerate() {
        watch(service, running.on_service_end(index))?;
    }
    calls::close(&calls::VM)?;
    running.wait()
}

/// The context that a user asks for. Its anchors go over to it.
fn context<'a>(
    options: &mut RunOptions,
    user: &Identity,
    segments: impl Iterator<Item = &'a Segment>,
    controlled: bool,
    signals: Inherited,
) -> Result<ContextOptions, VmError> {
    let program = find_program(options)?;
    let given = |volume: &Protected| matches!(volume.key, VolumeKey::Given(_));
    if options.protected.iter().any(given) && !matches!(options.machine, Machine::Plain) {
        return Err(VmError::NotOnPlatform {
            what: "a key for a protected volume",
            why: "the host is not to have it; with a manifest it comes from inside",
        });
    }
    let vcpus = options.vcpus();
    if options.id_block.is_some() && !options.machine.has_id_block() {
        return Err(VmError::NotOnPlatform {
            what: "an ID block",
            why: "only the firmware of SEV-SNP takes one",
        });
    }
    // A run without a manifest is its owner's to add to; a manifest says so, or it is not.
    let exec = options.stated.as_ref().is_none_or(|stated| stated.exec);
    let stated = match options.stated.take() {
        Some(stated) => stated,
        None => Stated::of(&stated::of_options(options, &program, vcpus))?,
    };
    let words: Vec<_> = options
        .command
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    let info = ContextInfo {
        name: context_name(options),
        command: words.join(" "),
        ended: false,
        cpus: vcpus,
        memory: options.memory,
        resident: options.resident.as_ref().map(|limit| limit.bytes),
        exec,
    };
    Ok(ContextOptions {
        info,
        vcpus,
        memory: options.memory,
        config: configuration(
            options,
            &stated,
            &program,
            user,
            segments,
            controlled && exec,
            signals,
        )?,
        identity: *stated.identity.as_bytes(),
        host_data: stated.host_data,
        config_id: stated.config_id,
        id_block: options.id_block.take(),
        memory_key: options.memory_key.take(),
        anchors: std::mem::take(&mut options.protected)
            .into_iter()
            .filter_map(|volume| volume.anchor)
            .collect(),
        // Where the monitor can't read memory, the guest has a pager of its own.
        resident: options
            .resident
            .take_if(|_| matches!(options.machine, Machine::Plain)),
    })
}

/// Ends this process by the signal that ended the program, so that the caller sees the same.
pub fn die_by(signal: u8) -> ExitCode {
    vm::signals::die_by(signal);
    // A signal that does not end a process by default.
    ExitCode::from(128 + signal)
}

/// The program's path as a shell would find it.
fn find_program(options: &RunOptions) -> Result<PathBuf, VmError> {
    let name = options.command.first().ok_or(VmError::Shim("no program"))?;
    let path = Path::new(name);
    if name.as_bytes().contains(&b'/') {
        return Ok(path.to_owned());
    }
    let search = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
    let executable = |p: &PathBuf| {
        p.metadata()
            .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    // Not found here: the guest says so, with the code that shells give.
    Ok(std::env::split_paths(&search)
        .map(|d| d.join(name))
        .find(executable)
        .unwrap_or_else(|| path.to_owned()))
}
