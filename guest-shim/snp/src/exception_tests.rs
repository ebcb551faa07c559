use super::*;
use crate::testing::{Hypervisor, Memory};
use proptest::prelude::*;

const PAGE: u64 = 0x7000;
const OWN: u16 = doorbell_port(0);
const MONITOR: u16 = monitor_port(0);
const CPUID: &[u8] = &[0x0f, 0xa2, 0x90];
const OUT: &[u8] = &[0xef];
const IN: &[u8] = &[0xed];

/// A hypervisor that leaves `answer` in the registers of the page, and counts what it is asked.
fn hypervisor<'a>(seen: &'a mut Vec<(u64, u64, u64)>, answer: [u64; 3]) -> Hypervisor<'a> {
    Hypervisor::new(move |register, memory: &mut Memory| {
        let field = |field| memory.read(PAGE + field);
        seen.push((field(fields::CODE), field(fields::INFO1), field(fields::RAX)));
        memory.write(PAGE + fields::INFO1, 0);
        memory.write(PAGE + fields::INFO2, 0);
        for (field, value) in [fields::RAX, fields::RDX, fields::RCX].into_iter().zip(answer) {
            memory.write(PAGE + field, value);
        }
        register
    })
}

fn try_to(
    machine: &mut Hypervisor<'_>,
    reason: u64,
    bytes: &[u8],
    registers: &mut Registers,
) -> Result<Outcome, Stop> {
    let mut vcpu = Vcpu {
        machine,
        ghcb: Ghcb::registered(PAGE),
        table: &Table::empty(),
        processor: Processor {
            id: 1,
            vector_state: 7,
        },
        context: 0,
    };
    answer(&mut vcpu, reason, bytes, registers)
}

fn registers(rax: u64, rdx: u64) -> Registers {
    Registers {
        rax,
        rbx: 0xb,
        rcx: 0xc,
        rdx,
        rip: 0x40_0000,
        rflags: 0x202,
    }
}

/// Without the hypervisor's answer: of a table that is empty, but for what is the vCPU's own.
#[test]
fn cpuid_asks_nobody() {
    let mut seen = Vec::new();
    let mut machine = hypervisor(&mut seen, [7; 3]);
    let mut regs = registers(1, 0xffff_ffff_ffff_ffff);
    assert_eq!(
        try_to(&mut machine, reasons::CPUID, CPUID, &mut regs),
        Ok(Outcome::Done)
    );
    drop(machine);
    let wanted = Registers {
        rax: 0,
        rbx: 1 << 24,
        rcx: 1 << 27,
        rdx: 0,
        rip: 0x40_0002,
        rflags: 0x202,
    };
    assert_eq!((regs, seen.len()), (wanted, 0));
}

#[test]
fn the_contexts_ports_go_to_the_hypervisor_and_no_other_does() {
    let mut seen = Vec::new();
    let mut machine = hypervisor(&mut seen, [0x1_2345_6789, 0, 0]);
    let mut regs = registers(0xffff_ffff_0000_0007, MONITOR.into());
    assert_eq!(
        try_to(&mut machine, reasons::PORT, OUT, &mut regs),
        Ok(Outcome::Done)
    );
    assert_eq!((regs.rip, regs.rax), (0x40_0001, 0xffff_ffff_0000_0007));
    let mut regs = registers(u64::MAX, 0xffff_0000 | u64::from(OWN));
    assert_eq!(
        try_to(&mut machine, reasons::PORT, IN, &mut regs),
        Ok(Outcome::Done)
    );
    assert_eq!(regs.rax, 0x2345_6789);
    let mut regs = registers(u64::MAX, OWN.into());
    assert_eq!(
        try_to(&mut machine, reasons::PORT, &[0xec], &mut regs),
        Ok(Outcome::Done)
    );
    assert_eq!(regs.rax, !0xff | 0x89);
    for port in [OWN - 1, OWN + 8, 0x3f8, 0, u16::MAX] {
        let mut regs = registers(0, port.into());
        let before = regs;
        assert_eq!(
            try_to(&mut machine, reasons::PORT, OUT, &mut regs),
            Err(Stop::Intercepted)
        );
        assert_eq!(regs, before);
    }
    drop(machine);
    let info = |port: u16, rest| u64::from(port) << 16 | 1 << 9 | rest;
    assert_eq!(
        seen,
        [
            (0x7b, info(MONITOR, 0x40), 7),
            (0x7b, info(OWN, 0x41), 0),
            (0x7b, info(OWN, 0x11), 0)
        ]
    );
}

#[test]
fn the_clock_is_asked_for() {
    let mut seen = Vec::new();
    let mut machine = hypervisor(&mut seen, [u64::MAX, 1 << 40 | 5, 9]);
    let mut regs = registers(0, 0);
    assert_eq!(
        try_to(&mut machine, reasons::RDTSC, &[0x0f, 0x31], &mut regs),
        Ok(Outcome::Done)
    );
    assert_eq!((regs.rax, regs.rdx, regs.rcx), (0xffff_ffff, 5, 0xc));
    let rdtscp = try_to(&mut machine, reasons::RDTSCP, &[0x0f, 0x01, 0xf9], &mut regs);
    assert_eq!((rdtscp, regs.rcx, regs.rip), (Ok(Outcome::Done), 9, 0x40_0005));
}

