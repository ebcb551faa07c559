//! From the first instruction to the program's.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use cloak_abi::config::{self, ConfigError, Published, Records, Tag, mount_flags, number, run_flags};
use cloak_abi::hostop::HostOp;
use cloak_abi::kcall::Kcall;
use cloak_abi::layout::PAGE;
use cloak_abi::ring::{SHARED_MAGIC, Stat, exit_status};
use spin::{Mutex, Once};
use zeroize::Zeroizing;

use crate::arch::{self, Frame};
use crate::fs::mount::Mount;
use crate::fs::protected::store::Container;
use crate::fs::tmpfs::Tmpfs;
use crate::fs::{FdTable, FsContext, MountRecord, Segment, measured, protected};
use crate::host::{self, Request};
use crate::mem::frames;
use crate::mem::pages;
use crate::mem::space::Space;
use crate::mem::swap;
use crate::net::mode::Mode;
use crate::net::private::network::Settings;
use crate::process::{self, Credentials, FIRST_PID, NotStarted, Process, Program};
use crate::sched::{self, Thread, clock};
use crate::stated::Stated;
use crate::stated::check::{Told, check};
use crate::{attest, identity, keys, net, patch, random, trace};

static FIRST: Once<Arc<Process>> = Once::new();

/// First Rust code on each vCPU.
pub extern "C" fn start(index: u32) -> ! {
    arch::set_boot_tcb(index as usize);
    if index == 0 {
        detect_syscall();
        first();
    }
    let process = FIRST
        .get()
        .cloned()
        .unwrap_or_else(|| arch::panic_exit("a vCPU started too early"));
    sched::start_vcpu(index as usize, process);
    sched::idle()
}

/// What only the first vCPU does.
fn first() {
    let header = host::header();
    if header.magic.load(Ordering::Relaxed) != SHARED_MAGIC
        || header.version.load(Ordering::Relaxed) != cloak_abi::VERSION
    {
        arch::panic_exit("the shared region is not this version's");
    }
    frames::init();
    let mut config = Config::read();
    attest::set_simulated(config.flags & run_flags::SIMULATED != 0);
    attest::check_manifest();
    if let Some(platform) = attest::platform() {
        config.hold_to_manifest(platform);
    }
    if frames::must_accept() && arch::hardware_random().is_none() {
        arch::panic_exit("the CPU has no random numbers, and the host's can't be believed");
    }
    random::seed(&config.seed);
    let process = Arc::new(Process::new(
        FIRST_PID,
        Arc::new(config.descriptors()),
        Arc::new(config.context()),
        config.credentials.clone(),
        Space::first(),
        process::Family::first(),
    ));
    process.signals.ignore(config.signals.0);
    FIRST.call_once(|| process.clone());
    process::set_initial(&process);
    process::set_host_name(&config.host_name);
    net::mode::set(config.network());
    net::private::network::set(core::mem::take(&mut *config.private.lock()));
    trace::ENABLED.store(config.flags & run_flags::TRACE != 0, Ordering::Relaxed);
    patch::DISABLED.store(config.flags & run_flags::NO_PATCH != 0, Ordering::Relaxed);
    let main = Thread::with_entry(process.clone(), FIRST_PID, run_program)
        .unwrap_or_else(|_| arch::panic_exit("no memory for the first thread"));
    main.signals.block(config.signals.1);
    process.add_thread(&main);
    CONFIG.call_once(|| config);
    main.start();
}

static CONFIG: Once<Config> = Once::new();

/// Where SYSCALL lands on this host: at CPL 3 in the libos's entry if that can be, else by the kernel's stub. The kernel
/// takes the answer once, for all vCPUs, so it has to come before anything else.
fn detect_syscall() {
    arch::kcall(Kcall::SyscallMode, 2);
    let stays = arch::syscall_stays_in_user_mode();
    arch::kcall(Kcall::SyscallMode, u64::from(stays));
}

