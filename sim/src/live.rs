//! The machine under a running VM: the host binds it to guest RAM of plain KVM, and the guest's kernel reaches it by calls in
//! the place of instructions ([`cloak_abi::sim`]).
//!
//! What of SNP there is: the launch is measured page by page; memory that the guest has not accepted can't be touched, not
//! even by the guest; what it accepts is noise; a page is accepted once; the state of a vCPU is a page that is one;
//! messages go to the security processor. What there is not: memory is not encrypted, and there is no C-bit. The page
//! tables of the image, which have it, are measured as they are and lose it on their way into RAM.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;
use std::time::Instant;

use cloak_abi::config::{Records, Tag};
use cloak_abi::kcall::PTE_P;
use cloak_abi::layout::{CONFIG_GPA, LARGE, LAUNCH_TABLES, LAUNCH_TABLES_GPA, PAGE as PAGE_BYTES};
use cloak_abi::sim::{SimCall, UNCHANGED};
use cloak_abi::stop::Stop;
use cloak_attestation::snp::CertTable;
use cloak_host::image::C_BIT;
use cloak_host::image::registers::Registers;
use cloak_host::kvm::snp::IdBlock;
use cloak_host::kvm::snp::calls::{Backing, LaunchCalls, Refusal, RunCalls};
use cloak_host::kvm::snp::page_state::PageState;
use cloak_host::platform::{GuestRam, Injection, Out, Reply, Simulated};
use cloak_snp::exception::reasons;
use cloak_snp::ghcb::{self, exits, fields};
use cloak_snp::{SIZE_MISMATCH, vmsa};
use kvm_bindings::{
    kvm_memory_attributes, kvm_sev_init, kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start,
    kvm_sev_snp_launch_update, kvm_userspace_memory_region2,
};

use crate::hostile::Hostile;
use crate::keys;
use crate::machine::Machine;
use crate::memory::{Fault, Gfn, PAGE, PageBytes, Ram};

/// What a page is, as the RMP has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The hypervisor's.
    Shared,
    /// The guest's, not accepted.
    Invalid,
    /// The guest's.
    Valid,
    /// The state of a vCPU.
    Vmsa,
}

/// The RMP over a VM's RAM.
#[derive(Debug, Default)]
pub struct Rmp {
    ram: Option<GuestRam>,
    /// By number of the page; beyond it all is shared.
    states: Vec<u8>,
    noise: Vec<u8>,
}

const SHARED: u8 = 0;
const INVALID: u8 = 1;
const VALID: u8 = 2;
const VMSA: u8 = 3;

impl Rmp {
    fn state(&self, page: u64) -> State {
        match self.states.get(page as usize) {
            Some(&INVALID) => State::Invalid,
            Some(&VALID) => State::Valid,
            Some(&VMSA) => State::Vmsa,
            _ => State::Shared,
        }
    }

    fn fill(&mut self, pages: std::ops::Range<u64>, state: u8) {
        let (start, end) = (pages.start as usize, pages.end as usize);
        if self.states.len() < end {
            self.states.resize(end, SHARED);
        }
        self.states[start..end].fill(state);
    }

    fn ram(&self) -> Result<&GuestRam, Fault> {
        self.ram.as_ref().ok_or(Fault::NotMapped)
    }

    /// PVALIDATE of small pages that are all in the same state. Gives EAX and the carry flag as [`cloak_abi::sim`] says.
    fn validate(&mut self, pages: std::ops::Range<u64>, accept: bool) -> u64 {
        const FAILED: u64 = 1;
        let first = self.state(pages.start);
        let (from, to) = if accept {
            (State::Invalid, VALID)
        } else {
            (State::Valid, INVALID)
        };
        if pages.clone().any(|page| self.state(page) != first) {
            // The hypervisor backs it by small pages.
            return SIZE_MISMATCH.into();
        }
        if first != from {
            let there = accept && first == State::Valid || !accept && first == State::Invalid;
            return if there { UNCHANGED } else { FAILED };
        }
        let (gpa, len) = (pages.start * PAGE_BYTES, (pages.end - pages.start) * PAGE_BYTES);
        self.fill(pages, to);
        match self.open(gpa, len, accept) {
            Ok(()) => 0,
            Err(_) => FAILED,
        }
    }

