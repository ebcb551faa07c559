//! The host side of Cloak.

pub mod os;
