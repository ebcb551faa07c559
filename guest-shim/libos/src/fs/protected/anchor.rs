//! A volume's last root, told to the monitor: the party outside of the OS side that remembers it.

use cloak_abi::anchor::MARK_WORDS;
use cloak_abi::config::Anchored;
use cloak_volumes::{Anchor, AnchorError, Mark, VolumeId};

/// The monitor's memory of one volume.
#[derive(Debug)]
pub struct MonitorAnchor {
    number: u32,
    seen: Option<Mark>,
}

impl MonitorAnchor {
    /// As the configuration names it.
    #[must_use]
    pub fn new(anchored: &Anchored) -> Self {
        Self {
            number: anchored.number,
            seen: anchored.seen.as_ref().map(from_words),
        }
    }
}

impl Anchor for MonitorAnchor {
    fn last(&mut self) -> Result<Option<Mark>, AnchorError> {
        Ok(self.seen)
    }

    fn advance(&mut self, mark: &Mark) -> Result<(), AnchorError> {
        tell_monitor(self.number, &to_words(mark)).map_err(AnchorError::Unavailable)?;
        self.seen = Some(*mark);
        Ok(())
    }
}

pub fn to_words(mark: &Mark) -> [u64; MARK_WORDS] {
    let mut bytes = [0; 8 * MARK_WORDS];
    bytes[..16].copy_from_slice(&mark.volume.0);
    bytes[16..24].copy_from_slice(&mark.counter.to_le_bytes());
    bytes[24..].copy_from_slice(&mark.root);
    let mut words = [0; MARK_WORDS];
    for (to, from) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *to = u64::from_le_bytes(*from);
    }
    words
}

fn from_words(words: &[u64; MARK_WORDS]) -> Mark {
    let mut bytes = [0; 8 * MARK_WORDS];
    for (to, from) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *to = from.to_le_bytes();
    }
    let (mut volume, mut root) = ([0; 16], [0; 32]);
    volume.copy_from_slice(&bytes[..16]);
    root.copy_from_slice(&bytes[24..]);
    Mark {
        volume: VolumeId(volume),
        counter: words[2],
        root,
    }
}

/// Gives the error number.
#[cfg(feature = "bare")]
fn tell_monitor(number: u32, mark: &[u64; MARK_WORDS]) -> Result<(), i32> {
    use cloak_abi::vcpu::MonitorCall;
    use core::sync::atomic::Ordering;

    let slot = crate::arch::anchor_slot(number as usize);
    for (to, from) in slot.mark.iter().zip(mark) {
        to.store(*from, Ordering::Relaxed);
    }
    slot.result.store(i64::MIN, Ordering::Release);
    // Nothing parks in between: the vCPU goes on when the result is there.
    crate::arch::monitor(MonitorCall::Anchor, number);
    match slot.result.load(Ordering::Acquire) {
        0 => Ok(()),
        errno => Err(i32::try_from(-errno.max(-4095)).unwrap_or(crate::errno::Errno::EIO.number())),
    }
}

/// Marks that were told, where there is no monitor: under test.
#[cfg(not(feature = "bare"))]
pub(super) static TOLD: spin::Mutex<alloc::collections::BTreeMap<u32, [u64; MARK_WORDS]>> =
    spin::Mutex::new(alloc::collections::BTreeMap::new());

#[cfg(not(feature = "bare"))]
fn tell_monitor(number: u32, mark: &[u64; MARK_WORDS]) -> Result<(), i32> {
    TOLD.lock().insert(number, *mark);
    Ok(())
}

#[cfg(test)]
mod words {
    use super::*;

    #[test]
    fn marks_survive_the_page() {
        let mark = Mark {
            volume: VolumeId(core::array::from_fn(|i| i as u8)),
            counter: 77,
            root: core::array::from_fn(|i| 200 - i as u8),
        };
        assert_eq!(from_words(&to_words(&mark)), mark);
    }
}
