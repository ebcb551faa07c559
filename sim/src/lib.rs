//! Simulated hardware: what SEV-SNP and TDX give a guest, in software, so that the same shim, image and host code can be run
//! and attacked on machines that have none.
//!
//! | module | stands for |
//! |---|---|
//! | [`memory`] | RAM behind the reverse map table (RMP) and the hypervisor's nested page tables |
//! | [`processor`] | the security processor: launch commands, guest context |
//! | [`message`] | the protected messages between guest and security processor |
//! | [`requests`] | what they ask for: reports, derived keys |
//! | [`machine`] | all of it behind the host's [`LaunchCalls`](cloak_host::kvm::snp::calls::LaunchCalls) |
//! | [`live`] | the same under a VM that runs |
//! | [`hostile`] | what a hypervisor may do wrong there |
//! | [`keys`] | the keys of all such machines |
//! | [`tdx`] | the same for TDX: secure EPT, TDX module, quoting service, machine |
//!
//! It protects nobody: whoever runs it can read all of it. Reports are signed under roots made for the occasion, or under one whose keys are in these sources, and
//! evidence made of them is of the kind `simulated-snp` or `simulated-tdx`, which no default policy accepts. How faithful it is: it has the
//! formats and the refusals that the specifications state. Timing, side channels, nested paging by the CPU and errors of
//! real firmware it doesn't have (`docs/platforms.md`).
#![forbid(unsafe_code)]

mod cases;
mod cipher;
#[cfg(not(fuzzing))]
pub mod hostile;
#[cfg(not(fuzzing))]
pub mod keys;
#[cfg(not(fuzzing))]
pub mod live;
#[cfg(not(fuzzing))]
pub mod machine;
pub mod memory;
pub mod message;
pub mod processor;
pub mod requests;
pub mod tdx;
