//! A thread of the program under the hostile service: random calls, each result and all memory around it checked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use zerocopy::FromBytes;

use super::arena::Arena;
use super::calls::{CALLS, Call};
use super::dice::Dice;
use super::{honest, sealed};
use crate::errno::SysResult;
use crate::fs::file::{Mapping, Stat};
use crate::fs::{OpenFile, handed_streams, measured, open_kernel};
use crate::process::Process;
use crate::syscall::{Args, TABLE};
use crate::user::Buf;

/// What an argument is.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// A descriptor, most likely an open one.
    Fd,
    /// AT_FDCWD, or a descriptor.
    Dir,
    /// A path.
    Path,
    /// The name of an extended attribute.
    Name,
    /// A buffer to fill; [`Arg::Len`] follows.
    Out,
    /// A buffer to take from; [`Arg::Len`] follows.
    In,
    /// Length of the buffer before.
    Len,
    /// A structure of so many bytes, random before, that the call may change.
    Struct(usize),
    /// Segments to fill; [`Arg::Number`] follows.
    Vector,
    /// Segments to take from.
    Gather,
    /// `struct pollfd`s.
    Polled,
    /// A message to send.
    Sent,
    /// Room for a message.
    Received,
    /// `struct mmsghdr`s.
    Many,
    /// How many things the argument before has.
    Number,
    /// A socket address; [`Arg::Len`] may follow.
    Address,
    /// Room for an address or option; [`Arg::Room`] follows.
    Named,
    /// How much room the argument before has, in memory.
    Room,
    /// A short time.
    Time,
    /// A `struct flock`.
    RecordLock,
    /// An offset by value, maybe absurd.
    Offset,
    /// An offset in memory, or none.
    Position,
    /// A small number.
    Small,
    /// One of these.
    Pick(&'static [u64]),
    /// 0.
    Null,
}

/// What a call may give besides errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gives {
    /// 0.
    Zero,
    /// 0, and sane attributes in the memory that was given.
    Attributes,
    /// As many bytes as were written, at most those asked for.
    Length,
    /// The same, or with no room the length alone.
    Value,
    /// At most as many bytes as were given.
    Taken,
    /// An open descriptor.
    Descriptor,
    /// At most this.
    Least(u64),
    /// Anything that is no error number.
    Any,
}

const PATHS: [&str; 33] = [
    "/f",
    "/f",
    "/g",
    "/dir",
    "/dir/f",
    "/dir/dir/g",
    "/link",
    "/dir/link",
    "/x.dir/../f",
    "f",
    "dir/f",
    ".",
    "..",
    "/",
    "/mnt/volume/f",
    "/mnt/volume/dir",
    "/mnt/volume/link",
    "/ro/f",
    "/ro/g",
    "/ro/dir/f",
    "/stream",
    "/tty",
    "/dev/tty",
    "/tmp/t",
    "/proc/self/fd/3",
    "/f/",
    "/sealed/f",
    "/sealed/dir",
    "/sealed/link",
    "/kept/f",
    "/kept/g",
    "/kept/dir",
    "/kept/dir/f",
];

/// A file that is measured, with the service's content for all files.
pub const MEASURED: &[u8] = b"/measured/f";

/// Open files that threads hand each other.
pub static SHARED: Mutex<Vec<Arc<OpenFile>>> = Mutex::new(Vec::new());

/// What others may see of a thread.
#[derive(Debug, Default)]
pub struct Progress {
    /// Calls made.
    pub calls: AtomicU64,
    /// Number of the one that it is in.
    pub now: AtomicU64,
}

/// The thread.
pub struct Program {
    dice: Dice,
    arena: Arena,
    progress: Arc<Progress>,
    /// Length of what stood last, for the argument that says it.
    last: usize,
    /// Bytes that the call may move.
    most: usize,
    first: u64,
}

impl Program {
    /// A thread that has made no call.
    pub fn new(seed: u64, progress: Arc<Progress>) -> Self {
        Self {
            dice: Dice::new(seed),
            arena: Arena::new(),
            progress,
            last: 0,
            most: 0,
            first: 0,
        }
    }

    /// Makes one call or does something else that reaches the host.
    pub fn step(&mut self) {
        match self.dice.below(64) {
            0 => self.use_mapping(),
            1 => self.hand_over(),
            2..5 => self.tidy(),
            5 => self.read_measured(),
            6 => self.read_sealed(),
            7 => self.take_streams(),
            _ => {
                let call = &CALLS[self.choose()];
                self.make(call);
            }
        }
        crate::sched::current().signal.store(false, Ordering::SeqCst);
    }

