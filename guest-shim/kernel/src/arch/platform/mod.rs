//! What differs between kinds of machine, behind one trait.
//!
//! Which it is follows from the block at the start: the monitor's on plain KVM, a measured one elsewhere. A hypervisor that
//! puts the one in the other's place changes the measurement.

mod instructions;
mod plain;
pub mod snp;

use core::sync::atomic::{AtomicBool, Ordering};

use cloak_abi::kcall::KcallError;

use super::{Context, Cpu};

/// The operations.
pub trait Platform {
    /// Starts vCPU `own` of the context, which the caller has checked.
    fn start_vcpu(&self, context: &Context, cpu: &Cpu, own: u32) -> Result<(), KcallError>;
    /// Makes the 2 MiB of memory at `gpa` the guest's.
    fn accept(&self, context: &Context, cpu: &Cpu, gpa: u64) -> Result<(), KcallError>;
    /// Leaves a report in the vCPU's block; gives its length.
    fn report(&self, context: &Context, cpu: &Cpu, certificates: bool) -> Result<i64, KcallError>;
    /// Leaves the root of the context's keys in the vCPU's block, if it is `wanted`; gives its length. Once, and only where
    /// the machine makes such keys.
    fn key(&self, _: &Context, _: &Cpu, _wanted: bool) -> Result<i64, KcallError> {
        Err(KcallError::Absent)
    }
}

static MEASURED: AtomicBool = AtomicBool::new(false);

/// The one that this is.
pub fn current() -> &'static dyn Platform {
    if MEASURED.load(Ordering::Relaxed) {
        &snp::Snp
    } else {
        &plain::Plain
    }
}
