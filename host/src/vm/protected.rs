//! A VM that hardware protects: from the machine that was asked for to a guest that has been launched.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VmFd};

use super::border::Border;
use super::clock::Clock;
use super::error::{Step, VmError};
use super::fill::{Below, Loaded};
use super::measured::{Backing, Measured};
use super::phases::Phases;
use super::slots::{add_doorbells, add_memory};
use super::{Options, snp, tdx};
use crate::image::Measuring;
use crate::kvm::snp::kernel::KvmSnp;
use crate::kvm::tdx::kernel::KvmTdx;
use crate::platform::{Certificates, GuestRam, Machine};
use crate::tdvmcall::courier::Courier;

/// A VM that hardware protects, before its launch.
pub enum Protected {
    /// SEV-SNP, and what goes with reports.
    Snp(KvmSnp, Certificates),
    /// TDX, and who fetches quotes.
    Tdx(KvmTdx, Courier),
}

impl Protected {
    /// Takes the machine where it is one in hardware.
    ///
    /// # Errors
    /// Why there can be no such VM.
    pub fn of(kvm: &Kvm, machine: &mut Machine) -> Result<Option<Self>, VmError> {
        Ok(match std::mem::take(machine) {
            Machine::Snp(certificates) => Some(Self::Snp(KvmSnp::create(kvm)?, certificates)),
            Machine::Tdx(quotes) => Some(Self::Tdx(KvmTdx::create(kvm)?, quotes)),
            other => {
                *machine = other;
                None
            }
        })
    }

    /// The VM itself.
    pub fn vm(&self) -> Arc<VmFd> {
        match self {
            Self::Snp(snp, _) => snp.vm(),
            Self::Tdx(tdx, _) => tdx.vm(),
        }
    }

    /// Fills it: what the guest has for itself is in guest_memfd, and its vCPUs come with the launch.
    ///
    /// # Errors
    /// Which step failed, and what to try.
    pub fn load(
        self,
        kvm: &Kvm,
        borders: &[Border],
        phases: &mut Phases,
        options: &Options,
    ) -> Result<Loaded, VmError> {
        let context = &options.contexts[0];
        let vm = self.vm();
        let platform = match &self {
            Self::Snp(..) => Measuring::Snp,
            Self::Tdx(..) => Measuring::Tdx,
        };
        let measured = Measured::new(context, platform, Backing::GuestMemfd)?;
        let memory = measured.memory.clone();
        let ordinary = measured.private.len() as u32;
        add_memory(&vm, ordinary, &memory, borders)?;
        for (index, border) in (0..).zip(borders) {
            add_doorbells(&vm, index, border)?;
        }
        phases.done("guest memory and its slots");
        let cpuid = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .step("reading KVM's CPUID")?;
        let shared = GuestRam::new(memory.clone());
        let own = measured.private.clone();
        let (tsc_khz, below, (vcpus, offset), entry, placed) = match self {
            Self::Snp(snp, Certificates(certificates)) => {
                let tsc_khz = snp.tsc_khz()?;
                let asked = !certificates.is_empty();
                let (mut guest, entry, placed) = measured.launch_snp(snp, context, &cpuid, tsc_khz, asked)?;
                let vcpus = guest.take_vcpus();
                let guest = snp::Guest::new(guest, own, certificates, shared);
                (tsc_khz, Below::Snp(Arc::new(guest)), vcpus, entry, placed)
            }
            Self::Tdx(tdx, quotes) => {
                let tsc_khz = tdx.tsc_khz()?;
                let (mut domain, entry, placed) = measured.launch_tdx(tdx, context, tsc_khz)?;
                let vcpus = domain.take_vcpus();
                let domain = tdx::Domain::new(domain, own, shared, quotes, vm);
                (tsc_khz, Below::Tdx(Arc::new(domain)), vcpus, entry, placed)
            }
        };
        phases.done("loading the shim");
        Ok(Loaded {
            memory,
            cpuid,
            clock: Clock::new(tsc_khz, offset),
            entry,
            placed: vec![placed],
            below,
            made: vcpus.into_iter().map(Some).collect(),
        })
    }
}
