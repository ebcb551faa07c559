//! A simulated TDX machine.
//!
//! | module | stands for |
//! |---|---|
//! | [`sept`] | private memory: who owns a host page, what the secure EPT says of an address |
//! | [`module`] | the TDX module: a domain's life, MRTD, run-time registers |
//! | [`tdcall`] | its calls, as a guest makes them by registers |
//! | [`report`] | TDREPORT |
//! | [`quoting`] | quoting enclave and quoting service, under a simulated root |
//! | [`live`] | the same under a VM that runs, over its RAM |
//! | [`hostile`] | what a hypervisor may do wrong there |
//! | [`machine`] | all of it behind the host's [`LaunchCalls`](cloak_host::kvm::tdx::calls::LaunchCalls) |
//!
//! Written from the specifications (TDX module ABI 1.5, GHCI) by the same people as what it tests.

#[cfg(not(fuzzing))]
pub mod hostile;
#[cfg(not(fuzzing))]
pub mod live;
#[cfg(not(fuzzing))]
mod live_memory;
#[cfg(not(fuzzing))]
pub mod machine;
pub mod module;
#[cfg(not(fuzzing))]
pub mod quoting;
pub mod report;
pub mod sept;
pub mod tdcall;
