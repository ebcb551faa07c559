//! Randomness: ChaCha20 under a key that mixes the CPU's generator with what the monitor gave.
//!
//! On plain KVM the monitor is trusted, elsewhere the CPU is; neither alone can make the output known.

use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;

use crate::arch;

struct State {
    key: [u32; 8],
    counter: u64,
}

static STATE: Mutex<State> = Mutex::new(State {
    key: [0; 8],
    counter: 0,
});
static SEEDED: AtomicBool = AtomicBool::new(false);

/// Mixes a seed in.
pub fn seed(bytes: &[u8]) {
    let mut state = STATE.lock();
    for (i, chunk) in bytes.chunks(4).enumerate() {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        state.key[i % 8] ^= u32::from_le_bytes(word);
    }
    for i in 0..8 {
        let word = arch::hardware_random().unwrap_or_else(arch::ticks);
        state.key[i] ^= word as u32 ^ (word >> 32) as u32;
    }
    SEEDED.store(true, Ordering::Release);
}

/// Fills `out`.
pub fn fill(out: &mut [u8]) {
    debug_assert!(SEEDED.load(Ordering::Acquire));
    // Each caller takes a key of its own and leaves a new one: what was given out can't be computed back.
    let mut key = {
        let mut state = STATE.lock();
        let block = chacha20(&state.key, state.counter);
        state.counter += 1;
        let (next, own) = block.split_at(8);
        state.key.copy_from_slice(next);
        let mut key = [0; 8];
        key.copy_from_slice(own);
        key
    };
    for (i, chunk) in out.chunks_mut(64).enumerate() {
        let block = chacha20(&key, i as u64);
        for (to, from) in chunk.iter_mut().zip(block.iter().flat_map(|w| w.to_le_bytes())) {
            *to = from;
        }
    }
    key.fill(0);
}

/// A random word.
#[must_use]
pub fn word() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// One block of ChaCha20 (RFC 8439) with a zero nonce.
fn chacha20(key: &[u32; 8], counter: u64) -> [u32; 16] {
    let mut input = [0u32; 16];
    input[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    input[4..12].copy_from_slice(key);
    input[12] = counter as u32;
    input[13] = (counter >> 32) as u32;
    let mut x = input;
    for _ in 0..10 {
        for [a, b, c, d] in [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]] {
            quarter(&mut x, a, b, c, d);
        }
        for [a, b, c, d] in [[0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]] {
            quarter(&mut x, a, b, c, d);
        }
    }
    core::array::from_fn(|i| x[i].wrapping_add(input[i]))
}

fn quarter(x: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
    for (p, q, r, by) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
        x[p] = x[p].wrapping_add(x[q]);
        x[r] = (x[r] ^ x[p]).rotate_left(by);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_function_is_rfc_8439s() {
        // Section 2.3.2 with nonce and counter as here: state words 12-15 = 1, 0, 0, 0 (appendix A.1, vector 2).
        let block = chacha20(&[0; 8], 1);
        let bytes: Vec<u8> = block.iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(bytes[..8], [0x9f, 0x07, 0xe7, 0xbe, 0x55, 0x51, 0x38, 0x7a]);
    }

    #[test]
    fn no_output_repeats() {
        seed(b"test");
        let mut seen = std::collections::HashSet::new();
        assert!((0..1000).all(|_| seen.insert(word())));
    }
}