#[test]
fn a_program_has_nothing_to_ask_a_hypervisor_for() {
    let mut machine = Hypervisor::registers(|_, _| unreachable!("nothing is asked"));
    let mut regs = registers(0, 0);
    for bytes in [&[0x0f, 0x01, 0xd9], &[0x0f, 0x01, 0xc1]] {
        assert_eq!(
            try_to(&mut machine, reasons::CALL, bytes, &mut regs),
            Ok(Outcome::Raise(6))
        );
    }
    regs.rflags |= ALIGNMENT_CHECK;
    assert_eq!(
        try_to(&mut machine, reasons::ALIGNMENT, &[0x8b, 0], &mut regs),
        Ok(Outcome::Raise(17))
    );
    assert_eq!(regs.rip, 0x40_0000);
}

/// Each reason at each instruction: answered where they go together, else an end, and the registers as they were.
#[test]
fn a_reason_that_the_instruction_does_not_give_ends_it() {
    let known = [
        (reasons::CPUID, &[0x0f, 0xa2][..]),
        (reasons::RDTSC, &[0x0f, 0x31]),
        (reasons::RDTSCP, &[0x0f, 0x01, 0xf9]),
        (reasons::PORT, OUT),
        (reasons::CALL, &[0x0f, 0x01, 0xd9]),
    ];
    let refused = [
        (0x6f, Stop::Intercepted), // RDPMC
        (0x76, Stop::Intercepted), // INVD
        (0x7c, Stop::Intercepted), // RDMSR, WRMSR
        (0x89, Stop::Intercepted), // WBINVD
        (0x8a, Stop::Intercepted), // MONITOR
        (0x8b, Stop::Intercepted), // MWAIT
        (0x27, Stop::Intercepted), // DR7
        (0x37, Stop::Intercepted),
        (0, Stop::Intercepted),
        (0x8000_0001, Stop::Intercepted),
        (u64::MAX, Stop::Intercepted),
        (reasons::DEVICE, Stop::Device),
        (reasons::ALIGNMENT, Stop::Unfounded),
    ];
    let mut seen = Vec::new();
    let mut machine = hypervisor(&mut seen, [0; 3]);
    let others = [&[0x90][..], &[0xcc], &[0x48, 0x8b, 0], &[0x6f], &[0x0f, 0x05]];
    for bytes in known.iter().map(|(_, bytes)| *bytes).chain(others) {
        for (reason, own) in known {
            let mut regs = registers(0, MONITOR.into());
            let result = try_to(&mut machine, reason, bytes, &mut regs);
            if bytes == own {
                assert!(result.is_ok(), "{reason:#x} at {bytes:x?}");
            } else {
                assert_eq!(result, Err(Stop::Unfounded), "{reason:#x} at {bytes:x?}");
                assert_eq!(regs, registers(0, MONITOR.into()));
            }
        }
        for (reason, stop) in refused {
            let mut regs = registers(0, MONITOR.into());
            assert_eq!(
                try_to(&mut machine, reason, bytes, &mut regs),
                Err(stop),
                "{reason:#x}"
            );
            assert_eq!(regs, registers(0, MONITOR.into()));
        }
    }
}

#[test]
fn an_instruction_that_can_not_be_read_is_tried_again() {
    let mut machine = Hypervisor::registers(|_, _| unreachable!("nothing is asked"));
    let mut regs = registers(0, 0);
    assert_eq!(
        try_to(&mut machine, reasons::CPUID, &[0x0f], &mut regs),
        Ok(Outcome::Again)
    );
    assert_eq!(regs, registers(0, 0));
}

proptest! {
    /// Whatever is said at whatever instruction: no register leaves the guest but a value for a port of the context's own.
    #[test]
    fn nothing_leaves_but_what_goes_to_a_port(
        reason in prop_oneof![Just(0x7b), Just(0x72), Just(0x6e), Just(0x87), Just(0x81), any::<u64>()],
        bytes in proptest::collection::vec(any::<u8>(), 0..16),
        rax: u64, rdx: u64,
    ) {
        let mut seen = Vec::new();
        let mut machine = hypervisor(&mut seen, [0; 3]);
        let mut regs = registers(rax, rdx);
        let result = try_to(&mut machine, reason, &bytes, &mut regs);
        drop(machine);
        prop_assert!(seen.len() <= 1);
        for (code, info, value) in seen {
            prop_assert!(result.is_ok());
            match code {
                0x7b => {
                    let port = (info >> 16) as u16;
                    prop_assert!((OWN..OWN + 8).contains(&port));
                    prop_assert!(value == 0 || info & 1 == 0 && value & !0xffff_ffff == 0 && value & !rax == 0);
                }
                _ => prop_assert!([0x6e, 0x87].contains(&code) && info == 0),
            }
        }
    }
}
