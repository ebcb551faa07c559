//! The messages of Intel's quoting service (QGS), version 1: on a stream each with its length before it, big-endian; all
//! within a message is little-endian (`qgs_msg_lib.h` of the DCAP sources).
//!
//! ```text
//! │ length │ major │ minor │ type │ size │ error │ …
//!   u32 BE   u16     u16     u32    u32    u32
//!   get_quote request:  … │ report size │ id list size │ report │ id list
//!   get_quote response: … │ selected id size │ quote size │ selected id │ quote
//! ```

use super::service::QuoteError;

/// Bytes of a TDREPORT.
pub const REPORT_BYTES: usize = 1024;
/// Bytes of the largest message that is taken.
pub const MOST: usize = 64 << 10;
/// Bytes before a message.
pub const PREFIX: usize = 4;

const HEADER: usize = 16;
const MAJOR: u16 = 1;
const MINOR: u16 = 1;
const GET_QUOTE_REQUEST: u32 = 0;
const GET_QUOTE_RESPONSE: u32 = 1;

fn short<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], QuoteError> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.copied().ok_or(QuoteError::Answer("it ends early"))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, QuoteError> {
    short(bytes, at).map(u32::from_le_bytes)
}

/// A message with its length before it.
fn framed(kind: u32, error: u32, first: &[u8], second: &[u8]) -> Vec<u8> {
    let size = (HEADER + 8 + first.len() + second.len()) as u32;
    let mut bytes = size.to_be_bytes().to_vec();
    bytes.extend(MAJOR.to_le_bytes());
    bytes.extend(MINOR.to_le_bytes());
    for word in [kind, size, error, first.len() as u32, second.len() as u32] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(first);
    bytes.extend(second);
    bytes
}

/// Asks for a quote, by whichever of its keys the service likes.
#[must_use]
pub fn request(report: &[u8; REPORT_BYTES]) -> Vec<u8> {
    framed(GET_QUOTE_REQUEST, 0, report, &[])
}

/// What a service sends: for tests and simulated ones.
#[must_use]
pub fn response(error: u32, quote: &[u8]) -> Vec<u8> {
    framed(GET_QUOTE_RESPONSE, error, &[], quote)
}

/// The length that a message's prefix says.
///
/// # Errors
/// [`QuoteError::Answer`]: shorter than a header or longer than [`MOST`].
pub fn length(prefix: [u8; PREFIX]) -> Result<usize, QuoteError> {
    let length = u32::from_be_bytes(prefix) as usize;
    if !(HEADER..=MOST).contains(&length) {
        return Err(QuoteError::Answer("its length is none of a message"));
    }
    Ok(length)
}

fn parts(message: &[u8], expected: u32) -> Result<(u32, &[u8], &[u8]), QuoteError> {
    let wrong = |problem| Err(QuoteError::Answer(problem));
    if u16::from_le_bytes(short(message, 0)?) != MAJOR {
        return wrong("another major version");
    }
    if u32_at(message, 4)? != expected {
        return wrong("another type of message");
    }
    if u32_at(message, 8)? as usize != message.len() {
        return wrong("its size is not its length");
    }
    let error = u32_at(message, 12)?;
    if error != 0 {
        return Ok((error, &[], &[]));
    }
    let (first, second) = (
        u32_at(message, HEADER)? as usize,
        u32_at(message, HEADER + 4)? as usize,
    );
    let rest = message.get(HEADER + 8..).unwrap_or_default();
    let Some((first, rest)) = rest.split_at_checked(first) else {
        return wrong("a part is longer than the message");
    };
    if rest.len() != second {
        return wrong("its parts are not its length");
    }
    Ok((0, first, rest))
}

/// Reads a response, without its prefix: the quote. Nobody has verified it; that is for who relies on it.
///
/// # Errors
/// [`QuoteError::Answer`]: no response; [`QuoteError::Service`]: the service refuses.
pub fn parse_response(message: &[u8]) -> Result<Vec<u8>, QuoteError> {
    let (code, selected, quote) = parts(message, GET_QUOTE_RESPONSE)?;
    if code != 0 {
        return Err(QuoteError::Service {
            code,
            meaning: meaning(code),
        });
    }
    // No list of keys was sent from which one could have been selected.
    if !selected.is_empty() {
        return Err(QuoteError::Answer("it selects a key that was not offered"));
    }
    if quote.is_empty() {
        return Err(QuoteError::Answer("it has no quote"));
    }
    Ok(quote.to_vec())
}

