//! Suites that nobody here wrote: how each is run, where its results are kept, and the table made of them.
//!
//! A result is a file under `target/test-suites/compat/SUITE`, one a unit, a line a test; `docs/compat.md` is written
//! from those files and from the lists of known differences in `tests/data`.

pub mod doctest;
pub mod libtest;
pub mod record;
pub mod redis;
pub mod table;
