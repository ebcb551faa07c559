//! How long an x86-64 instruction is.
//!
//! Enough of a decoder to walk through text from instruction to instruction (Intel SDM volume 2, chapter 2 and
//! appendix A). What is not valid in 64-bit mode gives `None`. Tests compare it with a full disassembler over
//! the text of the system's libraries.

/// Operands behind an opcode.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// Nothing.
    None,
    /// An immediate of so many bytes.
    Imm(usize),
    /// Four bytes, two after an operand-size prefix.
    ImmZ,
    /// As [`Tail::ImmZ`], eight with REX.W.
    ImmV,
    /// An address: eight bytes, four after an address-size prefix.
    Address,
    /// ModRM with what it asks for.
    ModRm,
    /// ModRM and an immediate of so many bytes.
    ModRmImm(usize),
    /// ModRM and [`Tail::ImmZ`].
    ModRmImmZ,
    /// Group 3: an immediate for the first two of the eight operations only.
    Group3(usize),
    Invalid,
}

fn one_byte(opcode: u8) -> Tail {
    use Tail::{Address, Group3, Imm, ImmV, ImmZ, Invalid, ModRm, ModRmImm, ModRmImmZ};
    match opcode {
        0x06 | 0x07 | 0x0e | 0x16 | 0x17 | 0x1e | 0x1f | 0x27 | 0x2f | 0x37 | 0x3f | 0x60..=0x61 => Invalid,
        0x82 | 0x9a | 0xce | 0xd4..=0xd6 | 0xea => Invalid,
        0x00..=0x3f => match opcode & 7 {
            0..=3 => ModRm,
            4 => Imm(1),
            5 => ImmZ,
            _ => Invalid,
        },
        0x63 | 0x84..=0x8f | 0xd0..=0xd3 | 0xd8..=0xdf | 0xfe | 0xff => ModRm,
        0x68 | 0xa9 => ImmZ,
        0x69 | 0x81 | 0xc7 => ModRmImmZ,
        0x6a | 0x70..=0x7f | 0xa8 | 0xb0..=0xb7 | 0xcd | 0xe0..=0xe7 | 0xeb => Imm(1),
        0x6b | 0x80 | 0x83 | 0xc0 | 0xc1 | 0xc6 => ModRmImm(1),
        0xa0..=0xa3 => Address,
        0xb8..=0xbf => ImmV,
        0xc2 | 0xca => Imm(2),
        0xc8 => Imm(3),
        0xe8 | 0xe9 => Imm(4),
        0xf6 => Group3(1),
        0xf7 => Group3(4),
        _ => Tail::None,
    }
}

fn two_byte(opcode: u8) -> Tail {
    use Tail::{Imm, Invalid, ModRm, ModRmImm};
    match opcode {
        0x04 | 0x0a | 0x0c | 0x24..=0x27 | 0x36 | 0x39 | 0x3b..=0x3f | 0x7a..=0x7b | 0xa6 | 0xa7 => Invalid,
        0x05..=0x09 | 0x0b | 0x0e | 0x30..=0x37 | 0x77 | 0xa0..=0xa2 | 0xa8..=0xaa | 0xc8..=0xcf => {
            Tail::None
        }
        // Moves of control and debug registers: the ModRM byte always names registers.
        0x20..=0x23 => Imm(1),
        0x80..=0x8f => Imm(4),
        0x0f | 0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => ModRmImm(1),
        _ => ModRm,
    }
}

/// Opcode map `map` of the VEX and EVEX encodings.
fn vector(map: u8, opcode: u8) -> Tail {
    match map {
        1 if opcode == 0x77 => Tail::None,
        1 if matches!(opcode, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6) => Tail::ModRmImm(1),
        1 | 2 | 5 | 6 => Tail::ModRm,
        3 => Tail::ModRmImm(1),
        _ => Tail::Invalid,
    }
}

/// Bytes of a ModRM byte at the start of `bytes` with its SIB byte and displacement.
fn modrm(bytes: &[u8]) -> Option<usize> {
    let byte = *bytes.first()?;
    let (mode, rm) = (byte >> 6, byte & 7);
    if mode == 3 {
        return Some(1);
    }
    let sib = usize::from(rm == 4);
    let base = if rm == 4 { *bytes.get(1)? & 7 } else { rm };
    let displacement = match mode {
        0 if base == 5 => 4,
        0 => 0,
        1 => 1,
        _ => 4,
    };
    Some(1 + sib + displacement)
}

