//! The shim's two programs as bytes, built from this tree.
#![no_std]
#![forbid(unsafe_code)]

/// ELF structures are read in place: they must be aligned.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static KERNEL_FILE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/cloak-kernel")));
static LIBOS_FILE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/cloak-libos")));

/// The kernel (CPL 0), an ELF file.
pub static KERNEL: &[u8] = &KERNEL_FILE.0;
/// The libos (CPL 3), an ELF file.
pub static LIBOS: &[u8] = &LIBOS_FILE.0;
