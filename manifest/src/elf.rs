//! What an ELF file asks its loader for: interpreter, libraries, where to look.

use object::Endianness;
use object::elf::{
    DT_NEEDED, DT_NULL, DT_RPATH, DT_RUNPATH, DT_STRSZ, DT_STRTAB, FileHeader64, PT_DYNAMIC, PT_INTERP,
    PT_LOAD,
};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

/// What the loader is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests {
    /// The loader, for a program that wants one.
    pub interpreter: Option<String>,
    /// Names or paths of libraries, in order.
    pub needed: Vec<String>,
    /// Directories for this file and what it loads, before all others. Void beside `runpath`.
    pub rpath: Vec<String>,
    /// Directories for this file's own libraries.
    pub runpath: Vec<String>,
}

/// A file that is not ELF for x86-64, or is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ElfError(pub &'static str);

type Header = FileHeader64<Endianness>;

/// Longest list and longest string that make sense.
const MAX_ENTRIES: usize = 4096;
const MAX_STRING: usize = 4096;

impl Requests {
    /// Reads what a file asks for.
    ///
    /// # Errors
    /// [`ElfError`].
    pub fn parse(file: &[u8]) -> Result<Self, ElfError> {
        let bad = |_| ElfError("not a 64-bit ELF file");
        let header = Header::parse(file).map_err(bad)?;
        let endian = header.endian().map_err(bad)?;
        let segments = header
            .program_headers(endian, file)
            .map_err(|_| ElfError("program headers outside of the file"))?;
        let mut own = Self::default();
        for segment in segments {
            let data = || {
                segment
                    .data(endian, file)
                    .map_err(|()| ElfError("a segment outside of the file"))
            };
            match segment.p_type(endian) {
                PT_INTERP => own.interpreter = Some(text(data()?, 0)?),
                PT_DYNAMIC => own.read_dynamic(endian, segment, segments, file)?,
                _ => {}
            }
        }
        Ok(own)
    }

    fn read_dynamic(
        &mut self,
        endian: Endianness,
        dynamic: &<Header as FileHeader>::ProgramHeader,
        segments: &[<Header as FileHeader>::ProgramHeader],
        file: &[u8],
    ) -> Result<(), ElfError> {
        let bad = || ElfError("a dynamic section that is damaged");
        let entries = dynamic
            .dynamic(endian, file)
            .map_err(|_| bad())?
            .ok_or_else(bad)?;
        let entries: Vec<(u64, u64)> = entries
            .iter()
            .map(|e| (e.d_tag(endian), e.d_val(endian)))
            .take_while(|&(tag, _)| tag != u64::from(DT_NULL))
            .take(MAX_ENTRIES)
            .collect();
        let value = |wanted: u32| {
            entries
                .iter()
                .find(|(tag, _)| *tag == u64::from(wanted))
                .map(|&(_, v)| v)
        };
        let (Some(address), Some(size)) = (value(DT_STRTAB), value(DT_STRSZ)) else {
            return Ok(());
        };
        let strings = segments
            .iter()
            .filter(|s| s.p_type(endian) == PT_LOAD)
            .find_map(|s| s.data_range(endian, file, address, size).ok()?)
            .ok_or_else(bad)?;
        for &(tag, value) in &entries {
            let string = || text(strings, value);
            match u32::try_from(tag).unwrap_or(u32::MAX) {
                DT_NEEDED => self.needed.push(string()?),
                DT_RPATH => self.rpath = directories(&string()?),
                DT_RUNPATH => self.runpath = directories(&string()?),
                _ => {}
            }
        }
        Ok(())
    }
}

fn directories(list: &str) -> Vec<String> {
    list.split(':')
        .filter(|d| !d.is_empty())
        .map(str::to_owned)
        .collect()
}

fn text(bytes: &[u8], at: u64) -> Result<String, ElfError> {
    let bad = ElfError("a string that does not end, or is not text");
    let rest = usize::try_from(at)
        .ok()
        .and_then(|at| bytes.get(at..))
        .ok_or(bad)?;
    let end = rest.iter().take(MAX_STRING).position(|&b| b == 0).ok_or(bad)?;
    String::from_utf8(rest[..end].to_vec()).map_err(|_| bad)
}
