//! `/proc/PID`, `/proc/PID/task/TID` and the names that lead there.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Fixed, Item, Source, machine, made, text, texts};
use crate::errno::{Errno, SysResult};
use crate::fs::node::Link;
use crate::fs::providers::{self, Task};
use crate::net::address::family;
use crate::net::mode::{self, Mode};
use crate::net::private::texts as private;
use crate::net::socket::Kind;

/// A symbolic link to a path that does not change.
pub fn link(target: &'static str) -> Item {
    link_to(move || Ok(target.as_bytes().to_vec()))
}

fn link_to(target: impl Fn() -> SysResult<Vec<u8>> + Send + Sync + 'static) -> Item {
    Item::Link(Arc::new(move || target().map(Link::Path)))
}

/// `/proc` itself.
pub struct Root;

fn parse(name: &[u8]) -> Option<i32> {
    let canonical = !name.is_empty() && name.iter().all(u8::is_ascii_digit) && name[0] != b'0';
    core::str::from_utf8(name)
        .ok()
        .filter(|_| canonical)?
        .parse()
        .ok()
}

impl Source for Root {
    fn names(&self) -> SysResult<Vec<Vec<u8>>> {
        let fixed = machine::items().into_iter().map(|(name, _)| name.to_vec());
        let own = [b"self".to_vec(), b"thread-self".to_vec()];
        let processes = providers::get()
            .processes()
            .into_iter()
            .map(|pid| format!("{pid}").into_bytes());
        Ok(fixed.chain(own).chain(processes).collect())
    }

    fn find(&self, name: &[u8]) -> Option<Item> {
        match name {
            b"self" => Some(link_to(|| {
                Ok(format!("{}", providers::get().current().0).into_bytes())
            })),
            b"thread-self" => Some(link_to(|| {
                let (pid, tid) = providers::get().current();
                Ok(format!("{pid}/task/{tid}").into_bytes())
            })),
            _ => match parse(name) {
                Some(pid) => {
                    let task = providers::get().task(pid, pid)?;
                    Some(Item::Directory(Arc::new(Process {
                        pid,
                        tid: pid,
                        owner: owner(&task),
                        is_thread: false,
                    })))
                }
                None => machine::items()
                    .into_iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, item)| item),
            },
        }
    }
}

fn owner(task: &Task) -> (u32, u32) {
    (task.uid[1], task.gid[1])
}

/// A process, or one of its threads.
#[derive(Clone, Copy)]
struct Process {
    pid: i32,
    tid: i32,
    owner: (u32, u32),
    /// Below another's `task`, so without one.
    is_thread: bool,
}

const NAMES: [&str; 29] = [
    "auxv",
    "cgroup",
    "cmdline",
    "comm",
    "cwd",
    "environ",
    "exe",
    "fd",
    "fdinfo",
    "io",
    "limits",
    "loginuid",
    "maps",
    "mountinfo",
    "mounts",
    "net",
    "ns",
    "oom_adj",
    "oom_score",
    "oom_score_adj",
    "personality",
    "root",
    "smaps",
    "smaps_rollup",
    "stat",
    "statm",
    "status",
    "wchan",
    "sessionid",
];

impl Process {
    fn task(&self) -> SysResult<Task> {
        providers::get().task(self.pid, self.tid).ok_or(Errno::ESRCH)
    }

    fn of_task(self, make: fn(&Task) -> Vec<u8>) -> Item {
        Item::File(Arc::new(move || self.task().map(|t| make(&t))))
    }

    fn of_pid<T: Into<Vec<u8>> + 'static>(self, make: fn(i32) -> T) -> Item {
        made(move || make(self.pid))
    }
}

fn set_comm(name: &[u8]) -> SysResult<()> {
    let name = name.strip_suffix(b"\n").unwrap_or(name);
    let (pid, tid) = providers::get().current();
    providers::get().set_comm(pid, tid, &name[..name.len().min(15)]);
    Ok(())
}

fn ignore(_: &[u8]) -> SysResult<()> {
    Ok(())
}

fn setting(value: &'static str) -> Item {
    Item::Writable(Arc::new(move || Ok(value.as_bytes().to_vec())), Arc::new(ignore))
}

/// How the kernel would choose whom to kill for want of memory. Kept, and inherited, for programs that set it and look
/// at it; nobody is killed by it.
fn oom_score_adj(pid: i32) -> Item {
    let make = move || Ok(format!("{}\n", providers::get().oom_score_adj(pid)).into_bytes());
    let take = move |text: &[u8]| {
        let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
        let value: i32 = text.trim().parse().map_err(|_| Errno::EINVAL)?;
        if !(-1000..=1000).contains(&value) {
            return Err(Errno::EINVAL);
        }
        providers::get().set_oom_score_adj(pid, value)
    };
    Item::Writable(Arc::new(make), Arc::new(take))
}

impl Source for Process {
    fn owner(&self) -> (u32, u32) {
        self.owner
    }

    fn process(&self) -> Option<i32> {
        (!self.is_thread).then_some(self.pid)
    }

    fn names(&self) -> SysResult<Vec<Vec<u8>>> {
        let task = (!self.is_thread).then_some("task");
        Ok(NAMES
            .into_iter()
            .chain(task)
            .map(|n| n.as_bytes().to_vec())
            .collect())
    }