    /// Calls that make descriptors and those that move data are more frequent.
    fn choose(&mut self) -> usize {
        const OFTEN: [usize; 12] = [0, 1, 2, 2, 17, 18, 41, 43, 45, 47, 217, 257];
        if !self.dice.one_in(3) {
            let number = self.dice.pick(&OFTEN);
            CALLS.iter().position(|c| c.number == number).expect("a call")
        } else {
            self.dice.below(CALLS.len() as u64) as usize
        }
    }

    fn make(&mut self, call: &Call) {
        self.arena.clear();
        (self.last, self.most, self.first) = (0, 0, 0);
        let mut args = [0; 6];
        for (to, arg) in args.iter_mut().zip(call.args) {
            *to = self.argument(*arg);
        }
        let entry = TABLE[call.number].as_ref().expect("in the table");
        self.arena.seal();
        self.progress.now.store(call.number as u64, Ordering::Relaxed);
        // A thread that can't wait makes more calls; some wait all the same.
        let hurried = !self.dice.one_in(32);
        crate::sched::current().signal.store(hurried, Ordering::SeqCst);
        let result = (entry.handler)(&Args(args));
        self.progress.calls.fetch_add(1, Ordering::Relaxed);
        if let Err(why) = self.check(call, &args, result) {
            panic!("{}({args:x?}) gave {result:?}: {why}", entry.name);
        }
        if call.number == 217 && result.is_ok_and(|n| n > 0) {
            self.check_position(args[0]);
        }
    }

    /// Where a directory's reader is, is something that a seek can give.
    fn check_position(&self, fd: u64) {
        let seek = TABLE[8].as_ref().expect("lseek");
        if let Ok(position) = (seek.handler)(&Args([fd, 0, 1, 0, 0, 0]))
            && i64::try_from(position).is_err()
        {
            panic!("lseek after getdents64 gave {position:x}");
        }
    }