/// First code of the program's main thread: it may park.
extern "C" fn run_program(_: u64) -> ! {
    sched::begin();
    let config = CONFIG
        .get()
        .unwrap_or_else(|| arch::panic_exit("no configuration"));
    init_clock();
    let started = &Process::current().family.started;
    started.store(clock::boottime(), Ordering::Relaxed);
    process::providers::install();
    if let Some((bytes, index)) = config.resident {
        limit(bytes, index).unwrap_or_else(|why| arch::exit(exit_status::refused(125), &why));
    }
    let memory = frames::usage().1 * 4096 / 2;
    let files = Process::current().files.clone();
    let mut folders: Vec<&[u8]> = config.mounts.iter().map(|m| m.path.as_slice()).collect();
    folders.extend([&b"/proc"[..], b"/sys", b"/dev", &config.cwd]);
    if net::mode::get() == Mode::Private {
        folders.push(b"/etc");
    }
    let sealed: Vec<Vec<u8>> = config
        .protected
        .lock()
        .iter()
        .map(|r| r.path().to_vec())
        .collect();
    folders.extend(sealed.iter().map(Vec::as_slice));
    let mut volumes = measured::mounts(&config.mounts, &config.measured, &folders)
        .unwrap_or_else(|why| arch::exit(exit_status::refused(125), &why));
    volumes.extend(mount_protected(config, memory));
    volumes.extend(network_files(config));
    volumes.extend(mount_ciphertext(config));
    let segments = config.segments();
    if crate::fs::init(&config.mounts, volumes, segments, config.stdio, memory, &files).is_err() {
        arch::panic_exit("the mounts of the configuration make no name space");
    }
    let program = Program {
        path: config.program.clone(),
        arguments: config.arguments.clone(),
        environment: config.environment.clone(),
    };
    let name = String::from_utf8_lossy(&config.program).into_owned();
    let started = process::open(program).and_then(|found| {
        attest::extend_with_program(found.file())?;
        Ok(found.load()?)
    });
    match started {
        Ok(start) => {
            if config.flags & run_flags::EXEC != 0 {
                process::outside::allow(config.defaults());
            }
            set_name(&config.program);
            host::header().stats[Stat::Entered as usize].store(arch::ticks(), Ordering::Relaxed);
            sched::enter_program(Frame::start(start.rip, start.rsp))
        }
        Err(why) => refuse(&name, &why),
    }
}

/// From now on at most so many bytes of plaintext are kept, and the rest sealed in the file that is host mount `index`.
fn limit(bytes: u64, index: u64) -> Result<(), String> {
    let index = index.min(u64::from(cloak_abi::hostop::MAX_MOUNTS));
    let opened = Container::open(u64::from(cloak_abi::hostop::ROOT_FD) + index, true);
    let file =
        opened.map_err(|errno| format!("the file for sealed pages can't be opened ({})", errno.name()))?;
    // Keys of this boot: what is in the file is nobody's after it.
    let (mut key, mut salt) = (Zeroizing::new([0; 32]), [0; 32]);
    random::fill(&mut *key);
    random::fill(&mut salt);
    let context = 1 + u64::from(arch::boot().index);
    swap::begin(alloc::boxed::Box::new(file), context, &key, &salt);
    frames::set_limit(bytes);
    Ok(())
}

/// What the C library reads about a private network, unless the configuration names something else there.
fn network_files(config: &Config) -> Vec<Mount> {
    if net::mode::get() != Mode::Private {
        return Vec::new();
    }
    let host_name = String::from_utf8_lossy(&config.host_name).into_owned();
    let texts = [
        ("hosts", net::private::texts::hosts(&host_name)),
        ("hostname", format!("{host_name}\n")),
        ("resolv.conf", net::private::network::resolver()),
    ];
    let files = Tmpfs::new(1 << 20, 0o755);
    let mut mounts = Vec::new();
    for (name, content) in texts {
        let path = [b"/etc/", name.as_bytes()].concat();
        if config.names(&path) {
            continue;
        }
        let Ok(node) = files.file(name.as_bytes(), content.as_bytes()) else {
            arch::exit(exit_status::refused(125), "the host's resolv.conf is too large");
        };
        mounts.push(Mount::node("tmpfs", &path, node, false));
    }
    mounts
}

