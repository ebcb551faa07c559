//! The benchmark harness: the same work natively, under Cloak and under its peers, in interleaved rounds.
//!
//! A [`rows::Row`] is a line of the table with what it has to reach; [`measure`], [`serving`], [`compile`], [`database`] and [`volumes`] hold the groups of work that fill
//! rows; a [`peer::Peer`] is a way of running a program; [`results::Results`] keeps every figure of every round and
//! gives medians; [`table`] prints them with their ratios to native, [`machine`] what they were measured on.
#![forbid(unsafe_code)]

pub mod compile;
pub mod database;
pub mod machine;
pub mod measure;
pub mod options;
pub mod peer;
pub mod results;
pub mod rows;
pub mod serving;
pub mod table;
pub mod volume_rows;
pub mod volumes;
