//! The buffer of GetQuote, in memory that both sides have (Guest-Host Communication Interface, section 3.3), and what a quote has
//! to be of. The signature is for the verifier to check; but a quote of another domain, or over another's data, is no answer
//! to what was asked, and is not handed on.
//!
//! ```text
//! 0        8        16       20       24
//! │ version │ status │ in    │ out   │ TDREPORT, then quote …
//! ```
//! It is copied once, and the copy is parsed. A header that is not final yet says so; how long to wait is the caller's.

use crate::weakened::{Protection, without};

/// Bytes before the data.
pub const HEADER: usize = 24;
/// Bytes of a TDREPORT.
pub const REPORT: usize = 1024;
/// Bytes of the buffer: what the host takes at most.
pub const BUFFER: usize = 128 << 10;
/// The version of the buffer.
pub const VERSION: u64 = 1;
/// A status that is not final.
pub const IN_FLIGHT: u64 = u64::MAX;

/// Why there is no quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuoteError {
    /// The host could not make one.
    Failed(u64),
    /// A length that there can't be.
    Length,
    /// Not a quote of a domain, or one of a version that is not known.
    Form,
    /// A quote of something else than the report.
    Other,
}

/// The header of a request for a quote of a TDREPORT, as words.
#[must_use]
pub const fn request() -> [u64; HEADER / 8] {
    [VERSION, 0, REPORT as u64]
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The quote is being made.
    InFlight,
    /// It is there, of so many bytes.
    Done(usize),
}

/// Reads a copy of the header.
///
/// # Errors
/// [`QuoteError::Failed`], [`QuoteError::Length`].
pub fn progress([_, status, lengths]: [u64; HEADER / 8]) -> Result<Progress, QuoteError> {
    match status {
        IN_FLIGHT => Ok(Progress::InFlight),
        status if status == 0 || without(Protection::Made) => {
            let len = (lengths >> 32) as usize;
            if (1..=BUFFER - HEADER).contains(&len) || without(Protection::Room) {
                Ok(Progress::Done(len))
            } else {
                Err(QuoteError::Length)
            }
        }
        status => Err(QuoteError::Failed(status)),
    }
}

/// Where the fields of a domain are in a TDREPORT: REPORTDATA, ATTRIBUTES to MROWNERCONFIG, run-time registers.
const IN_REPORT: [core::ops::Range<usize>; 3] = [128..192, 512..720, 720..912];
/// The same in a quote's body, whose first fields are the module's.
const IN_BODY: [core::ops::Range<usize>; 3] = [520..584, 120..328, 328..520];
/// Bytes of a quote's header.
const QUOTE_HEADER: usize = 48;
/// TEE type of TDX.
const TDX: [u8; 4] = [0x81, 0, 0, 0];
/// Types of a body of version 5, and the bytes of its descriptor: TDX 1.0 and TDX 1.5.
const BODIES: [u16; 2] = [2, 3];
const DESCRIPTOR: usize = 6;

/// Checks that `quote` is one of the domain, and of the data, that `report` is of.
///
/// # Errors
/// [`QuoteError::Form`], [`QuoteError::Other`].
pub fn check(quote: &[u8], report: &[u8; REPORT]) -> Result<(), QuoteError> {
    let half = |at: usize| Some(u16::from_le_bytes(*quote.get(at..)?.first_chunk()?));
    let body = match half(0) {
        Some(4) => QUOTE_HEADER,
        Some(5) if half(QUOTE_HEADER).is_some_and(|kind| BODIES.contains(&kind)) => QUOTE_HEADER + DESCRIPTOR,
        _ => return Err(QuoteError::Form),
    };
    if quote.get(4..8) != Some(&TDX[..]) {
        return Err(QuoteError::Form);
    }
    for (here, there) in IN_BODY.into_iter().zip(IN_REPORT) {
        let found = quote.get(body + here.start..body + here.end);
        let found = found.ok_or(QuoteError::Form)?;
        if report.get(there) != Some(found) && !without(Protection::Same) {
            return Err(QuoteError::Other);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report() -> [u8; REPORT] {
        core::array::from_fn(|at| (at * 7 % 251) as u8)
    }

    fn quote(version: u16) -> Vec<u8> {
        let mut quote = vec![0; QUOTE_HEADER];
        quote[..2].copy_from_slice(&version.to_le_bytes());
        quote[4..8].copy_from_slice(&TDX);
        if version == 5 {
            quote.extend([3, 0, 0, 0, 0, 0]);
        }
        let body = quote.len();
        quote.resize(body + 1000, 0);
        for (here, there) in IN_BODY.into_iter().zip(IN_REPORT) {
            quote[body + here.start..body + here.end].copy_from_slice(&report()[there]);
        }
        quote
    }

    #[test]
    fn a_quote_of_the_report_is_one() {
        for version in [4, 5] {
            assert_eq!(check(&quote(version), &report()), Ok(()));
        }
    }

    #[test]
    fn a_quote_of_something_else_is_none() {
        for version in [4, 5] {
            let body = QUOTE_HEADER + if version == 5 { DESCRIPTOR } else { 0 };
            // REPORTDATA, ATTRIBUTES, XFAM, MRTD, MRCONFIGID, the last run-time register.
            for at in [520, 583, 120, 128, 136, 184, 327, 328, 519] {
                let mut other = quote(version);
                other[body + at] ^= 1;
                assert_eq!(check(&other, &report()), Err(QuoteError::Other), "{at}");
            }
        }
    }

    #[test]
    fn what_is_no_quote_is_refused() {
        assert_eq!(check(&quote(3), &report()), Err(QuoteError::Form));
        assert_eq!(
            check(&quote(4)[..QUOTE_HEADER + 583], &report()),
            Err(QuoteError::Form)
        );
        let mut sgx = quote(4);
        sgx[4] = 0;
        assert_eq!(check(&sgx, &report()), Err(QuoteError::Form));
        let mut body = quote(5);
        body[QUOTE_HEADER] = 1;
        assert_eq!(check(&body, &report()), Err(QuoteError::Form));
    }

    #[test]
    fn a_header_says_when_it_is_final() {
        let header = |status, out: u64| progress([1, status, 1024 | out << 32]);
        assert_eq!(header(IN_FLIGHT, 0), Ok(Progress::InFlight));
        assert_eq!(header(0, 5000), Ok(Progress::Done(5000)));
        for out in [0, (BUFFER - HEADER + 1) as u64, u64::from(u32::MAX)] {
            assert_eq!(header(0, out), Err(QuoteError::Length), "success without a quote");
        }
        assert_eq!(header(1 << 63, 9), Err(QuoteError::Failed(1 << 63)));
        assert_eq!(header(1, 9), Err(QuoteError::Failed(1)));
    }

    proptest! {
        #[test]
        fn anything_is_a_quote_of_the_report_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..800), version in 3u16..7) {
            let mut bytes = bytes;
            if bytes.len() >= 8 {
                bytes[..2].copy_from_slice(&version.to_le_bytes());
                bytes[4..8].copy_from_slice(&TDX);
            }
            prop_assert!(check(&bytes, &report()).is_err());
        }
    }
}
