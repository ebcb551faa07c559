//! #VE: the module raises it where an instruction would need the hypervisor, and says which. The guest decides what it asks the
//! hypervisor for, and with which registers (Guest-Host Communication Interface, section 2.4).
//!
//! | what | by the kernel | by libos or program |
//! |---|---|---|
//! | OUT of four bytes to a port of the shim's | asked for | asked for (the I/O bitmap has let it) |
//! | CPUID of a leaf that the module does not answer | zeros; of the hypervisor's own leaves its word | the same |
//! | HLT | asked for | can't be: privileged |
//! | memory that is not there, devices in memory | the VM stops | the VM stops |
//! | anything else | the VM stops | it is the instruction's fault: #GP |

use crate::module::Cause;
use crate::weakened::{Protection, without};
use crate::{Machine, Stop, vmcall};

/// Reasons, as VMX numbers exits.
pub mod reason {
    /// CPUID.
    pub const CPUID: u32 = 10;
    /// HLT.
    pub const HALT: u32 = 12;
    /// A port.
    pub const PORT: u32 = 30;
    /// Memory that the secure EPT does not map, or the shared one maps so that it faults.
    pub const MEMORY: u32 = 48;
    /// The same, by a wrong setting.
    pub const MEMORY_SETTING: u32 = 49;
}

/// Leaves of CPUID that hypervisors describe themselves with: nothing depends on them.
const HYPERVISOR: core::ops::Range<u32> = 0x4000_0000..0x4001_0000;

/// Registers of the interrupted code that an answer goes into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interrupted {
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// It ran at CPL 3.
    pub user: bool,
}

/// What becomes of the interrupted code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on behind the instruction.
    Done,
    /// The instruction is not allowed: a general-protection fault.
    Fault,
}

/// Deals with a #VE. `ports` are those that the shim uses.
///
/// # Errors
/// [`Stop`]: it is of nothing that may happen.
pub fn handle(
    machine: &mut impl Machine,
    cause: Cause,
    registers: &mut Interrupted,
    ports: &[u16],
) -> Result<Outcome, Stop> {
    let not_allowed = |stop| {
        if registers.user {
            Ok(Outcome::Fault)
        } else {
            Err(stop)
        }
    };
    match cause.reason {
        reason::PORT => match port(cause.qualification)
            .filter(|port| ports.contains(port) || without(Protection::Ports))
        {
            Some(port) => vmcall::write_port(machine, port, registers.rax as u32)?,
            None => return not_allowed(Stop::Port),
        },
        reason::CPUID => {
            let leaf = registers.rax as u32;
            let values = if HYPERVISOR.contains(&leaf) || without(Protection::Leaves) {
                vmcall::cpuid(machine, leaf, registers.rcx as u32)?
            } else {
                [0; 4]
            };
            let [rax, rbx, rcx, rdx] = values.map(u64::from);
            *registers = Interrupted {
                rax,
                rbx,
                rcx,
                rdx,
                ..*registers
            };
        }
        reason::HALT if !registers.user => vmcall::halt(machine)?,
        reason::MEMORY | reason::MEMORY_SETTING => return Err(Stop::Mmio),
        _ if without(Protection::Known) => {}
        _ => return not_allowed(Stop::Exception),
    }
    Ok(Outcome::Done)
}

