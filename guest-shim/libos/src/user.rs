//! The program's memory: every access of the libos goes through here.
//!
//! The program may pass any address. A copy that meets an address that is not mapped ends with EFAULT; one
//! that meets a page not yet there brings it in (and may park for it). No reference to the program's
//! memory is ever made: other threads write it at any time.

use alloc::vec::Vec;
use core::mem::MaybeUninit;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::arch::copy;
use crate::errno::{Errno, SysResult};

/// Most segments of a vectored call (`UIO_MAXIOV`).
pub const IOV_MAX: usize = 1024;
/// Most bytes that one read or write moves (`MAX_RW_COUNT`).
pub const RW_MAX: usize = 0x7fff_f000;

fn check(address: u64, len: usize) -> SysResult<()> {
    let end = address.checked_add(len as u64).ok_or(Errno::EFAULT)?;
    let outside = end <= cloak_abi::layout::LIBOS_BASE || address >= cloak_abi::layout::LIBOS_END;
    if outside && end <= 1 << 47 {
        Ok(())
    } else {
        Err(Errno::EFAULT)
    }
}

/// Whether a 4-byte word at `address` can be the program's, and is aligned.
///
/// # Errors
/// EFAULT, EINVAL.
pub fn check_word(address: u64) -> SysResult<()> {
    if !address.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    check(address, 4)
}

/// Copies from the program's memory.
///
/// # Errors
/// EFAULT.
pub fn copy_in(to: &mut [u8], from: u64) -> SysResult<()> {
    check(from, to.len())?;
    copy(to.as_mut_ptr() as u64, from, to.len())
}

/// Copies to the program's memory.
///
/// # Errors
/// EFAULT.
pub fn copy_out(to: u64, from: &[u8]) -> SysResult<()> {
    check(to, from.len())?;
    copy(to, from.as_ptr() as u64, from.len())
}

/// Reads one value.
///
/// # Errors
/// EFAULT.
pub fn read<T: FromBytes>(from: u64) -> SysResult<T> {
    check(from, size_of::<T>())?;
    let mut value = MaybeUninit::<T>::uninit();
    copy(value.as_mut_ptr() as u64, from, size_of::<T>())?;
    // SAFETY: all its bytes were written by the copy, and any bytes are a valid T.
    Ok(unsafe { value.assume_init() })
}

/// Writes one value.
///
/// # Errors
/// EFAULT.
pub fn write<T: IntoBytes + Immutable + ?Sized>(to: u64, value: &T) -> SysResult<()> {
    copy_out(to, value.as_bytes())
}

/// Reads `count` values.
///
/// # Errors
/// EFAULT; ENOMEM when they would not fit 16 MiB.
pub fn read_array<T: FromBytes + Clone>(from: u64, count: usize) -> SysResult<Vec<T>> {
    let bytes = count
        .checked_mul(size_of::<T>())
        .filter(|&b| b <= 16 << 20)
        .ok_or(Errno::ENOMEM)?;
    check(from, bytes)?;
    (0..count)
        .map(|i| read(from + (i * size_of::<T>()) as u64))
        .collect()
}

/// Reads a string that ends with a NUL (not part of the result), of at most `max` bytes.
///
/// # Errors
/// EFAULT; ENAMETOOLONG when there is no NUL in time.
pub fn read_string(from: u64, max: usize) -> SysResult<Vec<u8>> {
    let mut out = Vec::new();
    let mut at = from;
    while out.len() <= max {
        // Up to the end of the page: the next one need not exist.
        let room = 256.min(4096 - (at as usize & 4095));
        let mut chunk = [0; 256];
        copy_in(&mut chunk[..room], at)?;
        if let Some(end) = chunk[..room].iter().position(|&b| b == 0) {
            out.extend_from_slice(&chunk[..end]);
            return if out.len() <= max {
                Ok(out)
            } else {
                Err(Errno::ENAMETOOLONG)
            };
        }
        out.extend_from_slice(&chunk[..room]);
        at += room as u64;
    }
    Err(Errno::ENAMETOOLONG)
}

/// A sequence of memory segments that a read fills or a write takes, in order: the program's (iovec), or
/// the libos's own.
#[derive(Debug)]
pub struct Buf {
    segments: Vec<(u64, usize)>,
    first: (u64, usize),
    next: usize,
    left: usize,
}

impl Buf {
    /// One segment of the program's memory.
    ///
    /// # Errors
    /// EFAULT when it can't be the program's.
    pub fn user(address: u64, len: usize) -> SysResult<Self> {
        let len = len.min(RW_MAX);
        check(address, len)?;
        Ok(Self {
            segments: Vec::new(),
            first: (address, len),
            next: 0,
            left: len,
        })
    }

    /// The program's `struct iovec[count]` at `address`.
    ///
    /// # Errors
    /// EFAULT; EINVAL for too many segments or more than `isize::MAX` bytes.
    pub fn user_vector(address: u64, count: usize) -> SysResult<Self> {
        if count > IOV_MAX {
            return Err(Errno::EINVAL);
        }
        let mut segments = Vec::with_capacity(count);
        let mut left = 0usize;
        for [base, len] in read_array::<[u64; 2]>(address, count)? {
            let len = usize::try_from(len)
                .ok()
                .filter(|&l| isize::try_from(l).is_ok())
                .ok_or(Errno::EINVAL)?;
            let len = len.min(RW_MAX - left);
            check(base, len)?;
            left += len;
            segments.push((base, len));
        }
        let first = segments.first().copied().unwrap_or((0, 0));
        Ok(Self {
            segments,
            first,
            next: 0,
            left,
        })
    }

