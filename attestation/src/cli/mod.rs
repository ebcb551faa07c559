//! `cloak verify`, `cloak policy` and `cloak measure`, as functions that the command calls.
//!
//! Each takes its parsed arguments and two writers and gives an [`Outcome`]; nothing here ends the process.

mod measure;
mod outcome;
mod policy;
mod verify;

pub use measure::{MeasureArgs, Platform};
pub use outcome::{CommandError, Outcome};
pub use policy::PolicyArgs;
pub use verify::VerifyArgs;
