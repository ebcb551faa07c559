//! Loading a program: segments, interpreter, stack, auxiliary vector.

use alloc::sync::Arc;
use alloc::vec::Vec;

use cloak_abi::layout::{LARGE, PAGE};

use super::elf::{self, Elf, ProgramHeader, kind};
use super::{Process, vdso};
use crate::arch;
use crate::errno::{Errno, SysResult};
use crate::fs::OpenFile;
use crate::fs::flags::{S_ISGID, S_ISUID};
use crate::mem::area::Protection;
use crate::mem::space::{Inner, Place, Request};
use crate::user::{self, Buf};

/// Where the stack ends.
const STACK_TOP: u64 = 0x7fff_ffe0_0000;
/// Bytes that the stack may grow to.
const STACK_SIZE: u64 = 8 << 20;
/// Bytes of it that every program uses.
const STACK_START: u64 = 16 * PAGE;
/// Where relocatable programs go (plus randomness).
const DYN_BASE: u64 = 0x5555_5540_0000;
/// Where interpreters go: the mapping area's usual top.
const INTERPRETER_HINT: u64 = 0x7fff_d000_0000;
/// Most bytes of arguments and environment together.
const ARGUMENTS_MAX: usize = 2 << 20;
/// Deepest `#!` nesting, as on Linux.
const SCRIPT_DEPTH: usize = 5;

/// What `/proc/self` shows of the program. A child by `fork` has the same.
#[derive(Debug, Default)]
pub struct ImageInfo {
    /// Absolute path of the executable.
    pub path: Vec<u8>,
    /// Arguments, each with its NUL, as they were at the start.
    pub command_line: Vec<u8>,
    /// Where the program finds them. Its environment follows at once.
    pub arguments_at: u64,
    /// Environment, each with its NUL.
    pub environment: Vec<u8>,
    /// Auxiliary vector.
    pub auxv: Vec<u8>,
    /// Address of the first byte of the stack in use at the start.
    pub stack_start: u64,
}

/// What is started.
#[derive(Debug, Clone)]
pub struct Program {
    /// Path.
    pub path: Vec<u8>,
    /// Arguments.
    pub arguments: Vec<Vec<u8>>,
    /// Environment.
    pub environment: Vec<Vec<u8>>,
}

/// Where the first instruction and the stack are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// First instruction.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
}

/// An executable that was found and checked, before anything of the old program is lost.
#[derive(Debug)]
pub struct Executable {
    file: Arc<OpenFile>,
    elf: Elf,
    interpreter: Option<(Arc<OpenFile>, Elf)>,
    program: Program,
    /// The executable's path without symbolic links: what `/proc/self/exe` shows.
    resolved: Vec<u8>,
}

impl Executable {
    /// The file that is run: of a script its interpreter.
    #[must_use]
    pub fn file(&self) -> &dyn crate::fs::file::File {
        &*self.file.file
    }

    /// User and group that its set-id bits make the effective ones. Only files of the guest's own file systems have
    /// that effect: on a volume of the host's, others than the context decide about the bits.
    #[must_use]
    pub fn identity(&self) -> (Option<u32>, Option<u32>) {
        let Some(stat) = self.file.file.node().and_then(|node| node.stat().ok()) else {
            return (None, None);
        };
        // Set-gid without the group's execute bit meant mandatory locking.
        let group = stat.mode & (S_ISGID | 0o010) == S_ISGID | 0o010;
        (
            (stat.mode & S_ISUID != 0).then_some(stat.uid),
            group.then_some(stat.gid),
        )
    }
}

/// A program that can't be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotStarted {
    /// Why, as `execve(2)` has it.
    pub errno: Errno,
    /// The interpreter that is to blame, when it is not the program itself: that of a `#!` line or of an ELF file.
    pub interpreter: Option<Vec<u8>>,
}

impl From<Errno> for NotStarted {
    fn from(errno: Errno) -> Self {
        Self {
            errno,
            interpreter: None,
        }
    }
}

