//! ELF files: what a program asks of its loader. Everything in the file may be wrong.

use alloc::vec::Vec;

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::errno::{Errno, SysResult};

/// Program-header types.
#[allow(missing_docs)]
pub mod kind {
    pub const LOAD: u32 = 1;
    pub const INTERP: u32 = 3;
    pub const PHDR: u32 = 6;
    pub const GNU_STACK: u32 = 0x6474_e551;
}

/// `Elf64_Ehdr`.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Header {
    pub ident: [u8; 16],
    pub kind: u16,
    pub machine: u16,
    pub version: u32,
    pub entry: u64,
    pub phoff: u64,
    pub shoff: u64,
    pub flags: u32,
    pub ehsize: u16,
    pub phentsize: u16,
    pub phnum: u16,
    pub shentsize: u16,
    pub shnum: u16,
    pub shstrndx: u16,
}

/// `Elf64_Phdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct ProgramHeader {
    pub kind: u32,
    pub flags: u32,
    pub offset: u64,
    pub vaddr: u64,
    pub paddr: u64,
    pub filesz: u64,
    pub memsz: u64,
    pub align: u64,
}

/// Most program headers, as Linux allows in one page.
const PHDR_BYTES_MAX: usize = 65_536;
const PAGE: u64 = cloak_abi::layout::PAGE;

/// A checked program description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// Entry point, before the load bias.
    pub entry: u64,
    /// Whether it may be loaded anywhere (`ET_DYN`).
    pub relocatable: bool,
    /// Program headers.
    pub headers: Vec<ProgramHeader>,
    /// File offset of the program headers.
    pub phoff: u64,
    /// Interpreter's place in the file: offset and length with its NUL.
    pub interpreter: Option<(u64, usize)>,
    /// Lowest and highest address, before the load bias.
    pub span: (u64, u64),
    /// `PT_GNU_STACK` asks for an executable stack.
    pub executable_stack: bool,
}

/// Reads a program description through `read_at(offset, bytes)`, which fills all or fails.
///
/// # Errors
/// ENOEXEC for everything that is not a loadable x86-64 program.
pub fn parse(mut read_at: impl FnMut(u64, &mut [u8]) -> SysResult<()>) -> SysResult<Elf> {
    let mut bytes = [0; size_of::<Header>()];
    read_at(0, &mut bytes).map_err(|_| Errno::ENOEXEC)?;
    let header = Header::read_from_bytes(&bytes).map_err(|_| Errno::ENOEXEC)?;
    let good = header.ident.starts_with(b"\x7fELF\x02\x01\x01")
        && matches!(header.kind, 2 | 3)
        && header.machine == 62
        && usize::from(header.phentsize) == size_of::<ProgramHeader>()
        && header.phnum > 0;
    if !good {
        return Err(Errno::ENOEXEC);
    }
    let len = usize::from(header.phnum) * size_of::<ProgramHeader>();
    if len > PHDR_BYTES_MAX {
        return Err(Errno::ENOEXEC);
    }
    let mut table = alloc::vec![0; len];
    read_at(header.phoff, &mut table).map_err(|_| Errno::ENOEXEC)?;
    let headers: Vec<ProgramHeader> = table
        .chunks_exact(size_of::<ProgramHeader>())
        .map(|c| ProgramHeader::read_from_bytes(c).map_err(|_| Errno::ENOEXEC))
        .collect::<SysResult<_>>()?;
    describe(&header, headers)
}

fn describe(header: &Header, headers: Vec<ProgramHeader>) -> SysResult<Elf> {
    let mut span: Option<(u64, u64)> = None;
    for ph in headers.iter().filter(|p| p.kind == kind::LOAD && p.memsz > 0) {
        let end = ph
            .vaddr
            .checked_add(ph.memsz)
            .filter(|&e| e <= 1 << 47)
            .ok_or(Errno::ENOEXEC)?;
        ph.offset
            .checked_add(ph.filesz)
            .filter(|&e| e < 1 << 62)
            .ok_or(Errno::ENOEXEC)?;
        let congruent = ph.offset % PAGE == ph.vaddr % PAGE;
        if ph.filesz > ph.memsz || !congruent && ph.filesz > 0 {
            return Err(Errno::ENOEXEC);
        }
        span = match span {
            None => Some((ph.vaddr & !(PAGE - 1), end)),
            // Segments come in ascending order (the ELF specification says so).
            Some((_, last)) if ph.vaddr < last => return Err(Errno::ENOEXEC),
            Some((first, _)) => Some((first, end)),
        };
    }
    let span = span.ok_or(Errno::ENOEXEC)?;
    let interpreter = match headers.iter().find(|p| p.kind == kind::INTERP) {
        None => None,
        Some(p) if (2..=4096).contains(&p.filesz) => Some((p.offset, p.filesz as usize)),
        Some(_) => return Err(Errno::ENOEXEC),
    };
    Ok(Elf {
        entry: header.entry,
        relocatable: header.kind == 3,
        phoff: header.phoff,
        interpreter,
        span,
        executable_stack: headers
            .iter()
            .any(|p| p.kind == kind::GNU_STACK && p.flags & 1 != 0),
        headers,
    })
}

impl Elf {
    /// Where the program headers will be in memory, before the load bias: in the segment that holds them.
    #[must_use]
    pub fn headers_address(&self) -> u64 {
        let explicit = self
            .headers
            .iter()
            .find(|p| p.kind == kind::PHDR)
            .map(|p| p.vaddr);
        let holder = || {
            self.headers
                .iter()
                .find(|p| {
                    p.kind == kind::LOAD
                        && p.offset <= self.phoff
                        && self.phoff < p.offset.saturating_add(p.filesz)
                })
                .map(|p| (self.phoff - p.offset).wrapping_add(p.vaddr))
        };
        explicit.or_else(holder).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_bytes(bytes: &[u8]) -> SysResult<Elf> {
        parse(|offset, to| {
            let from = usize::try_from(offset)
                .ok()
                .and_then(|o| bytes.get(o..o.checked_add(to.len())?));
            to.copy_from_slice(from.ok_or(Errno::EIO)?);
            Ok(())
        })
    }

    #[test]
    fn this_test_program_itself_is_loadable() {
        let own = std::fs::read("/proc/self/exe").expect("readable");
        let elf = parse_bytes(&own).expect("an ELF file");
        assert!(elf.span.0 < elf.span.1);
        assert!(elf.entry >= elf.span.0 && elf.entry < elf.span.1);
        assert!(elf.headers_address() > 0);
    }

    #[test]
    fn every_mutation_of_the_headers_is_refused_or_described() {
        let own = std::fs::read("/proc/self/exe").expect("readable");
        let head = &own[..4096.min(own.len())];
        for at in 0..1024 {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = head.to_vec();
                bytes[at] = value;
                if let Ok(elf) = parse_bytes(&bytes) {
                    assert!(elf.span.1 <= 1 << 47 && elf.span.0 < elf.span.1);
                }
            }
        }
        for cut in 0..head.len().min(900) {
            let _ = parse_bytes(&head[..cut]);
        }
    }

    #[test]
    fn others_are_not() {
        assert_eq!(parse_bytes(b""), Err(Errno::ENOEXEC));
        assert_eq!(parse_bytes(b"#!/bin/sh\n"), Err(Errno::ENOEXEC));
        let mut elf32 = std::fs::read("/proc/self/exe").expect("readable");
        elf32[4] = 1;
        assert_eq!(parse_bytes(&elf32), Err(Errno::ENOEXEC));
    }
}
