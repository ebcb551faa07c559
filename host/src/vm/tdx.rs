//! A launched TDX domain as its vCPU threads have it: what it asks of the monitor by other exits than those of plain KVM.
//!
//! | exit | wish |
//! |---|---|
//! | `KVM_EXIT_HYPERCALL`, `KVM_HC_MAP_GPA_RANGE` | MapGPA: pages become private or shared ([`Pages`]) |
//! | `KVM_EXIT_TDX` | GetQuote, GetTdVmCallInfo, SetupEventNotifyInterrupt ([`crate::tdvmcall`]) |
//! | `KVM_EXIT_SYSTEM_EVENT`, `KVM_SYSTEM_EVENT_TDX_FATAL` | ReportFatalError: the kernel stops, and says why |
//! | `KVM_EXIT_MEMORY_FAULT` | none: a page is touched as what it is not, which our kernel does not do |
//!
//! Interrupts go through KVM's own local APIC, which the module insists on: by `KVM_SIGNAL_MSI`.

use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use cloak_abi::layout::{KICK_VECTOR, PLATFORM_GPA, SHARED_GPA};
use cloak_abi::ring::SHARED_LEN;
use cloak_abi::stop::Stop;
use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;

use super::error::{Step, VmError};
use super::pages::Pages;
use crate::kvm::tdx::Finalized;
use crate::kvm::tdx::calls::LaunchCalls;
use crate::platform::{GuestRam, Window};
use crate::tdvmcall::buffer::Quoter;
use crate::tdvmcall::service::QuoteSource;
use crate::tdvmcall::{Call, Exit, FatalError, Status, answer, answer_info};

/// What a domain of ours declares shared at its start: what the monitor and the OS service have.
const SHARED: [u64; 2] = [PLATFORM_GPA, SHARED_GPA + SHARED_LEN as u64];

/// The way of an interrupt to a vCPU.
pub trait Interrupts: Send + Sync + Debug {
    /// Raises it; gives whether the vCPU's interrupt controller took it, which it does once the domain has turned it on.
    ///
    /// # Errors
    /// The kernel's answer.
    fn raise(&self, vcpu: u32, vector: u8) -> io::Result<bool>;
}

impl Interrupts for VmFd {
    fn raise(&self, vcpu: u32, vector: u8) -> io::Result<bool> {
        // KVM gives nothing up where the number is not that of a vCPU: eight bits, as the address has them.
        let number = u8::try_from(vcpu).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let message = kvm_msi {
            // To one vCPU by its number; edge-triggered, fixed.
            address_lo: 0xfee0_0000 | u32::from(number) << 12,
            data: vector.into(),
            ..Default::default()
        };
        match self.signal_msi(message) {
            Ok(taken) => Ok(taken > 0),
            Err(error) => Err(io::Error::from_raw_os_error(error.errno())),
        }
    }
}

/// Who is told that a quote is there: vCPU and vector, or nobody.
#[derive(Debug, Default)]
struct Notified(Mutex<Option<(u32, u8)>>);

impl Notified {
    fn set(&self, vcpu: u32, vector: u8) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((vcpu, vector));
    }

    fn tell(&self, interrupts: &dyn Interrupts) {
        let whom = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((vcpu, vector)) = whom
            && let Err(error) = interrupts.raise(vcpu, vector)
        {
            eprintln!("cloak: the guest could not be told of its quote (KVM_SIGNAL_MSI): {error}");
        }
    }
}

/// The domain.
#[derive(Debug)]
pub struct Domain<C, S> {
    /// Its pages.
    pub pages: Pages<Finalized<C>>,
    /// Calls beyond the base that it may make.
    offered: u64,
    quoter: Quoter<Window, S>,
    notified: Arc<Notified>,
    interrupts: Arc<dyn Interrupts>,
}

