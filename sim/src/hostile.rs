//! A hypervisor that does one thing that it must not: what the guest does about it is tested by running it.

use kvm_bindings::{
    KVM_SEV_SNP_PAGE_TYPE_CPUID, KVM_SEV_SNP_PAGE_TYPE_NORMAL, KVM_SEV_SNP_PAGE_TYPE_UNMEASURED,
    kvm_sev_snp_launch_update,
};

macro_rules! cases {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What it does.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Hostile { $($(#[$doc])* $name,)* }

        impl Hostile {
            /// All of them, by name.
            pub const ALL: &[(&str, Self)] = &[$(($text, Self::$name)),*];
        }
    };
}

cases! {
    /// It speaks version 1 of the GHCB protocol only.
    OldProtocol = "old-protocol",
    /// It names another C-bit.
    CBit = "c-bit",
    /// So does the table of CPUID values.
    CpuidCBit = "cpuid-c-bit",
    /// The table has no vector state.
    CpuidState = "cpuid-state",
    /// The table is longer than its page.
    CpuidCount = "cpuid-count",
    /// The page of parameters has more memory than there can be, which would reach into what is shared.
    Memory = "memory",
    /// It has less than the shim needs.
    LittleMemory = "little-memory",
    /// It has more vCPUs than there can be.
    Vcpus = "vcpus",
    /// The configuration is longer than its place, and would reach into the shared region.
    Config = "config",
    /// A byte of the measured shim is another.
    Shim = "shim",
    /// HOST_DATA is another manifest's.
    OtherHostData = "other-host-data",
    /// The configuration names another program than the manifest.
    OtherProgram = "other-program",
    /// It registers another page as the GHCB.
    OtherGhcb = "other-ghcb",
    /// It puts pages that were accepted before in the place of new ones.
    Replay = "replay",
    /// It puts its own pages there.
    Remap = "remap",
    /// It says of a page-state change that it goes on for ever.
    PageStateNever = "page-state-never",
    /// It says that it did another one.
    PageStateElsewhere = "page-state-elsewhere",
    /// It refuses.
    PageStateRefused = "page-state-refused",
    /// It delivers no message.
    DropMessages = "drop-messages",
    /// It gives the first answer to all messages.
    RepeatAnswers = "repeat-answers",
    /// It gives the answer before, under this one's number.
    ReorderAnswers = "reorder-answers",
    /// It changes a bit of answers.
    ChangeAnswers = "change-answers",
    /// It lets no page become the state of a vCPU.
    NoVmsa = "no-vmsa",
    /// It creates no vCPU.
    NoVcpu = "no-vcpu",
}

impl Hostile {
    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, case)| *case)
    }

    /// What it makes of pages that are launched.
    pub(crate) fn change(self, data: &kvm_sev_snp_launch_update, source: &mut [u8]) {
        let mut put = |at: usize, word: u64| source[at..at + 8].copy_from_slice(&word.to_le_bytes());
        let kind = u32::from(data.type_);
        if kind == KVM_SEV_SNP_PAGE_TYPE_UNMEASURED {
            // As `cloak_abi::boot::Parameters` has them.
            match self {
                Self::Memory => put(16, 1 << 40),
                Self::LittleMemory => put(16, 16 << 20),
                Self::Vcpus => put(24, 65),
                Self::Config => put(40, 64 << 20),
                _ => {}
            }
        }
        if kind == KVM_SEV_SNP_PAGE_TYPE_CPUID {
            let entries = source[16..].chunks_exact_mut(48).take(64);
            let leaf = |entry: &[u8]| u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
            for entry in entries {
                match (self, leaf(entry)) {
                    (Self::CpuidCBit, 0x8000_001f) => entry[28] = 47 | 1 << 6,
                    (Self::CpuidState, 0xd) if entry[4] == 0 => entry[24] = 1,
                    _ => {}
                }
            }
            if self == Self::CpuidCount {
                source[4..8].copy_from_slice(&1u32.to_le_bytes());
            }
        }
        if kind == KVM_SEV_SNP_PAGE_TYPE_NORMAL && self == Self::Shim && data.gfn_start == 0x200 {
            // The last of the kernel's zeros, which belong to a vCPU that there is not: it runs all the same.
            if let Some(last) = source.last_mut() {
                *last ^= 1;
            }
        }
    }
}
