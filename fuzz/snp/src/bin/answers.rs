//! Answers of the security processor, as the hypervisor hands them over: noise never opens.
#![no_main]

use cloak_fuzz_seeds::plant;
use cloak_snp::keys;
use cloak_snp::message::{Carrier, Channel, Delivery, HEADER, Kind, LARGEST, Level};
use cloak_snp::secrets::Key;

struct Noise<'a>(&'a [u8]);

impl Carrier for Noise<'_> {
    fn send(&mut self, _: &[u8], answer: &mut [u8; LARGEST]) -> Delivery {
        let len = self.0.len().min(LARGEST);
        answer[..len].copy_from_slice(&self.0[..len]);
        Delivery::Answered
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut header = vec![0; HEADER + 32];
    header[0x20] = 2;
    header[0x30..0x38].copy_from_slice(&[1, 1, 0x60, 0, 6, 1, 32, 0]);
    vec![header]
}

libfuzzer_sys::fuzz_target!(init: plant(seeds), |bytes: &[u8]| {
    let mut channel = Channel::open(Level::Reports, Key::new([7; 32]));
    let mut answer = [0; LARGEST];
    let opened = channel.request(Kind::Report, &[1; 96], &mut answer, &mut Noise(bytes));
    assert!(opened.is_err(), "an answer was made up without the key");
    let channel = Channel::open(Level::Keys, Key::new([7; 32]));
    let root = keys::root(channel, &[2; 32], &mut Noise(bytes));
    assert!(root.is_err(), "a key was made up without the key");
});