impl<C, S> Domain<C, S>
where
    C: LaunchCalls,
    S: QuoteSource + Send + Sync + 'static,
{
    /// After its launch. `own` is memory that can be private, `shared` what it shares with the monitor.
    pub fn new(
        domain: Finalized<C>,
        own: Vec<[u64; 2]>,
        shared: GuestRam,
        quotes: S,
        interrupts: Arc<dyn Interrupts>,
    ) -> Self {
        Self {
            offered: domain.offered_calls(),
            pages: Pages::new(domain, own, vec![SHARED]),
            quoter: Quoter::new(Arc::new(Window::new(shared)), quotes),
            notified: Arc::default(),
            interrupts,
        }
    }

    /// Answers a call of a vCPU's, in place.
    pub fn call(&self, vcpu: u32, exit: &mut Exit) {
        match Call::parse(exit) {
            Call::GetQuote { gpa, size } => {
                let (notified, interrupts) = (Arc::clone(&self.notified), Arc::clone(&self.interrupts));
                let status = self.quoter.begin(gpa, size, move || notified.tell(&*interrupts));
                answer(exit, status);
            }
            Call::GetTdVmCallInfo => answer_info(exit, self.offered),
            Call::SetupEventNotifyInterrupt { vector } => {
                self.notified.set(vcpu, vector);
                answer(exit, Status::Success);
            }
            Call::Refused { status, .. } => answer(exit, status),
        }
    }

    /// Raises a vCPU's kick. Gives whether it was taken.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn kick(&self, vcpu: u32) -> Result<bool, VmError> {
        self.interrupts
            .raise(vcpu, KICK_VECTOR)
            .step("raising an interrupt (KVM_SIGNAL_MSI)")
    }
}