/// The port of an OUT of four bytes, which is not one of a string.
fn port(qualification: u64) -> Option<u16> {
    /// Size less one, direction (1: IN), string, repetition.
    const KIND: u64 = 0x3f;
    const OUT_OF_FOUR: u64 = 3;
    (qualification & KIND == OUT_OF_FOUR).then_some((qualification >> 16) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Registers;
    use crate::testing::Answering;
    use proptest::prelude::*;

    const PORTS: &[u16] = &[0x510, 0x514];

    fn cause(reason: u32, qualification: u64) -> Cause {
        Cause {
            reason,
            qualification,
            length: 1,
        }
    }

    fn interrupted(user: bool) -> Interrupted {
        Interrupted {
            rax: 0xffff_0000_0000_0203,
            rcx: 7,
            user,
            ..Interrupted::default()
        }
    }

    /// What is asked of the hypervisor, which answers with `values`.
    fn run(
        cause: Cause,
        mut registers: Interrupted,
        values: [u64; 4],
    ) -> (Result<Outcome, Stop>, Interrupted, Vec<Registers>) {
        let mut asked = Vec::new();
        let mut machine = Answering::new(|r: &mut Registers| {
            asked.push(*r);
            (r.rax, r.r10) = (0, 0);
            [r.r12, r.r13, r.r14, r.r15] = values;
        });
        let result = handle(&mut machine, cause, &mut registers, PORTS);
        drop(machine);
        (result, registers, asked)
    }

    #[test]
    fn the_shims_ports_are_written() {
        for user in [true, false] {
            let before = interrupted(user);
            let (result, after, asked) = run(cause(reason::PORT, 0x514 << 16 | 3), before, [0; 4]);
            assert_eq!(
                (result, after),
                (Ok(Outcome::Done), before),
                "OUT changes no register"
            );
            assert_eq!(
                (asked[0].r14, asked[0].r15),
                (0x514, 0x203),
                "the low half of RAX only"
            );
        }
    }

    #[test]
    fn no_other_port_is_and_nothing_is_read() {
        let four = 3u64;
        for qualification in [
            0x60 << 16 | four,
            0x514 << 16 | four | 8,
            0x514 << 16 | four | 0x10,
            0x514 << 16 | four | 0x30,
            0x514 << 16,
            0x514 << 16 | 1,
        ] {
            let at = |user| run(cause(reason::PORT, qualification), interrupted(user), [9; 4]);
            assert_eq!(
                (at(true).0, at(true).2),
                (Ok(Outcome::Fault), vec![]),
                "{qualification:#x}"
            );
            assert_eq!((at(false).0, at(false).2), (Err(Stop::Port), vec![]));
            assert_eq!(at(true).1, interrupted(true));
        }
    }

    #[test]
    fn cpuid_is_zero_but_for_what_the_hypervisor_says_of_itself() {
        let of = |leaf: u64| Interrupted {
            rax: leaf,
            ..interrupted(true)
        };
        for leaf in [1, 2, 0x8000_001f, 0x3fff_ffff, 0x4001_0000, u64::from(u32::MAX)] {
            let (result, after, asked) = run(cause(reason::CPUID, 0), of(leaf), [5; 4]);
            assert_eq!(result, Ok(Outcome::Done));
            assert_eq!(
                (after.rax, after.rbx, after.rcx, after.rdx),
                (0, 0, 0, 0),
                "{leaf:#x}"
            );
            assert_eq!(asked, [], "nobody is asked");
        }
        let (_, after, asked) = run(cause(reason::CPUID, 0), of(0x4000_0000), [1, 2, 3, 4]);
        assert_eq!((after.rax, after.rbx, after.rcx, after.rdx), (1, 2, 3, 4));
        assert_eq!((asked[0].r12, asked[0].r13), (0x4000_0000, 7));
        assert_eq!(
            run(cause(reason::CPUID, 0), of(0x4000_0000), [1 << 32; 4]).0,
            Err(Stop::Answer)
        );
    }

    #[test]
    fn memory_is_never_emulated() {
        for reason in [reason::MEMORY, reason::MEMORY_SETTING] {
            for user in [true, false] {
                let (result, _, asked) = run(cause(reason, 0), interrupted(user), [0; 4]);
                assert_eq!((result, asked), (Err(Stop::Mmio), vec![]));
            }
        }
    }

    #[test]
    fn the_kernel_may_halt_and_a_program_not() {
        assert_eq!(
            run(cause(reason::HALT, 0), interrupted(false), [0; 4]).0,
            Ok(Outcome::Done)
        );
        assert_eq!(
            run(cause(reason::HALT, 0), interrupted(true), [0; 4]).0,
            Ok(Outcome::Fault)
        );
    }

    proptest! {
        /// Whatever the reason: the hypervisor is asked for what is in the table above, and sees no register but those of the call.
        #[test]
        fn nothing_else_is_asked_for(reason in 0u32..80, qualification: u64, rax: u64, user: bool) {
            let before = Interrupted { rax, user, ..interrupted(user) };
            let (result, _, asked) = run(cause(reason, qualification), before, [0; 4]);
            for call in &asked {
                prop_assert!([10, 12, 30].contains(&call.r11));
                prop_assert_eq!(call.rcx, 0xfc00);
                prop_assert_eq!((call.rdx, call.rbx, call.rsi, call.rdi, call.r8, call.r9), (0, 0, 0, 0, 0, 0));
            }
            prop_assert!(asked.len() <= 1);
            if ![10, 12, 30, 48, 49].contains(&reason) {
                prop_assert_eq!(result, if user { Ok(Outcome::Fault) } else { Err(Stop::Exception) });
            }
        }
    }
}
