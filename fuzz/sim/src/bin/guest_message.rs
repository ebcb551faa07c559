//! Messages between guest and security processor: an error, or a header within its limits whose payload opens only when it
//! is authentic. What opens is read as each kind of request.
#![no_main]

use cloak_fuzz_seeds::plant;
use cloak_sim::message::{Header, MOST, MessageType, Sealed, seal};
use cloak_sim::requests::{KeyRequest, ReportRequest, fields};

const KEY: [u8; 32] = [7; 32];

fn seeds() -> Vec<Vec<u8>> {
    let message = |kind, payload: &[u8]| {
        let header = Header {
            sequence: 1,
            kind,
            key: 0,
        };
        seal(header, &KEY, payload).expect("it fits")
    };
    vec![
        message(MessageType::ReportRequest, &[0; 96]),
        message(MessageType::KeyRequest, &[0; 32]),
    ]
}

libfuzzer_sys::fuzz_target!(init: plant(seeds), |bytes: &[u8]| {
    if let Ok(sealed) = Sealed::parse(bytes) {
        let header = sealed.header;
        assert!(header.key <= 3);
        if let Ok(payload) = sealed.open(&KEY) {
            assert!(payload.len() <= MOST);
            let again = seal(header, &KEY, &payload).expect("what was parsed can be sealed");
            assert!(bytes.starts_with(&again), "one message has one form");
        }
    }
    if let Ok(request) = ReportRequest::parse(bytes, 1) {
        assert!((1..=3).contains(&request.vmpl));
    }
    if let Ok(request) = KeyRequest::parse(bytes, 1, 5, [9; 8]) {
        assert!((1..=3).contains(&request.vmpl) && request.guest_svn <= 5);
        assert!(request.field_select & !fields::ALL == 0 && request.tcb.iter().all(|&part| part <= 9));
    }
});