/// What a domain says that gives up, from the registers of its last call.
#[must_use]
pub fn gave_up(registers: &[u64]) -> VmError {
    let Some(said) = FatalError::parse(registers) else {
        return VmError::Stopped("for a reason that is not known");
    };
    match u8::try_from(said.code).ok().and_then(Stop::from_code) {
        Some(stop) => VmError::Stopped(stop.text()),
        None => VmError::Shimmed(said.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use cloak_abi::layout::{CONFIG_GPA, PAGE, PLATFORM_LEN};

    use super::*;
    use crate::kvm::ram;
    use crate::kvm::tdx::tests::{Recorder, launched};
    use crate::tdvmcall::buffer::{AT_ONCE, HEADER, status};
    use crate::tdvmcall::qgs::REPORT_BYTES;
    use crate::tdvmcall::service::QuoteError;
    use crate::vm::pages::REFUSED;

    const GET_QUOTE: u64 = 0x1_0002;
    const INFO: u64 = 0x1_0000;
    const SETUP: u64 = 0x1_0004;
    /// Bytes of a buffer.
    const SIZE: u64 = 2 * PAGE;

    /// KVM's interrupts: tells which, and takes them or not.
    #[derive(Debug)]
    struct Raised(Sender<(u32, u8)>, Result<bool, i32>);

    impl Interrupts for Raised {
        fn raise(&self, vcpu: u32, vector: u8) -> io::Result<bool> {
            self.0.send((vcpu, vector)).expect("someone looks");
            self.1.map_err(io::Error::from_raw_os_error)
        }
    }

    type Answer = Result<Vec<u8>, QuoteError>;

    /// A quoting service that answers when it is told to.
    #[derive(Debug)]
    struct Service(Mutex<Receiver<Answer>>);

    impl QuoteSource for Service {
        fn quote(&self, _: &[u8; REPORT_BYTES]) -> Answer {
            self.0.lock().expect("no panic").recv().expect("an answer")
        }
    }

    struct World {
        domain: Domain<Recorder, Service>,
        memory: GuestRam,
        answers: Sender<Answer>,
        raised: Receiver<(u32, u8)>,
    }

    fn world(forbid: Option<&'static str>, taken: Result<bool, i32>) -> World {
        let (own, memory) = ram::reserve_shared(64 << 20).expect("address space");
        let memory = GuestRam::new(memory);
        let (answers, service) = channel();
        let (raise, raised) = channel();
        let service = Service(Mutex::new(service));
        let interrupts = Arc::new(Raised(raise, taken));
        World {
            domain: Domain::new(launched(forbid), own, memory.clone(), service, interrupts),
            memory,
            answers,
            raised,
        }
    }

    impl World {
        /// As KVM tells of a call, and as it reads the answer.
        fn called(&self, vcpu: u32, nr: u64, first: u64, second: u64) -> [u64; 6] {
            let mut exit = Exit {
                flags: 0,
                nr,
                words: [Status::Unsupported as u64, first, second, 0, 0, 0],
            };
            self.domain.call(vcpu, &mut exit);
            assert_eq!((exit.flags, exit.nr), (0, nr));
            exit.words
        }

        /// Puts a report into a buffer, and asks for its quote.
        fn ask(&self, gpa: u64) -> u64 {
            let mut buffer = vec![7; HEADER + REPORT_BYTES];
            buffer[..8].copy_from_slice(&1u64.to_le_bytes());
            buffer[8..16].fill(0);
            buffer[16..20].copy_from_slice(&(REPORT_BYTES as u32).to_le_bytes());
            self.memory.write(gpa, &buffer).expect("shared memory");
            self.called(1, GET_QUOTE, gpa, SIZE)[0]
        }

        fn status(&self, gpa: u64) -> u64 {
            let mut word = [0; 8];
            self.memory.read(gpa + 8, &mut word).expect("shared memory");
            u64::from_le_bytes(word)
        }

        fn trace(&self) -> String {
            self.domain.pages.look(Finalized::recorded)
        }
    }

    #[test]
    fn pages_of_the_domains_own_change_their_state() {
        let world = world(None, Ok(true));
        let change = |arguments| world.domain.pages.change(&arguments).expect("granted");
        assert_eq!(change([2 << 20, 512, 0x10, 0, 0, 0]), 0);
        assert_eq!(
            world.trace(),
            "KVM_SET_MEMORY_ATTRIBUTES 0x200000+0x200000 attributes 0x8\ndiscard 0x200000+0x200000 Shared\n"
        );
        assert_eq!(change([2 << 20, 1, 0, 0, 0, 0]), 0);
        assert!(
            world
                .trace()
                .ends_with("attributes 0x0\ndiscard 0x200000+0x1000 Private\n")
        );
    }

    /// A domain's kernel says at its start what it shares. Nothing of it is in guest_memfd, so nothing is to be done.
    #[test]
    fn what_is_always_shared_may_be_declared_so_and_made_nothing_else() {
        let world = world(None, Ok(true));
        let change = |arguments| world.domain.pages.change(&arguments).expect("an answer");
        let mut gpa = SHARED[0];
        while gpa < SHARED[1] {
            // As KVM divides it.
            let pages = (SHARED[1] - gpa).min(2 << 20) / PAGE;
            assert_eq!(change([gpa, pages, 0, 0, 0, 0]), 0, "{gpa:#x}");
            assert_eq!(change([gpa, pages, 0x10, 0, 0, 0]), REFUSED, "{gpa:#x}");
            gpa += pages * PAGE;
        }
        assert_eq!(world.trace(), "");
    }

    #[test]
    fn ranges_that_are_not_the_domains_are_refused_and_nothing_is_done() {
        let world = world(None, Ok(true));
        for arguments in [
            [64 << 20, 1, 0x10, 0, 0, 0],
            [(64 << 20) - PAGE, 2, 0, 0, 0, 0],
            [SHARED[0] - PAGE, 2, 0, 0, 0, 0],
            [SHARED[1] - PAGE, 2, 0, 0, 0, 0],
            [SHARED[1], 1, 0, 0, 0, 0],
            [1 << 47, 1, 0, 0, 0, 0],
            [0, u64::MAX, 0, 0, 0, 0],
            [u64::MAX - 4095, 1, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [0, 1, 0x20, 0, 0, 0],
        ] {
            let answer = world.domain.pages.change(&arguments).expect("an answer");
            assert_eq!(answer, REFUSED, "{arguments:x?}");
        }
        assert_eq!(world.trace(), "");
    }

    #[test]
    fn a_change_that_the_kernel_refuses_ends_the_domain() {
        for call in ["KVM_SET_MEMORY_ATTRIBUTES", "discard"] {
            let world = world(Some(call), Ok(true));
            let error = world
                .domain
                .pages
                .change(&[2 << 20, 512, 0x10, 0, 0, 0])
                .expect_err("refused");
            assert!(error.to_string().contains("page-state change"), "{error}");
        }
    }

    #[test]
    fn a_quote_is_left_where_it_was_asked_for_and_its_vcpu_is_told() {
        let world = world(None, Ok(true));
        assert_eq!(world.called(0, SETUP, 0x55, 0)[0], 0);
        assert_eq!(world.called(1, SETUP, 0x66, 0)[0], 0, "the last one counts");
        let gpa = PLATFORM_GPA;
        assert_eq!(world.ask(gpa), Status::Success as u64);
        assert_eq!(world.status(gpa), status::IN_FLIGHT);
        world.answers.send(Ok(vec![3; 5000])).expect("a service");
        assert_eq!(world.raised.recv(), Ok((1, 0x66)));
        assert_eq!(world.status(gpa), status::SUCCESS);
        let mut quote = vec![0; 5001];
        world
            .memory
            .read(gpa + HEADER as u64, &mut quote)
            .expect("memory");
        assert!(quote[..5000] == [3; 5000] && quote[5000] == 0);
    }

    #[test]
    fn quotes_that_cannot_be_had_or_do_not_fit_are_said_so_and_told_of() {
        for (answer, expected) in [
            (Ok(vec![3; SIZE as usize]), status::ERROR),
            (Err(QuoteError::Answer("garbage")), status::ERROR),
            (
                Err(QuoteError::Told {
                    unreachable: true,
                    text: "nobody".to_owned(),
                }),
                status::UNAVAILABLE,
            ),
        ] {
            let world = world(None, Ok(true));
            world.called(0, SETUP, 0x55, 0);
            assert_eq!(world.ask(PLATFORM_GPA), Status::Success as u64);
            world.answers.send(answer).expect("a service");
            assert_eq!(world.raised.recv(), Ok((0, 0x55)));
            assert_eq!(world.status(PLATFORM_GPA), expected);
            let mut behind = [1; 8];
            let end = PLATFORM_GPA + SIZE;
            world.memory.read(end, &mut behind).expect("memory");
            assert_eq!(behind, [0; 8], "nothing behind the buffer");
        }
    }

    /// A service that never answers holds as many requests as there may be, and the domain goes on.
    #[test]
    fn only_so_many_quotes_are_under_way() {
        let world = world(None, Ok(true));
        let at = |number: u64| PLATFORM_GPA + number * SIZE;
        for number in 0..AT_ONCE as u64 {
            assert_eq!(world.ask(at(number)), Status::Success as u64);
        }
        assert_eq!(world.ask(at(AT_ONCE as u64)), Status::Retry as u64);
        assert_eq!(world.status(at(0)), status::IN_FLIGHT);
        assert_eq!(world.called(0, INFO, 1, 0)[..3], [0, 1, 1], "another call");
        assert_eq!(world.raised.try_recv().ok(), None, "nobody asked to be told");
        for _ in 0..AT_ONCE {
            world.answers.send(Ok(vec![1])).expect("a service");
        }
    }

    #[test]
    fn a_buffer_outside_of_what_is_shared_is_refused_and_stays_as_it_was() {
        let world = world(None, Ok(true));
        for gpa in [
            0,
            2 << 20,
            PLATFORM_GPA - PAGE,
            PLATFORM_GPA + PLATFORM_LEN - PAGE,
            SHARED_GPA,
            SHARED[1] - SIZE,
            u64::MAX - 4095,
        ] {
            let refused = world.called(0, GET_QUOTE, gpa, SIZE)[0];
            assert_eq!(refused, Status::InvalidOperand as u64, "{gpa:#x}");
        }
        for (gpa, size, status) in [
            (CONFIG_GPA + 1, SIZE, Status::AlignError),
            (CONFIG_GPA, 0, Status::InvalidOperand),
            (CONFIG_GPA, u64::MAX - 4095, Status::InvalidOperand),
            // There is no report in it.
            (CONFIG_GPA, SIZE, Status::InvalidOperand),
        ] {
            assert_eq!(world.called(0, GET_QUOTE, gpa, size)[0], status as u64);
        }
        assert_eq!(world.status(CONFIG_GPA), 0);
    }

    #[test]
    fn calls_that_are_none_are_refused() {
        let world = world(None, Ok(true));
        assert_eq!(
            world.called(0, INFO, 1, 0),
            [0, 1, 1, 0, 0, 0],
            "what was offered"
        );
        for (nr, first, status) in [
            (INFO, 0, Status::InvalidOperand),
            (SETUP, 31, Status::InvalidOperand),
            (SETUP, 256, Status::InvalidOperand),
            (0x1_0005, 0, Status::Unsupported),
            (u64::MAX, 0, Status::Unsupported),
        ] {
            assert_eq!(world.called(0, nr, first, 0)[0], status as u64, "{nr:#x}");
        }
        assert_eq!(world.trace(), "");
    }

    #[test]
    fn a_kick_is_an_interrupt_and_one_that_is_not_taken_is_known() {
        for taken in [true, false] {
            let world = world(None, Ok(taken));
            assert_eq!(world.domain.kick(3).expect("raised"), taken);
            assert_eq!(world.raised.recv(), Ok((3, KICK_VECTOR)));
        }
        let error = world(None, Err(libc::EINVAL))
            .domain
            .kick(0)
            .expect_err("refused");
        assert!(error.to_string().contains("KVM_SIGNAL_MSI"), "{error}");
    }

    #[test]
    fn a_domain_that_gives_up_says_why() {
        let said = |code: u64, text: &[u8; 8]| {
            let mut registers = [0; 16];
            (registers[12], registers[14]) = (code, u64::from_le_bytes(*text));
            gave_up(&registers).to_string()
        };
        assert!(said(Stop::Twice as u64, b"whatever").contains(Stop::Twice.text()));
        assert!(said(1 << 40, b"no\x1broom\0").contains("code 0x10000000000: \"no.room\""));
        assert!(gave_up(&[0; 15]).to_string().contains("not known"));
    }
}
