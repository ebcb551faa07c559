//! Calls of the hypervisor: TDG.VP.VMCALL, which hands it the registers that RCX names and no others. Nothing that it answers
//! is true because it says so.

use cloak_abi::layout::PAGE;

use crate::module::leaf;
use crate::weakened::{Protection, without};
use crate::{Machine, Registers, Stop};

/// Numbers of calls, as R11 has them. Those of instructions are the numbers of their exits.
pub mod number {
    /// CPUID.
    pub const CPUID: u64 = 10;
    /// HLT.
    pub const HALT: u64 = 12;
    /// A port.
    pub const PORT: u64 = 30;
    /// WRMSR.
    pub const WRITE_MSR: u64 = 32;
    /// MapGPA.
    pub const MAP_GPA: u64 = 0x1_0001;
    /// GetQuote.
    pub const GET_QUOTE: u64 = 0x1_0002;
    /// ReportFatalError.
    pub const FATAL: u64 = 0x1_0003;
}

/// The hypervisor asks to be asked again.
pub const RETRY: u64 = 1;
/// Most times that it is.
const TRIES: u32 = 64;

/// R10 to R15.
const ARGUMENTS: u64 = 0xfc00;
/// The same, RBX, RDX, RSI, RDI, R8 and R9: a last word.
const ALL: u64 = 0xffcc;

/// R10 to R15 of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    status: u64,
    values: [u64; 5],
}

fn call(machine: &mut impl Machine, number: u64, [r12, r13, r14, r15]: [u64; 4]) -> Result<Answer, Stop> {
    let mut registers = Registers {
        rax: leaf::VMCALL,
        rcx: ARGUMENTS,
        r11: number,
        r12,
        r13,
        r14,
        r15,
        ..Registers::default()
    };
    machine.tdcall(&mut registers);
    // The module's own answer: a call that it does not pass on.
    if registers.rax != 0 {
        return Err(Stop::Module);
    }
    Ok(Answer {
        status: registers.r10,
        values: [
            registers.r11,
            registers.r12,
            registers.r13,
            registers.r14,
            registers.r15,
        ],
    })
}

/// A call of which nothing is needed but that it was taken.
fn done(machine: &mut impl Machine, number: u64, arguments: [u64; 4]) -> Result<(), Stop> {
    match call(machine, number, arguments)?.status {
        0 => Ok(()),
        _ if without(Protection::Taken) => Ok(()),
        _ => Err(Stop::Answer),
    }
}

/// MapGPA: asks that `[gpa, gpa + len)`, whole pages whose addresses have the shared bit, lead to memory that both sides have. It may
/// take several calls. That they do is not known afterwards: an access will tell.
///
/// # Errors
/// [`Stop::MapGpa`]: refused, or the answer is about other memory, or there is no end to it.
pub fn map_gpa(machine: &mut impl Machine, gpa: u64, len: u64) -> Result<(), Stop> {
    let end = gpa.checked_add(len).ok_or(Stop::MapGpa)?;
    let mut next = gpa;
    for _ in 0..TRIES {
        let answer = call(machine, number::MAP_GPA, [next, end.wrapping_sub(next), 0, 0])?;
        match answer.status {
            0 => return Ok(()),
            RETRY => {
                let [told, ..] = answer.values;
                // It goes on where it stopped: never back, never beyond.
                let onwards = (next..end).contains(&told) && told.is_multiple_of(PAGE);
                if !onwards && !without(Protection::Onwards) {
                    return Err(Stop::MapGpa);
                }
                next = told;
            }
            _ => return Err(Stop::MapGpa),
        }
    }
    Err(Stop::MapGpa)
}

/// What became of a call that is optional for the hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It was taken.
    Yes,
    /// It is to be made again.
    Later,
    /// It was refused.
    No,
}

/// GetQuote for what is in the buffer of `len` bytes at `gpa`, whose address has the shared bit. The quote comes later, or never.
///
/// # Errors
/// [`Stop::Module`].
pub fn get_quote(machine: &mut impl Machine, gpa: u64, len: u64) -> Result<Taken, Stop> {
    Ok(match call(machine, number::GET_QUOTE, [gpa, len, 0, 0])?.status {
        0 => Taken::Yes,
        RETRY => Taken::Later,
        _ => Taken::No,
    })
}

