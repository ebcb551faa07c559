//! What a TDX domain and a quoting service say to the monitor: calls, the buffer of a quote, a last word, answers. Each is an
//! error, a refusal, or a value that says the same again when it is written.
#![no_main]

use cloak_fuzz_seeds::plant;
use cloak_host::tdvmcall::buffer::{HEADER, Request};
use cloak_host::tdvmcall::qgs::{self, PREFIX, REPORT_BYTES};
use cloak_host::tdvmcall::{Call, Exit, FatalError, Status};

fn seeds() -> Vec<Vec<u8>> {
    let exit = |nr: u64, first: u64| {
        let words = [0, nr, Status::Unsupported as u64, first, 0x2000, 0, 0, 0];
        words.map(u64::to_le_bytes).as_flattened().to_vec()
    };
    let mut buffer = vec![0; HEADER + REPORT_BYTES];
    buffer[0] = 1;
    buffer[17] = 4;
    vec![
        exit(0x1_0000, 1),
        exit(0x1_0002, 0x8000),
        exit(0x1_0004, 0xec),
        buffer,
        qgs::request(&[1; REPORT_BYTES])[PREFIX..].to_vec(),
        qgs::response(0, &[2; 64])[PREFIX..].to_vec(),
        qgs::response(0x1_2001, &[])[PREFIX..].to_vec(),
    ]
}

fn words<const N: usize>(bytes: &[u8]) -> Option<[u64; N]> {
    let (chunks, _) = bytes.as_chunks::<8>();
    let words: Vec<u64> = chunks.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect();
    words.first_chunk().copied()
}

libfuzzer_sys::fuzz_target!(init: plant(seeds), |bytes: &[u8]| {
    if let Some([flags, nr, rest @ ..]) = words::<8>(bytes) {
        match Call::parse(&Exit { flags, nr, words: rest }) {
            Call::Refused { status, .. } => assert_ne!(status, Status::Success),
            Call::SetupEventNotifyInterrupt { vector } => assert!(vector >= 32),
            Call::GetQuote { gpa, size } => assert_eq!([gpa, size], [rest[1], rest[2]]),
            Call::GetTdVmCallInfo => assert_eq!(rest[1], 1),
        }
    }
    if let Some(registers) = words::<16>(bytes) {
        let text = FatalError::parse(&registers).expect("sixteen").to_string();
        assert!(text.is_ascii() && !text.bytes().any(|byte| byte.is_ascii_control()));
    }
    if let Some(copy) = bytes.first_chunk()
        && let Ok(request) = Request::parse(copy, 0x2000)
    {
        assert_eq!(request.report[..], copy[HEADER..]);
    }
    if let Some(prefix) = bytes.first_chunk()
        && let Ok(length) = qgs::length(*prefix)
    {
        assert!((16..=qgs::MOST).contains(&length));
    }
    if let Ok(quote) = qgs::parse_response(bytes) {
        // But for the minor version.
        assert_eq!(qgs::response(0, &quote)[PREFIX + 4..], bytes[4..]);
    }
    if let Ok(report) = qgs::parse_request(bytes) {
        assert!(bytes.ends_with(report));
    }
});
