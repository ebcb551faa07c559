//! The host side of a VM: the monitor ([`vm`], over [`kvm`]) and the OS service ([`os`]).

#[cfg(not(fuzzing))]
pub mod control;
#[cfg(not(fuzzing))]
pub mod doctor;
#[cfg(not(fuzzing))]
pub mod image;
pub mod jail;
#[cfg(not(fuzzing))]
pub mod kvm;
pub mod os;
#[cfg(not(fuzzing))]
pub mod platform;
#[cfg(not(fuzzing))]
pub mod run;
#[cfg(test)]
mod skipped;
pub mod tdvmcall;
#[cfg(not(fuzzing))]
pub mod user;
#[cfg(not(fuzzing))]
pub mod vm;

/// SHA-384 of the shim that this build carries: kernel image, then libos image.
#[must_use]
#[cfg(not(fuzzing))]
pub fn shim_digest() -> [u8; 48] {
    use sha2::{Digest, Sha384};
    Sha384::new()
        .chain_update(cloak_shim_image::KERNEL)
        .chain_update(cloak_shim_image::LIBOS)
        .finalize()
        .into()
}
