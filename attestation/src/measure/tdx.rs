//! MRTD, one SHA-384 over the operations that build a domain, and the run-time registers (TDX ABI, TDH.MEM.PAGE.ADD
//! and TDH.MR.EXTEND).

use sha2::{Digest, Sha384};

use super::page::{Gpa, PAGE_BYTES, Page, PageKind};
use crate::bytes::Bytes48;
use crate::evidence::{Event, replay};

const CHUNK_BYTES: usize = 256;

/// MRTD after what has been added so far.
#[derive(Debug, Clone, Default)]
pub struct Mrtd(Sha384);

impl Mrtd {
    /// Adds a page. KVM extends each page that is measured right after it adds it, chunk by chunk.
    ///
    /// Pages that only SNP has leave no trace.
    pub fn add_page(&mut self, page: &Page<'_>) {
        match page.kind {
            PageKind::Normal | PageKind::Zero => {
                self.add(page.gpa);
                self.extend(page.gpa, &page.padded());
            }
            PageKind::Unmeasured => self.add(page.gpa),
            PageKind::Secrets | PageKind::Cpuid => {}
        }
    }

    /// The value that MRTD will have.
    pub fn measurement(&self) -> Bytes48 {
        Bytes48::from(<[u8; 48]>::from(self.0.clone().finalize()))
    }

    fn add(&mut self, gpa: Gpa) {
        self.operation(b"MEM.PAGE.ADD\0\0\0\0", gpa.0);
    }

    fn extend(&mut self, gpa: Gpa, page: &[u8; PAGE_BYTES]) {
        for (index, chunk) in page.chunks_exact(CHUNK_BYTES).enumerate() {
            self.operation(
                b"MR.EXTEND\0\0\0\0\0\0\0",
                gpa.0.wrapping_add((index * CHUNK_BYTES) as u64),
            );
            self.0.update(chunk);
        }
    }

    /// Name, address and zeros up to 128 bytes.
    fn operation(&mut self, name: &[u8; 16], gpa: u64) {
        self.0.update(name);
        self.0.update(gpa.to_le_bytes());
        self.0.update([0; 104]);
    }
}

/// The run-time registers after the shim has extended `events`, which start at zero.
///
/// `None` if an event names a register that does not exist.
pub fn rtmrs(events: &[Event]) -> Option<[Bytes48; 4]> {
    replay(events)
}
