//! The machine under a running VM: the host binds it to guest RAM of plain KVM, and the guest's kernel reaches it by calls in the
//! place of TDCALL ([`cloak_abi::sim`]).
//!
//! What of TDX there is: the launch is measured page by page; memory that the domain has not accepted can't be touched, not even by
//! the domain; what it accepts is zero, and an address is accepted once; vCPUs start at the reset vector; an instruction that needs the
//! hypervisor raises #VE, whose cause the module tells; reports, run-time registers and quotes. What there is not: memory is not
//! encrypted, there is no bit that makes an address shared, and CPUID raises no exception, as an ordinary VM's does not.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use cloak_abi::layout::{KERNEL_GPA, LARGE, PLATFORM_GPA, SHARED_GPA};
use cloak_abi::ring::SHARED_LEN;
use cloak_abi::sim::{SimCall, TdRegisters};
use cloak_abi::stop::Stop;
use cloak_attestation::time::Timestamp;
use cloak_host::kvm::run_calls;
use cloak_host::kvm::snp::page_state::PageState;
use cloak_host::kvm::tdx::abi::{CpuidEntry, kvm_tdx_init_mem_region, kvm_tdx_init_vm};
use cloak_host::kvm::tdx::calls::{Backing, LaunchCalls, Offered, Refusal, RunCalls};
use cloak_host::kvm::tdx::config::SHARED_BIT;
use cloak_host::platform::{GuestRam, Injection, Out, Reply, Simulated, Window};
use cloak_host::tdvmcall::buffer::{Quoter, status};
use cloak_host::tdvmcall::qgs::REPORT_BYTES;
use cloak_host::tdvmcall::service::{QuoteError, QuoteSource};
use cloak_host::tdvmcall::{Call, Exit, Status};
use cloak_tdx::module::{DEBUG, SEPT_VE_DISABLE, leaf};
use cloak_tdx::vmcall::{RETRY, number};
use kvm_bindings::{CpuId, kvm_memory_attributes, kvm_userspace_memory_region2};
use zerocopy::{FromBytes, IntoBytes};

use super::hostile::Hostile;
use super::live_memory::LiveMemory;
use super::machine::{Machine, NOTICE};
use super::module::Module;
use super::quoting::QuotingEnclave;
use super::report::TdReport;
use super::sept::{Fault, SecureEpt};
use super::tdcall::{self, PAGE_ALREADY_ACCEPTED, Registers};
use crate::keys;
use crate::memory::{Gfn, PAGE};

/// #VE.
const VECTOR: u8 = 20;
/// There is no cause to tell: TDX_NO_VALID_VE_INFO.
const NO_CAUSE: u64 = 0xc000_0704_0000_0000;
/// An exit because of a port; of memory; because of an interrupt window, which no instruction causes.
const PORT: u64 = 30;
const MEMORY: u64 = 48;
const WINDOW: u64 = 7;
/// TDX_OPERAND_BUSY.
const BUSY: u64 = 0x8000_0200_0000_0000;
/// Bytes that one MapGPA does, as KVM does not do all at once.
const AT_ONCE: u64 = 8 << 20;
/// What is shared with the hypervisor and the OS service.
const SHARED: [u64; 2] = [PLATFORM_GPA, SHARED_GPA + SHARED_LEN as u64];

/// The machine.
pub struct Live {
    machine: Machine<LiveMemory>,
    /// Until there is memory to leave quotes in.
    enclave: Option<Enclave>,
    quoter: Option<Quoter<Window, Enclave>>,
    /// Why each vCPU has an exception, until it asks.
    causes: HashMap<u32, Out>,
    hostile: Option<Hostile>,
    /// The block of memory that was accepted last.
    last: Option<u64>,
    accepted: u32,
    strays: u32,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("machine", &self.machine)
            .finish_non_exhaustive()
    }
}

/// The quoting enclave, in the hands of a hypervisor.
#[derive(Debug)]
struct Enclave {
    enclave: QuotingEnclave,
    hostile: Option<Hostile>,
}

impl QuoteSource for Enclave {
    fn quote(&self, report: &[u8; REPORT_BYTES]) -> Result<Vec<u8>, QuoteError> {
        match self.hostile {
            Some(Hostile::ChangedQuote) => {
                let mut quote = self.enclave.quote(report)?;
                // A bit of MRTD.
                if let Some(byte) = quote.get_mut(48 + 136) {
                    *byte ^= 1;
                }
                Ok(quote)
            }
            Some(Hostile::OtherQuote) => {
                let report =
                    TdReport::read_from_bytes(report).map_err(|_| QuoteError::Answer("not a report"))?;
                let other = TdReport::new(report.info, [0x5a; 64], &keys::TDX_REPORT_KEY);
                let mut bytes = [0; REPORT_BYTES];
                bytes.copy_from_slice(other.as_bytes());
                self.enclave.quote(&bytes)
            }
            _ => self.enclave.quote(report),
        }
    }
}

