//! What a machine's launch measurement will be, from the image alone: the SNP launch digest and TDX's MRTD and
//! run-time registers.
//!
//! An [`Image`] is a list of typed pages with the vCPU state they start in. A launcher that adds the same pages in
//! the same order gets the same digest; so the list is the contract between whoever builds an image, whoever
//! launches it and whoever verifies it.

mod image;
mod page;
mod snp;
mod tdx;
mod vmsa;

pub use image::{Image, ImageError, Region};
pub use page::{Gpa, PAGE_BYTES, Page, PageKind};
pub use snp::LaunchDigest;
pub use tdx::{Mrtd, rtmrs};
pub use vmsa::{Segment, Vmsa};
