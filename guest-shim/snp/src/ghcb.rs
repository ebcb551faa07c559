//! Requests to the hypervisor: the GHCB protocol, version 2 (AMD publication 56421).
//!
//! Before there is a page for it, what fits a register goes by the GHCB's model-specific register: 12 bits say what it is,
//! the others are its value. Afterwards each vCPU has a page that both read and write. An answer to something that was
//! not asked, or in a form that there is not, is no answer.

use cloak_abi::layout::PAGE;

use crate::weakened::{Protection, without};
use crate::{Machine, Stop};

/// The version of the protocol that is spoken.
pub const VERSION: u64 = 2;
const KIND: u64 = 0xfff;

/// SEV information: request, response.
pub const INFO: (u64, u64) = (0x002, 0x001);
/// Registering a GHCB page: request, response.
pub const REGISTER: (u64, u64) = (0x012, 0x013);
/// Termination.
pub const TERMINATE: u64 = 0x100;
/// The set of reasons that are Cloak's own ([`Stop`]), of those that a terminating guest may name.
pub const REASONS: u64 = 0xc;

/// Exit codes of the page protocol.
pub mod exits {
    /// IN and OUT.
    pub const PORT: u64 = 0x7b;
    /// Page-state change.
    pub const PAGE_STATE: u64 = 0x8000_0010;
    /// A message to the security processor.
    pub const GUEST_REQUEST: u64 = 0x8000_0011;
    /// The same, with certificates.
    pub const EXTENDED_REQUEST: u64 = 0x8000_0012;
    /// A further vCPU.
    pub const CREATE_VCPU: u64 = 0x8000_0013;
}

/// Fields of the page, by offset. Those up to the bitmap have a bit in it each, by offset / 8.
pub mod fields {
    /// RAX.
    pub const RAX: u64 = 0x1f8;
    /// RCX.
    pub const RCX: u64 = 0x308;
    /// RDX.
    pub const RDX: u64 = 0x310;
    /// RBX.
    pub const RBX: u64 = 0x318;
    /// Exit code.
    pub const CODE: u64 = 0x390;
    /// First argument, and in an answer whether it is one.
    pub const INFO1: u64 = 0x398;
    /// Second argument, and in an answer its value.
    pub const INFO2: u64 = 0x3a0;
    /// Guest-physical address of further arguments.
    pub const SCRATCH: u64 = 0x3a8;
    /// Which of the fields count: two words.
    pub const VALID: u64 = 0x3f0;
    /// Further arguments can be here.
    pub const BUFFER: u64 = 0x800;
    /// In its bits 31:16 the version; the rest is zero.
    pub const VERSION: u64 = 0xff8;
}

/// What the hypervisor says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Lowest and highest version of the protocol.
    pub versions: (u16, u16),
    /// Number of the C-bit.
    pub c_bit: u8,
}

/// Asks who the hypervisor is.
///
/// # Errors
/// [`Stop::Answer`].
pub fn info(machine: &mut impl Machine) -> Result<Info, Stop> {
    let answer = machine.vmgexit(INFO.0);
    if answer & KIND != INFO.1 {
        return Err(Stop::Answer);
    }
    Ok(Info {
        versions: ((answer >> 32) as u16, (answer >> 48) as u16),
        c_bit: (answer >> 24) as u8,
    })
}

/// The hypervisor speaks our version, and has the C-bit where the measured image has it (`private`, one bit). In the
/// measured tables it is already; with another one in use nothing of them would have worked, so this is for the reason.
///
/// # Errors
/// [`Stop::Answer`], [`Stop::Protocol`], [`Stop::CBit`].
pub fn agree(machine: &mut impl Machine, private: u64) -> Result<(), Stop> {
    let info = info(machine)?;
    let (least, most) = info.versions;
    if !(u64::from(least)..=u64::from(most)).contains(&VERSION) {
        return Err(Stop::Protocol);
    }
    if 1u64.checked_shl(info.c_bit.into()) != Some(private) && !without(Protection::CBit) {
        return Err(Stop::CBit);
    }
    Ok(())
}

/// Tells the hypervisor why the guest stops. It need not come back, and may.
pub fn terminate(machine: &mut impl Machine, stop: Stop) {
    machine.vmgexit(TERMINATE | REASONS << 12 | (stop as u64) << 16);
}

/// A vCPU's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ghcb {
    gpa: u64,
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// [`fields::INFO2`].
    pub info: u64,
}

impl Ghcb {
    /// Registers the shared page at `gpa` for this vCPU.
    ///
    /// # Errors
    /// [`Stop::Register`].
    pub fn register(machine: &mut impl Machine, gpa: u64) -> Result<Self, Stop> {
        let answer = machine.vmgexit(gpa | REGISTER.0);
        if answer != gpa | REGISTER.1 && !without(Protection::Registered) {
            return Err(Stop::Register);
        }
        Ok(Self { gpa })
    }

    /// The page at `gpa`, which has been registered.
    #[must_use]
    pub const fn registered(gpa: u64) -> Self {
        Self { gpa }
    }

    /// Guest-physical address of the buffer in the page.
    #[must_use]
    pub const fn buffer(self) -> u64 {
        self.gpa + fields::BUFFER
    }

