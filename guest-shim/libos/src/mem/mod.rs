//! Memory of the context: heap, frames, files in frames.

pub mod pages;
