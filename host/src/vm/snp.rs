//! A launched SNP guest as its vCPU threads have it: what it asks of the monitor by other exits than those of plain KVM.
//!
//! | exit | wish |
//! |---|---|
//! | `KVM_EXIT_HYPERCALL`, `KVM_HC_MAP_GPA_RANGE` | pages become private or shared ([`PageState`]) |
//! | `KVM_EXIT_SNP_REQ_CERTS` | certificates to a report |
//! | `KVM_EXIT_SYSTEM_EVENT`, `KVM_SYSTEM_EVENT_SEV_TERM` | the kernel stops, and says why |
//! | `KVM_EXIT_MEMORY_FAULT` | none: a page is touched as what it is not, which our kernel does not do |

use std::sync::Mutex;

use cloak_abi::layout::{CERTIFICATES_GPA, CERTIFICATES_LEN, PAGE};
use cloak_abi::stop::Stop;

use super::error::VmError;
use crate::kvm::snp::Launched;
use crate::kvm::snp::calls::LaunchCalls;
use crate::kvm::snp::error::SnpError;
use crate::kvm::snp::page_state::PageState;
use crate::platform::GuestRam;

/// `KVM_EXIT_SNP_REQ_CERTS` (Linux 7.0), which `kvm-ioctls` does not know.
pub const EXIT_REQ_CERTS: u32 = 43;
/// GHCB protocol: a guest ends itself, with a set of reasons and one of them.
const TERMINATE: u64 = 0x100;
const OURS: u64 = 0xc;

/// The guest.
#[derive(Debug)]
pub struct Guest<C> {
    calls: Mutex<Launched<C>>,
    /// Memory that can be private.
    ranges: Vec<[u64; 2]>,
    certificates: Vec<u8>,
    shared: GuestRam,
}

impl<C: LaunchCalls> Guest<C> {
    /// After its launch. `shared` is what it shares with the monitor.
    pub fn new(calls: Launched<C>, ranges: Vec<[u64; 2]>, certificates: Vec<u8>, shared: GuestRam) -> Self {
        Self {
            calls: Mutex::new(calls),
            ranges,
            certificates,
            shared,
        }
    }

    /// Grants a page-state change. Gives what the hypercall returns.
    ///
    /// # Errors
    /// The kernel's refusal: it would leave pages half-way.
    pub fn page_state(&self, arguments: &[u64; 6]) -> Result<u64, VmError> {
        const INVALID: u64 = (-(libc::EINVAL as i64)) as u64;
        let Ok(wish) = PageState::parse(arguments, &self.ranges) else {
            return Ok(INVALID);
        };
        let mut calls = self
            .calls
            .lock()
            .map_err(|_| VmError::Shim("a page-state change failed"))?;
        wish.grant(calls.calls())?;
        Ok(0)
    }

    /// Leaves certificates where the guest wants them. Gives the number of pages, and what is returned.
    pub fn certificates(&self, gpa: u64, pages: u64) -> (u64, u64) {
        let needed = (self.certificates.len() as u64).div_ceil(PAGE);
        if pages < needed {
            return (needed, libc::ENOSPC as u64);
        }
        let area = CERTIFICATES_GPA..CERTIFICATES_GPA + CERTIFICATES_LEN;
        let end = gpa.checked_add(needed * PAGE);
        let inside = area.contains(&gpa) && end.is_some_and(|end| end <= area.end);
        if inside && self.shared.write(gpa, &self.certificates).is_ok() {
            (pages, 0)
        } else {
            (pages, libc::EIO as u64)
        }
    }
}

/// What a terminating guest says, from the value of its GHCB register.
#[must_use]
pub fn terminated(register: u64) -> VmError {
    let ours = register & 0xfff == TERMINATE && register >> 12 & 0xf == OURS;
    let stop = Stop::from_code((register >> 16) as u8).filter(|_| ours);
    VmError::Stopped(stop.map_or("for a reason that is not known", Stop::text))
}

