//! What jumps into the bytes behind a SYSCALL.
//!
//! A site may be replaced together with the instruction behind it only when nothing jumps there. One pass over
//! a text answers that for all its sites: every byte that could start a relative jump or call is taken for one,
//! unless it lies inside an instruction. Instructions are told from bytes by walking up to them from many
//! starts: such walks fall into step within a few instructions, and compilers do not overlap instructions.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::length::length;

/// Bytes behind a SYSCALL that matter: a replaced site ends within them.
pub const BEHIND: usize = 12;
/// Walks start so far before the byte in question, ...
const FROM: usize = 96;
/// ... and not nearer, so that they have fallen into step.
const UP_TO: usize = 48;

/// Addresses behind the SYSCALLs of a text at `base` to which something in it jumps.
#[must_use]
pub fn jump_targets(base: u64, text: &[u8]) -> BTreeSet<u64> {
    let mut watched = alloc::vec![0u8; text.len().div_ceil(8)];
    for (i, pair) in text.windows(2).enumerate() {
        if pair == [0x0f, 0x05] {
            for at in i + 2..(i + 2 + BEHIND).min(text.len()) {
                watched[at / 8] |= 1 << (at % 8);
            }
        }
    }
    let is_watched = |at: i64| {
        usize::try_from(at).is_ok_and(|at| watched.get(at / 8).is_some_and(|byte| byte & 1 << (at % 8) != 0))
    };
    let mut found = BTreeSet::new();
    for (i, &first) in text.iter().enumerate() {
        let target = match first {
            0x70..=0x7f | 0xeb | 0xe0..=0xe3 => text.get(i + 1).map(|&d| i as i64 + 2 + i64::from(d as i8)),
            0xe8 | 0xe9 => displacement(text, i + 1).map(|d| i as i64 + 5 + d),
            0x0f if text.get(i + 1).is_some_and(|b| b & 0xf0 == 0x80) => {
                displacement(text, i + 2).map(|d| i as i64 + 6 + d)
            }
            _ => None,
        };
        if let Some(target) = target
            && is_watched(target)
            && may_start_instruction(text, i)
        {
            found.insert(base + target as u64);
        }
    }
    found
}

fn displacement(text: &[u8], at: usize) -> Option<i64> {
    let bytes: [u8; 4] = text.get(at..at + 4)?.try_into().ok()?;
    Some(i64::from(i32::from_le_bytes(bytes)))
}

/// Whether an instruction may start at `at`: not when all but a few walks step over it.
fn may_start_instruction(text: &[u8], at: usize) -> bool {
    let walks: Vec<bool> = (at.saturating_sub(FROM)..at.saturating_sub(UP_TO))
        .filter_map(|start| reaches(text, start, at))
        .collect();
    // Near the start of the text there are too few to tell.
    walks.len() < 16 || walks.iter().filter(|&&hit| hit).count() * 8 >= walks.len()
}

/// Whether a walk from `start` meets `at`; `None` when it ends before, in what is no instruction.
fn reaches(text: &[u8], start: usize, at: usize) -> Option<bool> {
    let mut here = start;
    while here < at {
        here += length(text.get(here..)?)?;
    }
    Some(here == at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Straight code of several shapes, long enough for walks to fall into step.
    fn filler() -> Vec<u8> {
        [
            &[0x48, 0x89, 0xd8][..],
            &[0x55],
            &[0x41, 0x89, 0xc0],
            &[0x8b, 0x7c, 0x24, 0x08],
            &[0x48, 0x83, 0xec, 0x28],
        ]
        .concat()
        .repeat(12)
    }

    #[test]
    fn a_jump_behind_a_call_is_found() {
        let mut text = filler();
        let jump = text.len();
        text.extend_from_slice(&[0xeb, 0x02]); // over the SYSCALL
        text.extend_from_slice(&[0x0f, 0x05, 0x48, 0x3d, 0, 0xf0, 0xff, 0xff, 0xc3]);
        let targets = jump_targets(0x1000, &text);
        assert_eq!(
            targets.into_iter().collect::<Vec<_>>(),
            [0x1000 + jump as u64 + 4]
        );
    }

    #[test]
    fn bytes_inside_an_instruction_are_not_a_jump() {
        let mut text = filler();
        // mov [rsp + 2 + ...], rsi: the bytes 74 24 look like a jump by 36.
        text.extend_from_slice(&[0x48, 0x89, 0x74, 0x24, 0x10]);
        text.extend_from_slice(&[0x90; 0x1b]);
        text.extend_from_slice(&[0x31, 0xc0, 0x0f, 0x05, 0x48, 0x3d, 0, 0xf0, 0xff, 0xff, 0xc3]);
        let at = text.windows(2).position(|w| w == [0x74, 0x24]).expect("there");
        let target = at + 2 + 0x24;
        let behind = text.windows(2).position(|w| w == [0x0f, 0x05]).expect("there") + 2;
        assert!(
            (behind..behind + BEHIND).contains(&target),
            "the case tests something"
        );
        assert!(jump_targets(0, &text).is_empty());
    }
}
