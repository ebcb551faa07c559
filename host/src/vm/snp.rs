//! A launched SNP guest as its vCPU threads have it: what it asks of the monitor by other exits than those of plain KVM.
//!
//! | exit | wish |
//! |---|---|
//! | `KVM_EXIT_HYPERCALL`, `KVM_HC_MAP_GPA_RANGE` | pages become private or shared ([`Pages`]) |
//! | `KVM_EXIT_SNP_REQ_CERTS` | certificates to a report |
//! | `KVM_EXIT_SYSTEM_EVENT`, `KVM_SYSTEM_EVENT_SEV_TERM` | the kernel stops, and says why |
//! | `KVM_EXIT_MEMORY_FAULT` | none: a page is touched as what it is not, which our kernel does not do |

use cloak_abi::layout::{CERTIFICATES_GPA, CERTIFICATES_LEN, PAGE};
use cloak_abi::stop::Stop;

use super::error::VmError;
use super::pages::Pages;
use crate::kvm::snp::Launched;
use crate::kvm::snp::calls::LaunchCalls;
use crate::platform::GuestRam;

/// GHCB protocol: a guest ends itself, with a set of reasons and one of them.
const TERMINATE: u64 = 0x100;
const OURS: u64 = 0xc;

/// The guest.
#[derive(Debug)]
pub struct Guest<C> {
    /// Its pages.
    pub pages: Pages<Launched<C>>,
    certificates: Vec<u8>,
    shared: GuestRam,
}

impl<C: LaunchCalls> Guest<C> {
    /// After its launch. `own` is memory that can be private, `shared` what it shares with the monitor.
    pub fn new(calls: Launched<C>, own: Vec<[u64; 2]>, certificates: Vec<u8>, shared: GuestRam) -> Self {
        Self {
            pages: Pages::new(calls, own, Vec::new()),
            certificates,
            shared,
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::ram;
    use crate::kvm::snp::tests::{Recorder, launched};
    use crate::vm::pages::REFUSED;

    fn guest(forbid: Option<&'static str>, certificates: Vec<u8>) -> Guest<Recorder> {
        let (ranges, memory) = ram::reserve_shared(64 << 20).expect("address space");
        Guest::new(launched(forbid), ranges, certificates, GuestRam::new(memory))
    }

    fn trace(guest: &Guest<Recorder>) -> String {
        guest.pages.look(Launched::recorded)
    }

    #[test]
    fn pages_of_the_guests_own_change_their_state_and_no_others() {
        let guest = guest(None, Vec::new());
        assert_eq!(
            guest
                .pages
                .change(&[2 << 20, 512, 0x11, 0, 0, 0])
                .expect("granted"),
            0
        );
        assert_eq!(
            trace(&guest),
            "KVM_SET_MEMORY_ATTRIBUTES 0x200000+0x200000 attributes 0x8\ndiscard 0x200000+0x200000 Shared\n"
        );
        assert_eq!(guest.pages.change(&[2 << 20, 1, 0, 0, 0, 0]).expect("granted"), 0);
        assert!(trace(&guest).ends_with("attributes 0x0\ndiscard 0x200000+0x1000 Private\n"));
        let before = trace(&guest);
        for arguments in [
            [64 << 20, 1, 0x10, 0, 0, 0],
            [CERTIFICATES_GPA, 1, 0, 0, 0, 0],
            [0, u64::MAX, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
        ] {
            let answer = guest.pages.change(&arguments).expect("an answer");
            assert_eq!(answer, REFUSED, "{arguments:x?}");
        }
        assert_eq!(trace(&guest), before, "nothing was done");
    }

    #[test]
    fn a_change_that_the_kernel_refuses_ends_the_guest() {
        for call in ["KVM_SET_MEMORY_ATTRIBUTES", "discard"] {
            let guest = guest(Some(call), Vec::new());
            let error = guest
                .pages
                .change(&[2 << 20, 512, 0x11, 0, 0, 0])
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