    /// One request. `more` are further fields.
    ///
    /// # Errors
    /// [`Stop::Answer`]: the hypervisor asks for an exception or says that the request has no sense.
    pub fn exit(
        self,
        machine: &mut impl Machine,
        code: u64,
        arguments: [u64; 2],
        more: &[(u64, u64)],
    ) -> Result<Answer, Stop> {
        let own = [
            (fields::CODE, code),
            (fields::INFO1, arguments[0]),
            (fields::INFO2, arguments[1]),
        ];
        let mut valid = [0u64; 2];
        for &(field, value) in own.iter().chain(more) {
            machine.write(self.gpa + field, value);
            let bit = field / 8;
            valid[(bit / 64) as usize] |= 1 << (bit % 64);
        }
        machine.write(self.gpa + fields::VALID, valid[0]);
        machine.write(self.gpa + fields::VALID + 8, valid[1]);
        machine.write(self.gpa + fields::VERSION, VERSION << 16);
        machine.vmgexit(self.gpa);
        // Its low half says whether there is an answer; the rest of it is for events, which nobody here takes.
        if machine.read(self.gpa + fields::INFO1) != 0 {
            return Err(Stop::Answer);
        }
        Ok(Answer {
            info: machine.read(self.gpa + fields::INFO2),
        })
    }

    /// A field of an answer.
    #[must_use]
    pub fn field(self, machine: &impl Machine, field: u64) -> u64 {
        machine.read(self.gpa + field)
    }
}

/// Asks for a further vCPU, with the state in the page `vmsa`, which RMPADJUST has made one. It starts at once.
///
/// # Errors
/// [`Stop::Vcpu`], [`Stop::Answer`].
pub fn create_vcpu(machine: &mut impl Machine, ghcb: Ghcb, apic_id: u32, vmsa: u64) -> Result<(), Stop> {
    const NOW: u64 = 1;
    let answer = ghcb.exit(
        machine,
        exits::CREATE_VCPU,
        [u64::from(apic_id) << 32 | NOW, vmsa],
        &[(fields::RAX, crate::vmsa::SEV_FEATURES)],
    )?;
    if answer.info == 0 { Ok(()) } else { Err(Stop::Vcpu) }
}

const _: () = assert!(fields::VERSION + 8 == PAGE);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Hypervisor, Memory};

    fn answering(answer: u64) -> Hypervisor<'static> {
        Hypervisor::registers(move |_, _| answer)
    }

    #[test]
    fn who_does_not_speak_the_protocol_is_refused() {
        let info = |least: u64, most: u64, bit: u64| most << 48 | least << 32 | bit << 24 | 1;
        assert_eq!(agree(&mut answering(info(1, 2, 51)), 1 << 51), Ok(()));
        assert_eq!(agree(&mut answering(info(2, 9, 51)), 1 << 51), Ok(()));
        for (answer, stop) in [
            (info(1, 1, 51), Stop::Protocol),
            (info(3, 4, 51), Stop::Protocol),
            (info(2, 1, 51), Stop::Protocol),
            (info(1, 2, 47), Stop::CBit),
            (info(1, 2, 200), Stop::CBit),
            (info(1, 2, 51) + 1, Stop::Answer),
            (0, Stop::Answer),
            (2, Stop::Answer),
        ] {
            assert_eq!(agree(&mut answering(answer), 1 << 51), Err(stop), "{answer:#x}");
        }
    }

    #[test]
    fn another_page_is_not_taken_for_ours() {
        let page = 0x7000;
        assert!(Ghcb::register(&mut answering(page | REGISTER.1), page).is_ok());
        for answer in [0x8000 | REGISTER.1, page | REGISTER.0, !KIND | REGISTER.1, 0] {
            assert_eq!(Ghcb::register(&mut answering(answer), page), Err(Stop::Register));
        }
    }

    #[test]
    fn a_request_says_which_of_its_fields_count() {
        let mut seen = None;
        let mut machine = Hypervisor::new(|register, memory: &mut Memory| {
            seen = Some((register, memory.clone()));
            memory.write(0x7000 + fields::INFO1, 0);
            memory.write(0x7000 + fields::INFO2, 5);
            register
        });
        let ghcb = Ghcb::registered(0x7000);
        let answer = ghcb.exit(&mut machine, 0x8000_0010, [3, 4], &[(fields::SCRATCH, 9)]);
        assert_eq!(answer, Ok(Answer { info: 5 }));
        drop(machine);
        let (register, memory) = seen.expect("an exit");
        assert_eq!(register, 0x7000);
        let at = |field| memory.read(0x7000 + field);
        assert_eq!((at(fields::CODE), at(fields::SCRATCH)), (0x8000_0010, 9));
        let bits = |fields: &[u64]| fields.iter().fold(0u64, |bits, f| bits | 1 << (f / 8 - 64));
        let wanted = bits(&[fields::CODE, fields::INFO1, fields::INFO2, fields::SCRATCH]);
        assert_eq!((at(fields::VALID), at(fields::VALID + 8)), (0, wanted));
        assert_eq!(at(fields::VERSION) >> 16, VERSION);
    }

    #[test]
    fn an_exception_is_no_answer() {
        for info1 in [1, 2, 1 << 32, u64::MAX] {
            let mut machine = Hypervisor::new(move |register, memory: &mut Memory| {
                memory.write(0x7000 + fields::INFO1, info1);
                register
            });
            let answer = Ghcb::registered(0x7000).exit(&mut machine, 1, [0, 0], &[]);
            assert_eq!(answer, Err(Stop::Answer));
        }
    }

    #[test]
    fn a_vcpu_that_was_refused_does_not_count_as_started() {
        for (info, result) in [(0, Ok(())), (1, Err(Stop::Vcpu)), (1 << 32, Err(Stop::Vcpu))] {
            let mut machine = Hypervisor::new(move |register, memory: &mut Memory| {
                memory.write(0x7000 + fields::INFO1, 0);
                memory.write(0x7000 + fields::INFO2, info);
                register
            });
            let created = create_vcpu(&mut machine, Ghcb::registered(0x7000), 3, 0x9000);
            assert_eq!(created, result);
        }
    }
}
