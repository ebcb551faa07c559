//! The vDSO: time without a system call.
//!
//! An ELF image made at the first start: one page of data (the clock's parameters, read-only for the
//! program), then one page of code with the functions that libraries look for. The code is position
//! independent and touches nothing of the libos, so a fault in it is the program's own.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::arch::global_asm;

use cloak_abi::layout::PAGE;
use spin::Mutex;

use crate::errno::SysResult;
use crate::fs::OpenFile;
use crate::mem::area::{Area, Backing, Protection};
use crate::mem::pages::PageCache;
use crate::mem::space::Inner;
use crate::sched::clock;
use crate::user::Buf;

global_asm!(
    // Page layout: data at 0, this blob's ELF image at 4096. `vdso_data` is therefore 4096 bytes before the
    // image. Data words: 0 tsc base, 8 multiplier (ns = ticks * m >> 32), 16 monotonic, 24 realtime, 32 boot time.
    ".section .rodata.vdso, \"a\"",
    ".balign 16",
    ".globl vdso_code", ".globl vdso_code_end",
    "vdso_code:",
    // clock_gettime(edi, rsi)
    "vdso_clock_gettime:",
    "cmp edi, 7",
    "ja 9f",
    "mov r8d, 24",
    "mov eax, 0x21",           // CLOCK_REALTIME (0) and CLOCK_REALTIME_COARSE (5)
    "bt eax, edi",
    "jc 1f",
    "mov r8d, 16",
    "mov eax, 0x52",           // CLOCK_MONOTONIC (1), _RAW (4), _COARSE (6)
    "bt eax, edi",
    "jc 1f",
    "mov r8d, 32",
    "cmp edi, 7",              // CLOCK_BOOTTIME
    "jne 9f",
    "1:",
    "lea r9, [rip + vdso_code - {code_offset}]",
    "lfence",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "xor ecx, ecx",
    "sub rax, [r9]",
    "cmovb rax, rcx",
    "mul qword ptr [r9 + 8]",
    "shrd rax, rdx, 32",
    "add rax, [r9 + r8]",
    "xor edx, edx",
    "mov ecx, 1000000000",
    "div rcx",
    "mov [rsi], rax",
    "mov [rsi + 8], rdx",
    "xor eax, eax",
    "ret",
    "9:",
    "mov eax, 228",
    "syscall",
    "ret",
    // gettimeofday(rdi, rsi)
    "vdso_gettimeofday:",
    "test rdi, rdi",
    "jz 2f",
    "lea r9, [rip + vdso_code - {code_offset}]",
    "lfence",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "xor ecx, ecx",
    "sub rax, [r9]",
    "cmovb rax, rcx",
    "mul qword ptr [r9 + 8]",
    "shrd rax, rdx, 32",
    "add rax, [r9 + 24]",
    "xor edx, edx",
    "mov ecx, 1000000000",
    "div rcx",
    "mov [rdi], rax",
    "mov eax, edx",
    "xor edx, edx",
    "mov ecx, 1000",
    "div ecx",
    "mov [rdi + 8], rax",
    "2:",
    "test rsi, rsi",
    "jz 3f",
    "mov qword ptr [rsi], 0",
    "3:",
    "xor eax, eax",
    "ret",
    // time(rdi)
    "vdso_time:",
    "mov eax, 201",
    "syscall",
    "ret",
    // clock_getres(edi, rsi)
    "vdso_clock_getres:",
    "mov eax, 229",
    "syscall",
    "ret",
    // getcpu(rdi, rsi)
    "vdso_getcpu:",
    "mov eax, 309",
    "syscall",
    "ret",
    "vdso_code_end:",
    code_offset = const PAGE + CODE_AT,
);

unsafe extern "C" {
    static vdso_code: u8;
    static vdso_code_end: u8;
}

/// Where in the image the code lies.
const CODE_AT: u64 = 1024;
/// Function names and their place in the code, found by their first bytes' labels.
const NAMES: [&str; 5] = ["clock_gettime", "gettimeofday", "time", "clock_getres", "getcpu"];

/// Pages of the vDSO, made once: data, image.
static PAGES: Mutex<Option<Arc<PageCache>>> = Mutex::new(None);

/// Maps the vDSO; gives the address of its ELF header.
///
/// # Errors
/// ENOMEM.
pub fn map(space: &mut Inner) -> SysResult {
    let existing = PAGES.lock().clone();
    let pages = match existing {
        Some(pages) => pages,
        None => {
            let made = make()?;
            PAGES.lock().get_or_insert(made).clone()
        }
    };
    let start = space
        .areas
        .free_range(0x7fff_0000_0000, 0x7fff_e000_0000, 2 * PAGE, PAGE)
        .ok_or(crate::errno::Errno::ENOMEM)?;
    let file: Option<Arc<OpenFile>> = None;
    let mut area = Area::anonymous(start + PAGE, Protection::READ);
    area.shared = true;
    area.name = "[vvar]";
    area.backing = Backing::Pages(pages.clone(), 0, file.clone());
    space.areas.insert(start, area.clone());
    area.end = start + 2 * PAGE;
    area.protection = Protection::READ | Protection::EXECUTE;
    area.name = "[vdso]";
    area.backing = Backing::Pages(pages, PAGE, file);
    space.areas.insert(start + PAGE, area);
    Ok(start + PAGE)
}

fn make() -> SysResult<Arc<PageCache>> {
    let pages = Arc::new(PageCache::default());
    let data: Vec<u8> = clock::parameters()
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect();
    pages.write_at(0, &mut Buf::own(&data))?;
    pages.write_at(PAGE, &mut Buf::own(&image()))?;
    pages.resize(2 * PAGE);
    Ok(pages)
}

