//! Processes that the owner starts beside the program's own (`cloak exec`).
//!
//! The request comes from the monitor ([`cloak_abi::exec`]), by memory that is its own where the launch is measured: it is copied once, and
//! its numbers are looked at before they are used. The OS service only hands over the
//! streams, and what it says of them is checked as all that it says. Such a process is nobody's child in here: the
//! program does not learn of its end, and need not wait for it. It begins a session of its own.
//!
//! ```text
//!  attend (any vCPU) ──▶ thread: streams, terminal, program ──▶ runs ──▶ ended ──▶ monitor
//!                          └── terminal: two relays ── output drained ────────────┘
//! ```

mod relay;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use cloak_abi::config::{ConfigError, Records, Tag, number};
use cloak_abi::exec::{EXECS, exec_flags};
use cloak_abi::ring::exit_status;
use cloak_abi::vcpu::MonitorCall;
use spin::{Mutex, Once};

use self::relay::Relay;
use super::load::{NotStarted, Program, Start};
use super::{Credentials, Family, Process, Status, clone, end, exec, exit_group, family, open};
use crate::arch::{self, Frame};
use crate::errno::{Errno, SysResult};
use crate::fs::{FdTable, FsContext, OpenFile, handed_streams, pty};
use crate::mem::space::Space;
use crate::sched::{self, Thread};
use crate::signal::number::{SIGINT, SIGQUIT};
use crate::signal::{self, pending};

/// What a further process has, unless it is asked for with something else: what the program began with.
#[derive(Debug)]
pub struct Defaults {
    /// Environment, `NAME=value`.
    pub environment: Vec<Vec<u8>>,
    /// Working directory.
    pub cwd: Vec<u8>,
    /// File-creation mask.
    pub umask: u32,
    /// Limits of open files.
    pub max_files: (u64, u64),
    /// Identity.
    pub credentials: Credentials,
}

/// Set once the program begins, if the owner may start others.
static DEFAULTS: Once<Defaults> = Once::new();
/// Held by the vCPU that takes requests.
static TURN: Mutex<()> = Mutex::new(());
static ALL: Mutex<BTreeMap<i32, Arc<Outside>>> = Mutex::new(BTreeMap::new());
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Where programs are searched for without a `PATH`.
const PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is asked for.
#[derive(Debug, Default)]
struct Asked {
    program: Vec<u8>,
    arguments: Vec<Vec<u8>>,
    environment: Vec<Vec<u8>>,
    cwd: Option<Vec<u8>>,
    /// Sets of signals that the caller ignores, and blocks.
    signals: (u64, u64),
    flags: u64,
    ticket: u64,
    window: [u16; 2],
}

impl Asked {
    fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let mut asked = Self::default();
        for record in Records::new(bytes) {
            let (tag, value) = record?;
            let n = |i| number(tag, value, i);
            match tag {
                Tag::Program => asked.program = value.to_vec(),
                Tag::Arg => asked.arguments.push(value.to_vec()),
                Tag::Env => asked.environment.push(value.to_vec()),
                Tag::Cwd => asked.cwd = Some(value.to_vec()),
                Tag::Signals => asked.signals = (n(0)?, n(1)?),
                Tag::Exec => {
                    (asked.flags, asked.ticket) = (n(0)?, n(1)?);
                    asked.window = [n(2)? as u16, n(3)? as u16];
                }
                other => return Err(ConfigError::Size(other)),
            }
        }
        if asked.program.is_empty() || asked.arguments.is_empty() {
            return Err(ConfigError::Size(Tag::Program));
        }
        Ok(asked)
    }
}

/// One such process.
#[derive(Debug)]
struct Outside {
    slot: usize,
    request: Mutex<Option<Asked>>,
    /// Code and reason, when it could not be started.
    refused: Mutex<Option<(u8, String)>>,
    relay: Mutex<Option<Arc<Relay>>>,
    /// How it ended, and that it has.
    status: AtomicU64,
    over: AtomicBool,
}

/// The owner may start further processes from now on: there are files, and there is a program.
pub fn allow(defaults: Defaults) {
    DEFAULTS.call_once(|| defaults);
}

/// Whether the monitor has something to say. Cheap.
#[must_use]
pub fn is_asked() -> bool {
    if DEFAULTS.get().is_none() {
        return false;
    }
    let page = arch::exec_page();
    page.asked.load(Ordering::SeqCst) != 0 || page.news.load(Ordering::SeqCst) != 0
}

/// Takes what the monitor asks for. Never parks.
pub fn attend() {
    if !is_asked() {
        return;
    }
    let (Some(_turn), Some(defaults)) = (TURN.try_lock(), DEFAULTS.get()) else {
        return;
    };
    let page = arch::exec_page();
    let asked = page.asked.load(Ordering::SeqCst) as usize;
    if asked != 0 {
        let bytes = arch::exec_request(page.len.load(Ordering::Relaxed) as usize);
        page.asked.store(0, Ordering::SeqCst);
        if (1..=EXECS).contains(&asked) {
            let slot = asked - 1;
            if let Err(why) = start(slot, &bytes, defaults) {
                tell(slot, exit_status::refused(125), &why);
            }
        }
    }
    let mut news = page.news.swap(0, Ordering::SeqCst);
    while news != 0 {
        let slot = news.trailing_zeros() as usize;
        news &= news - 1;
        if slot < EXECS {
            pass_on(slot);
        }
    }
}

