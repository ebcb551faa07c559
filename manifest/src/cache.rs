//! `/etc/ld.so.cache`: where glibc's loader finds libraries by name.
//!
//! The format with the magic `glibc-ld.so.cache1.1` (glibc, sysdeps/generic/dl-cache.h): a header of 48 bytes, entries
//! of 24, strings at offsets from the start. Parsed from a copy, with each offset checked.

use std::collections::BTreeMap;

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
const HEADER: usize = 48;
const ENTRY: usize = 24;
/// ELF, x86-64 (`FLAG_ELF_LIBC6 | FLAG_X8664_LIB64`).
const X86_64: u32 = 0x0303;

/// Libraries by name. The first entry of a name wins, as for the loader.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LoaderCache(BTreeMap<String, String>);

impl LoaderCache {
    /// Reads a cache; one of another format, or a damaged one, is an empty one, as for the loader.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        entries(bytes).unwrap_or_default()
    }

    /// The path of a library.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

fn entries(file: &[u8]) -> Option<LoaderCache> {
    let bytes = newest(file)?;
    let count = number(bytes, 20)? as usize;
    let mut found = BTreeMap::new();
    for index in 0..count {
        let at = HEADER.checked_add(index.checked_mul(ENTRY)?)?;
        let flags = number(bytes, at)?;
        let hardware = number(bytes, at + 16)? | number(bytes, at + 20)?;
        // Variants for newer processors are left out: a program that runs elsewhere loads the plain ones.
        if flags == X86_64 && hardware == 0 {
            let key = string(bytes, number(bytes, at + 4)?)?;
            let value = string(bytes, number(bytes, at + 8)?)?;
            found.entry(key).or_insert(value);
        }
    }
    Some(LoaderCache(found))
}

/// A file may begin with the oldest format, which has its own entries of 12 bytes before.
fn newest(file: &[u8]) -> Option<&[u8]> {
    if file.starts_with(MAGIC) {
        return Some(file);
    }
    if !file.starts_with(OLD_MAGIC) {
        return None;
    }
    let old = number(file, 12)? as usize;
    let start = old
        .checked_mul(12)?
        .checked_add(16)?
        .checked_next_multiple_of(8)?;
    file.get(start..).filter(|rest| rest.starts_with(MAGIC))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(four.try_into().ok()?))
}

fn string(bytes: &[u8], at: u32) -> Option<String> {
    let rest = bytes.get(at as usize..)?;
    let end = rest.iter().take(4096).position(|&b| b == 0)?;
    String::from_utf8(rest[..end].to_vec()).ok()
}
