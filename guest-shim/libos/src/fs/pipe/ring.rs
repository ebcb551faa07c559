//! The bytes of a pipe: a ring with at most one reader and one writer inside at a time.
//!
//! Copies to and from the program may park, so they happen outside the lock: a side *reserves* a part of
//! the ring ([`Ring::reserve_write`], [`Ring::reserve_read`]), copies, and then *commits* as much as was
//! copied. Reserved parts never meet: the writer's is free space, the reader's is data. The ring starts with a page
//! and grows towards the pipe's capacity as it fills, which must not happen while a reader is inside.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::errno::SysResult;
use crate::user::Buf;

/// Bytes that are written whole or not at all.
pub const PIPE_BUF: usize = 4096;
/// Capacity of a new pipe.
pub const DEFAULT_CAPACITY: usize = 64 << 10;
/// What a program without privilege may ask for (`/proc/sys/fs/pipe-max-size`).
pub const MAX_CAPACITY: usize = 1 << 20;

/// Part of a ring that one side owns until it commits.
#[derive(Debug)]
pub struct Span {
    bytes: Arc<[AtomicU8]>,
    at: usize,
    /// Bytes reserved.
    pub len: usize,
}

impl Span {
    /// Copies out to the program; gives the bytes copied.
    pub fn copy_to(&self, to: &mut Buf) -> SysResult<usize> {
        self.halves(|part, len| to.put_raw(part, len))
    }

    /// Copies in from the program; gives the bytes copied.
    pub fn copy_from(&self, from: &mut Buf) -> SysResult<usize> {
        self.halves(|part, len| from.take_raw(part, len))
    }

    /// The span as one or two pieces, in order, until a piece comes short.
    fn halves(&self, mut copy: impl FnMut(*mut u8, usize) -> SysResult<usize>) -> SysResult<usize> {
        let at = self.at & (self.bytes.len() - 1);
        let first = self.len.min(self.bytes.len() - at);
        let done = copy(self.bytes[at..].as_ptr().cast_mut().cast(), first)?;
        if done < first || self.len == first {
            return Ok(done);
        }
        // What the first piece moved has been moved, whatever the second one meets.
        Ok(done + copy(self.bytes.as_ptr().cast_mut().cast(), self.len - first).unwrap_or(0))
    }
}

/// The ring and who is inside.
#[derive(Debug)]
pub struct Ring {
    /// A power of two long.
    bytes: Arc<[AtomicU8]>,
    head: usize,
    len: usize,
    capacity: usize,
    reading: bool,
    writing: bool,
    /// Lengths of the packets, in packet mode (`O_DIRECT`).
    packets: Option<VecDeque<usize>>,
}

/// Why a reservation was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Another thread is inside for a moment.
    Busy,
    /// Not enough data, or not enough space.
    Full,
}

fn fresh(len: usize) -> Arc<[AtomicU8]> {
    (0..len).map(|_| AtomicU8::new(0)).collect()
}

impl Ring {
    /// An empty ring.
    #[must_use]
    pub fn new(packets: bool) -> Self {
        Self {
            bytes: fresh(PIPE_BUF),
            head: 0,
            len: 0,
            capacity: DEFAULT_CAPACITY,
            reading: false,
            writing: false,
            packets: packets.then(VecDeque::new),
        }
    }

    /// Bytes to read.
    #[must_use]
    pub fn filled(&self) -> usize {
        self.len
    }

    /// Bytes it may hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets the content; nobody is inside.
    pub fn clear(&mut self) {
        self.len = 0;
        if let Some(packets) = &mut self.packets {
            packets.clear();
        }
    }