/// CPUID: EAX, EBX, ECX, EDX, which are the hypervisor's word.
///
/// # Errors
/// [`Stop::Answer`]: refused, or values of more than 32 bits.
pub fn cpuid(machine: &mut impl Machine, leaf: u32, subleaf: u32) -> Result<[u32; 4], Stop> {
    let answer = call(machine, number::CPUID, [leaf.into(), subleaf.into(), 0, 0])?;
    let [_, values @ ..] = answer.values;
    let mut registers = [0; 4];
    for (register, value) in registers.iter_mut().zip(values) {
        *register = u32::try_from(value).map_err(|_| Stop::Answer)?;
    }
    if answer.status == 0 || without(Protection::Taken) {
        Ok(registers)
    } else {
        Err(Stop::Answer)
    }
}

/// OUT of four bytes.
///
/// # Errors
/// [`Stop::Answer`]: refused.
pub fn write_port(machine: &mut impl Machine, port: u16, value: u32) -> Result<(), Stop> {
    const BYTES: u64 = 4;
    const OUT: u64 = 1;
    done(machine, number::PORT, [BYTES, OUT, port.into(), value.into()])
}

/// WRMSR.
///
/// # Errors
/// [`Stop::Answer`]: refused.
pub fn write_msr(machine: &mut impl Machine, register: u32, value: u64) -> Result<(), Stop> {
    done(machine, number::WRITE_MSR, [register.into(), value, 0, 0])
}

/// HLT with interrupts on. The hypervisor goes on when it likes.
///
/// # Errors
/// [`Stop::Module`].
pub fn halt(machine: &mut impl Machine) -> Result<(), Stop> {
    call(machine, number::HALT, [0; 4]).map(drop)
}

