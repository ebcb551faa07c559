//! The other side of each protection: the attack that it stops, which works where it is taken away. Both sides run the
//! same attack.

use std::cell::RefCell;
use std::collections::HashMap;

use cloak_abi::layout::{LARGE, doorbell_port};
use cloak_measured::accepted::Accepted;

use crate::cpuid::{Processor, Table};
use crate::exception::{self, Outcome, Registers, Vcpu, reasons};
use crate::ghcb::{self, Ghcb, fields};
use crate::message::{Carrier, Channel, Delivery, HEADER, Kind, LARGEST, Level};
use crate::pages;
use crate::secrets::{self, Key};
use crate::testing::{Hypervisor, Memory};
use crate::weakened::{Protection, only_without, without};
use crate::{Machine, SIZE_MISMATCH, Size, Stop, Validation};

const GHCB: u64 = 0x7000;
const BLOCK: u64 = 6 << 20;

/// A hypervisor that does page-state changes, over memory whose pages are in `states`: what the RMP knows.
#[derive(Default)]
struct Rmp {
    /// The page of the host's memory behind a block, and whether it is accepted.
    behind: HashMap<u64, (u64, bool)>,
    content: HashMap<u64, u64>,
}

struct Host(RefCell<Rmp>, Memory);

impl Machine for Host {
    fn pvalidate(&mut self, gpa: u64, _: Size, accept: bool) -> Validation {
        match self.0.borrow_mut().behind.get_mut(&gpa) {
            None => Validation::Failed(2),
            Some((_, valid)) if *valid == accept => Validation::Unchanged,
            Some((_, valid)) => {
                *valid = accept;
                Validation::Changed
            }
        }
    }

    fn rmp_adjust(&mut self, _: u64, _: u64) -> u32 {
        0
    }

    fn vmgexit(&mut self, register: u64) -> u64 {
        self.1.write(register + fields::INFO1, 0);
        self.1.write(register + fields::INFO2, 0);
        self.1.write(register + fields::BUFFER, 1);
        register
    }

    fn read(&self, gpa: u64) -> u64 {
        if gpa / LARGE != BLOCK / LARGE {
            return self.1.read(gpa);
        }
        let rmp = self.0.borrow();
        // Reading what is not accepted faults on hardware; here it reads as nothing.
        rmp.behind
            .get(&BLOCK)
            .filter(|(_, valid)| *valid)
            .and_then(|(page, _)| rmp.content.get(page))
            .copied()
            .unwrap_or_default()
    }

    fn write(&mut self, gpa: u64, value: u64) {
        if gpa / LARGE != BLOCK / LARGE {
            return self.1.write(gpa, value);
        }
        let mut rmp = self.0.borrow_mut();
        if let Some((page, true)) = rmp.behind.get(&BLOCK).copied() {
            rmp.content.insert(page, value);
        }
    }
}

fn host(page: u64, valid: bool) -> Host {
    let mut rmp = Rmp::default();
    rmp.behind.insert(BLOCK, (page, valid));
    Host(RefCell::new(rmp), Memory::default())
}

/// A page of another time of the guest's, accepted then, in the place of a new one: the guest reads what it wrote elsewhere.
#[test]
fn a_page_that_was_accepted_before_is_read_without_the_check() {
    only_without(Protection::Unchanged, || {
        let mut host = host(1, true);
        host.0.borrow_mut().content.insert(1, 0x0bad);
        pages::accept(&mut host, Ghcb::registered(GHCB), BLOCK).is_ok() && host.read(BLOCK) == 0x0bad
    });
}