    /// What a guest accepts is whatever decrypts so.
    fn open(&mut self, gpa: u64, len: u64, open: bool) -> Result<(), Fault> {
        if self.noise.is_empty() {
            let mut word = 0x9e37_79b9_7f4a_7c15u64;
            self.noise = std::iter::repeat_with(|| {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                word.to_le_bytes()
            })
            .take(LARGE as usize / 8)
            .flatten()
            .collect();
        }
        let noise = self.noise.get(..len as usize).ok_or(Fault::NotMapped)?;
        let ram = self.ram()?;
        ram.set_access(gpa, len, open).map_err(|_| Fault::NotMapped)?;
        if open {
            ram.write(gpa, noise).map_err(|_| Fault::NotMapped)?;
        }
        Ok(())
    }
}

impl Ram for Rmp {
    fn make_private(&mut self, pages: std::ops::Range<u64>) -> Result<(), Fault> {
        let end = pages.end as usize;
        if self.states.len() < end {
            self.states.resize(end, SHARED);
        }
        for state in &mut self.states[pages.start as usize..end] {
            if *state == SHARED {
                *state = INVALID;
            }
        }
        Ok(())
    }

    fn make_shared(&mut self, pages: std::ops::Range<u64>) -> Result<(), Fault> {
        let (gpa, len) = (pages.start * PAGE_BYTES, (pages.end - pages.start) * PAGE_BYTES);
        self.fill(pages, SHARED);
        self.ram()?
            .set_access(gpa, len, true)
            .map_err(|_| Fault::NotMapped)
    }

    fn discard(&mut self, pages: std::ops::Range<u64>) {
        for page in pages {
            if self.state(page) == State::Shared
                && let Some(ram) = &self.ram
            {
                // Memory of this VM: it can be written.
                let _ = ram.write(page * PAGE_BYTES, &[0; PAGE]);
            }
        }
    }

    fn is_private(&self, gfn: Gfn) -> bool {
        self.state(gfn.0) != State::Shared
    }

    fn launchable(&self, gfn: Gfn) -> Result<(), Fault> {
        match self.state(gfn.0) {
            State::Shared => Err(Fault::NotAssigned),
            State::Invalid => Ok(()),
            State::Valid | State::Vmsa => Err(Fault::Immutable),
        }
    }

    fn launch(&mut self, gfn: Gfn, bytes: &PageBytes) -> Result<(), Fault> {
        self.launchable(gfn)?;
        self.fill(gfn.0..gfn.0 + 1, VALID);
        let gpa = gfn.0 * PAGE_BYTES;
        self.open(gpa, PAGE_BYTES, true)?;
        let tables = LAUNCH_TABLES_GPA..LAUNCH_TABLES_GPA + LAUNCH_TABLES * PAGE_BYTES;
        let mut page = *bytes;
        if tables.contains(&gpa) {
            page.as_chunks_mut::<8>().0.iter_mut().for_each(without_c_bit);
        }
        self.ram()?.write(gpa, &page).map_err(|_| Fault::NotMapped)
    }
}

fn without_c_bit(entry: &mut [u8; 8]) {
    let word = u64::from_le_bytes(*entry);
    if word & PTE_P != 0 {
        *entry = (word & !C_BIT).to_le_bytes();
    }
}

/// The exception of instructions that a hypervisor intercepts.
pub(crate) const VC: u8 = 29;

