//! The harness of Cloak's integration tests.
//!
//! A [`Case`] is one run of one program: arguments, input, environment, volumes. The same case runs natively and under
//! the launcher (`CLOAK_BIN`, by default `target/release/cloak`), and the two [`Outcome`]s are compared byte by byte.
//! A [`Server`] is a case that stays up while the test talks to it. What a test needs of the machine it asks of
//! [`needs`]; when that is missing the test skips, says so, and is counted in the summary that `make test` prints.
//!
//! Nothing here asserts on time: a deadline only turns a hang into a failure.
#![forbid(unsafe_code)]

pub mod case;
pub mod compat;
pub mod cpython;
pub mod differences;
pub mod launcher;
pub mod needs;
pub mod os_side;
pub mod outcome;
pub mod process;
pub mod programs;
pub mod results;
pub mod scratch;
pub mod server;
pub mod unit;

pub use case::Case;
pub use launcher::Launcher;
pub use outcome::{Outcome, Status};
pub use scratch::Scratch;
pub use server::Server;