/// The hypervisor takes the page and gives another one. The guest that accepts again goes on with that.
#[test]
fn a_guest_that_accepts_twice_reads_what_the_hypervisor_chose() {
    only_without(Protection::Once, || {
        let mut host = host(1, false);
        let mut accepted = Accepted::new();
        let mut accept = |host: &mut Host| {
            (accepted.mark(BLOCK) || without(Protection::Once))
                && pages::accept(host, Ghcb::registered(GHCB), BLOCK).is_ok()
        };
        assert!(accept(&mut host));
        host.write(BLOCK, 0x600d);
        assert_eq!(host.read(BLOCK), 0x600d);
        // An older page of the guest's own, in the same place.
        host.0.borrow_mut().content.insert(2, 0x01d);
        host.0.borrow_mut().behind.insert(BLOCK, (2, false));
        assert_eq!(host.read(BLOCK), 0, "not accepted, not read");
        accept(&mut host) && host.read(BLOCK) == 0x01d
    });
}

/// A page of the hypervisor's own: PVALIDATE says so, and a guest that does not listen puts its memory there.
#[test]
fn a_page_of_the_hypervisors_is_used_without_the_check() {
    only_without(Protection::Accepted, || {
        let mut machine = Hypervisor::new(|register, memory: &mut Memory| {
            memory.write(GHCB + fields::INFO1, 0);
            memory.write(GHCB + fields::INFO2, 0);
            memory.write(GHCB + fields::BUFFER, 1);
            register
        })
        .with_validate(|_, _| Validation::Failed(2));
        if pages::accept(&mut machine, Ghcb::registered(GHCB), BLOCK).is_err() {
            return false;
        }
        machine.write(BLOCK, 0x5ec2e7);
        // The hypervisor reads its own memory.
        machine.memory.read(BLOCK) == 0x5ec2e7
    });
}

/// The same two, of one page among those of a block that the hypervisor backs by small ones.
#[test]
fn one_small_page_is_used_without_the_check() {
    for (protection, of_one) in [
        (Protection::Unchanged, Validation::Unchanged),
        (Protection::Accepted, Validation::Failed(2)),
    ] {
        only_without(protection, || {
            let mut machine = Hypervisor::new(|register, memory: &mut Memory| {
                memory.write(GHCB + fields::INFO1, 0);
                memory.write(GHCB + fields::INFO2, 0);
                memory.write(GHCB + fields::BUFFER, 1);
                register
            })
            .with_validate(|gpa, size| match size {
                Size::Large => Validation::Failed(SIZE_MISMATCH),
                Size::Small if gpa == BLOCK + 0x5000 => of_one,
                Size::Small => Validation::Changed,
            });
            machine.memory.write(BLOCK + 0x5000, 0x0bad);
            pages::accept(&mut machine, Ghcb::registered(GHCB), BLOCK).is_ok()
                && machine.read(BLOCK + 0x5000) == 0x0bad
        });
    }
}

/// The image's C-bit; that of a machine which has another one, where the image's is a bit of the address.
const IMAGE_C_BIT: u64 = 1 << 51;
const OTHER_C_BIT: u32 = 47;

/// What the guest takes for private there: addresses with the image's bit, and without the machine's.
fn disclosed() -> bool {
    (BLOCK | IMAGE_C_BIT) >> OTHER_C_BIT & 1 == 0
}

/// The hypervisor's word for it. The guest that goes on writes its secrets where the hypervisor reads them.
#[test]
fn private_memory_is_shared_without_a_look_at_the_hypervisors_c_bit() {
    only_without(Protection::CBit, || {
        let info = 2 << 48 | 1 << 32 | u64::from(OTHER_C_BIT) << 24 | ghcb::INFO.1;
        let mut machine = Hypervisor::registers(|_, _| info);
        ghcb::agree(&mut machine, IMAGE_C_BIT).is_ok() && disclosed()
    });
}

/// The table's word for it, of a hypervisor that does not say so itself.
#[test]
fn private_memory_is_shared_without_a_look_at_the_tables_c_bit() {
    only_without(Protection::CBit, || {
        let mut machine = Hypervisor::registers(|_, _| 0);
        let ebx = u64::from(OTHER_C_BIT | 1 << 6);
        for (at, word) in [(0, 1), (0x10, 0x8000_001f), (0x28, ebx << 32)] {
            machine.memory.write(0x3000 + at, word);
        }
        let table = Table::take(&machine, 0x3000).expect("a table");
        table.agree(IMAGE_C_BIT).is_ok() && disclosed()
    });
}