    fn check(&self, call: &Call, args: &[u64; 6], result: SysResult) -> Result<(), &'static str> {
        let counts = matches!(call.gives, Gives::Length | Gives::Value);
        let bytes = match result {
            Ok(_) if call.gives == Gives::Value && self.most == 0 => Ok(0),
            other => other,
        };
        if self.arena.trespass(bytes, counts).is_some() {
            return Err("memory was written that the call may not write");
        }
        let given = match result {
            Err(e) if (1..=4095).contains(&e.number()) => return Ok(()),
            Err(_) => return Err("no error number"),
            Ok(n) => n,
        };
        let right = match call.gives {
            Gives::Zero => given == 0,
            Gives::Attributes => {
                let at = args
                    .iter()
                    .zip(call.args)
                    .find(|(_, a)| matches!(a, Arg::Struct(144)));
                let bytes = self.arena.bytes_at::<144>(*at.expect("attributes").0);
                let stat = Stat::read_from_bytes(&bytes).expect("as long");
                given == 0 && sane(&stat)
            }
            Gives::Value if self.most == 0 => given <= 65536,
            Gives::Length | Gives::Value | Gives::Taken => given <= self.most as u64,
            Gives::Descriptor => {
                i32::try_from(given).is_ok_and(|n| Process::current().files.entry(n).is_ok())
            }
            Gives::Least(most) => given <= most,
            Gives::Any => i64::try_from(given).is_ok(),
        };
        if right {
            Ok(())
        } else {
            Err("a result that this call can't give")
        }
    }

    fn argument(&mut self, arg: Arg) -> u64 {
        match arg {
            Arg::Fd => self.fd(),
            Arg::Dir if self.dice.one_in(4) => self.fd(),
            Arg::Dir => (-100i64) as u64,
            Arg::Path => {
                let path = self.dice.pick(&PATHS);
                self.text(path)
            }
            Arg::Name => {
                let name = self
                    .dice
                    .pick(&["user.a", "user.long.name", "security.x", "trusted.y", "other"]);
                self.text(name)
            }
            Arg::Out => {
                self.last = self.length();
                self.most = self.last;
                self.arena.counted(self.last)
            }
            Arg::In => {
                self.last = self.length();
                self.most = self.last;
                self.random_input(self.last)
            }
            Arg::Len | Arg::Number => self.last as u64,
            Arg::Struct(len) => {
                let bytes = self.random(len);
                self.arena.changeable(&bytes)
            }
            Arg::Vector => self.vector(true),
            Arg::Gather => self.vector(false),
            Arg::Polled => {
                self.last = self.dice.below(9) as usize;
                let mut bytes = Vec::new();
                for _ in 0..self.last {
                    bytes.extend((self.fd() as u32).to_ne_bytes());
                    bytes.extend((self.dice.below(0x2020) as u32).to_ne_bytes());
                }
                self.arena.changeable(&bytes)
            }
            Arg::Sent => {
                let header = self.header(false);
                self.arena.input(&header)
            }
            Arg::Received => {
                let header = self.header(true);
                self.arena.changeable(&header)
            }
            Arg::Many => {
                let count = 1 + self.dice.below(4) as usize;
                let mut bytes = Vec::new();
                for _ in 0..count {
                    bytes.extend(self.header(true));
                    bytes.extend([0; 8]);
                }
                self.last = count;
                self.arena.changeable(&bytes)
            }
            Arg::Address => {
                let (family, len) = self
                    .dice
                    .pick(&[(2u16, 16usize), (2, 16), (10, 28), (16, 12), (0, 16)]);
                let mut bytes = self.random(len);
                bytes[..2].copy_from_slice(&family.to_ne_bytes());
                self.last = len;
                self.arena.input(&bytes)
            }
            Arg::Named => {
                self.last = self.dice.pick(&[128, 128, 28, 16, 4, 1, 0]);
                let bytes = self.random(self.last);
                self.arena.changeable(&bytes)
            }
            Arg::Room => self.arena.changeable(&(self.last as u32).to_ne_bytes()),
            Arg::Time => {
                let mut bytes = [0; 16];
                bytes[8..].copy_from_slice(&self.dice.below(900).to_ne_bytes());
                self.arena.changeable(&bytes)
            }
            Arg::RecordLock => {
                let mut bytes = [0; 32];
                bytes[0] = self.dice.below(3) as u8;
                bytes[2] = self.dice.below(3) as u8;
                bytes[8..16].copy_from_slice(&self.dice.below(1 << 14).to_ne_bytes());
                bytes[16..24].copy_from_slice(&self.dice.below(1 << 12).to_ne_bytes());
                self.arena.changeable(&bytes)
            }
            Arg::Offset => match self.dice.below(12) {
                0 => self.dice.any() >> self.dice.below(60),
                1 => self
                    .dice
                    .pick(&[i64::MAX as u64, u64::MAX, 1 << 63, (1 << 62) + 5]),
                _ => self.dice.below(12_000),
            },
            Arg::Position if self.dice.one_in(2) => 0,
            Arg::Position => {
                let at = self.dice.below(12_000);
                self.arena.changeable(&at.to_ne_bytes())
            }
            Arg::Small => self.dice.below(20_000),
            Arg::Pick(of) => self.dice.pick(of),
            Arg::Null => 0,
        }
    }

    fn fd(&mut self) -> u64 {
        let open = Process::current().files.numbers();
        if open.is_empty() || self.dice.one_in(24) {
            return self.dice.pick(&[0, 5, 99, 4095, u64::MAX, 1 << 31]);
        }
        self.dice.pick(&open) as u64
    }

    fn length(&mut self) -> usize {
        match self.dice.below(40) {
            0 => 0,
            // More than one slot's buffer holds.
            1 => 140_000 + self.dice.below(150_000) as usize,
            2..6 => self.dice.below(9000) as usize,
            _ => self.dice.below(300) as usize,
        }
    }

    fn random(&mut self, len: usize) -> Vec<u8> {
        let word = self.dice.any().to_ne_bytes();
        let mut bytes = vec![word[0] % 4; len];
        // Mostly small numbers: those that mean something.
        if self.dice.one_in(2) {
            bytes.iter_mut().step_by(4).zip(word).for_each(|(b, w)| *b = w);
        }
        bytes
    }

    fn random_input(&mut self, len: usize) -> u64 {
        let bytes = self.random(len);
        self.arena.input(&bytes)
    }

    fn text(&mut self, text: &str) -> u64 {
        let mut bytes = text.as_bytes().to_vec();
        // What is read beyond the end of the text must be there.
        bytes.resize(bytes.len() + 256, 0);
        self.arena.input(&bytes)
    }

    fn vector(&mut self, out: bool) -> u64 {
        let count = self.dice.below(5) as usize;
        let mut bytes = Vec::new();
        for _ in 0..count {
            let len = self.length() / 2;
            self.most += len;
            let at = if out {
                self.arena.counted(len)
            } else {
                self.random_input(len)
            };
            bytes.extend(at.to_ne_bytes());
            bytes.extend((len as u64).to_ne_bytes());
        }
        self.last = count;
        self.arena.input(&bytes)
    }

    /// A `struct msghdr`.
    fn header(&mut self, out: bool) -> Vec<u8> {
        let mut name = 0;
        let mut name_len = 0;
        if self.dice.one_in(2) {
            name = self.argument(if out { Arg::Named } else { Arg::Address });
            name_len = self.last as u64;
        }
        let control_len = if out {
            self.dice.pick(&[0, 0, 64, 200, 1100])
        } else {
            0
        };
        let control = if control_len > 0 {
            self.argument(Arg::Struct(control_len))
        } else {
            0
        };
        let segments = self.vector(out);
        let words = [
            name,
            name_len,
            segments,
            self.last as u64,
            control,
            control_len as u64,
            0,
        ];
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    /// A shared mapping of a file: brought in, written, written back.
    fn use_mapping(&mut self) {
        let Ok(open) = crate::fs::fd::get(self.fd() as i32) else {
            return;
        };
        self.progress.now.store(9, Ordering::Relaxed);
        if let Ok(Mapping::Pages(pages)) = open.file.map(true) {
            let page = self.dice.pick(&[0, 1, 2, 3, 1 << 40, (1 << 51) - 1]);
            if let Ok(frame) = open.file.shared_page(&pages, page) {
                let mut bytes = [0; 64];
                assert_eq!(frame.buf(4032, 64).take(&mut bytes), Ok(64));
                assert_eq!(frame.buf(100, 3).put(b"map"), Ok(3));
                pages.mark_dirty(page);
            }
            let _ = open.file.sync_pages(&pages, 0, u64::MAX);
        }
        self.progress.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// A measured file, read anew: its own bytes or an error.
    fn read_measured(&mut self) {
        self.progress.now.store(17, Ordering::Relaxed);
        let right = honest::content();
        let offset = self.dice.below(right.len() as u64 + 2000);
        let mut bytes = vec![0; self.length()];
        let got = open_kernel(MEASURED).and_then(|open| {
            let stat = open.file.stat()?;
            assert_eq!(
                stat.size as u64,
                honest::SIZE,
                "a measured file has its own length"
            );
            measured::forget_cached(&stat);
            drop(open);
            open_kernel(MEASURED)?
                .file
                .read_at(offset, &mut Buf::own_mut(&mut bytes))
        });
        if let Ok(len) = got {
            let rest = right.get(offset as usize..).unwrap_or_default();
            assert!(
                rest.starts_with(&bytes[..len]),
                "a measured file gave bytes that are not its own"
            );
        }
        self.progress.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// A file of a protected volume that nobody writes: its own bytes or an error, and so its folder.
    fn read_sealed(&mut self) {
        self.progress.now.store(17, Ordering::Relaxed);
        let right = &*sealed::CONTENT;
        let offset = self.dice.below(right.len() as u64 + 2000);
        let mut bytes = vec![0; self.length()];
        let got = open_kernel(sealed::FILE).and_then(|open| {
            let stat = open.file.stat()?;
            assert_eq!(
                stat.size as usize,
                sealed::LENGTH,
                "a protected file has its own length"
            );
            open.file.read_at(offset, &mut Buf::own_mut(&mut bytes))
        });
        if let Ok(len) = got {
            let rest = right.get(offset as usize..).unwrap_or_default();
            assert!(
                rest.starts_with(&bytes[..len]),
                "a protected file gave bytes that are not its own"
            );
        }
        self.progress.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives an open file to the other threads, or takes one.
    fn hand_over(&mut self) {
        let files = Process::current().files.clone();
        if self.dice.one_in(2) {
            if let Ok(open) = crate::fs::fd::get(self.fd() as i32) {
                let mut shared = SHARED.lock().expect("no panic");
                let old = if shared.len() < 8 {
                    None
                } else {
                    Some(shared.remove(0))
                };
                shared.push(open);
                drop(shared);
                drop(old);
            }
        } else {
            let taken = SHARED.lock().expect("no panic").last().cloned();
            if let Some(open) = taken {
                let _ = files.insert(open, false, 0);
            }
        }
    }

    /// As for a process that the owner starts, whose streams come through the OS service.
    fn take_streams(&mut self) {
        self.progress.now.store(1, Ordering::Relaxed);
        let files = Process::current().files.clone();
        for stream in handed_streams(self.dice.any()).into_iter().flatten() {
            let _ = files.insert(stream, false, 0);
        }
        self.progress.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Closes some when there are many.
    fn tidy(&mut self) {
        let files = Process::current().files.clone();
        let numbers = files.numbers();
        if numbers.len() > 20 {
            for fd in numbers {
                if self.dice.one_in(2) {
                    drop(files.remove(fd));
                }
            }
        }
        Process::current().fs.cwd.lock().clone_from(&b"/".to_vec());
        // Somebody may have removed it.
        let path = [&b"/dev/tty"[..], &[0; 256]].concat();
        let make = TABLE[133].as_ref().expect("mknod");
        let _ = (make.handler)(&Args([path.as_ptr() as u64, 0o020_666, 0x500, 0, 0, 0]));
    }
}

fn sane(stat: &Stat) -> bool {
    stat.size >= 0
        && stat.blocks >= 0
        && [stat.atime[1], stat.mtime[1], stat.ctime[1]]
            .iter()
            .all(|n| (0..1_000_000_000).contains(n))
        && stat.mode >> 16 == 0
}