    fn find(&self, name: &[u8]) -> Option<Item> {
        let this = *self;
        Some(match name {
            b"auxv" => this.of_pid(|pid| providers::get().auxiliary_vector(pid)),
            b"cgroup" => text("0::/\n"),
            b"cmdline" => this.of_pid(|pid| providers::get().command_line(pid)),
            b"comm" => {
                let make = move || this.task().map(|t| [&t.comm[..], b"\n"].concat());
                Item::Writable(Arc::new(make), Arc::new(set_comm))
            }
            b"cwd" => link_to(move || {
                let fs = providers::get().fs(this.pid).ok_or(Errno::ESRCH)?;
                let cwd = fs.cwd.lock().clone();
                Ok(cwd)
            }),
            b"root" => link_to(move || {
                let fs = providers::get().fs(this.pid).ok_or(Errno::ESRCH)?;
                let root = fs.root.lock().clone();
                Ok(root)
            }),
            b"environ" => this.of_pid(|pid| providers::get().environment(pid)),
            b"exe" => link_to(move || match this.task()?.exe {
                exe if exe.is_empty() => Err(Errno::ENOENT),
                exe => Ok(exe),
            }),
            b"fd" => Item::Directory(Arc::new(Files {
                pid: this.pid,
                owner: this.owner,
                info: false,
            })),
            b"fdinfo" => Item::Directory(Arc::new(Files {
                pid: this.pid,
                owner: this.owner,
                info: true,
            })),
            b"io" => text(
                "rchar: 0\nwchar: 0\nsyscr: 0\nsyscw: 0\nread_bytes: 0\nwrite_bytes: 0\ncancelled_write_bytes: 0\n",
            ),
            b"limits" => this.of_pid(texts::limits),
            b"loginuid" | b"sessionid" => text("4294967295"),
            b"maps" => this.of_pid(texts::maps),
            b"smaps" => this.of_pid(texts::smaps),
            b"smaps_rollup" => this.of_pid(texts::smaps_rollup),
            b"mountinfo" => made(machine::mountinfo),
            b"mounts" => made(machine::mounts),
            b"net" => net(),
            b"ns" => Fixed::default().done(),
            b"oom_adj" => setting("0\n"),
            b"oom_score_adj" => oom_score_adj(this.pid),
            b"oom_score" => text("0\n"),
            b"personality" => text("00000000\n"),
            b"wchan" => text("0"),
            b"stat" => this.of_task(texts::stat),
            b"statm" => this.of_task(texts::statm),
            b"status" => this.of_task(texts::status),
            b"task" if !this.is_thread => Item::Directory(Arc::new(Threads {
                pid: this.pid,
                owner: this.owner,
            })),
            _ => return None,
        })
    }
}

/// A private network's tables.
fn private_net() -> Item {
    let sockets = |kind, domain| made(move || private::sockets(kind, domain));
    Fixed::default()
        .with("tcp", sockets(Kind::Stream, family::INET))
        .with("tcp6", sockets(Kind::Stream, family::INET6))
        .with("udp", sockets(Kind::Datagram, family::INET))
        .with("udp6", sockets(Kind::Datagram, family::INET6))
        .with("unix", text(UNIX_SOCKETS))
        .with("dev", made(private::devices))
        .with("route", made(private::routes))
        .with("if_inet6", made(private::addresses_of_ipv6))
        .done()
}

const UNIX_SOCKETS: &str = "Num       RefCount Protocol Flags    Type St Inode Path\n";

/// Tables of sockets are the host's to know; programs that read them find none.
fn net() -> Item {
    if mode::get() == Mode::Private {
        return private_net();
    }
    let sockets =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
    Fixed::default()
        .with("tcp", text(sockets))
        .with("tcp6", text(sockets))
        .with("udp", text(sockets))
        .with("udp6", text(sockets))
        .with("unix", text(UNIX_SOCKETS))
        .with(
            "dev",
            text("Inter-|   Receive                                                |  Transmit\n"),
        )
        .with(
            "route",
            text("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n"),
        )
        .with(
            "if_inet6",
            text("00000000000000000000000000000001 01 80 10 80       lo\n"),
        )
        .done()
}

/// `/proc/PID/task`.
struct Threads {
    pid: i32,
    owner: (u32, u32),
}

impl Source for Threads {
    fn owner(&self) -> (u32, u32) {
        self.owner
    }

    fn names(&self) -> SysResult<Vec<Vec<u8>>> {
        Ok(providers::get()
            .threads(self.pid)
            .into_iter()
            .map(|tid| format!("{tid}").into_bytes())
            .collect())
    }

    fn find(&self, name: &[u8]) -> Option<Item> {
        let tid = parse(name)?;
        let task = providers::get().task(self.pid, tid)?;
        Some(Item::Directory(Arc::new(Process {
            pid: self.pid,
            tid,
            owner: owner(&task),
            is_thread: true,
        })))
    }
}

/// `/proc/PID/fd` and `/proc/PID/fdinfo`.
struct Files {
    pid: i32,
    owner: (u32, u32),
    info: bool,
}

impl Source for Files {
    fn owner(&self) -> (u32, u32) {
        self.owner
    }

    fn mode(&self) -> u32 {
        0o500
    }

    fn names(&self) -> SysResult<Vec<Vec<u8>>> {
        let files = providers::get().files(self.pid).ok_or(Errno::ESRCH)?;
        Ok(files
            .numbers()
            .into_iter()
            .map(|n| format!("{n}").into_bytes())
            .collect())
    }

    fn find(&self, name: &[u8]) -> Option<Item> {
        let number = if name == b"0" { 0 } else { parse(name)? };
        let entry = providers::get().files(self.pid)?.entry(number).ok()?;
        if self.info {
            return Some(made(move || {
                let position = entry.open.position.with(|p| *p);
                let close = if entry.close_on_exec { 0o2_000_000 } else { 0 };
                format!(
                    "pos:\t{position}\nflags:\t0{:o}\nmnt_id:\t20\nino:\t0\n",
                    entry.open.flags() | close
                )
            }));
        }
        Some(Item::Link(Arc::new(move || Ok(Link::Open(entry.open.clone())))))
    }
}