/// Length of the instruction at the start of `bytes`; `None` when it is not valid or does not end there.
#[must_use]
pub fn length(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut operand16, mut address32, mut wide) = (0, false, false, false);
    let opcode = loop {
        let byte = *bytes.get(at)?;
        at += 1;
        // A REX prefix counts only right before the opcode.
        wide = match byte {
            0x66 => {
                operand16 = true;
                false
            }
            0x67 => {
                address32 = true;
                false
            }
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0xf0 | 0xf2 | 0xf3 => false,
            0x40..=0x4f => byte & 8 != 0,
            opcode => break opcode,
        };
    };
    let tail = match opcode {
        0xc4 | 0xc5 | 0x62 => {
            let first = *bytes.get(at)?;
            let (skip, map) = match opcode {
                0xc5 => (1, 1),
                0xc4 => (2, first & 0x1f),
                _ => (3, first & 7),
            };
            let opcode = *bytes.get(at + skip)?;
            at += skip + 1;
            vector(map, opcode)
        }
        // AMD's XOP, told from POP by its map.
        0x8f if bytes.get(at)? & 0x1f >= 8 => {
            let map = bytes.get(at)? & 0x1f;
            at += 3;
            match map {
                8 => Tail::ModRmImm(1),
                9 => Tail::ModRm,
                10 => Tail::ModRmImm(4),
                _ => Tail::Invalid,
            }
        }
        0x0f => {
            let second = *bytes.get(at)?;
            at += 1;
            match second {
                0x38 => {
                    at += 1;
                    Tail::ModRm
                }
                0x3a => {
                    at += 1;
                    Tail::ModRmImm(1)
                }
                other => two_byte(other),
            }
        }
        other => one_byte(other),
    };
    let z = if operand16 && !wide { 2 } else { 4 };
    let rest = bytes.get(at..)?;
    let len = at
        + match tail {
            Tail::None => 0,
            Tail::Imm(n) => n,
            Tail::ImmZ => z,
            Tail::ImmV if wide => 8,
            Tail::ImmV => z,
            Tail::Address => {
                if address32 {
                    4
                } else {
                    8
                }
            }
            Tail::ModRm => modrm(rest)?,
            Tail::ModRmImm(n) => modrm(rest)? + n,
            Tail::ModRmImmZ => modrm(rest)? + z,
            Tail::Group3(n) => {
                let immediate = match (rest.first()? >> 3 & 7, n) {
                    (0 | 1, 1) => 1,
                    (0 | 1, _) => z,
                    _ => 0,
                };
                modrm(rest)? + immediate
            }
            Tail::Invalid => return None,
        };
    (len <= bytes.len() && len <= 15).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, Decoder, DecoderOptions};

    /// Offsets and length of the executable segments of an ELF file.
    fn text(file: &[u8]) -> Vec<&[u8]> {
        let word = |at: usize, len: usize| {
            file[at..at + len]
                .iter()
                .rev()
                .fold(0usize, |n, &b| n << 8 | usize::from(b))
        };
        let (headers, size, count) = (word(32, 8), word(54, 2), word(56, 2));
        (0..count)
            .map(|i| headers + i * size)
            .filter(|&at| word(at, 4) == 1 && word(at + 4, 4) & 1 != 0)
            .map(|at| &file[word(at + 8, 8)..word(at + 8, 8) + word(at + 32, 8)])
            .collect()
    }

    #[test]
    fn agrees_with_a_disassembler_on_the_librarys_text() {
        let mut compared = 0;
        for name in ["libc.so.6", "libcrypto.so.3", "libm.so.6", "libstdc++.so.6"] {
            let Ok(file) = std::fs::read(format!("/lib/x86_64-linux-gnu/{name}"))
                .or_else(|_| std::fs::read(format!("/usr/lib/x86_64-linux-gnu/{name}")))
            else {
                continue;
            };
            for segment in text(&file) {
                let mut decoder = Decoder::new(64, segment, DecoderOptions::NONE);
                while decoder.can_decode() {
                    let at = decoder.position();
                    let instruction = decoder.decode();
                    if instruction.code() == Code::INVALID {
                        continue; // data between functions
                    }
                    assert_eq!(
                        length(&segment[at..]),
                        Some(instruction.len()),
                        "{name} {at:#x}: {instruction} {:x?}",
                        &segment[at..(at + 15).min(segment.len())]
                    );
                    compared += 1;
                }
            }
        }
        assert!(compared > 100_000, "only {compared} instructions were compared");
    }

    #[test]
    fn never_reads_past_the_end() {
        let bytes: Vec<u8> = (0..=255)
            .cycle()
            .take(4096)
            .map(|b: u8| b.wrapping_mul(37))
            .collect();
        for start in 0..bytes.len() {
            for len in 0..16.min(bytes.len() - start) {
                if let Some(found) = length(&bytes[start..start + len]) {
                    assert!((1..=len).contains(&found));
                }
            }
        }
    }
}