    /// Whether an atomic write would find its space.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.capacity - self.len >= PIPE_BUF
    }

    /// Sets the capacity (a power of two, at least a page); false when it holds more than that.
    pub fn set_capacity(&mut self, capacity: usize) -> bool {
        if capacity < self.len || self.writing {
            return false;
        }
        self.capacity = capacity;
        true
    }

    /// Reserves up to `want` bytes of data, in packet mode those of one packet.
    pub fn reserve_read(&mut self, want: usize) -> Result<Span, Refused> {
        if self.reading {
            return Err(Refused::Busy);
        }
        if self.len == 0 {
            return Err(Refused::Full);
        }
        let most = self
            .packets
            .as_ref()
            .and_then(|p| p.front().copied())
            .unwrap_or(self.len);
        self.reading = true;
        Ok(Span {
            bytes: self.bytes.clone(),
            at: self.head,
            len: want.min(most),
        })
    }

    /// Ends a read: `taken` bytes are gone, and with them the rest of their packet.
    pub fn commit_read(&mut self, taken: usize) {
        self.reading = false;
        let gone = match &mut self.packets {
            Some(packets) if taken > 0 => packets.pop_front().unwrap_or(taken),
            _ => taken,
        };
        self.head = self.head.wrapping_add(gone);
        self.len -= gone;
    }

    /// Reserves up to `want` bytes of space: all of them when they are at most [`PIPE_BUF`].
    pub fn reserve_write(&mut self, want: usize) -> Result<Span, Refused> {
        if self.writing {
            return Err(Refused::Busy);
        }
        let whole = want <= PIPE_BUF || self.packets.is_some();
        let want = if self.packets.is_some() {
            want.min(PIPE_BUF)
        } else {
            want
        };
        let room = (self.capacity.saturating_sub(self.len)).min(want);
        if room < if whole { want } else { 1 } {
            return Err(Refused::Full);
        }
        self.grow(self.len + room);
        let room = room.min(self.bytes.len() - self.len);
        if room < if whole { want } else { 1 } {
            return Err(Refused::Busy); // a reader is inside: it will tell
        }
        self.writing = true;
        Ok(Span {
            bytes: self.bytes.clone(),
            at: self.head.wrapping_add(self.len),
            len: room,
        })
    }

    /// Ends a write: `put` bytes are there.
    pub fn commit_write(&mut self, put: usize) {
        self.writing = false;
        self.len += put;
        if let Some(packets) = self.packets.as_mut().filter(|_| put > 0) {
            packets.push_back(put);
        }
    }

    fn grow(&mut self, need: usize) {
        if need <= self.bytes.len() || self.reading {
            return;
        }
        let bytes = fresh(
            need.next_power_of_two()
                .max(self.bytes.len() * 4)
                .min(self.capacity.next_power_of_two()),
        );
        let (old, new) = (self.bytes.len() - 1, bytes.len() - 1);
        for i in 0..self.len {
            let at = self.head.wrapping_add(i);
            bytes[at & new].store(self.bytes[at & old].load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(ring: &mut Ring, data: &[u8]) -> Result<usize, Refused> {
        let span = ring.reserve_write(data.len())?;
        let n = span.copy_from(&mut Buf::own(data)).expect("own memory");
        ring.commit_write(n);
        Ok(n)
    }

    fn get(ring: &mut Ring, len: usize) -> Result<Vec<u8>, Refused> {
        let mut out = vec![0; len];
        let span = ring.reserve_read(len)?;
        let n = span.copy_to(&mut Buf::own_mut(&mut out)).expect("own memory");
        ring.commit_read(n);
        out.truncate(n);
        Ok(out)
    }

    #[test]
    fn any_sequence_of_sizes_gives_the_bytes_in_order() {
        let mut seed = 12345u64;
        let mut next = move |below: usize| {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (seed >> 33) as usize % below
        };
        let mut ring = Ring::new(false);
        let (mut written, mut read) = (0usize, 0usize);
        for _ in 0..20_000 {
            if next(2) == 0 {
                let data: Vec<u8> = (0..next(9000) + 1).map(|i| (written + i) as u8).collect();
                match put(&mut ring, &data) {
                    Ok(n) => {
                        assert!(n == data.len() || data.len() > PIPE_BUF);
                        written += n;
                    }
                    Err(e) => assert_eq!(e, Refused::Full),
                }
            } else if let Ok(data) = get(&mut ring, next(9000) + 1) {
                assert!(data.iter().enumerate().all(|(i, &b)| b == (read + i) as u8));
                read += data.len();
            }
            assert_eq!(ring.filled(), written - read);
            assert!(ring.filled() <= ring.capacity());
        }
        assert!(read > 1 << 20);
    }

    #[test]
    fn packets_keep_their_borders() {
        let mut ring = Ring::new(true);
        assert_eq!(put(&mut ring, b"first"), Ok(5));
        assert_eq!(put(&mut ring, &[7; 5000]), Ok(4096));
        assert_eq!(get(&mut ring, 3), Ok(b"fir".to_vec()));
        assert_eq!(get(&mut ring, 9000), Ok(vec![7; 4096]));
        assert_eq!(get(&mut ring, 1), Err(Refused::Full));
    }

    #[test]
    fn the_ring_stays_while_a_reader_is_inside() {
        let mut ring = Ring::new(false);
        assert_eq!(put(&mut ring, &[1; 4096]), Ok(4096));
        let span = ring.reserve_read(4096).expect("data");
        assert_eq!(ring.reserve_write(1).err(), Some(Refused::Busy));
        assert_eq!(ring.reserve_read(1).err(), Some(Refused::Busy));
        ring.commit_read(span.len);
        assert_eq!(put(&mut ring, &[1; 8192]), Ok(8192));
    }
}
