//! From what a user asks for to a running VM, and back to how the program ended. [`stated`] does the same for a manifest.

mod network;
pub mod stated;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use cloak_abi::config::{self, Anchored, Tag, Writer, mount_flags, run_flags};
use cloak_abi::layout::MAX_VCPUS;
use cloak_abi::ring::Stat;
use rustix::process::Resource;
use zeroize::Zeroizing;

use crate::control::folder::{self, Folder, Name};
use crate::control::wire::ContextInfo;
use crate::jail::calls;
use crate::jail::privileges::Identity;
use crate::kvm::snp::IdBlock;
use crate::os::{self, Access, OsService, Root, SpawnConfig};
use crate::platform::Machine;
use crate::user;
use crate::vm::error::{Step, VmError};
use crate::vm::signals::Inherited;
use crate::vm::{self, Border, ContextOptions, Options, Statistics};

pub use cloak_abi::config::Published;

pub use crate::vm::anchors::{Anchor, Mark};
pub use crate::vm::resident::Resident;
pub use crate::vm::{Ended, Outcome};

use self::stated::{Measured, Stated};

/// A host directory or file in the guest's name space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// On the host.
    pub host: PathBuf,
    /// In the guest, absolute.
    pub guest: PathBuf,
    /// Whether the program may only read it.
    pub read_only: bool,
}

/// Where a protected volume's key comes from.
pub enum VolumeKey {
    /// The monitor, which is trusted.
    Given(Box<Zeroizing<[u8; 32]>>),
    /// Inside: the machine, or a broker.
    Inside,
    /// Nowhere: the program finds the ciphertext, to be read.
    Nobody,
}

/// A protected volume: the OS side has its container, the guest its key.
pub struct Protected {
    /// The container: a file.
    pub container: PathBuf,
    /// In the guest, absolute.
    pub guest: PathBuf,
    /// Whether the program may only read it.
    pub read_only: bool,
    /// Its key.
    pub key: VolumeKey,
    /// What remembers its last root.
    pub anchor: Option<Box<dyn Anchor>>,
    /// Files that the OS side must not read or change: of the key, of the anchor.
    pub withheld: Vec<PathBuf>,
}

impl fmt::Debug for Protected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Protected")
            .field("container", &self.container)
            .field("guest", &self.guest)
            .finish_non_exhaustive()
    }
}

/// Memory that several contexts share, as a file in `/dev/shm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Name of the file.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// Indices of the contexts that share it.
    pub contexts: Vec<usize>,
}

/// The program's environment.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Do not pass the caller's on.
    pub clear: bool,
    /// `NAME=value`, or `NAME` to pass one on.
    pub set: Vec<String>,
}

/// What the host's root is to a program. The OS service opens it for reading only, either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RootTree {
    /// Changes stay in guest memory, and end with the program.
    #[default]
    Overlay,
    /// Writes give EROFS.
    ReadOnly,
}

/// What of the network a program sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    #[default]
    Host,
    /// None: sockets answer as in an empty network namespace.
    None,
    /// Its own: what is said there stays inside, but for connections to others and ports that are published.
    Private,
}

/// What a user asks for.
#[derive(Debug)]
pub struct RunOptions {
    /// The KVM device.
    pub device: PathBuf,
    /// vCPUs; none: the host's processors.
    pub cpus: Option<usize>,
    /// Guest memory, bytes.
    pub memory: u64,
    /// Environment.
    pub environment: Environment,
    /// As whom the program runs and its files are accessed: `USER[:GROUP]`; none: as the caller.
    pub user: Option<String>,
    /// Working directory; none: the caller's.
    pub workdir: Option<PathBuf>,
    /// What the host's root is to the program; none: it is not there, and neither is a `/tmp` in memory.
    pub host_root: Option<RootTree>,
    /// Volumes of the host besides.
    pub volumes: Vec<Volume>,
    /// Volumes in guest memory: where, and whether the program may only read them.
    pub memory_volumes: Vec<(PathBuf, bool)>,
    /// What is measured.
    pub measured: Measured,
    /// Protected volumes.
    pub protected: Vec<Protected>,
    /// Further files that the OS side must not read or change.
    pub withheld: Vec<PathBuf>,
    /// Network.
    pub network: Network,
    /// Ports of a private network that the host publishes.
    pub published: Vec<Published>,
    /// The manifest that all of this follows from; none: one is made of it.
    pub stated: Option<Stated>,
    /// Key of guest memory that is sealed; none: one for this run.
    pub memory_key: Option<Box<Zeroizing<[u8; 32]>>>,
    /// How much of guest memory may be plaintext; none: all of it.
    pub resident: Option<Resident>,
    /// Name of the context: the host name inside.
    pub name: Option<String>,
    /// Name under which the owner may ask for things while it runs; none: nobody can. [`run_all`] takes its own.
    pub control: Option<Name>,
    /// Kind of machine.
    pub machine: Machine,
    /// Who vouches for an SNP guest, if there is somebody.
    pub id_block: Option<IdBlock>,
    /// One line per system call.
    pub trace: bool,
    /// Turn system-call sites into jumps.
    pub patch: bool,
    /// Let the kernel edit and check page tables although there is one context.
    pub kernel_tables: bool,
    /// Program and arguments, not empty.
    pub command: Vec<OsString>,
}