impl From<NotStarted> for Errno {
    fn from(why: NotStarted) -> Self {
        why.errno
    }
}

/// Blames the interpreter at `path`.
fn blaming(path: &[u8]) -> impl FnOnce(Errno) -> NotStarted {
    |errno| NotStarted {
        errno,
        interpreter: Some(path.to_vec()),
    }
}

/// Opens and checks a program, through `#!` lines.
///
/// # Errors
/// As `execve(2)`, and what is to blame.
pub fn open(mut program: Program) -> Result<Executable, NotStarted> {
    if program
        .arguments
        .iter()
        .chain(&program.environment)
        .map(|s| s.len() + 9)
        .sum::<usize>()
        > ARGUMENTS_MAX
    {
        return Err(Errno::E2BIG.into());
    }
    let mut path = program.path.clone();
    for depth in 0..SCRIPT_DEPTH {
        let file = crate::fs::open_executable(&path).map_err(|errno| match depth {
            0 => errno.into(),
            _ => blaming(&path)(errno),
        })?;
        let mut head = [0u8; 256];
        let got = file.file.read_at(0, &mut Buf::own_mut(&mut head))?;
        if let Some((interpreter, argument)) = script(&head[..got]) {
            let mut arguments = alloc::vec![interpreter.clone()];
            arguments.extend(argument);
            arguments.push(path);
            arguments.extend(program.arguments.into_iter().skip(1));
            program.arguments = arguments;
            path = interpreter;
            continue;
        }
        let elf = describe(&file)?;
        let interpreter = elf
            .interpreter
            .map(|place| open_interpreter(&file, place))
            .transpose()?;
        let resolved = crate::fs::walk::resolved(&file.path.lock());
        return Ok(Executable {
            resolved,
            file,
            elf,
            interpreter,
            program,
        });
    }
    Err(Errno::ELOOP.into())
}

/// The interpreter and its one argument in a `#!` line.
fn script(head: &[u8]) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let line = head.strip_prefix(b"#!")?;
    let line = line.split(|&b| b == b'\n' || b == 0).next()?;
    let line = line.trim_ascii();
    let split = line
        .iter()
        .position(|b| b.is_ascii_whitespace())
        .unwrap_or(line.len());
    let (interpreter, rest) = line.split_at(split);
    let rest = rest.trim_ascii();
    (!interpreter.is_empty()).then(|| (interpreter.to_vec(), (!rest.is_empty()).then(|| rest.to_vec())))
}

fn describe(file: &OpenFile) -> SysResult<Elf> {
    elf::parse(|offset, bytes| {
        let mut done = 0;
        while done < bytes.len() {
            match file.file.read_at(
                offset.saturating_add(done as u64),
                &mut Buf::own_mut(&mut bytes[done..]),
            )? {
                0 => return Err(Errno::ENOEXEC),
                n => done += n,
            }
        }
        Ok(())
    })
}

fn open_interpreter(
    file: &OpenFile,
    (offset, len): (u64, usize),
) -> Result<(Arc<OpenFile>, Elf), NotStarted> {
    let mut path = alloc::vec![0; len];
    let got = file.file.read_at(offset, &mut Buf::own_mut(&mut path))?;
    path.truncate(got);
    if path.pop() != Some(0) || path.contains(&0) {
        return Err(Errno::ENOEXEC.into());
    }
    let interpreter = crate::fs::open_executable(&path).map_err(blaming(&path))?;
    let elf = describe(&interpreter).map_err(blaming(&path))?;
    Ok((interpreter, elf))
}