/// Nanoseconds, as a counter that only grows.
fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// The machine.
pub struct Live {
    machine: Machine<Rmp>,
    certificates: Vec<u8>,
    /// The GHCB of each vCPU that has registered one.
    ghcbs: HashMap<u32, u64>,
    hostile: Option<Hostile>,
    /// vCPUs that the guest has made, until they run.
    created: HashMap<u32, Registers>,
    /// Events that the hypervisor made up.
    made_up: u64,
    /// The last answer of the security processor.
    last: Option<Vec<u8>>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("machine", &self.machine)
            .finish_non_exhaustive()
    }
}

/// What a GHCB says.
struct Request {
    gpa: u64,
    code: u64,
    arguments: [u64; 2],
}

/// The answer to a request: what goes into EXITINFO1 and EXITINFO2.
type Answer = [u64; 2];

const GOOD: Answer = [0, 0];
/// The request makes no sense.
const MALFORMED: Answer = [2, 0];

impl Live {
    /// A machine with the keys that all of them have.
    ///
    /// # Errors
    /// [`keys::KeyError`]: what is built in is damaged.
    pub fn new(hostile: Option<Hostile>) -> Result<Self, keys::KeyError> {
        let processor = keys::processor()?;
        let evidence = processor.evidence(Vec::new());
        let certificates = CertTable {
            vcek: evidence.vek,
            ask: evidence.authority,
            ark: evidence.ark,
            ..CertTable::default()
        };
        Ok(Self {
            machine: Machine::of(Rmp::default(), processor),
            certificates: certificates.to_bytes(),
            ghcbs: HashMap::new(),
            hostile,
            created: HashMap::new(),
            made_up: 0,
            last: None,
        })
    }

    fn is(&self, hostile: Hostile) -> bool {
        self.hostile == Some(hostile)
    }

    fn ram(&self) -> Option<&GuestRam> {
        self.machine.memory.ram.as_ref()
    }

    /// Reads memory that is open: whether it is memory, and open.
    fn get(&self, gpa: u64, bytes: &mut [u8]) -> bool {
        self.is_open(gpa, bytes.len()) && self.ram().is_some_and(|ram| ram.read(gpa, bytes).is_ok())
    }

    /// Writes memory that is open.
    fn put(&self, gpa: u64, bytes: &[u8]) -> bool {
        self.is_open(gpa, bytes.len()) && self.ram().is_some_and(|ram| ram.write(gpa, bytes).is_ok())
    }

    fn is_open(&self, gpa: u64, len: usize) -> bool {
        let Some(end) = gpa.checked_add(len as u64) else {
            return false;
        };
        let mut pages = gpa / PAGE_BYTES..end.div_ceil(PAGE_BYTES);
        pages.all(|page| self.machine.memory.state(page) != State::Invalid)
    }

    fn word(&self, gpa: u64) -> u64 {
        let mut word = [0; 8];
        if self.get(gpa, &mut word) {
            u64::from_le_bytes(word)
        } else {
            0
        }
    }

    fn put_word(&self, gpa: u64, word: u64) {
        self.put(gpa, &word.to_le_bytes());
    }

    /// The last letter of the program's path in the configuration becomes another.
    fn change_program(&self) {
        let mut config = vec![0; 1 << 16];
        let Some(ram) = self.ram().filter(|ram| ram.read(CONFIG_GPA, &mut config).is_ok()) else {
            return;
        };
        // What follows the records is none.
        let mut records = Records::new(&config).map_while(Result::ok);
        let Some((_, path)) = records.find(|(tag, _)| *tag == Tag::Program) else {
            return;
        };
        let end = path.as_ptr_range().end as usize - config.as_ptr() as usize;
        // Memory of this VM: it can be written.
        let _ = ram.write(CONFIG_GPA + end as u64 - 1, &[config[end - 1] ^ 1]);
    }

