//! The KVM calls that a guest with private memory takes after its launch, on SNP and on TDX, behind a trait.

use std::io;

use kvm_bindings::kvm_memory_attributes;

/// Why a call came to nothing.
#[derive(Debug)]
pub struct Refusal {
    /// The kernel's answer.
    pub source: io::Error,
    /// What the firmware said, if it was asked.
    pub firmware: Option<u32>,
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Self {
        Self {
            source,
            firmware: None,
        }
    }
}

/// Calls that are made after the launch, too.
pub trait RunCalls {
    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    ///
    /// # Errors
    /// The kernel's answer.
    fn set_attributes(&mut self, attributes: kvm_memory_attributes) -> Result<(), Refusal>;

    /// Gives the host's memory behind `[gpa, gpa + len)` back: of the private pages if `private`, else of the shared ones.
    ///
    /// # Errors
    /// The kernel's answer.
    fn discard(&mut self, gpa: u64, len: u64, backing: Backing) -> Result<(), Refusal>;
}

/// What is behind guest-physical memory. Each address has both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Pages that the guest alone reads, from guest_memfd.
    Private,
    /// Pages that both read.
    Shared,
}

// Whoever lends it looks at it again after the launch.
impl<C: RunCalls + ?Sized> RunCalls for &mut C {
    fn set_attributes(&mut self, attributes: kvm_memory_attributes) -> Result<(), Refusal> {
        (**self).set_attributes(attributes)
    }

    fn discard(&mut self, gpa: u64, len: u64, backing: Backing) -> Result<(), Refusal> {
        (**self).discard(gpa, len, backing)
    }
}
