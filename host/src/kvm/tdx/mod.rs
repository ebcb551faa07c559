//! The launch of a TDX domain, without firmware in the guest: Linux 6.16 and later, `Documentation/virt/kvm/x86/intel-tdx.rst`.
//!
//! ```text
//! Configured ─init─▶ Initialised ─vcpus─▶ Staffed ─back─▶ Backed ─add─▶ Populated ─finalize─▶ Finalized
//!           capabilities,        SET_CPUID2,     memfd,         pages,           the MRTD
//!           INIT_VM              INIT_VCPU       slots,         measured         is fixed
//!                                                private        one by one
//! ```
//! vCPUs come before pages, unlike on SNP: pages are added through one. Each step consumes the state before it, and
//! [`Finalized`] takes [`RunCalls`] only, so that nothing can be added after the measurement is fixed:
//!
//! ```
//! # use cloak_host::kvm::tdx::{Finalized, calls::{LaunchCalls, RunCalls}};
//! fn after<C: LaunchCalls>(mut domain: Finalized<C>, pages: kvm_bindings::kvm_memory_attributes) {
//!     domain.set_attributes(pages).ok();
//! }
//! ```
//! ```compile_fail,E0599
//! # use cloak_host::kvm::tdx::{Finalized, calls::{LaunchCalls, RunCalls}, abi::kvm_tdx_init_mem_region};
//! fn after<C: LaunchCalls>(mut domain: Finalized<C>, mut pages: kvm_tdx_init_mem_region) {
//!     domain.init_mem_region(&mut pages, 1, &[]).ok();
//! }
//! ```
//! What a domain asks for after its launch is in [`tdvmcall`](crate::tdvmcall).
//! None of this has run on TDX hardware: `docs/platforms.md`.

#[allow(non_camel_case_types, reason = "the kernel's own names")]
pub mod abi;
pub mod calls;
pub mod config;
pub mod error;
pub mod kernel;
pub mod status;

use cloak_abi::layout::PAGE;
use kvm_bindings::{KVM_CAP_EXIT_HYPERCALL, KVM_CAP_SPLIT_IRQCHIP, kvm_memory_attributes};

use self::abi::{CpuidEntry, KVM_TDX_MEASURE_MEMORY_REGION, kvm_tdx_init_mem_region, kvm_tdx_init_vm};
use self::calls::{Backing, LaunchCalls, Offered, Refusal, RunCalls};
use self::config::Config;
use self::error::{At, Step, TdxError};
use self::status::ModuleStatus;
use crate::image::memory::PageBytes;
use crate::image::{Kind, LaunchImage, Measuring};
use crate::kvm::protected::{TRIES, slot};
use crate::kvm::run_calls;
use crate::kvm::snp::KVM_HC_MAP_GPA_RANGE;

/// Interrupt lines of the I/O APIC that there isn't: KVM wants a number.
const ROUTES: u64 = 24;
/// Room for leaves of CPUID at the first asking, and the most that is given (KVM's own limit).
const ROOM: [usize; 2] = [32, 256];

/// What is not the image's.
#[derive(Debug, Clone)]
pub struct Options {
    /// ATTRIBUTES, as [`config::SEPT_VE_DISABLE`].
    pub attributes: u64,
    /// vCPUs, at least 1.
    pub vcpus: u32,
    /// MRCONFIGID: SHA-384 of the manifest.
    pub mr_config_id: [u8; 48],
    /// The page of parameters.
    pub parameters: Box<PageBytes>,
}

/// Nothing done yet.
#[derive(Debug)]
pub struct Configured<C> {
    calls: C,
    image: LaunchImage,
    options: Options,
}

#[derive(Debug)]
struct Launching<C> {
    configured: Configured<C>,
    supported: Vec<CpuidEntry>,
    /// Calls beyond the base that the guest may make: `GetTdVmCallInfo`, R11.
    offered_calls: u64,
}

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name<C>(Launching<C>);
    )*};
}

states! {
    /// The module has a domain, with nothing in it.
    Initialised,
    /// The domain has all its vCPUs.
    Staffed,
    /// The domain has private memory.
    Backed,
    /// All pages of the image are in it, and measured.
    Populated
}

/// The domain can run. Nothing can be added any more.
#[derive(Debug)]
pub struct Finalized<C> {
    calls: C,
    offered_calls: u64,
}