    /// PVALIDATE.
    fn pvalidate(&mut self, address: u64, accept: bool) -> u64 {
        let (gpa, large) = (address & !(PAGE_BYTES - 1), address & 1 != 0);
        const WRONG_INPUT: u64 = 1;
        if large && !gpa.is_multiple_of(LARGE) {
            return WRONG_INPUT;
        }
        let pages = gpa / PAGE_BYTES..gpa / PAGE_BYTES + if large { 512 } else { 1 };
        match self.hostile {
            // Another page that was accepted at another time, in the place of a new one.
            Some(Hostile::Replay) => {
                self.machine.memory.fill(pages.clone(), VALID);
            }
            // One of the hypervisor's own.
            Some(Hostile::Remap) => self.machine.memory.fill(pages.clone(), SHARED),
            _ => {}
        }
        self.machine.memory.validate(pages, accept)
    }

    /// RMPADJUST, as far as it makes the state of a vCPU.
    fn rmp_adjust(&mut self, gpa: u64, attributes: u64) -> u64 {
        const FAILED: u64 = 1;
        let page = gpa / PAGE_BYTES;
        let good = attributes == vmsa::ATTRIBUTES && self.machine.memory.state(page) == State::Valid;
        if !good || self.is(Hostile::NoVmsa) {
            return FAILED;
        }
        self.machine.memory.fill(page..page + 1, VMSA);
        0
    }

    fn vmgexit(&mut self, vcpu: u32, register: u64) -> Reply {
        let (kind, value) = (register & 0xfff, register & !0xfff);
        match kind {
            0 if self.ghcbs.get(&vcpu) == Some(&value) => self.page(value),
            0x002 => Reply::Value(self.info()),
            0x012 => {
                self.ghcbs.insert(vcpu, value);
                let other = if self.is(Hostile::OtherGhcb) {
                    PAGE_BYTES
                } else {
                    0
                };
                Reply::Value((value + other) | ghcb::REGISTER.1)
            }
            0x100 => {
                let ours = value >> 12 & 0xf == ghcb::REASONS;
                Reply::Terminated(Stop::from_code((value >> 16) as u8).filter(|_| ours))
            }
            // Anything else gets an answer that is none.
            _ => Reply::Value(0),
        }
    }

    fn info(&self) -> u64 {
        let most: u64 = if self.is(Hostile::OldProtocol) { 1 } else { 2 };
        let c_bit = if self.is(Hostile::CBit) {
            47
        } else {
            C_BIT.trailing_zeros()
        };
        most << 48 | 1 << 32 | u64::from(c_bit) << 24 | ghcb::INFO.1
    }

    /// A request by the page at `gpa`.
    fn page(&mut self, gpa: u64) -> Reply {
        let field = |field| self.word(gpa + field);
        let request = Request {
            gpa,
            code: field(fields::CODE),
            arguments: [field(fields::INFO1), field(fields::INFO2)],
        };
        let valid = [field(fields::VALID), field(fields::VALID + 8)];
        let counts = |field: u64| valid[(field / 512) as usize] & 1 << (field / 8 % 64) != 0;
        let needed = [fields::CODE, fields::INFO1, fields::INFO2];
        let speaks = field(fields::VERSION) >> 16 & 0xffff == ghcb::VERSION;
        let mut out = None;
        let answer = if !speaks || !needed.into_iter().all(counts) {
            MALFORMED
        } else {
            match request.code {
                exits::PAGE_STATE => self.page_state(&request),
                exits::GUEST_REQUEST => self.message(&request),
                exits::EXTENDED_REQUEST => self.extended(&request),
                exits::CREATE_VCPU => self.create(&request),
                exits::PORT => self.port(&request, &mut out),
                reasons::RDTSC | reasons::RDTSCP => self.clock(&request),
                _ => MALFORMED,
            }
        };
        self.put_word(gpa + fields::INFO1, answer[0]);
        self.put_word(gpa + fields::INFO2, answer[1]);
        match out {
            Some((port, value)) => Reply::Out(gpa, port, value),
            None => Reply::Value(gpa),
        }
    }