/// ReportFatalError: tells the hypervisor why the guest stops, by number and in words. It need not come back, and may.
pub fn fatal(machine: &mut impl Machine, stop: Stop) {
    let mut words = [0u64; 8];
    for (word, part) in words.iter_mut().zip(stop.text().as_bytes().chunks(8)) {
        let mut bytes = [0; 8];
        bytes[..part.len()].copy_from_slice(part);
        *word = u64::from_le_bytes(bytes);
    }
    let [r14, r15, rbx, rdi, rsi, r8, r9, rdx] = words;
    let mut registers = Registers {
        rax: leaf::VMCALL,
        rcx: ALL,
        rdx,
        rbx,
        rsi,
        rdi,
        r8,
        r9,
        r10: 0,
        r11: number::FATAL,
        r12: stop as u64,
        r13: 0,
        r14,
        r15,
    };
    machine.tdcall(&mut registers);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Answering;
    use proptest::prelude::*;

    const SHARED: u64 = 1 << 47;

    fn answering(status: u64, values: [u64; 5]) -> Answering<'static> {
        Answering::new(move |r: &mut Registers| {
            r.rax = 0;
            r.r10 = status;
            [r.r11, r.r12, r.r13, r.r14, r.r15] = values;
        })
    }

    #[test]
    fn memory_is_mapped_in_several_calls_and_not_for_ever() {
        let mut asked = Vec::new();
        let mut machine = Answering::new(|r: &mut Registers| {
            asked.push((r.r11, r.r12, r.r13));
            let end = r.r12 + r.r13;
            (r.rax, r.r10, r.r11) = (0, u64::from(asked.len() < 3), (r.r12 + 2 * PAGE).min(end));
        });
        assert_eq!(map_gpa(&mut machine, SHARED, 8 * PAGE), Ok(()));
        drop(machine);
        let calls: Vec<_> = [0, 2, 4]
            .map(|at| (number::MAP_GPA, SHARED + at * PAGE, (8 - at) * PAGE))
            .into();
        assert_eq!(asked, calls);
        // Always again, from the same place.
        let mut machine = Answering::new(|r: &mut Registers| (r.rax, r.r10, r.r11) = (0, RETRY, r.r12));
        assert_eq!(map_gpa(&mut machine, SHARED, 8 * PAGE), Err(Stop::MapGpa));
    }

    #[test]
    fn an_answer_about_other_memory_is_refused() {
        for told in [0, SHARED - PAGE, SHARED + 8 * PAGE, SHARED + 1, u64::MAX] {
            let mut machine = answering(RETRY, [told, 0, 0, 0, 0]);
            assert_eq!(
                map_gpa(&mut machine, SHARED, 8 * PAGE),
                Err(Stop::MapGpa),
                "{told:#x}"
            );
        }
        for status in [2, 1 << 63, u64::MAX] {
            assert_eq!(
                map_gpa(&mut answering(status, [0; 5]), SHARED, PAGE),
                Err(Stop::MapGpa)
            );
        }
    }

    #[test]
    fn values_of_cpuid_have_32_bits() {
        assert_eq!(cpuid(&mut answering(0, [9, 1, 2, 3, 4]), 1, 0), Ok([1, 2, 3, 4]));
        for wrong in 1..5 {
            let mut values = [0; 5];
            values[wrong] = 1 << 32;
            assert_eq!(cpuid(&mut answering(0, values), 1, 0), Err(Stop::Answer));
        }
        assert_eq!(cpuid(&mut answering(1, [0; 5]), 1, 0), Err(Stop::Answer));
    }

    #[test]
    fn a_port_is_written_with_all_that_is_needed_and_no_more() {
        let mut seen = None;
        let mut machine = Answering::new(|r: &mut Registers| {
            seen = Some(*r);
            (r.rax, r.r10) = (0, 0);
        });
        assert_eq!(write_port(&mut machine, 0x514, 7), Ok(()));
        drop(machine);
        let sent = Registers {
            rcx: ARGUMENTS,
            r11: 30,
            r12: 4,
            r13: 1,
            r14: 0x514,
            r15: 7,
            ..Registers::default()
        };
        assert_eq!(seen, Some(sent));
        assert_eq!(write_port(&mut answering(1, [0; 5]), 0x514, 7), Err(Stop::Answer));
        assert_eq!(write_msr(&mut answering(1, [0; 5]), 0x80f, 7), Err(Stop::Answer));
    }

    #[test]
    fn what_the_module_does_not_pass_on_is_the_guests_mistake() {
        let mut machine = Answering::new(|r: &mut Registers| r.rax = 1 << 63);
        assert_eq!(halt(&mut machine), Err(Stop::Module));
        assert_eq!(get_quote(&mut machine, SHARED, PAGE), Err(Stop::Module));
        assert_eq!(cpuid(&mut machine, 0, 0), Err(Stop::Module));
    }

    #[test]
    fn a_quote_is_asked_for_again_only_where_the_hypervisor_says_so() {
        for (status, taken) in [
            (0, Taken::Yes),
            (1, Taken::Later),
            (2, Taken::No),
            (1 << 63, Taken::No),
        ] {
            assert_eq!(get_quote(&mut answering(status, [0; 5]), SHARED, PAGE), Ok(taken));
        }
    }

    #[test]
    fn a_last_word_has_its_number_and_its_text() {
        for &stop in Stop::ALL {
            let mut seen = None;
            let mut machine = Answering::new(|r: &mut Registers| seen = Some(*r));
            fatal(&mut machine, stop);
            drop(machine);
            let r = seen.expect("a call");
            assert_eq!((r.r11, r.r12), (number::FATAL, stop as u64));
            let said = [r.r14, r.r15, r.rbx, r.rdi, r.rsi, r.r8, r.r9, r.rdx].map(u64::to_le_bytes);
            let said = said.as_flattened();
            let len = stop.text().len().min(64);
            assert_eq!(said[..len], stop.text().as_bytes()[..len]);
        }
    }

    proptest! {
        #[test]
        fn any_answer_to_mapping_ends(status in 0u64..3, values in prop::array::uniform5(any::<u64>()), near in 0u64..10) {
            let mut values = values;
            values[0] = SHARED + near * PAGE;
            let _ = map_gpa(&mut answering(status, values), SHARED, 8 * PAGE);
        }
    }
}