fn start(slot: usize, bytes: &[u8], defaults: &Defaults) -> Result<(), String> {
    let asked = Asked::parse(bytes).map_err(|_| "the request can't be read".to_string())?;
    let context = FsContext::default();
    *context.cwd.lock() = asked.cwd.clone().unwrap_or_else(|| defaults.cwd.clone());
    context.umask.store(defaults.umask, Ordering::Relaxed);
    let (soft, hard) = defaults.max_files;
    let pid = clone::next_id();
    let process = Arc::new(Process::new(
        pid,
        Arc::new(FdTable::new(soft as usize, hard as usize)),
        Arc::new(context),
        defaults.credentials.clone(),
        // Its own memory it makes itself: that may wait.
        end::NOWHERE.share(),
        Family::outside(pid),
    ));
    let failed = |errno: Errno| format!("it can't be started ({})", errno.name());
    process.signals.ignore(asked.signals.0);
    let thread = Thread::with_entry(process.clone(), pid, run).map_err(failed)?;
    thread.signals.block(asked.signals.1);
    family::add(&process).map_err(failed)?;
    process.add_thread(&thread);
    let outside = Outside {
        slot,
        request: Mutex::new(Some(asked)),
        refused: Mutex::new(None),
        relay: Mutex::new(None),
        status: AtomicU64::new(0),
        over: AtomicBool::new(false),
    };
    ALL.lock().insert(pid, Arc::new(outside));
    COUNT.fetch_add(1, Ordering::Relaxed);
    thread.start();
    Ok(())
}

fn find(pid: i32) -> Option<Arc<Outside>> {
    ALL.lock().get(&pid).cloned()
}

/// Signals and sizes for the process of a slot.
fn pass_on(slot: usize) {
    let Some((pid, outside)) = ALL
        .lock()
        .iter()
        .find(|(_, outside)| outside.slot == slot)
        .map(|(pid, outside)| (*pid, outside.clone()))
    else {
        return;
    };
    let place = &arch::exec_page().slots[slot];
    if let Some(relay) = &*outside.relay.lock() {
        relay.resize(window(place.window.load(Ordering::Relaxed)));
    }
    let mut bits = place.signals.swap(0, Ordering::AcqRel);
    while bits != 0 {
        let signal = bits.trailing_zeros() + 1;
        bits &= bits - 1;
        if matches!(signal, SIGINT | SIGQUIT) {
            // Typed at a terminal, it would be for the whole job.
            signal::send_group(pid, signal);
        } else if let Some(process) = family::find(pid).filter(|p| !p.family.has_ended()) {
            let info = pending::Info {
                signal,
                code: pending::code::SI_KERNEL,
                ..pending::Info::default()
            };
            signal::send_process(&process, info);
        }
    }
}

fn window(word: u64) -> [u16; 2] {
    [word as u16, (word >> 16) as u16]
}

/// First code of such a process: it may park.
extern "C" fn run(_: u64) -> ! {
    sched::begin();
    match begin() {
        Ok(start) => {
            exec::reset_registers();
            sched::enter_program(Frame::start(start.rip, start.rsp))
        }
        Err(code) => exit_group(Status::Exited(code)),
    }
}

/// Gets everything ready; the code to end with when that fails.
fn begin() -> Result<Start, u8> {
    let process = Process::current();
    let Some(outside) = find(process.pid) else {
        return Err(125);
    };
    let asked = outside.request.lock().take().unwrap_or_default();
    let name = String::from_utf8_lossy(&asked.program).into_owned();
    let refuse = |(code, why): (u8, String)| {
        *outside.refused.lock() = Some((code, why));
        code
    };
    let failed = |what: &'static str| move |errno: Errno| refuse((125, format!("{what} ({})", errno.name())));
    own_space(&process).map_err(failed("not enough guest memory for its address space"))?;
    streams(&process, &outside, &asked).map_err(failed("its streams did not come through the OS service"))?;
    let start = load(asked).map_err(|why| refuse(told(&name, &why)))?;
    crate::boot::set_name(name.as_bytes());
    Ok(start)
}

fn own_space(process: &Process) -> SysResult<()> {
    let space = Space::empty()?;
    process.replace_space(space.clone()).leave();
    sched::enter_space(space);
    Ok(())
}

/// The three descriptors that the OS service was handed for this.
fn streams(process: &Arc<Process>, outside: &Arc<Outside>, asked: &Asked) -> SysResult<()> {
    let mut all = handed_streams(asked.ticket)?.to_vec();
    if asked.flags & exec_flags::TERMINAL != 0 {
        all = terminal(process.pid, outside, &all, asked.window)?;
    }
    for (number, open) in (0..).zip(all) {
        process.files.replace(number, open, false)?;
    }
    Ok(())
}