    /// A page-state change: KVM makes hypercalls of it, which the monitor's own code grants.
    fn page_state(&mut self, request: &Request) -> Answer {
        const REFUSED: Answer = [0, 1 << 32];
        let buffer = self.word(request.gpa + fields::SCRATCH);
        if buffer != request.gpa + fields::BUFFER {
            return MALFORMED;
        }
        let header = self.word(buffer);
        let (mut next, last) = (header & 0xffff, header >> 16 & 0xffff);
        match self.hostile {
            Some(Hostile::PageStateNever) => return GOOD,
            Some(Hostile::PageStateElsewhere) => {
                self.put_word(buffer, 7);
                return GOOD;
            }
            Some(Hostile::PageStateRefused) => return REFUSED,
            _ => {}
        }
        while next <= last && last < 253 {
            let entry = self.word(buffer + 8 + 8 * next);
            let pages = if entry & 1 << 56 != 0 { 512 } else { 1 };
            let encrypted = u64::from(entry >> 52 & 0xf == 1) << 4;
            let wish = [entry & 0xf_ffff_ffff_f000, pages, encrypted, 0, 0, 0];
            let granted =
                PageState::parse(&wish, self.machine.slots()).and_then(|wish| wish.grant(&mut self.machine));
            if granted.is_err() {
                return REFUSED;
            }
            next += 1;
        }
        self.put_word(buffer, header & !0xffff | next);
        GOOD
    }

    /// A message to the security processor.
    fn message(&mut self, request: &Request) -> Answer {
        const FAILED: u64 = 1;
        let [from, to] = request.arguments;
        let mut page = [0; PAGE];
        if !self.get(from, &mut page) {
            return MALFORMED;
        }
        if self.is(Hostile::DropMessages) {
            return [0, FAILED];
        }
        let mut answer = match self.machine.processor.request(&page) {
            Ok(answer) => answer,
            Err(status) => return [0, status as u64],
        };
        match self.hostile {
            Some(Hostile::RepeatAnswers) => answer = self.last.get_or_insert(answer).clone(),
            // The one before, under the number of this one.
            Some(Hostile::ReorderAnswers) => {
                let number = answer[0x20..0x28].to_vec();
                answer = self.last.replace(answer).unwrap_or_else(|| vec![0; PAGE]);
                answer[0x20..0x28].copy_from_slice(&number);
            }
            Some(Hostile::ChangeAnswers) => {
                if let Some(last) = answer.last_mut() {
                    *last ^= 1;
                }
            }
            _ => {}
        }
        if self.put(to, &answer) { GOOD } else { MALFORMED }
    }

    /// The same, with certificates.
    fn extended(&mut self, request: &Request) -> Answer {
        const TOO_SMALL: Answer = [0, 1 << 32];
        let (at, pages) = (
            self.word(request.gpa + fields::RAX),
            self.word(request.gpa + fields::RBX),
        );
        let needed = (self.certificates.len() as u64).div_ceil(PAGE_BYTES);
        if pages < needed {
            self.put_word(request.gpa + fields::RBX, needed);
            return TOO_SMALL;
        }
        if self.put(at, &self.certificates) {
            self.message(request)
        } else {
            MALFORMED
        }
    }

    /// A further vCPU: the hardware takes its registers from the page that the guest has made.
    fn create(&mut self, request: &Request) -> Answer {
        const REFUSED: Answer = [0, 1];
        let [which, page] = request.arguments;
        let good = self.machine.memory.state(page / PAGE_BYTES) == State::Vmsa
            && which & 0xffff_ffff == 1
            && self.word(request.gpa + fields::RAX) == vmsa::SEV_FEATURES;
        if !good || self.is(Hostile::NoVcpu) {
            return REFUSED;
        }
        let registers = Registers {
            rip: self.word(page + vmsa::at::RIP),
            root: self.word(page + vmsa::at::CR3),
            rdi: self.word(page + vmsa::at::RDI),
        };
        self.created.insert((which >> 32) as u32, registers);
        GOOD
    }