/// Reads a request, without its prefix: the report. For tests and simulated services.
///
/// # Errors
/// [`QuoteError::Answer`]: no request.
pub fn parse_request(message: &[u8]) -> Result<&[u8; REPORT_BYTES], QuoteError> {
    let (_, report, _) = parts(message, GET_QUOTE_REQUEST)?;
    report
        .try_into()
        .map_err(|_| QuoteError::Answer("its report has another length"))
}

fn meaning(code: u32) -> &'static str {
    match code {
        0x1_2001 => "an unexpected error: see its log (journalctl -u qgsd)",
        0x1_2002 => "it is out of memory",
        0x1_2003 => "it takes the report for none of this machine's",
        0x1_2004 => "it speaks another version",
        0x1_2005..=0x1_2007 => "it does not understand the request",
        _ => "see its log (journalctl -u qgsd)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Byte by byte, as the service's sources lay it out.
    #[test]
    fn a_request_is_what_the_service_reads() {
        let bytes = request(&[0xab; REPORT_BYTES]);
        let head = [
            [0, 0, 4, 24],
            [1, 0, 1, 0],
            [0, 0, 0, 0],
            [24, 4, 0, 0],
            [0, 0, 0, 0],
            [0, 4, 0, 0],
            [0, 0, 0, 0],
        ];
        assert_eq!(bytes[..28], *head.as_flattened());
        assert_eq!(bytes[28..], [0xab; REPORT_BYTES]);
    }

    #[test]
    fn answers_that_are_none_say_why() {
        let good = response(0, &[5; 100])[PREFIX..].to_vec();
        assert_eq!(parse_response(&good).expect("a quote"), [5; 100]);
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            parse_response(&bytes).expect_err("refused").to_string()
        };
        for (at, byte, why) in [
            (0, 2, "major version"),
            (4, 3, "type"),
            (8, 1, "size"),
            (16, 1, "parts"),
            (18, 1, "part is longer"),
            (20, 99, "parts"),
        ] {
            let text = changed(at, byte);
            assert!(text.contains(why), "{at}: {text}");
        }
        let refusal = parse_response(&response(0x1_2003, &[])[PREFIX..]).expect_err("refused");
        assert!(
            refusal.to_string().contains("none of this machine's"),
            "{refusal}"
        );
        assert!(parse_response(&response(0, &[])[PREFIX..]).is_err());
        let mut selects = framed(GET_QUOTE_RESPONSE, 0, &[1; 16], &[2; 8]);
        assert!(parse_response(&selects.split_off(PREFIX)).is_err());
        assert_eq!(length([0, 0, 0, 16]).expect("a header"), 16);
        for prefix in [[0, 0, 0, 15], [0, 1, 0, 1], [0xff; 4]] {
            assert!(length(prefix).is_err());
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_a_quote_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..200), real: bool) {
            if real && bytes.len() >= 24 {
                let size = bytes.len() as u32;
                bytes[..8].copy_from_slice(&[1, 0, 1, 0, 1, 0, 0, 0]);
                bytes[8..12].copy_from_slice(&size.to_le_bytes());
                bytes[12..20].fill(0);
                bytes[20..24].copy_from_slice(&(size - 24).to_le_bytes());
            }
            match parse_response(&bytes) {
                Ok(quote) => prop_assert_eq!(&response(0, &quote)[PREFIX + 4..], &bytes[4..]),
                Err(_) => prop_assert!(!real || bytes.len() <= 24),
            }
        }

        #[test]
        fn requests_and_responses_are_read_as_they_were_written(report in any::<[u8; 32]>(), quote in prop::collection::vec(any::<u8>(), 1..300)) {
            let mut whole = [0; REPORT_BYTES];
            whole[..32].copy_from_slice(&report);
            let bytes = request(&whole);
            prop_assert_eq!(length(short(&bytes, 0).expect("a prefix")).expect("a length"), bytes.len() - PREFIX);
            prop_assert_eq!(parse_request(&bytes[PREFIX..]).expect("a request"), &whole);
            prop_assert_eq!(parse_response(&response(0, &quote)[PREFIX..]).expect("a quote"), quote);
        }
    }
}
