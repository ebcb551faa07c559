//! The certificate table that a host hands to a guest with its report (GHCB specification 2.03, §4.1.8.1), which
//! configfs-tsm gives as `auxblob`.
//!
//! Entries of 24 bytes, a GUID, an offset and a length, end with one that is all zero; the certificates follow.

use crate::evidence::SnpEvidence;

const ENTRY_BYTES: usize = 24;
const MAX_ENTRIES: usize = 32;
const MAX_TABLE_BYTES: usize = 256 * 1024;

// GUIDs stand in the table in the byte order in which they are written.
const VCEK: [u8; 16] = hex_guid("63da758de6644564adc5f4b93be8accd");
const VLEK: [u8; 16] = hex_guid("a8074bc2a25a483eaae639c045a0b8a1");
const ASK: [u8; 16] = hex_guid("4ab7b379bbac4fe4a02f05aef327c782");
const ARK: [u8; 16] = hex_guid("c0b406a4a803495297433fb6014cd0ae");
const CRL: [u8; 16] = hex_guid("92f81bc358114d3d97ffd19f88dc67ea");

/// Why bytes are not a certificate table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertTableError {
    /// Larger than a host would give.
    #[error("{0} bytes, more than {MAX_TABLE_BYTES}")]
    Size(usize),
    /// No entry of zeros before the bytes or the patience end.
    #[error("the table does not end")]
    Unterminated,
    /// An entry that points outside, or into the table itself.
    #[error("entry {0} points outside of the data")]
    OutOfRange(usize),
    /// Two certificates for one place.
    #[error("entry {0} repeats an earlier one")]
    Repeated(usize),
}

/// A parsed table. Entries of other kinds are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertTable {
    /// Chip endorsement key.
    pub vcek: Option<Vec<u8>>,
    /// Loaded endorsement key.
    pub vlek: Option<Vec<u8>>,
    /// Issuer of the endorsement key.
    pub ask: Option<Vec<u8>>,
    /// Root.
    pub ark: Option<Vec<u8>>,
    /// Revocation list.
    pub crl: Option<Vec<u8>>,
}

impl CertTable {
    /// Reads a table.
    ///
    /// # Errors
    /// [`CertTableError`] for anything that a host would not write.
    pub fn parse(bytes: &[u8]) -> Result<Self, CertTableError> {
        if bytes.len() > MAX_TABLE_BYTES {
            return Err(CertTableError::Size(bytes.len()));
        }
        let entries = entries(bytes)?;
        let data_start = (entries.len() + 1) * ENTRY_BYTES;
        let mut table = Self::default();
        for (index, (guid, offset, length)) in entries.into_iter().enumerate() {
            let end = offset.checked_add(length);
            let data = end
                .and_then(|end| bytes.get(offset..end))
                .filter(|_| offset >= data_start);
            let data = data.ok_or(CertTableError::OutOfRange(index))?;
            let Some(place) = table.place(&guid) else { continue };
            if place.replace(data.to_vec()).is_some() {
                return Err(CertTableError::Repeated(index));
            }
        }
        Ok(table)
    }

    /// The table as a host writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let all = [
            (VCEK, &self.vcek),
            (VLEK, &self.vlek),
            (ASK, &self.ask),
            (ARK, &self.ark),
            (CRL, &self.crl),
        ];
        let present: Vec<_> = all
            .iter()
            .filter_map(|(guid, data)| data.as_deref().map(|data| (guid, data)))
            .collect();
        let mut offset = (present.len() + 1) * ENTRY_BYTES;
        let (mut table, mut rest) = (Vec::new(), Vec::new());
        for (guid, data) in present {
            table.extend_from_slice(guid);
            table.extend_from_slice(&(offset as u32).to_le_bytes());
            table.extend_from_slice(&(data.len() as u32).to_le_bytes());
            rest.extend_from_slice(data);
            offset += data.len();
        }
        table.resize(table.len() + ENTRY_BYTES, 0);
        table.extend(rest);
        table
    }

    /// Puts the certificates beside a report. A table with both kinds of key gives the one that the report names.
    pub fn into_evidence(self, report: Vec<u8>) -> SnpEvidence {
        let names_vlek = super::Report::parse(&report)
            .is_ok_and(|report| report.key_info().signing_key() == super::SigningKey::Vlek);
        let vek = if names_vlek {
            self.vlek.or(self.vcek)
        } else {
            self.vcek.or(self.vlek)
        };
        SnpEvidence {
            report,
            vek,
            authority: self.ask,
            ark: self.ark,
            crls: self.crl.into_iter().collect(),
        }
    }

    fn place(&mut self, guid: &[u8; 16]) -> Option<&mut Option<Vec<u8>>> {
        match *guid {
            VCEK => Some(&mut self.vcek),
            VLEK => Some(&mut self.vlek),
            ASK => Some(&mut self.ask),
            ARK => Some(&mut self.ark),
            CRL => Some(&mut self.crl),
            _ => None,
        }
    }
}

