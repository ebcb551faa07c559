//! Directory records as `getdents64` and `getdents` give them.

use alloc::vec::Vec;

use crate::errno::{Errno, SysResult};
#[cfg(test)]
use crate::testing::weaken::{Protection, without};
use crate::user::Buf;

/// Bytes of a `struct linux_dirent64` before the name.
const HEAD: usize = 19;

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Inode number.
    pub ino: u64,
    /// Position after this entry.
    pub next: u64,
    /// `DT_*`.
    pub kind: u8,
    /// Name.
    pub name: &'a [u8],
}

/// Appends a record as `getdents64` gives it, unless that would make `out` longer than `room`.
#[must_use]
pub fn put(out: &mut Vec<u8>, room: usize, entry: &Entry<'_>) -> bool {
    let len = (HEAD + entry.name.len() + 1).next_multiple_of(8);
    let Ok(reclen) = u16::try_from(len) else {
        return false;
    };
    if out.len() + len > room {
        return false;
    }
    let end = out.len() + len;
    out.extend_from_slice(&entry.ino.to_le_bytes());
    out.extend_from_slice(&entry.next.to_le_bytes());
    out.extend_from_slice(&reclen.to_le_bytes());
    out.push(entry.kind);
    out.extend_from_slice(entry.name);
    out.resize(end, 0);
    true
}

/// Takes the first record off `bytes`.
///
/// # Errors
/// EIO when it is none that a Linux would write.
pub fn take<'a>(bytes: &mut &'a [u8]) -> SysResult<Entry<'a>> {
    let number = |at: usize| -> SysResult<u64> {
        let raw: [u8; 8] = bytes
            .get(at..at + 8)
            .and_then(|b| b.try_into().ok())
            .ok_or(Errno::EIO)?;
        Ok(u64::from_le_bytes(raw))
    };
    let len = (number(16 - 6)? >> 48) as usize;
    let record = bytes
        .get(..len)
        .filter(|r| r.len() > HEAD && len.is_multiple_of(8))
        .ok_or(Errno::EIO)?;
    let text = &record[HEAD..];
    let end = text.iter().position(|&b| b == 0).ok_or(Errno::EIO)?;
    let name = &text[..end];
    if name.is_empty() || end > super::flags::NAME_MAX || name.contains(&b'/') || record[18] > 15 {
        return Err(Errno::EIO);
    }
    let next = number(8)?;
    // What a program can seek to; more would look like an error number to who asks for the position.
    let seekable = i64::try_from(next).is_ok();
    #[cfg(test)]
    let seekable = seekable || without(Protection::Position);
    if !seekable {
        return Err(Errno::EIO);
    }
    let entry = Entry {
        ino: number(0)?,
        next,
        kind: record[18],
        name,
    };
    *bytes = &bytes[len..];
    Ok(entry)
}

/// Gives whole records to the program.
///
/// # Errors
/// EFAULT.
pub fn give(records: &[u8], to: &mut Buf) -> SysResult<usize> {
    if to.put(records)? == records.len() {
        Ok(records.len())
    } else {
        Err(Errno::EFAULT)
    }
}

/// The same records as the older `getdents` gives them: the type in the last byte. They are as long.
///
/// # Errors
/// EIO for bytes that are no records.
pub fn to_old(records: &[u8]) -> SysResult<Vec<u8>> {
    let mut out = Vec::with_capacity(records.len());
    let mut rest = records;
    while !rest.is_empty() {
        let start = out.len();
        let before = rest.len();
        let entry = take(&mut rest)?;
        let len = before - rest.len();
        out.extend_from_slice(&entry.ino.to_le_bytes());
        out.extend_from_slice(&entry.next.to_le_bytes());
        out.extend_from_slice(&(len as u16).to_le_bytes());
        out.extend_from_slice(entry.name);
        out.resize(start + len, 0);
        if let Some(last) = out.last_mut() {
            *last = entry.kind;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: Entry<'_> = Entry {
        ino: 7,
        next: 9,
        kind: 8,
        name: b"hello",
    };

    #[test]
    fn records_round_trip_and_keep_to_the_room() {
        let mut out = Vec::new();
        assert!(put(&mut out, 64, &ENTRY));
        assert!(put(&mut out, 64, &ENTRY));
        assert!(!put(&mut out, 64, &ENTRY));
        let mut rest = &out[..];
        assert_eq!(take(&mut rest), Ok(ENTRY));
        assert_eq!(take(&mut rest), Ok(ENTRY));
        assert!(rest.is_empty());
    }

    #[test]
    fn no_bytes_make_the_parser_read_beyond_them() {
        let mut good = Vec::new();
        assert!(put(&mut good, 64, &ENTRY));
        for cut in 0..good.len() {
            assert_eq!(take(&mut &good[..cut]), Err(Errno::EIO));
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x2f, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = take(&mut &bad[..]);
            }
        }
    }

    #[test]
    fn the_old_format_has_the_type_at_the_end() {
        let mut out = Vec::new();
        assert!(put(&mut out, 64, &ENTRY));
        let old = to_old(&out).expect("well formed");
        assert_eq!(&old[18..23], b"hello");
        assert_eq!(old.last(), Some(&8));
    }
}