/// Bytes of decrypted blocks that all protected volumes keep.
const VOLUME_CACHE: core::ops::RangeInclusive<u64> = 4 << 20..=256 << 20;

/// Opens the protected volumes, with their keys, which nobody has any more after it.
fn mount_protected(config: &Config, memory: u64) -> Vec<Mount> {
    let records = core::mem::take(&mut *config.protected.lock());
    let all = (memory / 4).clamp(*VOLUME_CACHE.start(), *VOLUME_CACHE.end());
    let each = all / records.len().max(1) as u64;
    if config.released {
        let owner = owner(&config.credentials);
        protected::pending::wait(records, arch::boot().identity, owner, each as usize);
        return Vec::new();
    }
    let mounts = records.into_iter().map(|record| {
        protected::mount(record, each as usize)
            .unwrap_or_else(|why| arch::exit(exit_status::refused(125), &why))
    });
    mounts.collect()
}

/// Whose a volume is that is made here: user and group.
fn owner(credentials: &Credentials) -> [u32; 2] {
    [credentials.uid[0], credentials.gid[0]]
}

/// Opens the protected volumes of which this context has no key.
fn mount_ciphertext(config: &Config) -> Vec<Mount> {
    let asked = config.mounts.iter();
    let asked = asked.filter(|record| record.flags & mount_flags::CIPHERTEXT != 0);
    let mounts = asked.map(|record| {
        protected::ciphertext::mount(record).unwrap_or_else(|why| arch::exit(exit_status::refused(125), &why))
    });
    mounts.collect()
}

/// The running thread's name: that of the file.
pub fn set_name(path: &[u8]) {
    let base = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
    let mut name = [0u8; 16];
    let len = base.len().min(15);
    name[..len].copy_from_slice(&base[..len]);
    *sched::current().name.lock() = name;
}

/// The program can't be started.
fn refuse(name: &str, refused: &NotStarted) -> ! {
    let (code, why) = process::outside::told(name, refused);
    arch::exit(exit_status::refused(code), &why)
}

/// Asks the OS side what time it is, once; from then on time comes from the CPU.
fn init_clock() {
    let mut request = Request::new();
    let before = arch::ticks();
    let answer = request.call(HostOp::Clock, [0; 6]);
    let after = arch::ticks();
    if answer.ok().is_err() {
        arch::panic_exit("the OS service does not tell the time");
    }
    let bytes: [u8; 24] = request.get_array(0);
    let word = |i: usize| {
        let mut w = [0; 8];
        w.copy_from_slice(&bytes[8 * i..8 * i + 8]);
        u64::from_le_bytes(w)
    };
    clock::init(clock::Base {
        tsc: before + (after - before) / 2,
        mono_ns: word(0),
        real_ns: word(1),
        boot_ns: word(2),
    });
}

/// One segment of the configuration.
#[derive(Debug)]
struct SegmentRecord {
    index: usize,
    len: u64,
    name: Vec<u8>,
}

/// The configuration, read from private memory.
#[derive(Debug, Default)]
struct Config {
    program: Vec<u8>,
    arguments: Vec<Vec<u8>>,
    environment: Vec<Vec<u8>>,
    cwd: Vec<u8>,
    mounts: Vec<MountRecord>,
    measured: measured::Listed,
    /// With their keys, until they are mounted.
    protected: Mutex<Vec<protected::Record>>,
    /// Whether their keys come later.
    released: bool,
    segments: Vec<SegmentRecord>,
    credentials: Credentials,
    host_name: Vec<u8>,
    flags: u64,
    /// Most bytes of plaintext, and the host mount for the rest.
    resident: Option<(u64, u64)>,
    private: Mutex<Settings>,
    max_files: (u64, u64),
    seed: Vec<u8>,
    stdio: [u32; 3],
    umask: u32,
    /// Sets of signals that the caller ignores, and blocks.
    signals: (u64, u64),
}