/// A terminal of its own, which is its session's; the streams are the other side of it.
fn terminal(
    pid: i32,
    outside: &Arc<Outside>,
    streams: &[Arc<OpenFile>],
    size: [u16; 2],
) -> SysResult<Vec<Arc<OpenFile>>> {
    let (master, terminal, slave) = pty::open_pair()?;
    terminal.resize(size);
    let [input, output, ..] = streams else {
        return Err(Errno::EIO);
    };
    let relay = Relay::start(pid, master, terminal, input.clone(), output.clone())?;
    *outside.relay.lock() = Some(relay);
    Ok(alloc::vec![slave; 3])
}

fn load(asked: Asked) -> Result<Start, NotStarted> {
    let defaults = DEFAULTS.get().ok_or(Errno::EPERM)?;
    let mut environment = defaults.environment.clone();
    let name = |variable: &[u8]| variable.split(|&b| b == b'=').next().map(<[u8]>::to_vec);
    for variable in asked.environment {
        environment.retain(|known| name(known) != name(&variable));
        environment.push(variable);
    }
    let found = |path: Vec<u8>| {
        open(Program {
            path,
            arguments: asked.arguments.clone(),
            environment: environment.clone(),
        })
    };
    let executable = if asked.program.contains(&b'/') {
        found(asked.program)?
    } else {
        let path = environment.iter().find_map(|v| v.strip_prefix(b"PATH="));
        let mut result = Err(NotStarted::from(Errno::ENOENT));
        for folder in path.unwrap_or(PATH).split(|&b| b == b':') {
            result = found([folder, b"/", &asked.program].concat());
            if !matches!(&result, Err(why) if matches!(why.errno, Errno::ENOENT | Errno::ENOTDIR)) {
                break;
            }
        }
        result?
    };
    Ok(executable.load()?)
}

/// A process has ended; if it is one of these, the monitor is told, after what it wrote to its terminal is out.
pub fn ended(pid: i32, status: Status) {
    if COUNT.load(Ordering::Relaxed) == 0 {
        return;
    }
    let Some(outside) = find(pid) else { return };
    let word = match (&*outside.refused.lock(), status) {
        (Some((code, _)), _) => exit_status::refused(*code),
        (None, Status::Exited(code)) => exit_status::exited(code),
        (None, Status::Signalled(signal)) => exit_status::signalled(signal),
    };
    outside.status.store(word, Ordering::Relaxed);
    outside.over.store(true, Ordering::SeqCst);
    let relay = outside.relay.lock().clone();
    match relay {
        Some(relay) => relay.over(),
        None => report(pid),
    }
}

/// Tells the monitor of the end.
fn report(pid: i32) {
    let Some(outside) = ALL.lock().remove(&pid) else {
        return;
    };
    COUNT.fetch_sub(1, Ordering::Relaxed);
    let refused = outside.refused.lock().take();
    let why = refused.map(|(_, why)| why).unwrap_or_default();
    tell(outside.slot, outside.status.load(Ordering::Relaxed), &why);
}

fn tell(slot: usize, status: u64, why: &str) {
    let place = &arch::exec_page().slots[slot];
    let mut bytes = [0; 8 * cloak_abi::exec::MESSAGE_WORDS];
    let len = why.len().min(bytes.len());
    bytes[..len].copy_from_slice(&why.as_bytes()[..len]);
    for (to, from) in place.message.iter().zip(bytes.as_chunks::<8>().0) {
        to.store(u64::from_le_bytes(*from), Ordering::Relaxed);
    }
    place.message_len.store(len as u64, Ordering::Relaxed);
    place.status.store(status, Ordering::Release);
    arch::monitor(MonitorCall::Ended, slot as u32);
}

/// Why a program can't be started, with the code that shells give for it.
#[must_use]
pub fn told(name: &str, refused: &NotStarted) -> (u8, String) {
    let errno = refused.errno;
    let (code, why) = match errno {
        Errno::ENOENT | Errno::ENOTDIR => (127, "no such file; is it on a mounted volume?"),
        Errno::EACCES => (126, "permission denied: not a regular file, or not executable"),
        Errno::ENOEXEC => (126, "not a 64-bit x86 ELF program or script, or damaged"),
        Errno::EISDIR => (126, "it is a directory"),
        Errno::ENOMEM => (125, "not enough guest memory; try a larger --memory"),
        Errno::ELOOP => (126, "too many levels of symbolic links or interpreters"),
        Errno::EIO => (126, "can't be read, or is not what it should be"),
        Errno::E2BIG => (126, "arguments and environment are too long"),
        _ => (126, "can't be loaded"),
    };
    let blamed = refused.interpreter.as_deref().map(|path| {
        let path = String::from_utf8_lossy(path);
        format!(" its interpreter {path}:")
    });
    let text = format!("{name}:{} {why} ({})", blamed.unwrap_or_default(), errno.name());
    (code, text)
}