impl RunOptions {
    /// A program and its arguments (not empty), and for the rest what `cloak run` does by default.
    #[must_use]
    pub fn new(command: Vec<OsString>) -> Self {
        Self {
            device: "/dev/kvm".into(),
            cpus: None,
            memory: 4 << 30,
            environment: Environment::default(),
            user: None,
            workdir: None,
            host_root: Some(RootTree::default()),
            volumes: Vec::new(),
            memory_volumes: Vec::new(),
            measured: Measured::default(),
            protected: Vec::new(),
            withheld: Vec::new(),
            network: Network::Host,
            published: Vec::new(),
            stated: None,
            memory_key: None,
            resident: None,
            name: None,
            control: None,
            machine: Machine::Plain,
            id_block: None,
            trace: false,
            patch: true,
            kernel_tables: false,
            command,
        }
    }

    /// How many vCPUs there will be.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.cpus.unwrap_or_else(|| {
            thread::available_parallelism()
                .map_or(1, usize::from)
                .min(MAX_VCPUS)
        })
    }
}

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
    let mut prepared = vm::prepare(Options {
        device: first.device.clone(),
        own_tables: contexts.len() == 1 && !first.kernel_tables,
        contexts,
        segments: segments.into_iter().map(Segment::place).collect(),
        control: control.map(|name| Folder::open()?.bind(name)).transpose()?,
        machine: std::mem::take(&mut first.machine),
    })?;
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

impl Segment {
    fn place(self) -> vm::load::Segment {
        vm::load::Segment {
            bytes: self.bytes,
            contexts: self.contexts,
        }
    }
}

/// What is needed to start a context's OS service.
struct OsSide {
    roots: Vec<(OwnedFd, Access)>,
    network: Network,
    user: Option<Identity>,
}

impl OsSide {
    fn of(options: &RunOptions) -> Result<Self, VmError> {
        Ok(Self {
            roots: open_roots(options)?,
            network: options.network,
            user: options.user.as_deref().map(user::named).transpose()?,
        })
    }

    fn start(self, border: &Border, caller: &Identity, withheld: &[PathBuf]) -> Result<OsService, VmError> {
        let spawn = SpawnConfig {
            region: border.shared.fd().as_fd(),
            doorbell: border.doorbell.as_fd(),
            streams: border.service_streams(),
            wakes: border.wakes.iter().map(AsFd::as_fd).collect(),
            roots: self
                .roots
                .iter()
                .map(|(fd, access)| Root {
                    directory: fd.as_fd(),
                    access: *access,
                })
                .collect(),
            spin: SpawnConfig::SPIN,
            network: self.network != Network::None,
            user: self.user.filter(|user| user != caller),
            withheld: withheld.to_vec(),
        };
        os::spawn(&spawn).map_err(|e| VmError::Os {
            step: "starting the OS service",
            source: std::io::Error::other(e),
        })
    }
}