impl Executable {
    /// Loads it into the current process's empty address space.
    ///
    /// # Errors
    /// ENOMEM, ENOEXEC: the process can't go on.
    pub fn load(self) -> SysResult<Start> {
        let process = Process::current();
        let owner = process.space();
        let mut space = owner.lock();
        let random = crate::random::word();
        let base = if self.elf.relocatable {
            DYN_BASE + (random % 0x4000) * LARGE
        } else {
            0
        };
        let bias = map_image(&mut space, &self.file, &self.elf, base)?;
        let end = bias + self.elf.span.1;
        let mut entry = bias.wrapping_add(self.elf.entry);
        let program_entry = entry;
        let mut interpreter_base = 0;
        if let Some((file, elf)) = &self.interpreter {
            interpreter_base = map_image(&mut space, file, elf, INTERPRETER_HINT)?;
            entry = interpreter_base.wrapping_add(elf.entry);
        }
        space.init_brk(end);
        let stack_protection = Protection::READ | Protection::WRITE;
        let executable = if self.elf.executable_stack {
            Protection::EXECUTE
        } else {
            Protection::empty()
        };
        space.map(Request {
            hint: STACK_TOP - STACK_SIZE,
            len: STACK_SIZE,
            protection: stack_protection | executable,
            place: Place::Fixed,
            shared: false,
            file: None,
            populate: false,
            name: "[stack]",
        })?;
        // Written at once, below.
        space.populate(STACK_TOP - STACK_START, STACK_TOP);
        let vdso = vdso::map(&mut space)?;
        drop(space);
        let auxv = self.auxv(bias, program_entry, interpreter_base, vdso);
        let rsp = self.build_stack(&process, &auxv, random)?;
        Ok(Start { rip: entry, rsp })
    }

    fn auxv(&self, bias: u64, entry: u64, interpreter: u64, vdso: u64) -> Vec<[u64; 2]> {
        let credentials = Process::current().credentials.lock().clone();
        let cpuid = core::arch::x86_64::__cpuid(1);
        alloc::vec![
            [33, vdso],                                         // AT_SYSINFO_EHDR
            [16, u64::from(cpuid.edx)],                         // AT_HWCAP
            [6, PAGE],                                          // AT_PAGESZ
            [17, 100],                                          // AT_CLKTCK
            [3, bias.wrapping_add(self.elf.headers_address())], // AT_PHDR
            [4, size_of::<ProgramHeader>() as u64],             // AT_PHENT
            [5, self.elf.headers.len() as u64],                 // AT_PHNUM
            [7, interpreter],                                   // AT_BASE
            [8, 0],                                             // AT_FLAGS
            [9, entry],                                         // AT_ENTRY
            [11, u64::from(credentials.uid[0])],                // AT_UID
            [12, u64::from(credentials.uid[1])],                // AT_EUID
            [13, u64::from(credentials.gid[0])],                // AT_GID
            [14, u64::from(credentials.gid[1])],                // AT_EGID
            [23, u64::from(credentials.is_secure())],           // AT_SECURE
            [26, 2],                                            // AT_HWCAP2: FSGSBASE
            [51, arch::vector_len() as u64 + 1024],             // AT_MINSIGSTKSZ
        ]
    }

    /// Strings, auxiliary vector and pointers at the stack's end; gives the stack pointer.
    fn build_stack(&self, process: &Process, auxv: &[[u64; 2]], random: u64) -> SysResult {
        let program = &self.program;
        let mut at = STACK_TOP - 8 - (random >> 40 & 0x7ff) * 16;
        let mut push = |bytes: &[u8]| -> SysResult {
            at -= bytes.len() as u64;
            user::copy_out(at, bytes)?;
            Ok(at)
        };
        let with_nul = |s: &Vec<u8>| [s.as_slice(), b"\0"].concat();
        let name = push(&with_nul(&program.path))?;
        let environment = with_nuls(&program.environment);
        let environment_at = push(&environment)?;
        let arguments = with_nuls(&program.arguments);
        let arguments_at = push(&arguments)?;
        let platform = push(b"x86_64\0")?;
        let mut seed = [0; 16];
        crate::random::fill(&mut seed);
        let seed = push(&seed)?;
        let mut words: Vec<u64> = alloc::vec![program.arguments.len() as u64];
        words.extend(pointers(arguments_at, &program.arguments));
        words.push(0);
        words.extend(pointers(environment_at, &program.environment));
        words.push(0);
        let own = [[25, seed], [31, name], [15, platform], [0, 0]]; // AT_RANDOM, AT_EXECFN, AT_PLATFORM, AT_NULL
        let vector: Vec<u64> = auxv.iter().chain(&own).flatten().copied().collect();
        words.extend(&vector);
        let rsp = (at - 8 * words.len() as u64) & !15;
        let bytes = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        user::copy_out(rsp, &bytes(&words))?;
        *process.image.lock() = Arc::new(ImageInfo {
            path: self.resolved.clone(),
            command_line: arguments,
            arguments_at,
            environment,
            auxv: bytes(&vector),
            stack_start: rsp,
        });
        Ok(rsp)
    }
}

