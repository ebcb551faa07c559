//! The other side of each protection: the attack that it stops, which works where it is taken away. Both sides run the
//! same attack.

use std::collections::HashMap;

use cloak_abi::layout::LARGE;
use cloak_measured::accepted::Accepted;

use crate::exception::{self, Interrupted, reason};
use crate::module::{self, Cause, DEBUG, SEPT_VE_DISABLE, leaf};
use crate::quote::{self, BUFFER, HEADER, Progress, REPORT};
use crate::testing::Answering;
use crate::vmcall::{self, RETRY};
use crate::weakened::{Protection, only_without, without};
use crate::{Machine, Registers, pages};

const BLOCK: u64 = 6 << 20;
const SHARED: u64 = 1 << 47;
const ALREADY: u64 = 0x0000_0b0a_0000_0000;
const SECRET: u64 = 0x5ec2e7;

/// A domain's memory behind the module: what was accepted has content, what is pending has none.
struct Domain {
    /// Width of addresses, ATTRIBUTES.
    width: u32,
    attributes: u64,
    /// The content of each block, once it is accepted.
    blocks: HashMap<u64, u64>,
    pending: Vec<u64>,
}

impl Domain {
    fn new() -> Self {
        Self {
            width: 48,
            attributes: SEPT_VE_DISABLE,
            blocks: HashMap::new(),
            pending: vec![BLOCK],
        }
    }

    /// The kernel's start: whether it goes on in this domain.
    fn agrees(&mut self) -> bool {
        module::info(self).is_ok_and(|info| info.agree(SHARED).is_ok())
    }

    /// What the host reads at an address: its own memory where the domain shares it, ciphertext elsewhere, unless it may debug.
    fn host_reads(&self, gpa: u64) -> Option<u64> {
        let open = gpa >> (self.width - 1) & 1 == 1 || self.attributes & DEBUG != 0;
        self.blocks.get(&gpa).copied().filter(|_| open)
    }

    /// The host takes a page away and adds another. Whether the domain stops at its next access, and does not run its handler.
    fn take(&mut self, gpa: u64) -> bool {
        self.blocks.remove(&gpa);
        self.pending.push(gpa);
        self.attributes & SEPT_VE_DISABLE != 0
    }
}

impl Machine for Domain {
    fn tdcall(&mut self, registers: &mut Registers) {
        match registers.rax {
            leaf::INFO => {
                registers.rax = 0;
                (registers.rcx, registers.rdx, registers.r8) = (self.width.into(), self.attributes, 1);
            }
            leaf::ACCEPT => {
                let gpa = registers.rcx & !(LARGE - 1);
                let pending = self.pending.iter().position(|&block| block == gpa);
                registers.rax = match pending {
                    Some(at) => {
                        self.pending.remove(at);
                        self.blocks.insert(gpa, 0);
                        0
                    }
                    None => ALREADY,
                };
            }
            other => panic!("leaf {other}"),
        }
    }
}

/// The module says that a fresh block is the domain's already. It has content then, which the guest takes for its own zeros.
#[test]
fn a_page_that_was_accepted_before_is_used_without_the_check() {
    only_without(Protection::Already, || {
        let mut domain = Domain::new();
        domain.pending.clear();
        domain.blocks.insert(BLOCK, 0x0bad);
        pages::accept(&mut domain, BLOCK).is_ok() && domain.blocks[&BLOCK] == 0x0bad
    });
}

/// The host takes a page and adds another one. The guest that accepts again goes on with zeros in the place of what it wrote.
#[test]
fn a_guest_that_accepts_twice_loses_what_it_wrote() {
    only_without(Protection::Once, || {
        let mut domain = Domain::new();
        let mut accepted = Accepted::new();
        let mut accept = |domain: &mut Domain| {
            (accepted.mark(BLOCK) || without(Protection::Once)) && pages::accept(domain, BLOCK).is_ok()
        };
        assert!(accept(&mut domain));
        domain.blocks.insert(BLOCK, SECRET);
        domain.take(BLOCK);
        accept(&mut domain) && domain.blocks[&BLOCK] == 0
    });
}

