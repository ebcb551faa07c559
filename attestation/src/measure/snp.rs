//! The SNP launch digest: a chain of SHA-384 over PAGE_INFO structures (SNP ABI §8.17.2, table 67).

use sha2::{Digest, Sha384};

use super::page::{Gpa, PAGE_BYTES, Page, PageKind};
use crate::bytes::Bytes48;

const PAGE_INFO_BYTES: u16 = 0x70;
const NORMAL: u8 = 1;
const VMSA: u8 = 2;
const ZERO: u8 = 3;
const UNMEASURED: u8 = 4;
const SECRETS: u8 = 5;
const CPUID: u8 = 6;
/// Where every VMSA is measured: the top page of a 48-bit address space.
const VMSA_GPA: Gpa = Gpa(0xffff_ffff_f000);

/// The digest after what has been added so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchDigest(Bytes48);

impl Default for LaunchDigest {
    /// Nothing added.
    fn default() -> Self {
        Self(Bytes48::ZERO)
    }
}

impl LaunchDigest {
    /// The digest after `page`.
    #[must_use]
    pub fn add_page(self, page: &Page<'_>) -> Self {
        let (kind, contents) = match page.kind {
            PageKind::Normal => (NORMAL, sha384(&page.padded())),
            PageKind::Zero => (ZERO, [0; 48]),
            PageKind::Unmeasured => (UNMEASURED, [0; 48]),
            PageKind::Secrets => (SECRETS, [0; 48]),
            PageKind::Cpuid => (CPUID, [0; 48]),
        };
        self.add(kind, page.gpa, contents)
    }

    /// The digest after the state of one vCPU. KVM adds them in the order of the vCPUs, after all pages.
    #[must_use]
    pub fn add_vmsa(self, vmsa: &[u8; PAGE_BYTES]) -> Self {
        self.add(VMSA, VMSA_GPA, sha384(vmsa))
    }

    /// The value that MEASUREMENT will have.
    pub fn measurement(self) -> Bytes48 {
        self.0
    }

    fn add(self, kind: u8, gpa: Gpa, contents: [u8; 48]) -> Self {
        let digest = Sha384::new_with_prefix(self.0.0)
            .chain_update(contents)
            .chain_update(PAGE_INFO_BYTES.to_le_bytes())
            // Page type, not an initial migration image, and five bytes reserved or permissions of lower VMPLs.
            .chain_update([kind, 0, 0, 0, 0, 0])
            .chain_update(gpa.0.to_le_bytes())
            .finalize();
        Self(Bytes48::from(<[u8; 48]>::from(digest)))
    }
}

fn sha384(bytes: &[u8]) -> [u8; 48] {
    Sha384::digest(bytes).into()
}