    /// The libos's own memory, to be filled.
    pub fn own_mut(bytes: &mut [u8]) -> Self {
        let first = (bytes.as_mut_ptr() as u64, bytes.len());
        Self {
            segments: Vec::new(),
            first,
            next: 0,
            left: bytes.len(),
        }
    }

    /// The libos's own memory, to be taken from.
    #[must_use]
    pub fn own(bytes: &[u8]) -> Self {
        let first = (bytes.as_ptr() as u64, bytes.len());
        Self {
            segments: Vec::new(),
            first,
            next: 0,
            left: bytes.len(),
        }
    }

    /// `len` bytes at `address`, which the libos has mapped (a frame).
    pub(crate) fn own_raw(address: u64, len: usize) -> Self {
        Self {
            segments: Vec::new(),
            first: (address, len),
            next: 0,
            left: len,
        }
    }

    /// Bytes left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.left
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Shortens what is left to `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.left = self.left.min(len);
    }

    /// Copies `from` into what is left, up to its end. Gives the bytes copied; less than asked only when
    /// an address faulted after some bytes or the end was reached.
    ///
    /// # Errors
    /// EFAULT when not even the first byte could be copied.
    pub fn put(&mut self, from: &[u8]) -> SysResult<usize> {
        self.advance(from.len(), |at, done, len| {
            copy(at, from.as_ptr() as u64 + done as u64, len)
        })
    }

    /// Fills `to` from what is left.
    ///
    /// # Errors
    /// EFAULT when not even the first byte could be copied.
    pub fn take(&mut self, to: &mut [u8]) -> SysResult<usize> {
        let target = to.as_mut_ptr() as u64;
        self.advance(to.len(), |at, done, len| copy(target + done as u64, at, len))
    }

    /// Like [`Buf::put`] from memory that others write (the shared region): copied once, as it is.
    ///
    /// # Errors
    /// EFAULT when not even the first byte could be copied.
    pub fn put_raw(&mut self, from: *const u8, len: usize) -> SysResult<usize> {
        self.advance(len, |at, done, len| copy(at, from as u64 + done as u64, len))
    }

    /// Like [`Buf::take`] into memory that others read (the shared region).
    ///
    /// # Errors
    /// EFAULT when not even the first byte could be copied.
    pub fn take_raw(&mut self, to: *mut u8, len: usize) -> SysResult<usize> {
        self.advance(len, |at, done, len| copy(to as u64 + done as u64, at, len))
    }

    /// Fills up to `len` bytes with zeros.
    ///
    /// # Errors
    /// EFAULT when not even the first byte could be written.
    pub fn put_zeros(&mut self, len: usize) -> SysResult<usize> {
        static ZEROS: [u8; 4096] = [0; 4096];
        let mut done = 0;
        while done < len && !self.is_empty() {
            match self.put(&ZEROS[..ZEROS.len().min(len - done)]) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn advance(
        &mut self,
        want: usize,
        mut step: impl FnMut(u64, usize, usize) -> SysResult<()>,
    ) -> SysResult<usize> {
        let mut done = 0;
        while done < want && self.left > 0 {
            let (at, room) = self.first;
            if room == 0 {
                self.next += 1;
                let Some(&segment) = self.segments.get(self.next) else {
                    break;
                };
                self.first = segment;
                continue;
            }
            let len = room.min(want - done).min(self.left);
            if let Err(e) = step(at, done, len) {
                return if done == 0 { Err(e) } else { Ok(done) };
            }
            self.first = (at + len as u64, room - len);
            self.left -= len;
            done += len;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_filled_in_order_and_stops_at_its_end() {
        let mut a = [0u8; 3];
        let mut b = [0u8; 5];
        let iov = [[a.as_mut_ptr() as u64, 3], [0, 0], [b.as_mut_ptr() as u64, 5]];
        let mut buf = Buf::user_vector(iov.as_ptr() as u64, 3).expect("readable");
        assert_eq!(buf.len(), 8);
        assert_eq!(buf.put(b"abcd"), Ok(4));
        assert_eq!(buf.put(b"efghij"), Ok(4));
        assert!(buf.is_empty());
        assert_eq!((&a, &b), (b"abc", b"defgh"));
    }

    #[test]
    fn addresses_of_the_libos_are_refused() {
        assert_eq!(read::<u64>(cloak_abi::layout::LIBOS_BASE), Err(Errno::EFAULT));
        assert_eq!(read::<u64>(cloak_abi::layout::LIBOS_BASE - 4), Err(Errno::EFAULT));
        assert_eq!(read::<u64>(u64::MAX - 3), Err(Errno::EFAULT));
        assert_eq!(read::<u64>(1 << 47), Err(Errno::EFAULT));
    }

    #[test]
    fn strings_end_at_their_nul() {
        let text = b"hello\0world";
        assert_eq!(read_string(text.as_ptr() as u64, 10), Ok(b"hello".to_vec()));
        assert_eq!(read_string(text.as_ptr() as u64, 4), Err(Errno::ENAMETOOLONG));
    }
}