/// The hypervisor has another page registered, and answers there. What is left in the guest's own is taken for an answer: here
/// the time of an earlier request, over and over.
#[test]
fn what_nobody_answered_is_believed_without_a_look_at_the_page_that_was_registered() {
    only_without(Protection::Registered, || {
        const OTHER: u64 = GHCB + 0x1000;
        let mut machine = Hypervisor::registers(|register, memory: &mut Memory| {
            memory.write(OTHER + fields::RAX, 0x7133);
            OTHER | register & 0xfff | 1
        });
        machine.memory.write(GHCB + fields::RAX, 0x01d);
        let Ok(ghcb) = Ghcb::register(&mut machine, GHCB) else {
            return false;
        };
        let mut registers = Registers::default();
        let mut vcpu = Vcpu {
            machine: &mut machine,
            ghcb,
            table: &Table::empty(),
            processor: Processor {
                id: 0,
                vector_state: 3,
            },
            context: 0,
        };
        // rdtsc
        let result = exception::answer(&mut vcpu, reasons::RDTSC, &[0x0f, 0x31], &mut registers);
        result == Ok(Outcome::Done) && registers.rax == 0x01d
    });
}

const KEY: [u8; 32] = [0x42; 32];

/// A processor that answers with the request's first bytes, and a hypervisor that changes what is on the way.
struct Way<F>(F, Vec<Vec<u8>>);

impl<F: FnMut(&mut [u8; LARGEST], &mut Vec<Vec<u8>>) -> Delivery> Carrier for Way<F> {
    fn send(&mut self, message: &[u8], answer: &mut [u8; LARGEST]) -> Delivery {
        let number = u64::from_le_bytes(message[0x20..0x28].try_into().expect("eight"));
        self.1.push(message.to_vec());
        *answer = crate::message::answer_of_tests(&KEY, number + 1, Kind::Report, &number.to_le_bytes());
        (self.0)(answer, &mut self.1)
    }
}

fn ask<F>(channel: &mut Channel, payload: &[u8], way: &mut Way<F>) -> Option<u64>
where
    Way<F>: Carrier,
{
    let mut answer = [0; LARGEST];
    let len = channel.request(Kind::Report, payload, &mut answer, way).ok()?;
    let value = answer.get(HEADER..HEADER + len)?.get(..8)?;
    Some(u64::from_le_bytes(value.try_into().expect("eight")))
}

/// A bit of a report, another one: the tag tells.
#[test]
fn a_changed_answer_is_believed_without_the_tag() {
    only_without(Protection::Tag, || {
        let mut channel = Channel::open(Level::Reports, Key::new(KEY));
        let mut way = Way(
            |answer: &mut [u8; LARGEST], _: &mut Vec<Vec<u8>>| {
                answer[HEADER] ^= 0x80;
                Delivery::Answered
            },
            Vec::new(),
        );
        ask(&mut channel, &[1; 96], &mut way) == Some(1 ^ 0x80)
    });
}

/// The first answer, to the second message.
#[test]
fn an_old_answer_is_believed_without_its_number() {
    only_without(Protection::Number, || {
        let mut channel = Channel::open(Level::Reports, Key::new(KEY));
        let mut first = None;
        let mut way = Way(
            |answer: &mut [u8; LARGEST], _: &mut Vec<Vec<u8>>| {
                *answer = *first.get_or_insert(*answer);
                Delivery::Answered
            },
            Vec::new(),
        );
        assert_eq!(ask(&mut channel, &[1; 96], &mut way), Some(1));
        ask(&mut channel, &[2; 96], &mut way) == Some(1)
    });
}

