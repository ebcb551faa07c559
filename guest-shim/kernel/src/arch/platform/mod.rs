//! What differs between kinds of machine, behind one trait.
//!
//! Which it is follows from the block at the start: the monitor's on plain KVM, a measured one elsewhere. A hypervisor that
//! puts the one in the other's place changes the measurement.

mod begin;
mod guard;
mod instructions;
mod plain;
mod simulated;
pub mod snp;
pub mod tdx;
mod vc;

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use cloak_abi::boot::platform;
use cloak_abi::kcall::KcallError;
use cloak_abi::stop::Stop;
use cloak_abi::vcpu::MonitorCall;

use super::{Context, Cpu};

/// The operations.
pub trait Platform {
    /// Leaves to the monitor.
    fn monitor(&self, cpu: &Cpu, call: MonitorCall, argument: u32);
    /// Starts vCPU `own` of the context, which the caller has checked.
    fn start_vcpu(&self, context: &Context, cpu: &Cpu, own: u32) -> Result<(), KcallError>;
    /// Makes the 2 MiB of memory at `gpa` the guest's.
    fn accept(&self, context: &Context, cpu: &Cpu, gpa: u64) -> Result<(), KcallError>;
    /// Leaves a report in the vCPU's block; gives its length.
    fn report(&self, context: &Context, cpu: &Cpu, certificates: bool) -> Result<i64, KcallError>;
    /// Extends run-time register `index` with what is in the vCPU's block.
    fn extend(&self, _: &Context, _: &Cpu, _index: u64) -> Result<(), KcallError> {
        Err(KcallError::Absent)
    }
    /// An interrupt has been taken.
    fn end_of_interrupt(&self) {}
    /// Leaves the root of the context's keys in the vCPU's block, if it is `wanted`; gives its length. Once, and only where
    /// the machine makes such keys.
    fn key(&self, _: &Context, _: &Cpu, _wanted: bool) -> Result<i64, KcallError> {
        Err(KcallError::Absent)
    }
}

/// As [`platform`] numbers them.
static KIND: AtomicU32 = AtomicU32::new(platform::PLAIN as u32);

static PANICKED: AtomicBool = AtomicBool::new(false);

/// From here on it is this one.
fn set(platform: u64) {
    KIND.store(platform as u32, Ordering::Relaxed);
}

fn kind() -> u64 {
    KIND.load(Ordering::Relaxed).into()
}

/// The one that this is.
pub fn current() -> &'static dyn Platform {
    match kind() {
        platform::SNP => &snp::Snp,
        platform::TDX => &tdx::Tdx,
        _ => &plain::Plain,
    }
}

/// First Rust code of each vCPU in a measured guest: `platform` is what the measured block says.
pub fn start(platform: u64, index: u32) -> ! {
    if platform == platform::TDX {
        tdx::start(index)
    }
    snp::start(index)
}

/// Ends a measured guest whose kernel found something that must not be, or took an exception of its own (`fault`), in its
/// platform's way. The first time: when that fails, too, because nothing is what it seems to be, its caller has another way.
pub fn panic(fault: bool) {
    if PANICKED.swap(true, Ordering::Relaxed) {
        return;
    }
    let stop = if fault { Stop::Interrupted } else { Stop::Panic };
    match kind() {
        platform::SNP => snp::end(snp::instructions(), stop),
        platform::TDX => tdx::end(tdx::machine(), stop),
        _ => {}
    }
}
