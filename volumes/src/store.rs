//! Where a container's bytes lie: the OS side. It carries bytes and knows nothing of them, and everything that it
//! gives back may be a lie. So a store's answers are used for nothing before they are opened and checked, its length
//! only to see that bytes are missing, and its errors only to say what failed.

use alloc::vec::Vec;

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Bytes were asked for beyond the end.
    #[error("it ends before byte {end}")]
    End {
        /// Where the bytes that were asked for end.
        end: u64,
    },
    /// There is no more room on the OS side.
    #[error("no room is left on the OS side")]
    Full,
    /// The OS side answers with an error number.
    #[error("the OS side answers with error {0}")]
    Refused(i32),
    /// It was opened for reading.
    #[error("it is open for reading only")]
    ReadOnly,
}

/// Bytes with a length. Offsets and lengths are in bytes.
#[expect(
    clippy::len_without_is_empty,
    reason = "whether a container is empty is nobody's question"
)]
pub trait Store {
    /// Fills all of `out`.
    ///
    /// # Errors
    /// [`StoreError`]; what `out` then holds is undefined.
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StoreError>;
    /// Writes all of `bytes`, within the length. Durable only after [`Store::flush`]; until then a crash may leave
    /// any part of it, in any order with other writes. It may return before the OS side has taken the bytes; reads see them
    /// all the same.
    ///
    /// # Errors
    /// [`StoreError`], also of an earlier write, at the latest at the next flush; any part may then be written.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError>;
    /// Returns when everything that was written, and the length, survives a loss of power.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is then known of what is durable.
    fn flush(&mut self) -> Result<(), StoreError>;
    /// The length, as the store says.
    ///
    /// # Errors
    /// [`StoreError`].
    fn len(&mut self) -> Result<u64, StoreError>;
    /// Cuts or extends with zeros.
    ///
    /// # Errors
    /// [`StoreError`].
    fn set_len(&mut self, len: u64) -> Result<(), StoreError>;
    /// Forgets what it read before it was asked to, as some of that was not good. Says whether a read may have given such
    /// bytes since the last time: then it is worth another try.
    fn forget(&mut self) -> bool {
        false
    }
}

impl<S: Store + ?Sized> Store for &mut S {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        (**self).read_at(offset, out)
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        (**self).write_at(offset, bytes)
    }
    fn flush(&mut self) -> Result<(), StoreError> {
        (**self).flush()
    }
    fn len(&mut self) -> Result<u64, StoreError> {
        (**self).len()
    }
    fn set_len(&mut self, len: u64) -> Result<(), StoreError> {
        (**self).set_len(len)
    }
    fn forget(&mut self) -> bool {
        (**self).forget()
    }
}

/// A store in memory: volumes that need not last, and tests.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(pub Vec<u8>);

impl MemoryStore {
    fn range(&self, offset: u64, len: usize) -> Result<core::ops::Range<usize>, StoreError> {
        let end = offset.saturating_add(len as u64);
        if end > self.0.len() as u64 {
            return Err(StoreError::End { end });
        }
        Ok(offset as usize..offset as usize + len)
    }
}

impl Store for MemoryStore {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let range = self.range(offset, out.len())?;
        out.copy_from_slice(&self.0[range]);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let range = self.range(offset, bytes.len())?;
        self.0[range].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn len(&mut self) -> Result<u64, StoreError> {
        Ok(self.0.len() as u64)
    }

    fn set_len(&mut self, len: u64) -> Result<(), StoreError> {
        let len = usize::try_from(len).map_err(|_| StoreError::Full)?;
        self.0.resize(len, 0);
        Ok(())
    }
}
