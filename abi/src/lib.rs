//! Every byte that crosses a border of Cloak, once.
#![no_std]
#![forbid(unsafe_code)]