/// The same of one page, in a block that the host backs by small ones.
#[test]
fn one_small_page_that_was_accepted_before_is_used_without_the_check() {
    const MISMATCH: u64 = 0xc000_0b0b_0000_0001;
    only_without(Protection::Already, || {
        let mut machine = Answering::new(|r: &mut Registers| {
            r.rax = match r.rcx {
                large if large & 1 == 1 => MISMATCH,
                gpa if gpa == BLOCK + 0x5000 => ALREADY,
                _ => 0,
            };
        });
        pages::accept(&mut machine, BLOCK).is_ok()
    });
}

/// Addresses of 34 bits: what the guest takes for private memory above 8 GiB is shared.
#[test]
fn private_memory_is_shared_without_a_look_at_the_width() {
    only_without(Protection::Width, || {
        let mut domain = Domain::new();
        domain.width = 34;
        let above = 1 << 33;
        domain.pending.push(above);
        if !domain.agrees() || pages::accept(&mut domain, above).is_err() {
            return false;
        }
        domain.blocks.insert(above, SECRET);
        domain.host_reads(above) == Some(SECRET)
    });
}

/// A domain that may be debugged: the host reads its memory by the module.
#[test]
fn the_host_looks_in_without_a_look_at_the_attributes() {
    only_without(Protection::Attributes, || {
        let mut domain = Domain::new();
        domain.attributes |= DEBUG;
        if !domain.agrees() || pages::accept(&mut domain, BLOCK).is_err() {
            return false;
        }
        domain.blocks.insert(BLOCK, SECRET);
        domain.host_reads(BLOCK) == Some(SECRET)
    });
}

/// A page that is taken away: where it raises an exception in the place of an end, the host chooses when the handler runs.
#[test]
fn the_host_chooses_the_handlers_moment_without_a_look_at_the_attributes() {
    only_without(Protection::Attributes, || {
        let mut domain = Domain::new();
        domain.attributes = 0;
        domain.agrees() && pages::accept(&mut domain, BLOCK).is_ok() && !domain.take(BLOCK)
    });
}

/// A #VE at CPL 3, and what the hypervisor is asked for; it answers 0x11e for all registers.
fn exception(reason: u32, qualification: u64, registers: &mut Interrupted) -> Vec<Registers> {
    let mut asked = Vec::new();
    let mut machine = Answering::new(|r: &mut Registers| {
        asked.push(*r);
        (r.rax, r.r10) = (0, 0);
        [r.r12, r.r13, r.r14, r.r15] = [0x11e; 4];
    });
    let cause = Cause {
        reason,
        qualification,
        length: 1,
    };
    // What becomes of the program is not what is looked at.
    let _ = exception::handle(&mut machine, cause, registers, &[0x510]);
    drop(machine);
    asked
}

/// Vector 20 that the module knows nothing of: what an earlier exception left in the registers is taken for the cause, and the value
/// that the program has in RAX goes out by the shim's port.
#[test]
fn a_register_goes_out_at_an_exception_without_a_cause() {
    const NONE: u64 = 0xc000_0704_0000_0000;
    only_without(Protection::Caused, || {
        let mut machine = Answering::new(|r: &mut Registers| {
            (r.rax, r.rcx, r.rdx, r.r10) = (NONE, reason::PORT.into(), 0x510 << 16 | 3, 1);
        });
        let Ok(cause) = module::exception(&mut machine) else {
            return false;
        };
        let mut registers = Interrupted {
            rax: SECRET,
            user: true,
            ..Interrupted::default()
        };
        let asked = exception(cause.reason, cause.qualification, &mut registers);
        asked.iter().any(|call| call.r15 == SECRET)
    });
}

/// An exception of a reason that nothing has, in the kernel and in a program: the instruction there, which may be any, is left out.
#[test]
fn an_instruction_is_left_out_for_a_reason_that_nothing_has() {
    const WINDOW: u32 = 8;
    for user in [true, false] {
        only_without(Protection::Known, || {
            let mut machine = Answering::new(|_: &mut Registers| panic!("nothing is asked for"));
            let cause = Cause {
                reason: WINDOW,
                qualification: 0,
                length: 3,
            };
            let mut registers = Interrupted {
                user,
                ..Interrupted::default()
            };
            exception::handle(&mut machine, cause, &mut registers, &[0x510]) == Ok(exception::Outcome::Done)
        });
    }
}

