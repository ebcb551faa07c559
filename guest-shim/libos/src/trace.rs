//! What the libos says to the user: `--trace` lines and rare notices, on the program's standard error.

use alloc::format;
use alloc::string::String;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch::Frame;
use crate::errno::Errno;
use crate::host::tell;
use crate::process::Process;
use crate::sched;
use crate::signal::pending::Info;
use crate::syscall::{Args, Entry};
use crate::user;

/// Whether each system call is told.
pub static ENABLED: AtomicBool = AtomicBool::new(false);

/// Name of the running program, for notices.
pub fn program_name() -> String {
    let path = Process::current().image.lock().path.clone();
    String::from_utf8_lossy(&path).into_owned()
}

/// One line for a call and its result.
pub fn call(entry: Option<&Entry>, number: u64, args: &Args, result: u64) {
    let mut line = format!("[{}] ", sched::current().tid());
    match entry {
        Some(entry) => {
            line.push_str(entry.name);
            line.push('(');
            for (i, shape) in entry.shapes.chars().enumerate() {
                if i > 0 {
                    line.push_str(", ");
                }
                argument(&mut line, shape, args.u64(i));
            }
            line.push(')');
        }
        None => drop(write!(line, "syscall_{number}(...)")),
    }
    let error = -(result as i64);
    if (1..4096).contains(&error)
        && let Err(errno) = Errno::check(result as i64)
    {
        let _ = writeln!(line, " = -1 {}", errno.name());
    } else if result > 0xffff {
        let _ = writeln!(line, " = {result:#x}");
    } else {
        let _ = writeln!(line, " = {result}");
    }
    tell(&line);
}

fn argument(line: &mut String, shape: char, value: u64) {
    // Writing to a string can't fail.
    let _ = match shape {
        'i' | 'f' => write!(line, "{}", value as i32),
        'u' => write!(line, "{}", value as u32),
        's' => write!(line, "{value}"),
        'p' => match user::read_string(value, 256) {
            Ok(text) => write!(line, "{:?}", String::from_utf8_lossy(&text)),
            Err(_) => write!(line, "{value:#x}"),
        },
        _ => write!(line, "{value:#x}"),
    };
}

/// With `--trace`: where a signal ended the program.
pub fn death(frame: &Frame, signal: u32) {
    if ENABLED.load(Ordering::Relaxed) {
        let r = &frame.regs;
        tell(&format!(
            "[{}] killed by signal {signal}: rip {:#x} rsp {:#x} rax {:#x} rdi {:#x} rsi {:#x}\n",
            sched::current().tid(),
            r.rip,
            r.rsp,
            r.rax,
            r.rdi,
            r.rsi
        ));
    }
}

/// With `--trace`: a handler is about to run.
pub fn signal(info: &Info) {
    if ENABLED.load(Ordering::Relaxed) {
        tell(&format!(
            "[{}] signal {}: code {}, {:#x}\n",
            sched::current().tid(),
            info.signal,
            info.code,
            info.fields[0]
        ));
    }
}