impl Live {
    /// A machine with the keys that all of them have.
    ///
    /// # Errors
    /// [`keys::KeyError`]: what is built in is damaged.
    pub fn new(hostile: Option<Hostile>) -> Result<Self, keys::KeyError> {
        let enclave = keys::quoting_enclave(Timestamp::now())?;
        let memory = LiveMemory::new(hostile);
        let mut machine = Machine::of(Module::of(memory, keys::TDX_REPORT_KEY));
        machine.add_shared_slot(SHARED);
        Ok(Self {
            machine,
            enclave: Some(Enclave { enclave, hostile }),
            quoter: None,
            causes: HashMap::new(),
            hostile,
            last: None,
            accepted: 0,
            strays: 0,
        })
    }

    fn is(&self, hostile: Hostile) -> bool {
        self.hostile == Some(hostile)
    }

    fn ram(&self) -> Option<&GuestRam> {
        self.machine.module.memory.ram.as_ref()
    }

    fn tdcall(&mut self, vcpu: u32, gpa: u64) -> Reply {
        let mut registers = TdRegisters::default();
        let Some(ram) = self.ram().cloned() else {
            return Reply::Terminated(None);
        };
        if ram.read(gpa, registers.as_mut_bytes()).is_err() {
            return Reply::Terminated(None);
        }
        let reply = match registers.rax {
            leaf::VMCALL => self.vmcall(&mut registers),
            leaf::EXCEPTION => {
                self.cause(vcpu, &mut registers);
                Reply::Value(0)
            }
            _ => match self.module_call(vcpu, &mut registers) {
                Ok(()) => Reply::Value(0),
                // The domain does not run on, whatever the host does.
                Err(_) => return Reply::Terminated(None),
            },
        };
        match ram.write(gpa, registers.as_bytes()) {
            Ok(()) => reply,
            Err(_) => Reply::Terminated(None),
        }
    }

    /// What a hypervisor that lies injects before the instruction, where interrupts are on. Not each time, or the instruction would
    /// never be executed.
    fn wild_interrupt(&mut self, out: Out) -> Option<u8> {
        if !self.is(Hostile::WildInterrupts) || !out.user {
            return None;
        }
        self.strays = self.strays.wrapping_add(1);
        self.strays
            .is_multiple_of(2)
            .then_some(33 + (self.strays / 2 % (256 - 33)) as u8)
    }

    /// A call of the module's.
    fn module_call(&mut self, vcpu: u32, registers: &mut TdRegisters) -> Result<(), Fault> {
        if registers.rax == leaf::ACCEPT {
            return self.accept(vcpu, registers);
        }
        let width = self.is(Hostile::Width) && registers.rax == leaf::INFO;
        self.forward(vcpu, registers)?;
        if width {
            registers.rcx = 52;
        }
        Ok(())
    }

    fn forward(&mut self, vcpu: u32, registers: &mut TdRegisters) -> Result<(), Fault> {
        let mut own = Registers {
            rax: registers.rax,
            rcx: registers.rcx,
            rdx: registers.rdx,
            r8: registers.r8,
            r9: registers.r9,
        };
        tdcall::call(&mut self.machine.module, vcpu, &mut own)?;
        (registers.rax, registers.rcx, registers.rdx) = (own.rax, own.rcx, own.rdx);
        (registers.r8, registers.r9) = (own.r8, own.r9);
        Ok(())
    }

    /// TDG.MEM.PAGE.ACCEPT. Where no page is, KVM gives some, and the call is made again.
    fn accept(&mut self, vcpu: u32, registers: &mut TdRegisters) -> Result<(), Fault> {
        let (gpa, large) = (registers.rcx & !(PAGE as u64 - 1), registers.rcx & 1 == 1);
        let pages = if large { LARGE / PAGE as u64 } else { 1 };
        let gfns = gpa / PAGE as u64..gpa / PAGE as u64 + pages;
        match self.hostile {
            Some(Hostile::NotAccepted) => {
                registers.rax = BUSY;
                return Ok(());
            }
            Some(Hostile::AcceptedBefore) => self.machine.module.memory.accept_before(gfns.clone()),
            Some(Hostile::TakePages) => self.take_last(),
            _ => {}
        }
        let before = *registers;
        match self.forward(vcpu, registers) {
            Err(Fault::NotMapped) => {
                for gfn in gfns.clone().map(Gfn) {
                    if self.machine.module.memory.page_of(gfn).is_none() {
                        self.machine.resolve(gfn).map_err(|_| Fault::NotMapped)?;
                    }
                }
                *registers = before;
                self.forward(vcpu, registers)?;
            }
            result => result?,
        }
        debug_assert!(registers.rax != PAGE_ALREADY_ACCEPTED || self.is(Hostile::AcceptedBefore));
        self.accepted += 1;
        self.last = Some(gfns.start);
        Ok(())
    }