/// A page that was touched as what it is not.
#[must_use]
pub fn touched(gpa: u64, private: bool) -> VmError {
    let problem = if private {
        "the guest touched a page as private that it shares; a kernel of ours does not"
    } else {
        "the guest touched a page as shared that is private; a kernel of ours does not"
    };
    VmError::Snp(SnpError::Touched { gpa, problem })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::ram;
    use crate::kvm::snp::tests::{Recorder, launched};

    fn guest(forbid: Option<&'static str>, certificates: Vec<u8>) -> Guest<Recorder> {
        let (ranges, memory) = ram::reserve_shared(64 << 20).expect("address space");
        Guest::new(launched(forbid), ranges, certificates, GuestRam::new(memory))
    }

    fn trace(guest: &Guest<Recorder>) -> String {
        let calls = guest.calls.lock().expect("one thread");
        calls.recorded()
    }

    #[test]
    fn pages_of_the_guests_own_change_their_state_and_no_others() {
        let guest = guest(None, Vec::new());
        assert_eq!(
            guest.page_state(&[2 << 20, 512, 0x11, 0, 0, 0]).expect("granted"),
            0
        );
        assert_eq!(
            trace(&guest),
            "KVM_SET_MEMORY_ATTRIBUTES 0x200000+0x200000 attributes 0x8\ndiscard 0x200000+0x200000 Shared\n"
        );
        assert_eq!(guest.page_state(&[2 << 20, 1, 0, 0, 0, 0]).expect("granted"), 0);
        assert!(trace(&guest).ends_with("attributes 0x0\ndiscard 0x200000+0x1000 Private\n"));
        let before = trace(&guest);
        for arguments in [
            [64 << 20, 1, 0x10, 0, 0, 0],
            [CERTIFICATES_GPA, 1, 0, 0, 0, 0],
            [0, u64::MAX, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
        ] {
            let answer = guest.page_state(&arguments).expect("an answer");
            assert_eq!(answer as i64, -i64::from(libc::EINVAL), "{arguments:x?}");
        }
        assert_eq!(trace(&guest), before, "nothing was done");
    }

    #[test]
    fn a_change_that_the_kernel_refuses_ends_the_guest() {
        for call in ["KVM_SET_MEMORY_ATTRIBUTES", "discard"] {
            let guest = guest(Some(call), Vec::new());
            let error = guest
                .page_state(&[2 << 20, 512, 0x11, 0, 0, 0])
                .expect_err("refused");
            assert!(error.to_string().contains("page-state change"), "{error}");
        }
    }

    #[test]
    fn certificates_go_where_they_belong() {
        let guest = guest(None, vec![7; 5000]);
        assert_eq!(guest.certificates(CERTIFICATES_GPA, 1), (2, libc::ENOSPC as u64));
        let mut found = [0; 5001];
        for gpa in [
            0,
            CERTIFICATES_GPA - PAGE,
            CERTIFICATES_GPA + CERTIFICATES_LEN - PAGE,
            u64::MAX - 4095,
        ] {
            assert_eq!(guest.certificates(gpa, 64), (64, libc::EIO as u64), "{gpa:#x}");
        }
        guest.shared.read(CERTIFICATES_GPA, &mut found).expect("memory");
        assert_eq!(found, [0; 5001]);
        assert_eq!(guest.certificates(CERTIFICATES_GPA, 2), (2, 0));
        guest.shared.read(CERTIFICATES_GPA, &mut found).expect("memory");
        assert!(found[..5000] == [7; 5000] && found[5000] == 0);
    }

    #[test]
    fn a_guest_that_ends_itself_says_why() {
        let said = |register| terminated(register).to_string();
        assert!(said(0x31_c100).contains(Stop::Twice.text()));
        for register in [0x31_0100, 0xff_c100, 0x31_c200, 0, u64::MAX] {
            assert!(said(register).contains("not known"), "{register:#x}");
        }
    }
}
