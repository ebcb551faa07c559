//! KVM's structures and numbers for TDX (Linux 6.16 and later, `arch/x86/include/uapi/asm/kvm.h`): no package has them.
//!
//! A test compares each with the kernel's headers by a C compiler.

/// Type of the VM.
pub const KVM_X86_TDX_VM: u64 = 5;
/// `KVM_TDX_CAPABILITIES`, of the VM.
pub const KVM_TDX_CAPABILITIES: u32 = 0;
/// `KVM_TDX_INIT_VM`, of the VM.
pub const KVM_TDX_INIT_VM: u32 = 1;
/// `KVM_TDX_INIT_VCPU`, of a vCPU.
pub const KVM_TDX_INIT_VCPU: u32 = 2;
/// `KVM_TDX_INIT_MEM_REGION`, of a vCPU.
pub const KVM_TDX_INIT_MEM_REGION: u32 = 3;
/// `KVM_TDX_FINALIZE_VM`, of the VM.
pub const KVM_TDX_FINALIZE_VM: u32 = 4;
/// Flag of `KVM_TDX_INIT_MEM_REGION`: the content is measured, too.
pub const KVM_TDX_MEASURE_MEMORY_REGION: u32 = 1;
/// Why a vCPU left: a TDVMCALL that is the monitor's to answer.
pub const KVM_EXIT_TDX: u32 = 40;
/// Type of a system event: the guest gave up.
pub const KVM_SYSTEM_EVENT_TDX_FATAL: u32 = 7;
/// `KVM_MEMORY_ENCRYPT_OP`, with which all commands are given, of a VM and of a vCPU.
pub const KVM_MEMORY_ENCRYPT_OP: u64 = 0xc008_aeba;

/// A command. `data` is a value or an address, by the command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct kvm_tdx_cmd {
    /// Which.
    pub id: u32,
    /// Its flags.
    pub flags: u32,
    /// Its argument.
    pub data: u64,
    /// The TDX module's completion status, from the kernel; zero on the way there.
    pub hw_error: u64,
}

/// One leaf of CPUID (`struct kvm_cpuid_entry2`).
pub type CpuidEntry = kvm_bindings::kvm_cpuid_entry2;

/// What a domain may be given. Leaves of CPUID follow it: the bits that are set are the ones that may be chosen.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct kvm_tdx_capabilities {
    /// ATTRIBUTES that may be set.
    pub supported_attrs: u64,
    /// XFAM bits that may be set.
    pub supported_xfam: u64,
    /// Calls beyond the base that the kernel answers by itself.
    pub kernel_tdvmcallinfo_1_r11: u64,
    /// Calls beyond the base that the monitor may offer.
    pub user_tdvmcallinfo_1_r11: u64,
    /// As above.
    pub kernel_tdvmcallinfo_1_r12: u64,
    /// As above.
    pub user_tdvmcallinfo_1_r12: u64,
    /// Zero.
    pub reserved: [u64; 250],
    /// Number of leaves.
    pub nent: u32,
    /// Zero.
    pub padding: u32,
}

impl Default for kvm_tdx_capabilities {
    fn default() -> Self {
        Self {
            supported_attrs: 0,
            supported_xfam: 0,
            kernel_tdvmcallinfo_1_r11: 0,
            user_tdvmcallinfo_1_r11: 0,
            kernel_tdvmcallinfo_1_r12: 0,
            user_tdvmcallinfo_1_r12: 0,
            reserved: [0; 250],
            nent: 0,
            padding: 0,
        }
    }
}

/// What a domain is. Leaves of CPUID follow it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct kvm_tdx_init_vm {
    /// ATTRIBUTES.
    pub attributes: u64,
    /// XFAM.
    pub xfam: u64,
    /// MRCONFIGID.
    pub mrconfigid: [u64; 6],
    /// MROWNER.
    pub mrowner: [u64; 6],
    /// MROWNERCONFIG.
    pub mrownerconfig: [u64; 6],
    /// Zero.
    pub reserved: [u64; 12],
    /// Number of leaves.
    pub nent: u32,
    /// Zero.
    pub padding: u32,
}

/// Pages to add. The kernel advances all three as it goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct kvm_tdx_init_mem_region {
    /// Address of the content in this process, a multiple of 4 KiB.
    pub source_addr: u64,
    /// Guest-physical address, a multiple of 4 KiB.
    pub gpa: u64,
    /// How many.
    pub nr_pages: u64,
}

const _: () = assert!(size_of::<kvm_tdx_cmd>() == 24);
const _: () = assert!(size_of::<kvm_tdx_capabilities>() == 256 * 8 + 8);
const _: () = assert!(
    size_of::<kvm_tdx_init_vm>() == 256 + 8,
    "TD_PARAMS has 256 bytes before its CPUID values"
);
const _: () = assert!(size_of::<kvm_tdx_init_mem_region>() == 24);
const _: () = assert!(size_of::<CpuidEntry>() == 40);
