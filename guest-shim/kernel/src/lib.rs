//! The shim's CPL 0 part, a separation kernel.
//!
//! It does what only CPL 0 can do and nothing else: take traps and hand them to the libos of the running
//! context (`arch`), change page tables after checking that every frame is the context's own
//! ([`cloak_pagetables`], [`spaces`]), make other vCPUs forget translations ([`shoot`]), and end or start vCPUs. It
//! knows nothing of files, threads, memory areas or Linux: the libos decides which frame goes where,
//! because code at CPL 3 runs at full speed on every host while code at CPL 0 is interpreted on some
//! (`docs/architecture.md`).
//!
//! The library is tested on the host; only entry, assembly and the panic handler are not.
#![cfg_attr(not(test), no_std)]

#[cfg(all(target_os = "none", feature = "bare"))]
pub mod arch;
pub mod shoot;
pub mod spaces;
