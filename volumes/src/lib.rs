//! Volumes that are encrypted and checked inside the guest. The OS side carries bytes ([`Store`]) and learns nothing
//! but how many; what it gives back is checked before it is used.
//!
//! ```text
//!   Volume ── names, data, attributes ── what a file system does
//!     │         dir, inode
//!   Engine ── tree ── blocks by logical name, copy-on-write, commits
//!     │        cache, space
//!   KeyRing, block ── AES-256-GCM, nonces, additional data
//!     │
//!   Store ── bytes            Anchor ── what a trusted party saw last
//! ```
//!
//! | module | what it knows |
//! |---|---|
//! | [`volume`], [`names`], [`data`], [`attributes`], [`check`], [`rekey`] | a protected volume |
//! | [`dir`], [`dirblock`], [`inode`] | directories and inodes as they are stored |
//! | [`engine`], [`tree`], [`walk`], [`cache`], [`space`] | blocks |
//! | [`superblock`], [`block`], [`keys`], [`anchor`] | formats, keys, nonces, rollback |
//! | [`view`] | what is seen without the key |
//! | [`measured`], [`verity`] | read-only files with a known fs-verity digest |
//! | [`weakened`] | protections that unit tests take away |
//! | `files`, `secret` (feature `std`) | containers, anchors and keys in files |
//! | `cli` (feature `cli`) | `cloak volume` |
//!
//! The core is `no_std` with `alloc`: the libos links it. Formats are in `docs/volumes.md`, byte by byte.
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod anchor;
pub mod attributes;
pub mod block;
pub mod cache;
pub mod check;
#[cfg(feature = "cli")]
pub mod cli;
pub mod data;
pub mod dir;
pub mod dirblock;
pub mod engine;
pub mod error;
#[cfg(feature = "std")]
pub mod files;
pub mod inode;
pub mod keys;
pub mod measured;
pub mod names;
pub mod rekey;
#[cfg(feature = "std")]
pub mod secret;
pub mod space;
pub mod store;
pub mod superblock;
#[cfg(test)]
mod tests;
pub mod tree;
pub mod verity;
pub mod view;
pub mod volume;
pub mod walk;
pub mod weakened;

pub use anchor::{Anchor, AnchorError, Mark, NoAnchor};
pub use attributes::{SetAttributes, SetMode, Stat};
pub use dir::DirEntry;
pub use error::{Tampering, VolumeError};
pub use inode::{Ino, Time};
pub use keys::{Fresh, VolumeId, VolumeKey, Wide, own_registers};
pub use names::{NewInode, Target};
pub use store::{MemoryStore, Store, StoreError};
pub use view::CiphertextView;
pub use volume::{NewVolume, Options, Usage, Volume};
