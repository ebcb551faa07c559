//! Pages of a guest that has memory for itself, as they change between its own and what it shares: `KVM_EXIT_HYPERCALL` with
//! `KVM_HC_MAP_GPA_RANGE`. The same of SNP guests and of domains.

use std::sync::Mutex;

use super::error::VmError;
use crate::kvm::run_calls::{Backing, RunCalls};
use crate::kvm::snp::page_state::PageState;

/// What the hypercall returns for a wish that is none. Older kernels take any number but 0 for a refusal; with a negative one, Linux
/// 7.3 gives the vCPU up (`kvm_is_valid_map_gpa_range_ret`).
pub const REFUSED: u64 = libc::EINVAL as u64;

/// The guest's pages.
#[derive(Debug)]
pub struct Pages<C> {
    calls: Mutex<C>,
    /// Memory that can be private.
    own: Vec<[u64; 2]>,
    /// Memory that is always shared, where a guest says so all the same.
    shared: Vec<[u64; 2]>,
}

impl<C: RunCalls> Pages<C> {
    /// Of a guest that is launched: memory that it can have for itself, and what it is expected to declare shared.
    pub fn new(calls: C, own: Vec<[u64; 2]>, shared: Vec<[u64; 2]>) -> Self {
        Self {
            calls: Mutex::new(calls),
            own,
            shared,
        }
    }

    /// Grants a change. Gives what the hypercall returns.
    ///
    /// # Errors
    /// The kernel's refusal: it would leave pages half-way.
    pub fn change(&self, arguments: &[u64; 6]) -> Result<u64, VmError> {
        let of = |ranges| PageState::parse(arguments, ranges);
        if of(&self.shared).is_ok_and(|wish| wish.to == Backing::Shared) {
            // There is nothing behind it but ordinary memory.
            return Ok(0);
        }
        let Ok(wish) = of(&self.own) else {
            return Ok(REFUSED);
        };
        let mut calls = self
            .calls
            .lock()
            .map_err(|_| VmError::Shim("a page-state change failed"))?;
        wish.grant(&mut *calls)?;
        Ok(0)
    }

    /// The calls, for what else a test looks at.
    #[cfg(test)]
    pub fn look<T>(&self, at: impl FnOnce(&C) -> T) -> T {
        at(&self.calls.lock().expect("one thread"))
    }
}

/// A page that was touched as what it is not (`KVM_EXIT_MEMORY_FAULT`).
#[must_use]
pub fn touched(gpa: u64, private: bool) -> VmError {
    let problem = if private {
        "the guest touched a page as private that it shares; a kernel of ours does not"
    } else {
        "the guest touched a page as shared that is private; a kernel of ours does not"
    };
    VmError::Touched { gpa, problem }
}
