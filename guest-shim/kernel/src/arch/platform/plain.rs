//! Plain KVM: the monitor is trusted, and memory is the guest's as it is.

use cloak_abi::kcall::KcallError;
use cloak_abi::vcpu::MonitorCall;

use super::Platform;
use crate::arch::cpu::monitor;
use crate::arch::{Context, Cpu};

/// The platform.
#[derive(Debug)]
pub struct Plain;

impl Platform for Plain {
    fn monitor(&self, _: &Cpu, call: MonitorCall, argument: u32) {
        monitor(call, argument);
    }

    fn start_vcpu(&self, _: &Context, _: &Cpu, own: u32) -> Result<(), KcallError> {
        monitor(MonitorCall::Start, own);
        Ok(())
    }

    fn accept(&self, _: &Context, _: &Cpu, _: u64) -> Result<(), KcallError> {
        Err(KcallError::Absent)
    }

    fn report(&self, _: &Context, _: &Cpu, _: bool) -> Result<i64, KcallError> {
        Err(KcallError::Absent)
    }
}