/// A message that got no answer, then another one: under one number they give away what they have in common.
#[test]
fn a_number_that_is_used_again_gives_two_messages_away() {
    only_without(Protection::Closed, || {
        let mut channel = Channel::open(Level::Reports, Key::new(KEY));
        let mut way = Way(
            |_: &mut [u8; LARGEST], _: &mut Vec<Vec<u8>>| Delivery::Failed,
            Vec::new(),
        );
        let (known, secret) = (
            [0x11; 64],
            *b"what the program asks to be signed, which nobody is to know.....",
        );
        let _ = ask(&mut channel, &known, &mut way);
        let _ = ask(&mut channel, &secret, &mut way);
        let [one, two] = &way.1[..] else { return false };
        let read: Vec<u8> = (0..64)
            .map(|i| one[HEADER + i] ^ two[HEADER + i] ^ known[i])
            .collect();
        read == secret
    });
}

/// Whoever maps the page later, as a context may that edits its own tables, has the key of the guest's messages.
#[test]
fn the_key_stays_behind_without_the_clearing() {
    only_without(Protection::Cleared, || {
        let mut machine = Hypervisor::registers(|_, _| 0);
        machine.memory.write(0x2000, 2);
        (0..16).for_each(|word| machine.memory.write(0x2020 + 8 * word, 0x4242));
        let [key, _] = secrets::take(&mut machine, 0x2000).expect("keys");
        let found: Vec<u8> = (0..4)
            .flat_map(|i| machine.read(0x2020 + 8 * i).to_le_bytes())
            .collect();
        found == key[..]
    });
}

/// What the hypervisor sees, and the registers afterwards, of a #VC of this reason at these bytes.
fn exception(reason: u64, bytes: &[u8], registers: &mut Registers) -> (Result<Outcome, Stop>, Vec<u64>) {
    let mut seen = Vec::new();
    let mut machine = Hypervisor::new(|register, memory: &mut Memory| {
        seen.push(memory.read(GHCB + fields::RAX));
        memory.write(GHCB + fields::INFO1, 0);
        memory.write(GHCB + fields::INFO2, 0);
        memory.write(GHCB + fields::RAX, 0x11e);
        register
    });
    let mut vcpu = Vcpu {
        machine: &mut machine,
        ghcb: Ghcb::registered(GHCB),
        table: &Table::empty(),
        processor: Processor {
            id: 0,
            vector_state: 3,
        },
        context: 0,
    };
    let result = exception::answer(&mut vcpu, reason, bytes, registers);
    drop(machine);
    (result, seen)
}

/// #VC for an OUT, at an instruction that is none: the secret that a program has in RAX would go out.
#[test]
fn a_register_goes_out_without_a_look_at_the_instruction() {
    only_without(Protection::Founded, || {
        let mut registers = Registers {
            rax: 0x5ec2e7,
            rdx: doorbell_port(0).into(),
            ..Registers::default()
        };
        // mov rax, [rax]
        exception(reasons::PORT, &[0x48, 0x8b, 0x00], &mut registers).1 == [0x5ec2e7]
    });
}

/// #VC for CPUID, at another instruction: it would be left out, and the registers be others.
#[test]
fn an_instruction_is_left_out_without_a_look_at_it() {
    only_without(Protection::Founded, || {
        let mut registers = Registers {
            rax: 7,
            rcx: 7,
            rip: 0x1000,
            ..Registers::default()
        };
        // cmp rax, rcx
        let (result, _) = exception(reasons::CPUID, &[0x48, 0x39, 0xc8], &mut registers);
        result == Ok(Outcome::Done) && registers.rip != 0x1000 && registers.rax == 0
    });
}

/// An OUT of a program's to a port of the hypervisor's.
#[test]
fn another_port_is_reached_without_the_list() {
    only_without(Protection::Ports, || {
        let mut registers = Registers {
            rax: 0x31,
            rdx: 0x3f8,
            ..Registers::default()
        };
        exception(reasons::PORT, &[0xef], &mut registers).1 == [0x31]
    });
}

/// The hypervisor says what the processor can do.
#[test]
fn cpuid_is_the_hypervisors_without_the_table() {
    only_without(Protection::Table, || {
        let mut registers = Registers::default();
        let (result, _) = exception(reasons::CPUID, &[0x0f, 0xa2], &mut registers);
        result == Ok(Outcome::Done) && registers.rax == 0x11e
    });
}
