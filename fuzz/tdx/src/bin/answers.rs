//! A module and a hypervisor that answer with the input: whatever they say, each step of a domain ends with a value or a reason,
//! after a bounded number of calls; no page is accepted twice; and the hypervisor is told nothing that is not its to know.
#![no_main]

use std::collections::BTreeSet;

use cloak_fuzz_seeds::plant;
use cloak_tdx::exception::{Interrupted, handle};
use cloak_tdx::module::leaf;
use cloak_tdx::{Machine, Registers, module, pages, vmcall};

/// In registers that no call hands over.
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
const SHARED: u64 = 1 << 47;

struct Answers<'a> {
    input: &'a [u8],
    calls: u32,
    accepted: BTreeSet<u64>,
}

impl Answers<'_> {
    fn word(&mut self) -> u64 {
        let (head, rest) = self.input.split_at(self.input.len().min(8));
        self.input = rest;
        let mut word = [0; 8];
        word[..head.len()].copy_from_slice(head);
        u64::from_le_bytes(word)
    }
}

impl Machine for Answers<'_> {
    fn tdcall(&mut self, registers: &mut Registers) {
        self.calls += 1;
        assert!(self.calls < 4096, "no end");
        if registers.rax == leaf::VMCALL {
            let told = [registers.rbx, registers.rdx, registers.r12, registers.r13, registers.r14, registers.r15];
            assert!(!told.contains(&SECRET));
        }
        // A success in half of the cases, so that a run gets further than the first answer.
        let status = self.word();
        let status = if status & 1 == 1 { 0 } else { status };
        if registers.rax == leaf::ACCEPT && status >> 32 == 0 {
            let (gpa, pages) = (registers.rcx & !0xfff, if registers.rcx & 1 == 1 { 512 } else { 1 });
            for page in 0..pages {
                assert!(self.accepted.insert(gpa + page * 4096), "a page was accepted twice");
            }
        }
        registers.rax = status;
        registers.r10 = self.word();
        if registers.r10 & 1 == 1 {
            registers.r10 = 0;
        }
        for register in [&mut registers.rcx, &mut registers.rdx, &mut registers.r8, &mut registers.r11, &mut registers.r12] {
            let choice = self.word();
            if choice & 3 != 0 {
                *register = choice >> 2;
            }
        }
        [registers.r13, registers.r14, registers.r15] = [self.word(), self.word(), self.word()];
    }
}

libfuzzer_sys::fuzz_target!(init: plant(|| [vec![1; 4096], vec![0; 64]]), |input: &[u8]| {
    let mut machine = Answers { input, calls: 0, accepted: BTreeSet::new() };
    if let Ok(info) = module::info(&mut machine) {
        let _ = info.agree(SHARED);
    }
    let _ = vmcall::map_gpa(&mut machine, SHARED, 32 << 20);
    for block in 1..4u64 {
        let _ = pages::accept(&mut machine, block << 21);
    }
    for user in [true, false] {
        if let Ok(cause) = module::exception(&mut machine) {
            let mut registers = Interrupted { rbx: SECRET, rdx: SECRET, user, ..Interrupted::default() };
            registers.rax = machine.word();
            let _ = handle(&mut machine, cause, &mut registers, &[0x510, 0x514]);
        }
    }
    let _ = vmcall::get_quote(&mut machine, SHARED, 4096);
});
