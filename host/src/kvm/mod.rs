//! KVM: opening it, and the registers that a vCPU starts with.
//!
//! One of the crate's unsafe islands, together with [`ram`], [`private`], [`protected`], [`snp::kernel`] and [`tdx::kernel`].

#[cfg(test)]
mod headers;
pub mod private;
pub mod protected;
#[cfg(test)]
mod protected_tests;
pub mod ram;
pub mod run_calls;
pub mod snp;
mod start;
pub mod tdx;

pub(crate) use start::set_apic_id;
pub use start::{
    kernel_segments, prepare_domain_vcpu, prepare_measured_vcpu, prepare_vcpu, set_vector_state, start_state,
    tsc_offset,
};

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_ioctls::Kvm;

use crate::vm::error::VmError;

/// Opens the KVM device and checks that it is one.
///
/// # Errors
/// [`VmError::OpenKvm`], [`VmError::NotKvm`].
pub fn open(path: &Path) -> Result<Kvm, VmError> {
    let open_error = |source: std::io::Error| VmError::OpenKvm {
        path: path.to_owned(),
        hint: match source.raw_os_error() {
            Some(libc::ENOENT) => {
                "load the kvm module (kvm_amd, kvm_intel), enable virtualisation in the firmware, or pass the device into this container"
            }
            Some(libc::EACCES | libc::EPERM) => {
                "add yourself to the group that owns it (often `kvm`) or run as root"
            }
            _ => "see `cloak doctor`",
        },
        source,
    };
    let c_path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| open_error(std::io::Error::from_raw_os_error(libc::EINVAL)))?;
    let kvm =
        Kvm::new_with_path(&c_path).map_err(|e| open_error(std::io::Error::from_raw_os_error(e.errno())))?;
    match kvm.get_api_version() {
        12 => Ok(kvm),
        found => Err(VmError::NotKvm {
            path: path.to_owned(),
            found,
        }),
    }
}