impl<C: LaunchCalls> Configured<C> {
    /// What to launch, on which VM of type 5.
    ///
    /// # Errors
    /// [`TdxError::Request`]: another platform's image, no vCPU.
    pub fn new(calls: C, image: LaunchImage, options: Options) -> Result<Self, TdxError> {
        let wrong = |problem| TdxError::Request {
            step: Step::Init,
            problem,
        };
        if image.platform != Measuring::Tdx {
            return Err(wrong("the image is another platform's"));
        }
        if options.vcpus == 0 {
            return Err(wrong("a domain has at least one vCPU"));
        }
        Ok(Self {
            calls,
            image,
            options,
        })
    }

    /// Makes the domain, of what the machine offers.
    ///
    /// # Errors
    /// [`TdxError::Refused`], as in all that follow; [`TdxError::Lacking`].
    pub fn init(mut self) -> Result<Initialised<C>, TdxError> {
        let calls = &mut self.calls;
        calls
            .enable(KVM_CAP_SPLIT_IRQCHIP, ROUTES)
            .at(Step::SplitIrqchip)?;
        // Without it every page-state change of the guest fails.
        calls
            .enable(KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE)
            .at(Step::ExitHypercall)?;
        let supported = calls.supported_cpuid().at(Step::SupportedCpuid)?;
        let offered = capabilities(calls)?;
        let config = Config::choose(&offered, &supported, self.options.attributes)?;
        let data = kvm_tdx_init_vm {
            attributes: config.attributes,
            xfam: config.xfam,
            mrconfigid: words(&self.options.mr_config_id),
            ..Default::default()
        };
        patiently(|| calls.init_vm(data, &config.cpuid)).at(Step::Init)?;
        Ok(Initialised(Launching {
            configured: self,
            supported,
            offered_calls: config.calls,
        }))
    }
}

/// The kernel doesn't say how many leaves there are, only that there are more.
fn capabilities(calls: &mut impl LaunchCalls) -> Result<Offered, TdxError> {
    let [mut room, most] = ROOM;
    loop {
        match calls.capabilities(room) {
            Err(refusal) if refusal.source.raw_os_error() == Some(libc::E2BIG) && room < most => {
                room = (room * 2).min(most);
            }
            result => return result.at(Step::Capabilities),
        }
    }
}

/// Makes a call again that failed for a reason that passes.
fn patiently(mut call: impl FnMut() -> Result<(), Refusal>) -> Result<(), Refusal> {
    let mut tries = 0;
    loop {
        match call() {
            Err(refusal) if passes(&refusal) && tries < TRIES => tries += 1,
            result => return result,
        }
    }
}

fn passes(refusal: &Refusal) -> bool {
    let errno = refusal.source.raw_os_error();
    matches!(errno, Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) || ModuleStatus(refusal.module).passes()
}

/// A digest as the kernel's structures have it.
fn words(digest: &[u8; 48]) -> [u64; 6] {
    let (words, _) = digest.as_chunks::<8>();
    let mut result = [0; 6];
    result
        .iter_mut()
        .zip(words)
        .for_each(|(to, from)| *to = u64::from_le_bytes(*from));
    result
}

impl<C: LaunchCalls> Initialised<C> {
    /// Makes the vCPUs. All start alike, at the image's reset vector; neither their number nor their state is measured.
    ///
    /// # Errors
    /// As above.
    pub fn vcpus(mut self) -> Result<Staffed<C>, TdxError> {
        let Launching {
            configured,
            supported,
            ..
        } = &mut self.0;
        for index in 0..configured.options.vcpus {
            let cpuid = config::for_vcpu(supported, index);
            configured.calls.add_vcpu(index, &cpuid).at(Step::Vcpu(index))?;
            patiently(|| configured.calls.init_vcpu(index, 0)).at(Step::InitVcpu(index))?;
        }
        Ok(Staffed(self.0))
    }
}

impl<C: LaunchCalls> Staffed<C> {
    /// Gives it memory: guest-physical ranges, whole pages, that do not overlap. All of it begins private.
    ///
    /// # Errors
    /// As above.
    pub fn back(mut self, ranges: &[[u64; 2]]) -> Result<Backed<C>, TdxError> {
        let calls = &mut self.0.configured.calls;
        for (number, &range) in (0..).zip(ranges) {
            let wrong = |problem| TdxError::Request {
                step: Step::Memory,
                problem,
            };
            let (region, private) = slot(number, range).map_err(wrong)?;
            if range[1] > config::SHARED_BIT {
                return Err(wrong(
                    "a range of memory reaches the bit that makes an address shared",
                ));
            }
            calls.add_memory(region).at(Step::Memory)?;
            calls.set_attributes(private).at(Step::Private)?;
        }
        Ok(Backed(self.0))
    }
}

