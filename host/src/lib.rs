//! The host side of a VM: the monitor ([`vm`], over [`kvm`]) and the OS service ([`os`]).

pub mod doctor;
pub mod jail;
pub mod kvm;
pub mod os;
pub mod run;
pub mod vm;

/// SHA-384 of the shim that this build carries: kernel image, then libos image.
#[must_use]
pub fn shim_digest() -> [u8; 48] {
    use sha2::{Digest, Sha384};
    Sha384::new()
        .chain_update(cloak_shim_image::KERNEL)
        .chain_update(cloak_shim_image::LIBOS)
        .finalize()
        .into()
}
