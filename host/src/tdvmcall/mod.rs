//! What a TDX domain asks of the monitor: `KVM_EXIT_TDX`, and the system event by which it gives up.
//!
//! The kernel answers the base calls itself, and turns `MapGPA` into `KVM_EXIT_HYPERCALL` as on SNP (`kvm::snp::page_state`).
//! What comes here are the rest (Guest-Host Communication Interface, section 3; `Documentation/virt/kvm/api.rst`,
//! `KVM_EXIT_TDX`). A quote is fetched in three parts: [`buffer`] is the guest's side of it, [`qgs`] the quoting service's
//! messages, [`service`] the way there, [`courier`] the process that goes it.
//!
//! Apart from `kvm`, so that the parsers can be fuzzed without a VM.

pub mod buffer;
#[cfg(not(fuzzing))]
pub mod courier;
pub mod qgs;
pub mod service;

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct kvm_run`, member `tdx`: what the exit says. `words` differ by the call: the first is always the answer's status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Exit {
    /// Zero.
    pub flags: u64,
    /// Number of the call.
    pub nr: u64,
    /// Status, then arguments and results.
    pub words: [u64; 6],
}

const GET_TD_VM_CALL_INFO: u64 = 0x1_0000;
const GET_QUOTE: u64 = 0x1_0002;
const SETUP_EVENT_NOTIFY_INTERRUPT: u64 = 0x1_0004;

/// R11 of `GetTdVmCallInfo`, leaf 1: bit 0 `GetQuote`, bit 1 `SetupEventNotifyInterrupt`.
pub const OFFERED_CALLS: u64 = 0b11;
/// Vectors below are the processor's.
const FIRST_VECTOR: u64 = 32;

/// Status of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Status {
    /// Done, or begun.
    Success = 0,
    /// The guest is to ask again.
    Retry = 1,
    /// An argument.
    InvalidOperand = 0x8000_0000_0000_0000,
    /// An address or a size is not one of whole pages.
    AlignError = 0x8000_0000_0000_0002,
    /// No such call.
    Unsupported = 0x8000_0000_0000_0003,
}

/// A call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// The guest wants a quote: for the report in its shared memory, without the shared bit.
    GetQuote {
        /// Guest-physical address of the buffer.
        gpa: u64,
        /// Its bytes.
        size: u64,
    },
    /// Which calls there are beyond the base.
    GetTdVmCallInfo,
    /// The vCPU wants this interrupt when something that it asked for is done.
    SetupEventNotifyInterrupt {
        /// The vector.
        vector: u8,
    },
    /// One that is answered by refusal.
    Refused {
        /// Its number.
        number: u64,
        /// With what.
        status: Status,
    },
}

impl Call {
    /// Reads a copy of what the kernel says.
    #[must_use]
    pub fn parse(exit: &Exit) -> Self {
        let number = exit.nr;
        let refused = |status| Self::Refused { number, status };
        let [_, first, second, ..] = exit.words;
        // A flag that is not known may give the words another meaning.
        if exit.flags != 0 {
            return refused(Status::Unsupported);
        }
        match number {
            GET_QUOTE => Self::GetQuote {
                gpa: first,
                size: second,
            },
            GET_TD_VM_CALL_INFO if first == 1 => Self::GetTdVmCallInfo,
            GET_TD_VM_CALL_INFO => refused(Status::InvalidOperand),
            SETUP_EVENT_NOTIFY_INTERRUPT => match u8::try_from(first) {
                Ok(vector) if first >= FIRST_VECTOR => Self::SetupEventNotifyInterrupt { vector },
                _ => refused(Status::InvalidOperand),
            },
            _ => refused(Status::Unsupported),
        }
    }
}

/// Writes an answer of nothing but a status.
pub fn answer(exit: &mut Exit, status: Status) {
    exit.words[0] = status as u64;
}

/// Answers [`Call::GetTdVmCallInfo`]: R11 to R14.
pub fn answer_info(exit: &mut Exit, calls: u64) {
    exit.words = [Status::Success as u64, exit.words[1], calls, 0, 0, 0];
}

/// Why a guest gave up (`ReportFatalError`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FatalError {
    /// R12: the guest's own number.
    pub code: u64,
    /// What it says about it.
    pub text: String,
}

impl FatalError {
    /// Reads the registers of a system event: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15. `None` if there are fewer.
    ///
    /// The text is the guest's own, so that what is not printable ASCII becomes a dot: it is shown on the host's terminal.
    #[must_use]
    pub fn parse(registers: &[u64]) -> Option<Self> {
        let registers: &[u64; 16] = registers.first_chunk()?;
        let [_, _, rdx, rbx, _, _, rsi, rdi, r8, r9, _, _, code, _, r14, r15] = *registers;
        let bytes = [r14, r15, rbx, rdi, rsi, r8, r9, rdx].map(u64::to_le_bytes);
        let said = bytes.as_flattened().iter().take_while(|&&byte| byte != 0);
        let text = said
            .map(|&byte| match byte {
                b' '..=b'~' => char::from(byte),
                _ => '.',
            })
            .collect();
        Some(Self { code, text })
    }
}

impl fmt::Display for FatalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest gave up, with code {:#x}", self.code)?;
        if !self.text.is_empty() {
            write!(f, ": \"{}\"", self.text)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exit(nr: u64, first: u64, second: u64) -> Exit {
        Exit {
            nr,
            words: [Status::Unsupported as u64, first, second, 0, 0, 0],
            ..Default::default()
        }
    }

    #[test]
    fn calls_are_read_as_the_kernel_writes_them() {
        assert_eq!(
            Call::parse(&exit(GET_QUOTE, 0x8000, 0x2000)),
            Call::GetQuote {
                gpa: 0x8000,
                size: 0x2000
            }
        );
        assert_eq!(
            Call::parse(&exit(GET_TD_VM_CALL_INFO, 1, 0)),
            Call::GetTdVmCallInfo
        );
        let vector = Call::parse(&exit(SETUP_EVENT_NOTIFY_INTERRUPT, 0xec, 0));
        assert_eq!(vector, Call::SetupEventNotifyInterrupt { vector: 0xec });
    }

    #[test]
    fn everything_else_is_refused() {
        let status = |exit: &Exit| match Call::parse(exit) {
            Call::Refused { status, .. } => Some(status),
            _ => None,
        };
        for vector in [0, 31, 256, u64::MAX] {
            let found = status(&exit(SETUP_EVENT_NOTIFY_INTERRUPT, vector, 0));
            assert_eq!(found, Some(Status::InvalidOperand));
        }
        assert_eq!(
            status(&exit(GET_TD_VM_CALL_INFO, 2, 0)),
            Some(Status::InvalidOperand)
        );
        assert_eq!(status(&exit(0x1_0005, 0, 0)), Some(Status::Unsupported));
        let mut flagged = exit(GET_QUOTE, 0, 0);
        flagged.flags = 1;
        assert_eq!(status(&flagged), Some(Status::Unsupported));
    }

    #[test]
    fn answers_are_where_the_kernel_reads_them() {
        let mut quote = exit(GET_QUOTE, 0x8000, 0x2000);
        answer(&mut quote, Status::Success);
        assert_eq!(quote.words, [0, 0x8000, 0x2000, 0, 0, 0]);
        let mut info = exit(GET_TD_VM_CALL_INFO, 1, 9);
        answer_info(&mut info, 3);
        assert_eq!(info.words, [0, 1, 3, 0, 0, 0]);
    }

    #[test]
    fn a_last_word_is_read_and_made_harmless() {
        let mut registers = [0; 16];
        registers[12] = 0x0bad;
        registers[14] = u64::from_le_bytes(*b"no room\x1b");
        registers[15] = u64::from_le_bytes(*b"[2J\0more");
        let error = FatalError::parse(&registers).expect("sixteen");
        assert_eq!(
            error.to_string(),
            "the guest gave up, with code 0xbad: \"no room.[2J\""
        );
        assert_eq!(FatalError::parse(&registers[..15]), None);
    }

    proptest! {
        #[test]
        fn any_exit_is_a_call_or_refused_and_any_last_word_printable(nr in 0xfff0u64..0x1_0010, words: [u64; 6], flags in 0u64..2, registers: [u64; 16]) {
            match Call::parse(&Exit { flags, nr, words }) {
                Call::SetupEventNotifyInterrupt { vector } => prop_assert!(vector >= 32),
                Call::GetQuote { gpa, size } => prop_assert_eq!([gpa, size], [words[1], words[2]]),
                Call::GetTdVmCallInfo => prop_assert_eq!(words[1], 1),
                Call::Refused { status, .. } => prop_assert_ne!(status, Status::Success),
            }
            let text = FatalError::parse(&registers).expect("sixteen").text;
            prop_assert!(text.len() <= 64 && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }
}