impl<C: LaunchCalls> Backed<C> {
    /// Adds the image's pages in their order, which is measured.
    ///
    /// # Errors
    /// As above; [`TdxError::NoProgress`]; [`TdxError::Request`]: a page of a kind that TDX does not have.
    pub fn add(mut self) -> Result<Populated<C>, TdxError> {
        let Configured {
            calls,
            image,
            options,
        } = &mut self.0.configured;
        for run in image.runs() {
            let mut pages = Vec::with_capacity(run.len());
            for page in run {
                pages.push(Aligned(match page.kind {
                    Kind::Measured => *page.contents,
                    Kind::Unmeasured => *options.parameters,
                    Kind::Secrets | Kind::Cpuid => {
                        return Err(TdxError::Request {
                            step: Step::Region(page.gpa),
                            problem: "a page of a kind that only SNP has",
                        });
                    }
                }));
            }
            add_run(
                calls,
                run[0].gpa,
                run[0].kind,
                zerocopy::IntoBytes::as_bytes(&pages[..]),
            )?;
        }
        Ok(Populated(self.0))
    }
}

/// A page where the kernel takes it from: it wants whole pages on this side, too.
#[derive(zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C, align(4096))]
struct Aligned(PageBytes);

/// The kernel adds page by page, says how far it came, and wants to be asked again.
fn add_run(calls: &mut impl LaunchCalls, gpa: u64, kind: Kind, bytes: &[u8]) -> Result<(), TdxError> {
    let mut data = kvm_tdx_init_mem_region {
        source_addr: bytes.as_ptr() as u64,
        gpa,
        nr_pages: bytes.len() as u64 / PAGE,
    };
    let flags = match kind {
        Kind::Measured => KVM_TDX_MEASURE_MEMORY_REGION,
        _ => 0,
    };
    let mut idle = 0;
    while data.nr_pages > 0 {
        let (before, at) = (data.nr_pages, data.gpa);
        let step = Step::Region(at);
        match calls.init_mem_region(&mut data, flags, bytes) {
            Ok(()) if data.nr_pages == before => return Err(TdxError::NoProgress { step }),
            Ok(()) => idle = 0,
            Err(refusal) => {
                if !passes(&refusal) || idle >= TRIES {
                    return Err(refusal).at(Step::Region(data.gpa));
                }
                idle = if data.nr_pages < before { 0 } else { idle + 1 };
            }
        }
        // What it says has been done has to be what was asked for: else pages would be missing from the measurement.
        let done = before.checked_sub(data.nr_pages);
        if done.and_then(|pages| pages.checked_mul(PAGE)) != data.gpa.checked_sub(at) {
            return Err(TdxError::NoProgress { step });
        }
    }
    Ok(())
}

impl<C: LaunchCalls> Populated<C> {
    /// Ends the launch: the module fixes the measurement.
    ///
    /// # Errors
    /// As above.
    pub fn finalize(self) -> Result<Finalized<C>, TdxError> {
        let mut calls = self.0.configured.calls;
        patiently(|| calls.finalize()).at(Step::Finalize)?;
        Ok(Finalized {
            calls,
            offered_calls: self.0.offered_calls,
        })
    }
}

/// The calls that may still be made.
impl<C: LaunchCalls> RunCalls for Finalized<C> {
    fn set_attributes(&mut self, attributes: kvm_memory_attributes) -> Result<(), run_calls::Refusal> {
        self.calls.set_attributes(attributes)
    }

    fn discard(&mut self, gpa: u64, len: u64, backing: Backing) -> Result<(), run_calls::Refusal> {
        self.calls.discard(gpa, len, backing)
    }
}

impl<C: LaunchCalls> Finalized<C> {
    /// What [`Call::GetTdVmCallInfo`](crate::tdvmcall::Call::GetTdVmCallInfo) is answered with.
    #[must_use]
    pub fn offered_calls(&self) -> u64 {
        self.offered_calls
    }
}

#[cfg(test)]
pub(crate) mod tests;
