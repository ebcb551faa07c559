//! The fs-verity digest of a file, of what a reader gives. The tree itself is `cloak_volumes::verity`: who measures a
//! file here and who checks its blocks later count alike.

use std::io::{self, Read};

pub use cloak_volumes::verity::BLOCK;
use cloak_volumes::verity::Builder;

use crate::identity::Digest;

/// Computes the digest of what a reader gives, in one pass and with memory for a block of each level.
///
/// # Errors
/// What the reader says.
pub fn digest(mut reader: impl Read) -> io::Result<Digest<32>> {
    let mut tree = Builder::default();
    let mut block = [0; BLOCK];
    loop {
        let filled = fill(&mut reader, &mut block)?;
        if filled > 0 {
            tree.block(&block[..filled]);
        }
        if filled < BLOCK {
            return Ok(Digest(tree.finish().0));
        }
    }
}

fn fill(reader: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match reader.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
