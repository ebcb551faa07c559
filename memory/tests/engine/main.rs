//! The engine between test doubles of both sides: against a model, and against an OS side that tampers.

mod doubles;
mod model;
mod tampering;
