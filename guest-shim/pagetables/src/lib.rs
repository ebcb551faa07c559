//! Page tables of a context: operations, their checks, and the editor that carries them out.
//!
//! The kernel uses it for contexts that share a VM, because none of them may map another's frames. A context
//! that has its VM to itself edits its own tables by the same code at CPL 3, where it runs at full speed on
//! every host (`docs/architecture.md`).
#![cfg_attr(not(test), no_std)]

pub mod first;
pub mod frames;
pub mod tables;
pub mod walk;