impl Config {
    fn read() -> Self {
        let boot = arch::boot();
        // Copied: where the launch is measured it is in memory that the host may change meanwhile.
        let mut bytes = alloc::vec![0u8; boot.config_len as usize];
        // SAFETY: the window maps it, and the copy is ours.
        unsafe {
            arch::copy_own(
                bytes.as_mut_ptr(),
                frames::window(boot.config_gpa) as *const u8,
                bytes.len(),
            )
        };
        let mut config = Self {
            max_files: (1024, 4096),
            umask: 0o022,
            ..Self::default()
        };
        for record in Records::new(&bytes) {
            if record.and_then(|(tag, value)| config.take(tag, value)).is_err() {
                arch::panic_exit("the configuration can't be read");
            }
        }
        // Keys are taken, and the seed: nothing of it is needed here any more.
        let at = frames::window(boot.config_gpa) as *mut u8;
        for offset in 0..boot.config_len as usize {
            // SAFETY: inside the configuration, to which no reference is left. Volatile, as nobody reads it again.
            unsafe { at.add(offset).write_volatile(0) };
        }
        bytes.fill(0);
        core::hint::black_box(&bytes);
        config
    }

    fn take(&mut self, tag: Tag, value: &[u8]) -> Result<(), ConfigError> {
        let n = |i: usize| number(tag, value, i);
        match tag {
            Tag::Program => self.program = value.to_vec(),
            Tag::Arg => self.arguments.push(value.to_vec()),
            Tag::Env => self.environment.push(value.to_vec()),
            Tag::Cwd => self.cwd = value.to_vec(),
            Tag::Mount => self
                .mounts
                .push(MountRecord::parse(value).map_err(|_| ConfigError::Size(tag))?),
            Tag::Ids => {
                self.credentials.uid = [n(0)? as u32; 4];
                self.credentials.gid = [n(1)? as u32; 4];
                self.credentials.groups = (2..value.len() / 8)
                    .map(|i| n(i).map(|g| g as u32))
                    .collect::<Result<_, _>>()?;
            }
            Tag::HostName => self.host_name = value.to_vec(),
            Tag::Flags => self.flags = n(0)?,
            Tag::MaxFiles => self.max_files = (n(0)?, n(1)?),
            Tag::Seed => self.seed = value.to_vec(),
            Tag::Stdio => self.stdio = [n(0)? as u32, n(1)? as u32, n(2)? as u32],
            Tag::Umask => self.umask = n(0)? as u32,
            Tag::Signals => self.signals = (n(0)?, n(1)?),
            Tag::Published => {
                let published = Published::parse(value)?;
                self.private.get_mut().published.push(published);
            }
            Tag::NameServer => {
                let server = config::ip_address(value).ok_or(ConfigError::Size(tag))?;
                self.private.get_mut().name_servers.push(server);
            }
            Tag::Resolver => self.private.get_mut().resolver = value.to_vec(),
            Tag::Segment => self.segments.push(SegmentRecord {
                index: n(0)? as usize,
                len: n(1)?,
                name: value.get(16..).unwrap_or_default().to_vec(),
            }),
            Tag::Resident => self.resident = Some((n(0)?, n(1)?)),
            Tag::Exec => return Err(ConfigError::Size(tag)),
            Tag::Manifest => {
                identity::take(value, &arch::boot().identity).map_err(|_| ConfigError::Size(tag))?
            }
            Tag::File => {
                let (digest, path) = config::measured_file(value)?;
                self.measured.files.push((*digest, path.to_vec()));
            }
            Tag::Link => {
                let (path, target) = config::measured_link(value)?;
                self.measured.links.push((path.to_vec(), target.to_vec()));
            }
            Tag::Protected => {
                let record = protected::Record::new(&config::Protected::parse(value)?);
                let record = record.map_err(|_| ConfigError::Size(tag))?;
                self.protected.get_mut().push(record);
            }
        }
        Ok(())
    }

