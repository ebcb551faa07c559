//! #VC with any reason, at any bytes, with any registers, and a hypervisor that answers with the rest of the input: it ends
//! with a reason or goes on, and nothing goes out but a value of RAX to a port of the context's own.
#![no_main]

use std::cell::Cell;
use std::collections::BTreeMap;

use cloak_abi::layout::doorbell_port;
use cloak_fuzz_seeds::plant;
use cloak_snp::cpuid::{Processor, Table};
use cloak_snp::exception::{self, Outcome, Registers, Vcpu, reasons};
use cloak_snp::ghcb::{Ghcb, fields};
use cloak_snp::{Machine, Size, Validation};

const PAGE: u64 = 0x7000;
const TABLE: u64 = 0x1_3000;

struct Hypervisor<'a> {
    input: Cell<&'a [u8]>,
    memory: BTreeMap<u64, u64>,
    /// Code, what it is about, value.
    asked: Vec<[u64; 3]>,
}

impl Hypervisor<'_> {
    fn word(&self) -> u64 {
        let (head, rest) = self.input.get().split_at(self.input.get().len().min(8));
        self.input.set(rest);
        let mut word = [0; 8];
        word[..head.len()].copy_from_slice(head);
        u64::from_le_bytes(word)
    }
}

impl Machine for Hypervisor<'_> {
    fn pvalidate(&mut self, _: u64, _: Size, _: bool) -> Validation {
        unreachable!("an exception changes no memory")
    }

    fn rmp_adjust(&mut self, _: u64, _: u64) -> u32 {
        unreachable!("an exception changes no memory")
    }

    fn vmgexit(&mut self, register: u64) -> u64 {
        let field = |field| self.memory.get(&(PAGE + field)).copied().unwrap_or_default();
        self.asked
            .push([field(fields::CODE), field(fields::INFO1), field(fields::RAX)]);
        for field in [
            fields::RAX,
            fields::RCX,
            fields::RDX,
            fields::INFO1,
            fields::INFO2,
        ] {
            let word = self.word();
            // Honest about the form in most cases.
            let word = if field == fields::INFO1 && word % 8 != 0 {
                0
            } else {
                word
            };
            self.memory.insert(PAGE + field, word);
        }
        register
    }

    fn read(&self, gpa: u64) -> u64 {
        match self.memory.get(&gpa) {
            Some(word) => *word,
            None if gpa >= TABLE => self.word(),
            None => 0,
        }
    }

    fn write(&mut self, gpa: u64, value: u64) {
        self.memory.insert(gpa, value);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let seed = |reason: u64, code: &[u8]| {
        let mut seed = reason.to_le_bytes().to_vec();
        seed.push(code.len() as u8);
        seed.extend(code);
        seed.extend([0x14, 5, 0, 0, 0, 0, 0, 0].repeat(4));
        seed
    };
    vec![
        seed(reasons::PORT, &[0xef]),
        seed(reasons::PORT, &[0x66, 0xed]),
        seed(reasons::CPUID, &[0x0f, 0xa2]),
        seed(reasons::RDTSC, &[0x0f, 0x31]),
        seed(reasons::RDTSCP, &[0x0f, 0x01, 0xf9]),
        seed(reasons::CALL, &[0x0f, 0x01, 0xd9]),
    ]
}

libfuzzer_sys::fuzz_target!(init: plant(seeds), |bytes: &[u8]| {
    let Some((reason, rest)) = bytes.split_first_chunk::<8>() else { return };
    let Some((len, rest)) = rest.split_first() else { return };
    let (code, rest) = rest.split_at(rest.len().min(usize::from(*len & 15)));
    let mut machine = Hypervisor {
        input: Cell::new(rest),
        memory: BTreeMap::new(),
        asked: Vec::new(),
    };
    let word = || machine.word();
    let mut registers = Registers {
        rax: word(),
        rbx: word(),
        rcx: word(),
        rdx: word(),
        rip: word(),
        rflags: word(),
    };
    let before = registers;
    let table = Table::take(&machine, TABLE).unwrap_or_else(|_| Table::empty());
    let mut vcpu = Vcpu {
        machine: &mut machine,
        ghcb: Ghcb::registered(PAGE),
        table: &table,
        processor: Processor { id: 3, vector_state: 7 },
        context: 0,
    };
    let outcome = exception::answer(&mut vcpu, u64::from_le_bytes(*reason), code, &mut registers);
    match outcome {
        Ok(Outcome::Done) => assert!((1..=15).contains(&registers.rip.wrapping_sub(before.rip))),
        _ => assert!(registers.rip == before.rip && registers.rflags == before.rflags),
    }
    assert!(machine.asked.len() <= 1, "an exception asks once");
    for [code, about, value] in &machine.asked {
        if *code == reasons::PORT {
            let port = (about >> 16) as u16;
            assert!((doorbell_port(0)..doorbell_port(0) + 8).contains(&port), "another port");
            assert!(*value & !before.rax & 0xffff_ffff == 0 && *value >> 32 == 0, "another register");
        } else {
            assert!([reasons::RDTSC, reasons::RDTSCP].contains(code) && *about == 0);
        }
    }
});
