//! The log of what was extended into TDX's run-time registers.

use sha2::{Digest, Sha384};

use crate::bytes::Bytes48;

/// One extension: `RTMR = SHA-384(RTMR ‖ digest)` (TDX ABI, TDG.MR.RTMR.EXTEND).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Register, 0 to 3.
    pub rtmr: u8,
    /// What was extended.
    pub digest: Bytes48,
    /// What the digest is of, if it came along; its SHA-384 has to be the digest.
    pub data: Option<Vec<u8>>,
}

impl Event {
    /// An event whose data comes along.
    pub fn of_data(rtmr: u8, data: Vec<u8>) -> Self {
        Self {
            rtmr,
            digest: Bytes48::from(<[u8; 48]>::from(Sha384::digest(&data))),
            data: Some(data),
        }
    }

    /// Whether the data, if any, has the digest.
    pub fn data_fits(&self) -> bool {
        self.data
            .as_ref()
            .is_none_or(|data| Sha384::digest(data)[..] == self.digest.0)
    }
}

/// The registers after `log`, which start at zero. `None` if an event names a register that does not exist.
pub(crate) fn replay(log: &[Event]) -> Option<[Bytes48; 4]> {
    let mut rtmrs = [Bytes48::ZERO; 4];
    for event in log {
        let rtmr = rtmrs.get_mut(usize::from(event.rtmr))?;
        let extended = Sha384::new_with_prefix(rtmr.0)
            .chain_update(event.digest.0)
            .finalize();
        *rtmr = Bytes48::from(<[u8; 48]>::from(extended));
    }
    Some(rtmrs)
}
