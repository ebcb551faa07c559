//! Clocks, the machine's load, job control.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

use super::request::{Call, Reply};
use super::sys;

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// [`cloak_abi::hostop::HostOp::Clock`]
pub fn clock(call: &Call<'_>) -> Reply {
    let clocks = [ClockId::Monotonic, ClockId::Realtime, ClockId::Boottime];
    for (at, clock) in clocks.into_iter().enumerate() {
        call.buffer()
            .part(at * 8, 8)?
            .write(&nanoseconds(clock).to_ne_bytes());
    }
    Ok(().into())
}

/// Bytes of `struct sysinfo`.
const SYSINFO: usize = 112;

/// [`cloak_abi::hostop::HostOp::SysInfo`]
pub fn sysinfo(call: &Call<'_>) -> Reply {
    let info = sys::sysinfo()?;
    call.buffer().write(info.bytes());
    let cpus = rustix::thread::sched_getaffinity(None)?.count();
    let extra = [memory_available()?, u64::from(cpus), info.load()];
    for (at, value) in extra.into_iter().enumerate() {
        call.buffer()
            .part(SYSINFO + at * 8, 8)?
            .write(&value.to_ne_bytes());
    }
    Ok(().into())
}

/// `/proc/meminfo`, opened before the jail closes.
static MEMORY: OnceLock<Option<OwnedFd>> = OnceLock::new();

/// Opens what [`sysinfo`] reads. Where there is no procfs it says 0.
pub fn open_memory_information() {
    let open = || rustix::fs::open("/proc/meminfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok();
    MEMORY.get_or_init(open);
}

/// `MemAvailable` in bytes; 0 when the kernel does not say.
fn memory_available() -> Result<u64, Errno> {
    let Some(Some(file)) = MEMORY.get() else {
        return Ok(0);
    };
    let mut text = [0u8; 512];
    let len = rustix::io::pread(file, &mut text, 0)?;
    let text = String::from_utf8_lossy(&text[..len]);
    let kilobytes = text.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()
    });
    Ok(kilobytes.unwrap_or(0).saturating_mul(1024))
}

/// [`cloak_abi::hostop::HostOp::Stop`]
pub fn stop(call: &Call<'_>) -> Reply {
    let signal = match call.int(0) {
        libc::SIGSTOP => Signal::STOP,
        libc::SIGTSTP => Signal::TSTP,
        libc::SIGTTIN => Signal::TTIN,
        libc::SIGTTOU => Signal::TTOU,
        _ => return Err(Errno::INVAL.into()),
    };
    rustix::process::kill_current_process_group(signal)?;
    Ok(().into())
}