/// A hypervisor that refuses a call: its interrupts are off, its doorbell was not rung, and what it says of CPUID is what the
/// call was made with; and the guest goes on.
#[test]
fn what_was_refused_is_taken_for_done_without_the_check() {
    let refusing = || Answering::new(|r: &mut Registers| (r.rax, r.r10) = (0, 1 << 63));
    only_without(Protection::Taken, || {
        vmcall::write_msr(&mut refusing(), 0x80f, 0x1ff).is_ok()
    });
    only_without(Protection::Taken, || {
        vmcall::write_port(&mut refusing(), 0x510, 1).is_ok()
    });
    only_without(Protection::Taken, || {
        // R12, the leaf that was asked for, comes back as EAX.
        vmcall::cpuid(&mut refusing(), 0x4000_0000, 0) == Ok([0x4000_0000, 0, 0, 0])
    });
}

/// An OUT of a program's to a port of the hypervisor's: a register goes out.
#[test]
fn another_port_is_reached_without_the_list() {
    only_without(Protection::Ports, || {
        let mut registers = Interrupted {
            rax: SECRET,
            user: true,
            ..Interrupted::default()
        };
        let asked = exception(reason::PORT, 0x3f8 << 16 | 3, &mut registers);
        asked.iter().any(|call| (call.r14, call.r15) == (0x3f8, SECRET))
    });
}

/// The hypervisor says what the processor can do.
#[test]
fn cpuid_is_the_hypervisors_without_the_range() {
    only_without(Protection::Leaves, || {
        let mut registers = Interrupted {
            rax: 7,
            user: true,
            ..Interrupted::default()
        };
        exception(reason::CPUID, 0, &mut registers);
        registers.rbx == 0x11e
    });
}

/// MapGPA that goes on elsewhere: the guest asks for a change of memory that it did not mean, its own private memory here.
#[test]
fn other_memory_changes_without_a_look_at_where_it_goes_on() {
    only_without(Protection::Onwards, || {
        let mut asked = Vec::new();
        let mut machine = Answering::new(|r: &mut Registers| {
            asked.push(r.r12);
            r.rax = 0;
            (r.r10, r.r11) = if asked.len() == 1 { (RETRY, BLOCK) } else { (0, 0) };
        });
        let done = vmcall::map_gpa(&mut machine, SHARED | BLOCK, LARGE).is_ok();
        drop(machine);
        done && asked == [SHARED | BLOCK, BLOCK]
    });
}

/// The host says that it makes no quote. What is in the buffer, which is the host's to write, is handed on as one: here an
/// earlier quote of a domain with the same registers, over the same data.
#[test]
fn what_is_no_quote_is_handed_on_without_a_look_at_the_status() {
    const FAILED: u64 = 1 << 63;
    only_without(Protection::Made, || {
        let mut earlier = vec![0; 1048];
        earlier[..2].copy_from_slice(&4u16.to_le_bytes());
        earlier[4] = 0x81;
        let header = [1, FAILED, REPORT as u64 | (earlier.len() as u64) << 32];
        quote::progress(header) == Ok(Progress::Done(earlier.len()))
            && quote::check(&earlier, &[0; REPORT]).is_ok()
    });
}

/// A quote that is said to be longer than its buffer: what lies behind it would be read.
#[test]
fn more_than_the_buffer_is_read_without_the_check() {
    only_without(Protection::Room, || {
        let told = BUFFER as u64;
        match quote::progress([1, 0, REPORT as u64 | told << 32]) {
            Ok(Progress::Done(len)) => HEADER + len > BUFFER,
            _ => false,
        }
    });
}

/// The quote of another report, as of another domain of the host's or of another nonce.
#[test]
fn anothers_quote_is_handed_on_without_the_check() {
    only_without(Protection::Same, || {
        let mut other = vec![0; 1048];
        other[..2].copy_from_slice(&4u16.to_le_bytes());
        other[4] = 0x81;
        quote::check(&other, &[7; REPORT]).is_ok()
    });
}
