//! The broker as its clients see it: over TLS, with a database on the disk and simulated or software evidence.

mod admin;
mod crash;
mod golden;
mod harness;
mod limits;
mod load;
mod postgres;
mod process;
mod release;
