//! The host side of a VM: the monitor ([`vm`], over [`kvm`]) and the OS service ([`os`]).

pub mod kvm;
pub mod os;
pub mod vm;
