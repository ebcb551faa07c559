//! The last roots of protected volumes, remembered for the guest where the OS side can't reach: by this process.
//!
//! The mark comes from a page of private RAM ([`cloak_abi::anchor`]) when a vCPU makes `MonitorCall::Anchor`. The
//! vCPU waits until it is durable, as the program's `fsync` does.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use cloak_abi::anchor::{ANCHORS, AnchorSlot, MARK_WORDS};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::error::VmError;

/// A root of a volume as it stands in the guest's page.
pub type Mark = [u64; MARK_WORDS];

/// Remembers roots of one volume.
pub trait Anchor: Send + fmt::Debug {
    /// What it saw last; `None` when it begins.
    fn seen(&self) -> Option<Mark>;
    /// Remembers a mark, durably, before it returns. Has to refuse one that is not newer: the guest is not the only one
    /// that asks.
    ///
    /// # Errors
    /// A Linux error number.
    fn advance(&mut self, mark: &Mark) -> Result<(), i32>;
}

/// All anchors of a VM.
#[derive(Debug)]
pub struct Anchors {
    list: Vec<Mutex<Box<dyn Anchor>>>,
    memory: GuestMemoryMmap,
    page: u64,
}

impl Anchors {
    /// Anchors by number, and where their page is.
    #[must_use]
    pub fn new(list: Vec<Box<dyn Anchor>>, memory: &GuestMemoryMmap, page: u64) -> Self {
        Self {
            list: list.into_iter().map(Mutex::new).collect(),
            memory: memory.clone(),
            page,
        }
    }

    /// Carries out the call with number `number`.
    ///
    /// # Errors
    /// For a number that is none, which ends the VM: its libos knows the numbers.
    pub fn call(&self, number: u32) -> Result<(), VmError> {
        let slot = number as usize;
        let known = self.list.get(slot).filter(|_| slot < ANCHORS);
        let anchor = known.ok_or(VmError::Shim("anchor call with a number that is none"))?;
        let at = self.page + (slot * size_of::<AnchorSlot>()) as u64;
        let bad = |_| VmError::Shim("anchor page outside guest RAM");
        let mut bytes = [0; 8 * MARK_WORDS];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .map_err(bad)?;
        let mut mark = [0; MARK_WORDS];
        for (to, from) in mark.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *to = u64::from_le_bytes(*from);
        }
        let result = anchor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .advance(&mark);
        let result = result.map_or_else(|errno| -i64::from(errno), |()| 0);
        let result_at = at + std::mem::offset_of!(AnchorSlot, result) as u64;
        self.memory
            .write_slice(&result.to_le_bytes(), GuestAddress(result_at))
            .map_err(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Last(Option<Mark>);

    impl Anchor for Last {
        fn seen(&self) -> Option<Mark> {
            self.0
        }
        fn advance(&mut self, mark: &Mark) -> Result<(), i32> {
            if self.0.is_some_and(|seen| seen[2] >= mark[2]) {
                return Err(libc::EINVAL);
            }
            self.0 = Some(*mark);
            Ok(())
        }
    }

    #[test]
    fn the_mark_is_taken_from_the_slot_and_the_result_left_there() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 16)]).expect("memory");
        let anchors = Anchors::new(vec![Box::new(Last(None)), Box::new(Last(None))], &memory, 0x3000);
        let put = |counter: u64| {
            let words = [1, 2, counter, 4, 5, 6, 7u64, 99];
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            memory.write_slice(&bytes, GuestAddress(0x3040)).expect("inside");
        };
        let result = || {
            let mut bytes = [0; 8];
            memory
                .read_slice(&mut bytes, GuestAddress(0x3040 + 56))
                .expect("inside");
            i64::from_le_bytes(bytes)
        };
        put(8);
        anchors.call(1).expect("known");
        assert_eq!(result(), 0);
        put(7);
        anchors.call(1).expect("known");
        assert_eq!(result(), -i64::from(libc::EINVAL));
        let seen = anchors.list[1].lock().expect("whole").seen();
        assert_eq!(seen, Some([1, 2, 8, 4, 5, 6, 7]));
        assert_eq!(anchors.list[0].lock().expect("whole").seen(), None);
        for unknown in [2, 63, 64, u32::MAX] {
            assert!(anchors.call(unknown).is_err(), "{unknown}");
        }
    }
}