/// The code blob.
fn code() -> &'static [u8] {
    // SAFETY: both symbols delimit read-only data of the image.
    unsafe {
        let start = &raw const vdso_code;
        core::slice::from_raw_parts(start, (&raw const vdso_code_end).addr() - start.addr())
    }
}

/// Offsets of the functions in the code, in the order of [`NAMES`].
fn offsets() -> [u64; 5] {
    unsafe extern "C" {
        fn vdso_clock_gettime();
        fn vdso_gettimeofday();
        fn vdso_time();
        fn vdso_clock_getres();
        fn vdso_getcpu();
    }
    let base = code().as_ptr() as u64;
    [
        vdso_clock_gettime,
        vdso_gettimeofday,
        vdso_time,
        vdso_clock_getres,
        vdso_getcpu,
    ]
    .map(|f: unsafe extern "C" fn()| f as *const () as u64 - base)
}

/// The ELF image: header, two program headers, dynamic section, hash, symbols, strings, versions, code.
fn image() -> Vec<u8> {
    let mut strings = b"\0linux-vdso.so.1\0LINUX_2.6\0".to_vec();
    let mut symbols = alloc::vec![[0u8; 24]];
    for (name, offset) in NAMES.iter().zip(offsets()) {
        let at = strings.len() as u32;
        strings.extend_from_slice(b"__vdso_");
        strings.extend_from_slice(name.as_bytes());
        strings.push(0);
        let mut symbol = [0u8; 24];
        symbol[0..4].copy_from_slice(&at.to_le_bytes());
        symbol[4] = 0x12; // global function
        symbol[6] = 1; // any section that is defined
        symbol[8..16].copy_from_slice(&(CODE_AT + offset).to_le_bytes());
        symbol[16..24].copy_from_slice(&16u64.to_le_bytes());
        symbols.push(symbol);
    }
    let count = symbols.len() as u32;
    // One bucket; each symbol chains to the next.
    let mut hash: Vec<u32> = alloc::vec![1, count, 1, 0];
    hash.extend((2..count).chain([0]));
    let versions: Vec<u16> = core::iter::once(0).chain((1..count).map(|_| 2)).collect();
    let definitions = version_definitions();

    let mut out = Builder(alloc::vec![0; 64 + 2 * 56]);
    let dynamic_at = out.0.len() as u64;
    out.0.resize(out.0.len() + 10 * 16, 0);
    let hash_at = out.append(&hash.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
    let symbols_at = out.append(&symbols.concat());
    let strings_at = out.append(&strings);
    let versions_at = out.append(&versions.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
    let definitions_at = out.append(&definitions);
    let dynamic: [[u64; 2]; 10] = [
        [14, 1],                       // DT_SONAME
        [4, hash_at],                  // DT_HASH
        [5, strings_at],               // DT_STRTAB
        [6, symbols_at],               // DT_SYMTAB
        [10, strings.len() as u64],    // DT_STRSZ
        [11, 24],                      // DT_SYMENT
        [0x6fff_fff0, versions_at],    // DT_VERSYM
        [0x6fff_fffc, definitions_at], // DT_VERDEF
        [0x6fff_fffd, 2],              // DT_VERDEFNUM
        [0, 0],
    ];
    let dynamic: Vec<u8> = dynamic.iter().flatten().flat_map(|w| w.to_le_bytes()).collect();
    out.0[dynamic_at as usize..dynamic_at as usize + dynamic.len()].copy_from_slice(&dynamic);
    debug_assert!(out.0.len() as u64 <= CODE_AT);
    out.0.resize(CODE_AT as usize, 0);
    out.0.extend_from_slice(code());
    let len = out.0.len() as u64;
    out.headers(dynamic_at, dynamic.len() as u64, len);
    out.0
}

/// `Elf64_Verdef` of the base and of LINUX_2.6.
fn version_definitions() -> Vec<u8> {
    let hash = |name: &str| {
        name.bytes().fold(0u32, |h, c| {
            let h = (h << 4).wrapping_add(u32::from(c));
            let g = h & 0xf000_0000;
            (h ^ g >> 24) & !g
        })
    };
    let mut out = Vec::new();
    for (flags, index, name, string, next) in [
        (1u16, 1u16, "linux-vdso.so.1", 1u32, 28u32),
        (0, 2, "LINUX_2.6", 17, 0),
    ] {
        for half in [1, flags, index, 1] {
            out.extend_from_slice(&half.to_le_bytes());
        }
        for word in [hash(name), 20, next, string, 0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
    out
}

struct Builder(Vec<u8>);

impl Builder {
    fn append(&mut self, bytes: &[u8]) -> u64 {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        let at = self.0.len() as u64;
        self.0.extend_from_slice(bytes);
        at
    }

    fn headers(&mut self, dynamic_at: u64, dynamic_len: u64, len: u64) {
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        put(&3u16.to_le_bytes());
        put(&62u16.to_le_bytes());
        put(&1u32.to_le_bytes());
        for word in [CODE_AT, 64, 0] {
            put(&word.to_le_bytes());
        }
        put(&0u32.to_le_bytes());
        for half in [64u16, 56, 2, 64, 0, 0] {
            put(&half.to_le_bytes());
        }
        for (kind, offset, size, align) in [(1u32, 0, len, PAGE), (2, dynamic_at, dynamic_len, 8)] {
            put(&kind.to_le_bytes());
            put(&5u32.to_le_bytes());
            for word in [offset, offset, offset, size, size, align] {
                put(&word.to_le_bytes());
            }
        }
    }
}
