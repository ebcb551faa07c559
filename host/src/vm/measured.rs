//! The start of a VM whose launch is measured: the image goes in page by page, and the guest does the rest itself.

use cloak_abi::boot::{PARAMETERS_MAGIC, Parameters};
use cloak_abi::exec::MEASURED_CONFIG_MAX;
use cloak_abi::layout::{CONFIG_GPA, LARGE, MAX_RAM, PAGE, RESET_GPA};
use kvm_bindings::CpuId;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::IntoBytes;

use super::ContextOptions;
use super::error::VmError;
use super::load::Placed;
use crate::image::memory::PageBytes;
use crate::image::program::Shim;
use crate::image::{C_BIT, LaunchImage, Measuring};
use crate::kvm::tdx::config::SEPT_VE_DISABLE;
use crate::kvm::{ram, snp, tdx};

/// What is launched, and in what.
#[derive(Debug)]
pub struct Measured {
    image: LaunchImage,
    /// Guest memory.
    pub memory: GuestMemoryMmap,
    /// Ranges of it that the guest has for itself.
    pub private: Vec<[u64; 2]>,
    ram: u64,
    first_frame: u64,
}

/// Where the guest's own memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// In ordinary memory, which simulated hardware opens and closes.
    Ram,
    /// In guest_memfd.
    GuestMemfd,
}

impl Measured {
    /// Reserves memory for the image and a context.
    ///
    /// # Errors
    /// [`VmError::MemoryTooLarge`], [`VmError::Shim`], or the kernel's refusal.
    pub fn new(context: &ContextOptions, platform: Measuring, backing: Backing) -> Result<Self, VmError> {
        let image = LaunchImage::new(&Shim::embedded()?, platform)?;
        let last = image
            .pages
            .iter()
            .map(|page| page.gpa)
            .filter(|gpa| *gpa != RESET_GPA)
            .max();
        let first_frame = (last.unwrap_or_default() + PAGE).next_multiple_of(LARGE);
        let ram = first_frame + (context.memory & !(LARGE - 1));
        if ram > MAX_RAM {
            return Err(VmError::MemoryTooLarge {
                asked: context.memory >> 20,
                most: (MAX_RAM - first_frame) >> 20,
            });
        }
        let (private, memory) = match backing {
            Backing::Ram => ram::reserve_private(ram)?,
            Backing::GuestMemfd => ram::reserve_shared(ram)?,
        };
        Ok(Self {
            image,
            memory,
            private,
            ram,
            first_frame,
        })
    }

    /// Launches an SNP guest.
    ///
    /// # Errors
    /// [`VmError::Snp`]: which step, and why.
    pub fn launch_snp<C: snp::calls::LaunchCalls>(
        &self,
        calls: C,
        context: &ContextOptions,
        cpuid: &CpuId,
        tsc_khz: u64,
        certificates: bool,
    ) -> Result<snp::Launched<C>, VmError> {
        let options = snp::Options {
            policy: snp::POLICY,
            vcpus: context.vcpus as u32,
            host_data: context.host_data,
            cpuid: cpuid_page(cpuid),
            parameters: self.parameters(context, tsc_khz)?,
            id: context.id_block.clone(),
            certificates,
        };
        let guest = snp::Configured::new(calls, self.image.clone(), options)?;
        Ok(guest.start()?.back(&self.private)?.add()?.vcpus()?.finish()?)
    }

    /// The same for a TDX domain.
    ///
    /// # Errors
    /// [`VmError::Tdx`]: which step, and why.
    pub fn launch_tdx<C: tdx::calls::LaunchCalls>(
        &self,
        calls: C,
        context: &ContextOptions,
        tsc_khz: u64,
    ) -> Result<tdx::Finalized<C>, VmError> {
        let options = tdx::Options {
            attributes: SEPT_VE_DISABLE,
            vcpus: context.vcpus as u32,
            mr_config_id: context.config_id,
            parameters: self.parameters(context, tsc_khz)?,
        };
        let domain = tdx::Configured::new(calls, self.image.clone(), options)?;
        Ok(domain.init()?.vcpus()?.back(&self.private)?.add()?.finalize()?)
    }