/// Tells when the service has ended.
fn watch(service: &OsService, ended: impl Fn() + Send + 'static) -> Result<(), VmError> {
    let pidfd = service
        .pidfd()
        .try_clone_to_owned()
        .step("watching the OS service")?;
    let watcher = move || {
        let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        while rustix::event::poll(&mut poll, None) == Err(rustix::io::Errno::INTR) {}
        ended();
    };
    thread::Builder::new()
        .name("os-service".to_owned())
        .stack_size(64 << 10)
        .spawn(watcher)
        .step("watching the OS service")?;
    Ok(())
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
    let info = ContextInfo {
        name: options.name.clone().unwrap_or_else(host_name),
        command: command_line(&options.command),
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

/// What the OS service may use: the host's root, the shared volumes, the containers of the protected ones.
fn open_roots(options: &RunOptions) -> Result<Vec<(OwnedFd, Access)>, VmError> {
    let open = |path: &Path| {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
            .open(path);
        file.map(OwnedFd::from).map_err(|source| VmError::Volume {
            path: path.to_owned(),
            source,
        })
    };
    let host_root = PathBuf::from("/");
    let root = options.host_root.map(|_| (&host_root, true));
    let shared = options.volumes.iter().map(|v| (&v.host, v.read_only));
    let measured = options.measured.volumes.iter().map(|(source, _)| (source, true));
    let only_read = |v: &Protected| v.read_only || matches!(v.key, VolumeKey::Nobody);
    let protected = options.protected.iter().map(|v| (&v.container, only_read(v)));
    let mut roots = Vec::new();
    let swap = inside(options).map(|limit| (&limit.swap, false));
    if let Some((path, _)) = swap {
        let made = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path);
        made.map_err(|source| VmError::Volume {
            path: path.clone(),
            source,
        })?;
    }
    // In the order of the numbers that the configuration gives them.
    let all = root
        .into_iter()
        .chain(shared)
        .chain(measured)
        .chain(protected)
        .chain(swap);
    for (path, read_only) in all {
        let access = if read_only {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        roots.push((open(path)?, access));
    }
    Ok(roots)
}

/// The limit on plaintext that the guest keeps by itself.
fn inside(options: &RunOptions) -> Option<&Resident> {
    options
        .resident
        .as_ref()
        .filter(|_| !matches!(options.machine, Machine::Plain))
}

/// The files that no OS service must be given, as they are found without symbolic links.
fn withheld(all: &[RunOptions]) -> Result<Vec<PathBuf>, VmError> {
    let canonical = |path: &PathBuf| {
        path.canonicalize().map_err(|source| VmError::Volume {
            path: path.clone(),
            source,
        })
    };
    let protected = all.iter().flat_map(|options| &options.protected);
    let of_volumes = protected.flat_map(|volume| &volume.withheld);
    let files = of_volumes.chain(all.iter().flat_map(|options| &options.withheld));
    let mut files = files.map(canonical).collect::<Result<Vec<_>, _>>()?;
    // A service that was taken over shall not find what opens control sockets, its own VM's or others'.
    files.extend(folder::withheld());
    let volumes = all.iter().flat_map(|options| &options.volumes);
    let measured = all.iter().flat_map(|options| &options.measured.volumes);
    let shared = volumes.map(|v| (&v.host, v.read_only));
    for (host, read_only) in shared.chain(measured.map(|(source, _)| (source, true))) {
        let given = canonical(host)?;
        // The host's root is given entry by entry, without what is withheld.
        if given == Path::new("/") && read_only {
            continue;
        }
        if let Some(file) = files.iter().find(|file| file.starts_with(&given)) {
            return Err(VmError::Exposed {
                file: file.clone(),
                volume: host.clone(),
            });
        }
    }
    Ok(files)
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

fn configuration<'a>(
    options: &RunOptions,
    stated: &Stated,
    program: &Path,
    user: &Identity,
    segments: impl Iterator<Item = &'a Segment>,
    exec: bool,
    signals: Inherited,
) -> Result<Zeroizing<Vec<u8>>, VmError> {
    let mut config = Writer::default();
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
    config.put(
        Tag::Manifest,
        &[&stated.shim.0, stated.canonical.as_bytes()].concat(),
    );
    let next = mounts(options, &mut config);
    let ids = [user.uid, user.gid]
        .into_iter()
        .chain(user.groups.iter().copied());
    config.numbers(Tag::Ids, &ids.map(u64::from).collect::<Vec<_>>());
    let name = options.name.clone().unwrap_or_else(host_name);
    config.put(Tag::HostName, name.as_bytes());
    let flag = |on: bool, bit: u64| if on { bit } else { 0 };
    config.numbers(
        Tag::Flags,
        &[flag(options.trace, run_flags::TRACE)
            | flag(!options.patch, run_flags::NO_PATCH)
            | flag(options.network == Network::None, run_flags::NO_NETWORK)
            | flag(exec, run_flags::EXEC)
            | flag(options.network == Network::Private, run_flags::PRIVATE_NETWORK)
            | flag(options.machine.is_simulated(), run_flags::SIMULATED)],
    );
    if options.network == Network::Private {
        network::put(&options.published, &mut config);
    }
    let files = rustix::process::getrlimit(Resource::Nofile);
    config.numbers(
        Tag::MaxFiles,
        &[files.current.unwrap_or(1 << 20), files.maximum.unwrap_or(1 << 20)],
    );
    let mut seed = [0u8; 32];
    File::open("/dev/urandom")
        .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut seed))
        .step("reading /dev/urandom")?;
    config.put(Tag::Seed, &seed);
    config.numbers(Tag::Stdio, &[0, 1, 2].map(stream_mode));
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(umask);
    config.numbers(Tag::Umask, &[u64::from(umask.bits())]);
    config.numbers(Tag::Signals, &[signals.ignored, signals.blocked]);
    protected_volumes(options, next, &mut config);
    if let Some(limit) = inside(options) {
        let index = u64::from(next) + options.protected.len() as u64;
        config.numbers(Tag::Resident, &[limit.bytes, index]);
    }
    for (index, segment) in (0..).zip(segments) {
        config.segment(index, segment.bytes, segment.name.as_bytes());
    }
    Ok(Zeroizing::new(config.finish()))
}