    /// The block of memory before goes back to the host, once the shim has started and uses it.
    fn take_last(&mut self) {
        const START: u32 = 12;
        if let Some(first) = self.last.filter(|_| self.accepted == START) {
            for gfn in first..first + LARGE / PAGE as u64 {
                // Pages of this VM.
                let _ = self.machine.module.memory.zap(Gfn(gfn));
            }
        }
    }

    /// TDG.VP.VEINFO.GET.
    fn cause(&mut self, vcpu: u32, registers: &mut TdRegisters) {
        let cause = self.causes.remove(&vcpu).filter(|_| !self.is(Hostile::NoCause));
        let Some(write) = cause else {
            registers.rax = NO_CAUSE;
            return;
        };
        registers.rax = 0;
        registers.rcx = match self.hostile {
            Some(Hostile::DeviceCause) => MEMORY,
            Some(Hostile::OtherCause) => WINDOW,
            _ => PORT,
        };
        registers.rdx = u64::from(write.size.saturating_sub(1)) | u64::from(write.port) << 16;
        (registers.r8, registers.r9) = (0, 0);
        registers.r10 = write.instruction_len();
    }

    /// TDG.VP.VMCALL: the hypervisor's, KVM and the monitor in one.
    fn vmcall(&mut self, registers: &mut TdRegisters) -> Reply {
        let [r12, r13, r14, r15] = [registers.r12, registers.r13, registers.r14, registers.r15];
        registers.rax = 0;
        registers.r10 = Status::Success as u64;
        match registers.r11 {
            number::FATAL => {
                let code = u8::try_from(r12).ok();
                return Reply::Terminated(code.and_then(Stop::from_code));
            }
            _ if self.is(Hostile::RefuseCalls) => registers.r10 = Status::Unsupported as u64,
            number::MAP_GPA => self.map_gpa(registers),
            number::GET_QUOTE => registers.r10 = self.get_quote(r12, r13) as u64,
            number::PORT if (r12, r13) == (4, 1) => {
                return Reply::Out(0, r14 as u16, r15 as u32);
            }
            number::CPUID => {
                let of = |at: usize| {
                    b"KVMKVMKVM\0\0\0"[at..]
                        .first_chunk()
                        .map_or(0, |b| u32::from_le_bytes(*b))
                };
                registers.r12 = 0x4000_0001;
                [registers.r13, registers.r14, registers.r15] = [of(0), of(4), of(8)].map(u64::from);
            }
            number::HALT | number::WRITE_MSR => {}
            _ => registers.r10 = Status::Unsupported as u64,
        }
        Reply::Value(0)
    }

    fn map_gpa(&mut self, registers: &mut TdRegisters) {
        let (gpa, len) = (registers.r12, registers.r13);
        match self.hostile {
            Some(Hostile::MapGpaNever) => {
                (registers.r10, registers.r11) = (RETRY, gpa);
                return;
            }
            Some(Hostile::MapGpaElsewhere) => {
                (registers.r10, registers.r11) = (RETRY, gpa & !SHARED_BIT);
                return;
            }
            Some(Hostile::MapGpaRefused) => {
                registers.r10 = Status::InvalidOperand as u64;
                return;
            }
            _ => {}
        }
        let now = len.min(AT_ONCE);
        let private = u64::from(gpa & SHARED_BIT == 0) << 4;
        let wish = [gpa & !SHARED_BIT, now / PAGE as u64, private, 0, 0, 0];
        let wish = PageState::parse(&wish, self.machine.slots());
        if wish.and_then(|wish| wish.grant(&mut self.machine)).is_err() {
            registers.r10 = Status::InvalidOperand as u64;
        } else if now < len {
            (registers.r10, registers.r11) = (RETRY, gpa + now);
        }
    }

