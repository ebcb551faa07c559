//! The crate judged by evidence: real reports and quotes, every bit of them changed, and a generated world for what
//! no real evidence shows.

mod bit_flips;
mod commands;
mod measure;
mod real_snp;
mod real_tdx;
mod snp_world;
mod software;
mod tdx_world;
mod tokens;
mod vectors;
