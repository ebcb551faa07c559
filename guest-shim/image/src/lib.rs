//! The shim's two programs as bytes, built from this tree.
#![no_std]
#![forbid(unsafe_code)]

/// The kernel (CPL 0), an ELF file.
pub static KERNEL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cloak-kernel"));
/// The libos (CPL 3), an ELF file.
pub static LIBOS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cloak-libos"));