    /// Leaves the configuration where the guest takes it; gives the page of parameters.
    fn parameters(&self, context: &ContextOptions, tsc_khz: u64) -> Result<Box<PageBytes>, VmError> {
        let config = &context.config;
        if config.len() as u64 > MEASURED_CONFIG_MAX {
            return Err(VmError::ConfigTooLarge {
                bytes: config.len(),
                most: MEASURED_CONFIG_MAX as usize,
            });
        }
        let config_gpa = GuestAddress(CONFIG_GPA);
        let written = self.memory.write_slice(config, config_gpa);
        written.map_err(|_| VmError::Shim("no room for the configuration"))?;
        let parameters = Parameters {
            magic: PARAMETERS_MAGIC,
            version: cloak_abi::VERSION.into(),
            memory: self.ram,
            vcpus: context.vcpus as u64,
            tsc_khz,
            config_len: config.len() as u64,
            identity: context.identity,
        };
        let mut page: Box<PageBytes> = Box::new([0; PAGE as usize]);
        page[..size_of::<Parameters>()].copy_from_slice(parameters.as_bytes());
        Ok(page)
    }

    /// Where the first vCPU starts.
    pub fn entry(&self) -> u64 {
        self.image.first.rip
    }

    /// What the monitor has to know of the context.
    pub fn placed(&self, context: &ContextOptions) -> Placed {
        let config_len = context.config.len() as u64;
        let (low, high) = ram::split(self.ram);
        let beyond = cloak_abi::layout::HOLE_END;
        Placed {
            root: self.image.first.root,
            first_vcpu: 0,
            frames: [
                [self.first_frame, low],
                if high > 0 { [beyond, beyond + high] } else { [0, 0] },
            ],
            anchors: cloak_abi::anchor::page_at(CONFIG_GPA, config_len),
            exec: cloak_abi::exec::head_at(CONFIG_GPA, config_len),
            free_frames: self.first_frame,
        }
    }
}

/// Leaves of CPUID that a guest asks for, with their subleaves.
const LEAVES: &[(u32, u32)] = &[
    (0, 0),
    (1, 0),
    (7, 1),
    (0xb, 1),
    (0xd, 31),
    (0x8000_0000, 0),
    (0x8000_0001, 0),
    (0x8000_0002, 0),
    (0x8000_0003, 0),
    (0x8000_0004, 0),
    // Caches, by which the C library chooses how it copies; the clock; topology; what is of no use to attackers.
    (0x8000_0005, 0),
    (0x8000_0006, 0),
    (0x8000_0007, 0),
    (0x8000_0008, 0),
    (0x8000_0019, 0),
    (0x8000_001a, 0),
    (0x8000_001d, 3),
    (0x8000_001e, 0),
    (0x8000_0021, 0),
];

/// The page of CPUID values that the firmware checks and the guest keeps: what KVM offers, and encrypted memory.
fn cpuid_page(cpuid: &CpuId) -> Box<PageBytes> {
    const MOST: usize = 64;
    let offered = cpuid.as_slice().iter().filter(|entry| {
        let wanted = |(leaf, last): &(u32, u32)| *leaf == entry.function && entry.index <= *last;
        LEAVES.iter().any(wanted)
    });
    let mut entries: Vec<[u32; 12]> = offered
        .map(|e| {
            // Sizes of vector state are those of the state at the start.
            let state = u32::from(e.function == 0xd && e.index <= 1);
            let size = if e.function == 0xd && e.index <= 1 {
                0x240
            } else {
                e.ebx
            };
            [
                e.function, e.index, state, 0, 0, 0, e.eax, size, e.ecx, e.edx, 0, 0,
            ]
        })
        .take(MOST - 1)
        .collect();
    // SEV, SEV-ES and SNP; the C-bit, and one bit less of physical addresses.
    let memory = [
        0x8000_001f,
        0,
        0,
        0,
        0,
        0,
        0x1a,
        C_BIT.trailing_zeros() | 1 << 6,
        0,
        0,
        0,
        0,
    ];
    entries.push(memory);
    let mut page: Box<PageBytes> = Box::new([0; PAGE as usize]);
    page[..4].copy_from_slice(&(entries.len() as u32).to_le_bytes());
    for (to, word) in page[16..]
        .as_chunks_mut::<4>()
        .0
        .iter_mut()
        .zip(entries.iter().flatten())
    {
        *to = word.to_le_bytes();
    }
    page
}
