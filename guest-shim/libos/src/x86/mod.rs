//! x86-64 machine code, as far as replacing SYSCALL sites needs to read it.

pub mod jumps;
pub mod length;