/// The program's working directory.
fn workdir(options: &RunOptions) -> PathBuf {
    let own = || std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    options.workdir.clone().unwrap_or_else(own)
}

/// All mounts but the protected volumes; gives the number of the first of those.
fn mounts(options: &RunOptions, config: &mut Writer) -> u32 {
    let read_only = |on: bool| if on { mount_flags::READ_ONLY } else { 0 };
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
        let flags = read_only(volume.read_only);
        config.mount(number(), flags, volume.guest.as_os_str().as_bytes());
    }
    for (_, guest) in &options.measured.volumes {
        let flags = mount_flags::READ_ONLY | mount_flags::MEASURED;
        config.mount(number(), flags, guest.as_bytes());
    }
    for (guest, only_read) in &options.memory_volumes {
        let flags = mount_flags::MEMORY | read_only(*only_read);
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
            flags: if volume.read_only {
                mount_flags::READ_ONLY
            } else {
                0
            },
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

fn environment(wanted: &Environment) -> Vec<Vec<u8>> {
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

/// For a person.
fn command_line(command: &[OsString]) -> String {
    let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            (Stat::Calls, "system calls"),
            (Stat::Trapped, "  by trap"),
            (Stat::Patched, "sites patched"),
            (Stat::Forwarded, "requests to the host"),
            (Stat::Doorbells, "  doorbells"),
            (Stat::Faults, "page faults served"),
            (Stat::Exceptions, "exceptions"),
            (Stat::Kcalls, "kernel calls"),
            (Stat::Interrupts, "interrupts"),
            (Stat::Dropped, "  dropped"),
            (Stat::Switches, "thread switches"),
            (Stat::Halts, "halts"),
            (Stat::Signals, "signals delivered"),
            (Stat::Frames, "frames in use at the end"),
            (Stat::HostFiles, "  host descriptors"),
            (Stat::Threads, "  threads"),
        ];
        for (stat, name) in rows {
            writeln!(f, "cloak: {name:<22} {:>12}", self.guest[stat as usize])?;
        }
        writeln!(f, "cloak: {:<22} {:>12}", "exits to the monitor", self.exits)?;
        if let Some(paging) = &self.paging {
            for (name, count) in paging.rows() {
                writeln!(f, "cloak: {name:<22} {count:>12}")?;
            }
        }
        for (name, time) in self.phases.iter() {
            writeln!(
                f,
                "cloak: time, {name:<34} {:>8.2} ms",
                time.as_secs_f64() * 1000.0
            )?;
        }
        Ok(())
    }
}
