//! #VC in the kernel: from the interrupted registers to [`cloak_snp::exception`], and back.

use core::cell::UnsafeCell;
use core::sync::atomic::Ordering;

use cloak_abi::boot::LaunchBlock;
use cloak_abi::kcall::PTE_W;
use cloak_abi::layout::{GHCBS_GPA, PAGE};
use cloak_abi::stop::Stop;
use cloak_pagetables::walk;
use cloak_snp::Machine;
use cloak_snp::cpuid::{Processor, Table};
use cloak_snp::exception::{self, Outcome, Registers, Vcpu};
use cloak_snp::ghcb::Ghcb;
use cloak_snp::instruction::LONGEST;

use super::guard::Frame;
use super::instructions::Instructions;
use super::snp::{end, instructions};
use crate::arch::{CONTEXTS, Cpu, Window, block, cpu};

/// What the start found out, and what does not change any more.
struct Settled {
    table: Table,
    vector_state: u64,
    /// The libos's text: first address, length, first guest-physical address.
    text: [u64; 3],
}

struct Cell(UnsafeCell<Settled>);
// SAFETY: written at the start, by the one vCPU that runs then; only read afterwards.
unsafe impl Sync for Cell {}

static SETTLED: Cell = Cell(UnsafeCell::new(Settled {
    table: Table::empty(),
    vector_state: 3,
    text: [0; 3],
}));

/// Keeps what answers need. At the start, before any #VC that is answered.
pub fn settle(table: Table, vector_state: u64, image: &LaunchBlock) {
    let part = image.libos.iter().find(|part| part.flags & PTE_W == 0);
    let text = part.map_or([0; 3], |part| [part.va, part.content, part.gpa]);
    let settled = Settled {
        table,
        vector_state,
        text,
    };
    // SAFETY: no other vCPU runs yet, and no exception has come from CPL 3.
    unsafe { *SETTLED.0.get() = settled };
}

fn settled() -> &'static Settled {
    // SAFETY: not written any more.
    unsafe { &*SETTLED.0.get() }
}

/// Whatever comes while the kernel runs.
pub extern "C" fn interrupted() -> ! {
    end(instructions(), Stop::Interrupted)
}

/// A #VC at CPL 3.
pub extern "C" fn exception(frame: &mut Frame, index: u32) {
    let settled = settled();
    let mut machine = instructions();
    let cpu = cpu::cpu(index as usize);
    let mut bytes = [0; LONGEST + 9];
    let (start, len) = code(&machine, cpu, frame.rip, &mut bytes);
    let mut registers = Registers {
        rax: frame.rax,
        rbx: frame.rbx,
        rcx: frame.rcx,
        rdx: frame.rdx,
        rip: frame.rip,
        rflags: frame.rflags,
    };
    let mut vcpu = Vcpu {
        machine: &mut machine,
        ghcb: Ghcb::registered(GHCBS_GPA + u64::from(index) * PAGE),
        table: &settled.table,
        processor: Processor {
            id: index,
            vector_state: settled.vector_state,
        },
        context: cpu.context as u32,
    };
    match exception::answer(&mut vcpu, frame.error, &bytes[start..start + len], &mut registers) {
        Ok(Outcome::Done) => {
            (frame.rax, frame.rbx) = (registers.rax, registers.rbx);
            (frame.rcx, frame.rdx, frame.rip) = (registers.rcx, registers.rdx, registers.rip);
        }
        Ok(Outcome::Again) => {}
        Ok(Outcome::Raise(vector)) => raise(cpu, frame, vector),
        Err(stop) => end(machine, stop),
    }
}

/// The way up that an exception of the program's takes.
fn raise(cpu: &Cpu, frame: &mut Frame, vector: u8) {
    let to = block(cpu);
    for (word, value) in [
        (&to.rip, frame.rip),
        (&to.rsp, frame.rsp),
        (&to.rflags, frame.rflags),
        (&to.cs, frame.cs),
        (&to.rax, frame.rax),
        (&to.rcx, frame.rcx),
        (&to.vector, vector.into()),
        (&to.error, 0),
    ] {
        word.store(value, Ordering::Relaxed);
    }
    [frame.rip, frame.cs, frame.rflags, frame.rsp, frame.ss] = cpu.upcall;
}

/// Copies the code at `rip`; gives where in `bytes` it begins, and how much there is. Each word is read once.
fn code(machine: &Instructions, cpu: &Cpu, rip: u64, bytes: &mut [u8; LONGEST + 9]) -> (usize, usize) {
    let [va, len, gpa] = settled().text;
    let offset = rip.wrapping_sub(va);
    // The libos's own text is where it was measured: nothing has to be looked up, nor can it be changed.
    let measured = offset < len;
    let words = bytes.as_chunks_mut::<8>().0;
    let start = (rip % 8) as usize;
    let mut have = 0;
    for (number, word) in (0u64..).zip(words) {
        let at = (rip & !7).wrapping_add(8 * number);
        let place = if measured {
            Some(gpa + (at - va))
        } else if number == 0 || at.is_multiple_of(PAGE) {
            translate(cpu, at)
        } else {
            translate(cpu, at & !(PAGE - 1)).map(|page| page + at % PAGE)
        };
        let Some(place) = place else { break };
        *word = machine.read(place).to_le_bytes();
        have += 8;
        if measured {
            // What the libos has of such instructions is a byte or two.
            if have >= start + 2 {
                break;
            }
        }
    }
    (start.min(have), have.saturating_sub(start).min(LONGEST))
}

/// Where a program's address leads on this vCPU.
fn translate(cpu: &Cpu, va: u64) -> Option<u64> {
    let context = &CONTEXTS[cpu.context as usize];
    walk::user(&Window, cpu::root(), va, context.private(), |gpa| {
        context.may_hold(gpa)
    })
}