    /// IN and OUT, of which KVM does what the guest says.
    fn port(&mut self, request: &Request, out: &mut Option<(u16, u32)>) -> Answer {
        let about = request.arguments[0];
        if about & 1 == 0 {
            *out = Some(((about >> 16) as u16, self.word(request.gpa + fields::RAX) as u32));
        } else {
            // Nothing is there to be read.
            self.put_word(request.gpa + fields::RAX, u64::MAX);
        }
        GOOD
    }

    /// The clock: one of the hypervisor's own, as it may be anything.
    fn clock(&mut self, request: &Request) -> Answer {
        let now = now();
        self.put_word(request.gpa + fields::RAX, now & 0xffff_ffff);
        self.put_word(request.gpa + fields::RDX, now >> 32);
        self.put_word(request.gpa + fields::RCX, 0);
        GOOD
    }
}

impl Simulated for Live {
    fn notice(&self) -> String {
        "simulated SEV-SNP: this protects nothing from whoever runs it".to_owned()
    }

    fn bind(&mut self, memory: GuestRam) {
        self.machine.memory.ram = Some(memory);
    }

    fn call(&mut self, vcpu: u32, call: SimCall, [first, second]: [u64; 2]) -> Reply {
        match call {
            SimCall::Pvalidate => Reply::Value(self.pvalidate(first, second != 0)),
            SimCall::RmpAdjust => Reply::Value(self.rmp_adjust(first, second)),
            SimCall::VmgExit => self.vmgexit(vcpu, first),
            // Another platform's.
            SimCall::Tdcall | SimCall::VectorState => Reply::Terminated(None),
        }
    }

    fn intercept(&mut self, _: u32, out: Out) -> Injection {
        let made_up = self.hostile.and_then(|hostile| hostile.event(out, self.made_up));
        self.made_up += u64::from(made_up.is_some());
        made_up.unwrap_or(Injection {
            vector: VC,
            error: Some(reasons::PORT),
            behind: false,
        })
    }

    fn injected(&mut self, _: u32) -> Option<Injection> {
        self.hostile.and_then(Hostile::event_in_kernel)
    }

    fn created(&mut self, vcpu: u32) -> Option<Registers> {
        self.created.remove(&vcpu)
    }
}

impl RunCalls for Live {
    fn set_attributes(&mut self, attributes: kvm_memory_attributes) -> Result<(), Refusal> {
        self.machine.set_attributes(attributes)
    }

    fn discard(&mut self, gpa: u64, len: u64, backing: Backing) -> Result<(), Refusal> {
        self.machine.discard(gpa, len, backing)
    }
}

impl LaunchCalls for Live {
    fn enable(&mut self, capability: u32, argument: u64) -> Result<(), Refusal> {
        self.machine.enable(capability, argument)
    }

    fn init2(&mut self, data: &mut kvm_sev_init) -> Result<(), Refusal> {
        self.machine.init2(data)
    }

    fn start(&mut self, data: &mut kvm_sev_snp_launch_start) -> Result<(), Refusal> {
        self.machine.start(data)
    }

    fn enable_certificates(&mut self) -> Result<(), Refusal> {
        self.machine.enable_certificates()
    }

    fn add_memory(&mut self, region: kvm_userspace_memory_region2) -> Result<(), Refusal> {
        self.machine.add_memory(region)
    }

    fn update(&mut self, data: &mut kvm_sev_snp_launch_update, source: &mut [u8]) -> Result<(), Refusal> {
        if let Some(hostile) = self.hostile {
            hostile.change(data, source);
        }
        self.machine.update(data, source)
    }

    fn add_vcpu(&mut self, index: u32, registers: Registers) -> Result<(), Refusal> {
        self.machine.add_vcpu(index, registers)
    }

    fn finish(&mut self, data: &mut kvm_sev_snp_launch_finish, id: Option<&IdBlock>) -> Result<(), Refusal> {
        if self.is(Hostile::OtherHostData) {
            data.host_data[0] ^= 1;
        }
        if self.is(Hostile::OtherProgram) {
            self.change_program();
        }
        self.machine.finish(data, id)
    }
}