    fn get_quote(&self, gpa: u64, len: u64) -> Status {
        // As KVM tells the monitor of it.
        let exit = Exit {
            nr: number::GET_QUOTE,
            words: [Status::Unsupported as u64, gpa & !SHARED_BIT, len, 0, 0, 0],
            ..Exit::default()
        };
        let (Call::GetQuote { gpa, size }, Some(quoter), Some(ram)) =
            (Call::parse(&exit), &self.quoter, self.ram())
        else {
            return Status::InvalidOperand;
        };
        let header = |status: u64, out: u64| {
            // Shared memory of this VM.
            let _ = ram.write(gpa + 8, &status.to_le_bytes());
            let _ = ram.write(gpa + 16, &(REPORT_BYTES as u64 | out << 32).to_le_bytes());
            Status::Success
        };
        match self.hostile {
            Some(Hostile::NoQuote) => Status::InvalidOperand,
            Some(Hostile::EarlyQuote) => header(status::SUCCESS, 0),
            Some(Hostile::LongQuote) => header(status::SUCCESS, size),
            Some(Hostile::NeverQuote) => header(status::IN_FLIGHT, 0),
            _ => quoter.begin(gpa, size, || ()),
        }
    }
}

impl Simulated for Live {
    fn notice(&self) -> String {
        NOTICE.to_owned()
    }

    fn bind(&mut self, memory: GuestRam) {
        self.machine.module.memory.ram = Some(memory.clone());
        let enclave = self.enclave.take();
        self.quoter = enclave.map(|enclave| Quoter::new(Arc::new(Window::new(memory)), enclave));
    }

    fn call(&mut self, vcpu: u32, call: SimCall, [first, _]: [u64; 2]) -> Reply {
        match call {
            SimCall::Tdcall => self.tdcall(vcpu, first),
            // Another platform's.
            _ => Reply::Terminated(None),
        }
    }

    fn intercept(&mut self, vcpu: u32, out: Out) -> Injection {
        if let Some(vector) = self.wild_interrupt(out) {
            return Injection {
                vector,
                error: None,
                behind: false,
            };
        }
        self.causes.insert(vcpu, out);
        Injection {
            vector: VECTOR,
            error: None,
            behind: false,
        }
    }

    fn starts_early(&self) -> bool {
        self.is(Hostile::EarlyVcpu)
    }

    fn change_cpuid(&self, cpuid: &mut CpuId) {
        if let Some(hostile) = self.hostile {
            hostile.change_cpuid(cpuid);
        }
    }
}

impl RunCalls for Live {
    fn set_attributes(&mut self, attributes: kvm_memory_attributes) -> Result<(), run_calls::Refusal> {
        self.machine.set_attributes(attributes)
    }

    fn discard(&mut self, gpa: u64, len: u64, backing: Backing) -> Result<(), run_calls::Refusal> {
        self.machine.discard(gpa, len, backing)
    }
}

impl LaunchCalls for Live {
    fn enable(&mut self, capability: u32, argument: u64) -> Result<(), Refusal> {
        LaunchCalls::enable(&mut self.machine, capability, argument)
    }

    fn supported_cpuid(&mut self) -> Result<Vec<CpuidEntry>, Refusal> {
        self.machine.supported_cpuid()
    }

    fn capabilities(&mut self, room: usize) -> Result<Offered, Refusal> {
        self.machine.capabilities(room)
    }

    fn init_vm(&mut self, mut data: kvm_tdx_init_vm, cpuid: &[CpuidEntry]) -> Result<(), Refusal> {
        match self.hostile {
            Some(Hostile::OtherConfigId) => data.mrconfigid[0] ^= 1,
            Some(Hostile::Debug) => data.attributes |= DEBUG,
            Some(Hostile::NoSeptVeDisable) => data.attributes &= !SEPT_VE_DISABLE,
            _ => {}
        }
        self.machine.init_vm(data, cpuid)
    }

    fn add_vcpu(&mut self, index: u32, cpuid: &[CpuidEntry]) -> Result<(), Refusal> {
        self.machine.add_vcpu(index, cpuid)
    }

    fn init_vcpu(&mut self, index: u32, rcx: u64) -> Result<(), Refusal> {
        self.machine.init_vcpu(index, rcx)
    }

    fn add_memory(&mut self, region: kvm_userspace_memory_region2) -> Result<(), Refusal> {
        self.machine.add_memory(region)
    }

    fn init_mem_region(
        &mut self,
        data: &mut kvm_tdx_init_mem_region,
        flags: u32,
        source: &[u8],
    ) -> Result<(), Refusal> {
        if self.is(Hostile::Shim) && data.gpa == KERNEL_GPA {
            // The last of the kernel's zeros, which belong to a vCPU that there is not: it runs all the same.
            let end = data.gpa + data.nr_pages * PAGE as u64;
            self.machine.module.memory.changed = Some(end - 1);
        }
        self.machine.init_mem_region(data, flags, source)
    }

    fn finalize(&mut self) -> Result<(), Refusal> {
        self.machine.finalize()
    }
}
