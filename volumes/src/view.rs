//! The ciphertext view: what someone without the key sees of a container. Names are places, contents are the bytes
//! as they lie there. Nothing is said of files, because nothing is known.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::block::BLOCK;
use crate::error::VolumeError;
use crate::keys::VolumeId;
use crate::store::Store;
use crate::superblock::Clear;
use crate::volume::read_slots;

/// Bytes of a piece.
pub const PIECE: u64 = 1 << 20;

/// A piece of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opaque {
    /// `superblock-0`, `superblock-1`, or `blocks-` and the first block's number in 16 hexadecimal digits.
    pub name: String,
    /// Where it begins in the container, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A container seen without its key. Reads only.
#[derive(Debug)]
pub struct CiphertextView<S> {
    store: S,
    len: u64,
    clear: [Option<Clear>; 2],
}

impl<S: Store> CiphertextView<S> {
    /// Looks at a container. It may be anything, also no volume.
    ///
    /// # Errors
    /// [`VolumeError::Store`].
    pub fn open(mut store: S) -> Result<Self, VolumeError> {
        let len = store.len().map_err(VolumeError::store("asking for the length"))?;
        let clear = clear(&mut store)?;
        Ok(Self { store, len, clear })
    }

    /// Looks again: the container may have been written meanwhile.
    ///
    /// # Errors
    /// [`VolumeError::Store`].
    pub fn refresh(&mut self) -> Result<(), VolumeError> {
        let len = self.store.len();
        self.len = len.map_err(VolumeError::store("asking for the length"))?;
        self.clear = clear(&mut self.store)?;
        Ok(())
    }

    /// The volume's name and newest counter, if the clear bytes can be believed.
    #[must_use]
    pub fn claims(&self) -> Option<(VolumeId, u64)> {
        let newest = self.clear.iter().flatten().max_by_key(|clear| clear.counter)?;
        Some((newest.volume, newest.counter))
    }

    /// All pieces, in the order of the container. There are as many as the length asks for.
    pub fn pieces(&self) -> impl Iterator<Item = Opaque> + '_ {
        let block = BLOCK as u64;
        let slots = (0..2).map(move |slot| (format!("superblock-{slot}"), slot * block, block));
        let rest = (0..).map(move |n: u64| {
            let start = n * PIECE;
            let offset = start.max(2 * block);
            (
                format!("blocks-{:016x}", offset / block),
                offset,
                start + PIECE - offset,
            )
        });
        slots.chain(rest).map_while(|(name, offset, len)| {
            (offset < self.len).then(|| Opaque {
                name,
                offset,
                len: len.min(self.len - offset),
            })
        })
    }

    /// The piece of a name.
    #[must_use]
    pub fn piece(&self, name: &str) -> Option<Opaque> {
        let index = match name.strip_prefix("blocks-") {
            Some(digits) => {
                let first = u64::from_str_radix(digits, 16).ok()?;
                2 + first.checked_mul(BLOCK as u64)? / PIECE
            }
            None => name.strip_prefix("superblock-")?.parse().ok()?,
        };
        self.pieces()
            .nth(usize::try_from(index).ok()?)
            .filter(|piece| piece.name == name)
    }

    /// Bytes of a piece, from an offset within it; gives their number.
    ///
    /// # Errors
    /// [`VolumeError::Store`].
    pub fn read_at(&mut self, piece: &Opaque, offset: u64, out: &mut [u8]) -> Result<usize, VolumeError> {
        let len = piece.len.saturating_sub(offset).min(out.len() as u64) as usize;
        let read = self
            .store
            .read_at(piece.offset + offset.min(piece.len), &mut out[..len]);
        read.map_err(VolumeError::store("reading a container"))?;
        Ok(len)
    }

    /// All names.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.pieces().map(|piece| piece.name).collect()
    }
}

fn clear<S: Store>(store: &mut S) -> Result<[Option<Clear>; 2], VolumeError> {
    Ok(read_slots(store)?.map(|slot| slot.as_ref().and_then(Clear::parse)))
}
