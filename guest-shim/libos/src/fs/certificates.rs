//! The table of certificates that a host leaves beside a report: how long it is (GHCB specification, section 4.1.8.1).

use cloak_abi::layout::CERTIFICATES_LEN;

/// Bytes of an entry.
const ENTRY: usize = 24;
/// Bytes of the most entries that there are.
pub const HEAD: usize = 32 * ENTRY;

/// How long a table of certificates is, from its entries: GUID, offset, length; the last is zero.
#[must_use]
pub fn table_len(head: &[u8]) -> Option<usize> {
    let mut end = 0;
    for (index, entry) in head.chunks_exact(ENTRY).enumerate() {
        end = end.max((index + 1) * ENTRY);
        if entry.iter().all(|&byte| byte == 0) {
            return Some(end).filter(|end| *end as u64 <= CERTIFICATES_LEN);
        }
        let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        end = end.max((word(16) as usize).checked_add(word(20) as usize)?);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_ends_where_its_last_certificate_does() {
        let mut head = vec![0; HEAD];
        assert_eq!(table_len(&head), Some(ENTRY));
        head[..16].fill(7);
        head[16..20].copy_from_slice(&48u32.to_le_bytes());
        head[20..24].copy_from_slice(&1000u32.to_le_bytes());
        assert_eq!(table_len(&head), Some(1048));
        head[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(table_len(&head), None, "longer than its place");
        assert_eq!(table_len(&[7; HEAD]), None, "without an end");
    }
}
