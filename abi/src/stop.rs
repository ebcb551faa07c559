//! Why the kernel stops: numbers as it tells the monitor, and what they mean.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $n:literal, $text:literal;)*) => {
        /// A reason. Below 0x100 because a terminating guest of SNP has eight bits for it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Stop { $($(#[$doc])* $name = $n,)* }

        impl Stop {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The reason of a number.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($n => Some(Self::$name),)* _ => None }
            }

            /// In words.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// The block at the start is none of this version's.
    BootBlock = 1, "the boot block is not of this version, or of a platform that the kernel does not know";
    /// The libos's header is none.
    Libos = 2, "the libos is not of this version, or says that its entry points are elsewhere";
    /// A panic of the kernel's own.
    Panic = 3, "the kernel failed a check of its own";
    /// [`crate::boot::Parameters`].
    Parameters = 0x10, "the page of parameters: a size is wrong";
    /// RAM does not hold what it must.
    Memory = 0x11, "there is too little memory for the shim";
    /// The protocol between guest and hypervisor.
    Protocol = 0x20, "the hypervisor does not speak version 2 of the GHCB protocol";
    /// The C-bit.
    CBit = 0x21, "the hypervisor names another bit for private memory than the measured image has";
    /// An answer of another kind than the question.
    Answer = 0x22, "the hypervisor gave an answer to something that was not asked";
    /// GHCB registration.
    Register = 0x23, "the hypervisor registered another page for the GHCB than was asked for";
    /// A page-state change.
    PageState = 0x24, "the hypervisor did not change the state of pages as it said it would";
    /// PVALIDATE failed.
    Validate = 0x30, "a page can't be accepted: it is not the guest's at this address";
    /// PVALIDATE changed nothing.
    Twice = 0x31, "a page was accepted before: the hypervisor replays or remaps memory";
    /// RMPADJUST failed.
    Vmsa = 0x32, "a page can't be made the state of a vCPU";
    /// The CPUID page.
    CpuidTable = 0x40, "the table of CPUID values makes no sense";
    /// What it says of the C-bit.
    CpuidCBit = 0x41, "the table of CPUID values names another bit for private memory than the measured image has";
    /// What it says of vector state.
    CpuidState = 0x42, "the table of CPUID values has sizes of vector state that no processor has";
    /// The secrets page.
    Secrets = 0x43, "the page of secrets is not the firmware's";
    /// Creating a vCPU.
    Vcpu = 0x50, "the hypervisor refused to create a vCPU";
    /// TDG.VP.INFO: width of addresses.
    Width = 0x60, "the TDX module names another bit for shared memory than the measured image has";
    /// TDG.VP.INFO: attributes.
    Attributes = 0x61, "the host may debug the domain, or take its pages without stopping it (ATTRIBUTES)";
    /// A call of the module's that has to succeed.
    Module = 0x62, "the TDX module refused a call that it has to take";
    /// MapGPA.
    MapGpa = 0x63, "the hypervisor did not share memory as it was asked to";
    /// #VE of another kind.
    Exception = 0x64, "an exception (#VE) of a kind that nothing in the guest causes";
    /// #VE by memory.
    Mmio = 0x65, "an access to memory that is not there, or that the hypervisor wants to emulate (#VE)";
    /// #VE by a port.
    Port = 0x66, "an access of the kernel's to a port that it does not use (#VE)";
    /// An exception or an interrupt while the kernel runs.
    Interrupted = 0x70, "the kernel was interrupted: by a fault of its own, or by a hypervisor that injects what it must not";
    /// #VC, of a reason that the interrupted instruction does not give.
    Unfounded = 0x71, "the hypervisor intercepts (#VC), or says so, what the interrupted instruction does not do";
    /// #VC, of a reason that nothing is done about.
    Intercepted = 0x72, "the hypervisor intercepts (#VC) an instruction that neither the shim nor a program asks it for";
    /// #VC, of an access to memory.
    Device = 0x73, "an access to memory went to the hypervisor as one to a device (#VC, nested page fault)";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_one_reason() {
        for (index, stop) in Stop::ALL.iter().enumerate() {
            assert_eq!(Stop::from_code(*stop as u8), Some(*stop));
            assert!(Stop::ALL[..index].iter().all(|other| other.text() != stop.text()));
        }
        assert_eq!(Stop::from_code(0), None);
    }
}