    /// Where the launch is measured: nothing of this is believed that the manifest does not say, and keys come from inside.
    fn hold_to_manifest(&mut self, platform: &'static str) {
        let refuse = |why: &str| -> ! { arch::exit(exit_status::refused(125), why) };
        let manifest = String::from_utf8(identity::manifest()).unwrap_or_default();
        let stated = Stated::read(&manifest).unwrap_or_else(|at| {
            refuse(&format!(
                "line {} of the manifest is none that this build knows",
                at.0
            ))
        });
        let records = self.protected.get_mut();
        let told = Told {
            program: &self.program,
            arguments: &self.arguments,
            environment: &self.environment,
            cwd: &self.cwd,
            mounts: &self.mounts,
            protected: records.iter().map(|r| (r.path(), r.is_read_only())).collect(),
            flags: self.flags,
            published: &self.private.get_mut().published,
            segments: self.segments.len(),
            vcpus: arch::boot().vcpus,
            platform,
        };
        check(&stated, &told).unwrap_or_else(|why| refuse(&format!("the host's configuration: {why}")));
        // Nor may the host make a program deaf to its own signals.
        self.signals = (0, 0);
        self.released = stated.released.is_some();
        let derived = !records.is_empty() && !self.released;
        let root = attest::take_root(derived).unwrap_or_else(|why| refuse(why));
        for record in records {
            // The host's word is none, whatever the record says.
            let key = keys::of_volume(&root, &arch::boot().identity, record.path());
            record.set_key(&key, owner(&self.credentials));
        }
        self.measured = measured::Listed {
            files: stated.files,
            links: stated.links,
        };
    }

    fn network(&self) -> Mode {
        let set = |flag: u64| self.flags & flag != 0;
        match (set(run_flags::NO_NETWORK), set(run_flags::PRIVATE_NETWORK)) {
            (true, _) => Mode::None,
            (false, true) => Mode::Private,
            (false, false) => Mode::Host,
        }
    }

    /// Whether the configuration itself says what is at a path.
    fn names(&self, path: &[u8]) -> bool {
        let mounts = self.mounts.iter().map(|m| &m.path);
        let files = self.measured.files.iter().map(|(_, path)| path);
        let links = self.measured.links.iter().map(|(path, _)| path);
        mounts.chain(files).chain(links).any(|named| named == path)
    }

    /// The segments that are shared with other contexts, as far as the boot block has them.
    fn segments(&self) -> Vec<Segment> {
        let all = self.segments.iter().filter_map(|record| {
            let &[start, end] = arch::boot().segments.get(record.index)?;
            let run = (start..end).step_by(PAGE as usize);
            Some(Segment {
                name: record.name.clone(),
                len: record.len.min(end - start),
                frames: run.map(|gpa| pages::Frame::lent(frames::window(gpa))).collect(),
            })
        });
        all.collect()
    }

    /// What a further process has, unless it is asked for with something else.
    fn defaults(&self) -> process::outside::Defaults {
        process::outside::Defaults {
            environment: self.environment.clone(),
            cwd: self.cwd.clone(),
            umask: self.umask,
            max_files: self.max_files,
            credentials: self.credentials.clone(),
        }
    }

    fn descriptors(&self) -> FdTable {
        FdTable::new(self.max_files.0 as usize, self.max_files.1 as usize)
    }

    fn context(&self) -> FsContext {
        let context = FsContext::default();
        *context.cwd.lock() = self.cwd.clone();
        context.umask.store(self.umask, Ordering::Relaxed);
        context
    }
}