type Entry = ([u8; 16], usize, usize);

fn entries(bytes: &[u8]) -> Result<Vec<Entry>, CertTableError> {
    let mut entries = Vec::new();
    for chunk in bytes.chunks_exact(ENTRY_BYTES).take(MAX_ENTRIES) {
        if chunk.iter().all(|&byte| byte == 0) {
            return Ok(entries);
        }
        let word =
            |at: usize| u32::from_le_bytes([chunk[at], chunk[at + 1], chunk[at + 2], chunk[at + 3]]) as usize;
        let mut guid = [0; 16];
        guid.copy_from_slice(&chunk[..16]);
        entries.push((guid, word(16), word(20)));
    }
    Err(CertTableError::Unterminated)
}

const fn hex_guid(text: &str) -> [u8; 16] {
    let text = text.as_bytes();
    let mut guid = [0; 16];
    let (mut at, mut digits) = (0, 0);
    while at < text.len() {
        let digit = match text[at] {
            b'0'..=b'9' => text[at] - b'0',
            b'a'..=b'f' => text[at] - b'a' + 10,
            _ => {
                at += 1;
                continue;
            }
        };
        guid[digits / 2] = guid[digits / 2] << 4 | digit;
        digits += 1;
        at += 1;
    }
    assert!(digits == 32, "a GUID has 32 hexadecimal digits");
    guid
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[([u8; 16], &[u8])]) -> Vec<u8> {
        let mut header = Vec::new();
        let mut data = Vec::new();
        let start = (entries.len() + 1) * ENTRY_BYTES;
        for (guid, bytes) in entries {
            header.extend_from_slice(guid);
            header.extend_from_slice(&((start + data.len()) as u32).to_le_bytes());
            header.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            data.extend_from_slice(bytes);
        }
        header.extend_from_slice(&[0; ENTRY_BYTES]);
        header.extend_from_slice(&data);
        header
    }

    #[test]
    fn reads_each_place_and_skips_others() {
        let bytes = table(&[
            (VCEK, b"v"),
            ([9; 16], b"other"),
            (ASK, b"ask"),
            (ARK, b"ark"),
            (CRL, b"crl"),
        ]);
        let parsed = CertTable::parse(&bytes).unwrap();
        assert_eq!(parsed.vcek.as_deref(), Some(&b"v"[..]));
        assert_eq!(parsed.ask.as_deref(), Some(&b"ask"[..]));
        assert_eq!(parsed.ark.as_deref(), Some(&b"ark"[..]));
        assert_eq!(parsed.crl.as_deref(), Some(&b"crl"[..]));
    }

    #[test]
    fn refuses_what_a_host_would_not_write() {
        assert_eq!(CertTable::parse(&[1; 24]), Err(CertTableError::Unterminated));
        assert_eq!(CertTable::parse(&[]), Err(CertTableError::Unterminated));
        assert_eq!(
            CertTable::parse(&table(&[(VCEK, b"a"), (VCEK, b"b")])),
            Err(CertTableError::Repeated(1))
        );
        let mut overlapping = table(&[(VCEK, b"abc")]);
        overlapping[16..20].copy_from_slice(&0u32.to_le_bytes());
        assert_eq!(CertTable::parse(&overlapping), Err(CertTableError::OutOfRange(0)));
        let mut long = table(&[(VCEK, b"abc")]);
        long[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(CertTable::parse(&long), Err(CertTableError::OutOfRange(0)));
    }
}