fn with_nuls(strings: &[Vec<u8>]) -> Vec<u8> {
    strings
        .iter()
        .flat_map(|s| s.iter().copied().chain([0]))
        .collect()
}

fn pointers(start: u64, strings: &[Vec<u8>]) -> impl Iterator<Item = u64> {
    strings.iter().scan(start, |at, s| {
        let here = *at;
        *at += s.len() as u64 + 1;
        Some(here)
    })
}

/// Maps the segments of an ELF file; gives the load bias.
fn map_image(space: &mut Inner, file: &Arc<OpenFile>, elf: &Elf, hint: u64) -> SysResult {
    let (low, high) = elf.span;
    let len = (high - low).next_multiple_of(PAGE);
    let reserve = Request {
        hint: if elf.relocatable { hint } else { low },
        len,
        protection: Protection::empty(),
        place: if elf.relocatable {
            Place::Anywhere
        } else {
            Place::FixedFree
        },
        shared: false,
        file: None,
        populate: false,
        name: "",
    };
    let start = space.map(reserve).map_err(|_| Errno::ENOMEM)?;
    let bias = start.wrapping_sub(low);
    for ph in elf.headers.iter().filter(|p| p.kind == kind::LOAD && p.memsz > 0) {
        map_segment(space, file, ph, bias)?;
    }
    Ok(bias)
}

fn map_segment(space: &mut Inner, file: &Arc<OpenFile>, ph: &ProgramHeader, bias: u64) -> SysResult<()> {
    let flag = |bit: u32, p: Protection| {
        if ph.flags & bit != 0 {
            p
        } else {
            Protection::empty()
        }
    };
    let protection = flag(4, Protection::READ) | flag(2, Protection::WRITE) | flag(1, Protection::EXECUTE);
    let first = bias.wrapping_add(ph.vaddr) & !(PAGE - 1);
    let file_end = bias.wrapping_add(ph.vaddr).wrapping_add(ph.filesz);
    let memory_end = bias
        .wrapping_add(ph.vaddr)
        .wrapping_add(ph.memsz)
        .next_multiple_of(PAGE);
    let mapped_end = if ph.filesz > 0 {
        file_end.next_multiple_of(PAGE)
    } else {
        first
    };
    let mut fixed = |start: u64, end: u64, source: Option<(Arc<OpenFile>, u64)>| {
        space.map(Request {
            hint: start,
            len: end - start,
            protection,
            place: Place::Fixed,
            shared: false,
            file: source,
            populate: false,
            name: "",
        })
    };
    if mapped_end > first {
        fixed(first, mapped_end, Some((file.clone(), ph.offset & !(PAGE - 1))))?;
    }
    if memory_end > mapped_end {
        fixed(mapped_end, memory_end, None)?;
    }
    // What the file has behind the segment must not show in its zero part.
    if ph.memsz > ph.filesz && file_end < mapped_end && protection.contains(Protection::WRITE) {
        space.populate(file_end & !(PAGE - 1), mapped_end);
        space.wipe(file_end, mapped_end)?;
    }
    Ok(())
}
