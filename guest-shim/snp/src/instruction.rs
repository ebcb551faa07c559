//! Which of the instructions that a hypervisor may intercept stands at an address: enough of the encoding to tell them
//! apart (AMD64 Architecture Programmer's Manual, volume 3, appendix A), and nothing else.
//!
//! The bytes are a program's or the libos's, copied once. What is none of these instructions is [`Instruction::Other`].

/// Most bytes of an instruction.
pub const LONGEST: usize = 15;

/// An instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instruction {
    /// CPUID.
    Cpuid,
    /// RDTSC.
    Rdtsc,
    /// RDTSCP.
    Rdtscp,
    /// VMMCALL or VMCALL, which ask a hypervisor for something.
    Call,
    /// IN or OUT, of one value.
    Port(Port),
    /// Something else.
    Other,
}

/// An access to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Its number, if it is in the instruction; else DX has it.
    pub number: Option<u8>,
    /// Bytes of the value: 1, 2 or 4.
    pub bytes: u8,
    /// IN.
    pub reads: bool,
}

/// The instruction at the start of `bytes`, and how long it is; none if it goes on behind them.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<(Instruction, u64)> {
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    let mut short = false;
    let mut at = 0;
    loop {
        match bytes.get(at)? {
            0x66 => short = true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 | 0xf2 | 0xf3 => {}
            _ => break,
        }
        at += 1;
    }
    // REX counts only right before the opcode, and of it only W: it overrides the other prefix, but not for ports.
    if bytes.get(at)? & 0xf0 == 0x40 {
        at += 1;
    }
    let word = if short { 2 } else { 4 };
    let port = |number, bytes, reads| Instruction::Port(Port { number, bytes, reads });
    let opcode = *bytes.get(at)?;
    let (instruction, end) = match opcode {
        0xe4..=0xe7 => {
            let number = Some(*bytes.get(at + 1)?);
            let bytes = if opcode & 1 == 0 { 1 } else { word };
            (port(number, bytes, opcode & 2 == 0), at + 2)
        }
        0xec..=0xef => {
            let bytes = if opcode & 1 == 0 { 1 } else { word };
            (port(None, bytes, opcode & 2 == 0), at + 1)
        }
        0x0f => match *bytes.get(at + 1)? {
            0xa2 => (Instruction::Cpuid, at + 2),
            0x31 => (Instruction::Rdtsc, at + 2),
            0x01 => match *bytes.get(at + 2)? {
                0xf9 => (Instruction::Rdtscp, at + 3),
                0xc1 | 0xd9 => (Instruction::Call, at + 3),
                _ => (Instruction::Other, at + 3),
            },
            _ => (Instruction::Other, at + 2),
        },
        _ => (Instruction::Other, at + 1),
    };
    Some((instruction, end as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is(bytes: &[u8]) -> Instruction {
        let (instruction, len) = decode(bytes).expect("whole");
        assert_eq!(len, bytes.len() as u64, "{bytes:x?}");
        instruction
    }

    #[test]
    fn instructions_are_told_apart() {
        let port = |number, bytes, reads| Instruction::Port(Port { number, bytes, reads });
        for (bytes, instruction) in [
            (&[0x0f, 0xa2][..], Instruction::Cpuid),
            (&[0x48, 0x0f, 0xa2], Instruction::Cpuid),
            (&[0xf3, 0x66, 0x0f, 0xa2], Instruction::Cpuid),
            (&[0x0f, 0x31], Instruction::Rdtsc),
            (&[0x0f, 0x01, 0xf9], Instruction::Rdtscp),
            (&[0x0f, 0x01, 0xd9], Instruction::Call),
            (&[0xf3, 0x0f, 0x01, 0xd9], Instruction::Call),
            (&[0x0f, 0x01, 0xc1], Instruction::Call),
            (&[0xef], port(None, 4, false)),
            (&[0x48, 0xef], port(None, 4, false)),
            (&[0x66, 0xef], port(None, 2, false)),
            (&[0xee], port(None, 1, false)),
            (&[0xed], port(None, 4, true)),
            (&[0x66, 0xec], port(None, 1, true)),
            (&[0xe7, 0x70], port(Some(0x70), 4, false)),
            (&[0x66, 0xe5, 0x71], port(Some(0x71), 2, true)),
            (&[0xe6, 0x80], port(Some(0x80), 1, false)),
            (&[0x0f, 0x01, 0xd0], Instruction::Other),
            (&[0x0f, 0x30], Instruction::Other),
            (&[0x90], Instruction::Other),
            // A second REX is not one of this instruction.
            (&[0x48, 0x48], Instruction::Other),
            // INS and OUTS, which would have the hypervisor read and write memory.
            (&[0x6d], Instruction::Other),
            (&[0xf3, 0x6f], Instruction::Other),
        ] {
            assert_eq!(is(bytes), instruction, "{bytes:x?}");
        }
    }

    #[test]
    fn what_goes_on_elsewhere_is_none() {
        for bytes in [
            &[][..],
            &[0x0f],
            &[0x0f, 0x01],
            &[0x66],
            &[0x48],
            &[0xe7],
            &[0x66; LONGEST],
            &[0x66; 40],
        ] {
            assert_eq!(decode(bytes), None, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn no_instruction_is_longer_than_what_it_was_read_from(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            if let Some((instruction, len)) = decode(&bytes) {
                prop_assert!(len as usize <= bytes.len().min(LONGEST) && len > 0);
                // Whatever stands behind does not matter.
                prop_assert_eq!(decode(&bytes[..len as usize]), Some((instruction, len)));
            }
        }
    }
}
