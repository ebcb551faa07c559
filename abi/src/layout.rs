//! The address plan: where things are in guest-physical and guest-virtual space.
//!
//! Guest-physical:
//! ```text
//! 0x0000_0000  never used (a null frame is always a mistake)
//! 0x0000_1000  boot block
//! 0x0000_2000  root page tables that vCPUs start on, one for each context
//! 0x0001_2000  where the launch is measured: secrets, CPUID values, the host's parameters, the image's page tables
//! 0x0020_0000  kernel image, per-vCPU kernel pages
//! ...          where the launch is measured: the libos as built, of which each context gets a copy
//! ...          for each context: its page-table pool, then its frames (3 GiB..4 GiB is a hole)
//! ...          segments that contexts share
//! 0xffff_f000  where the launch is measured: the page with the reset vector
//! 0x3f_ff00_0000  where the launch is measured: what kernel and hypervisor tell each other, and the configuration
//! 0x40_0000_0000  shared regions, one for each context: the only memory that both sides read and write
//! ```
//!
//! Guest-virtual: programs have the lower half but one 512 GiB slot, which is the libos's in every
//! address space; the upper half is the kernel's and never reachable from CPL 3. The libos is in the lower
//! half because some hosts run CPL 3 on page tables whose upper half is the host kernel's own.

/// Bytes of a page, and of a frame.
pub const PAGE: u64 = 4096;
/// Bytes of a large page; also the unit in which the kernel assigns frames to contexts.
pub const LARGE: u64 = 2 << 20;

/// Most vCPUs a VM may have.
pub const MAX_VCPUS: usize = 64;
/// Most contexts a VM may have.
pub const MAX_CONTEXTS: usize = 16;
/// Most segments that a context may share with others.
pub const MAX_SEGMENTS: usize = 4;
/// Most guest RAM in bytes: ownership tables and the physical windows are made for it.
pub const MAX_RAM: u64 = 240 << 30;
/// Least guest RAM in bytes: the shim's own needs and a small program.
pub const MIN_RAM: u64 = 32 << 20;

/// RAM below the hole that platforms keep for their interrupt controllers.
pub const HOLE_START: u64 = 3 << 30;
/// End of that hole.
pub const HOLE_END: u64 = 4 << 30;

/// Guest-physical address of the boot block.
pub const BOOT_GPA: u64 = 0x1000;
/// Guest-physical address of the first context's first root page table; those of the others follow it.
pub const ROOT_GPA: u64 = 0x2000;
/// SNP: the page that the firmware fills with keys for messages to it.
pub const SECRETS_GPA: u64 = 0x1_2000;
/// SNP: the page of CPUID values that the firmware checks.
pub const CPUID_GPA: u64 = 0x1_3000;
/// Measured launches: the one page whose content is the host's word ([`crate::boot::LaunchBlock::parameters`]).
pub const PARAMETERS_GPA: u64 = 0x1_4000;
/// Measured launches: the page tables that a vCPU starts on, the root first.
pub const LAUNCH_TABLES_GPA: u64 = 0x1_5000;
/// Most pages of those.
pub const LAUNCH_TABLES: u64 = 32;
/// Measured launches: the page that holds the reset vector, below 4 GiB; mapped where it lies.
pub const RESET_GPA: u64 = HOLE_END - PAGE;
/// Guest-physical address of the kernel image.
pub const KERNEL_GPA: u64 = LARGE;
/// Guest-physical address of the first context's shared region; those of the others follow it.
pub const SHARED_GPA: u64 = 0x40_0000_0000;

/// Measured launches: memory that the guest shares with the hypervisor itself, not with an OS service. A large page of
/// what the kernel alone reaches, then what its context reads, too.
pub const PLATFORM_GPA: u64 = SHARED_GPA - PLATFORM_LEN;
/// Bytes of it.
pub const PLATFORM_LEN: u64 = 16 << 20;
/// SNP: the GHCB pages, one for each vCPU.
pub const GHCBS_GPA: u64 = PLATFORM_GPA;
/// SNP: the page of requests to the security processor, and behind it the page of responses.
pub const MESSAGES_GPA: u64 = GHCBS_GPA + MAX_VCPUS as u64 * PAGE;
/// SNP: where the hypervisor leaves the certificates to a report.
pub const CERTIFICATES_GPA: u64 = PLATFORM_GPA + LARGE;
/// Most bytes of those.
pub const CERTIFICATES_LEN: u64 = 256 << 10;
/// Where the hypervisor leaves the configuration ([`crate::config`]), to the end of the region.
pub const CONFIG_GPA: u64 = PLATFORM_GPA + 2 * LARGE;
/// Most bytes of it.
pub const CONFIG_LEN: u64 = PLATFORM_GPA + PLATFORM_LEN - CONFIG_GPA;
/// Measured launches: what the measured page tables map of the window, from address 0 on.
pub const LAUNCH_WINDOW: u64 = 1 << 30;

/// Kernel image: guest-virtual = this + (gpa - [`KERNEL_GPA`]).
pub const KERNEL_VA: u64 = 0xffff_ffff_8020_0000;
/// The kernel's window on all of guest-physical RAM (supervisor only).
pub const KERNEL_PHYS_VA: u64 = 0xffff_8000_0000_0000;

/// Index in the root page table of the libos's slot.
pub const LIBOS_SLOT: usize = 222;
/// First address of the libos's slot; also where its image starts.
pub const LIBOS_BASE: u64 = (LIBOS_SLOT as u64) << 39;
/// First address after the libos's slot.
pub const LIBOS_END: u64 = LIBOS_BASE + (1 << 39);
/// Most bytes of the libos image with its zero-initialised data.
pub const LIBOS_IMAGE_MAX: u64 = 64 << 20;
/// Per-vCPU pages ([`crate::vcpu::VcpuBlock`]): one page each.
pub const LIBOS_VCPU_VA: u64 = LIBOS_BASE + (64 << 30);
/// The shared region as the libos sees it.
pub const LIBOS_SHARED_VA: u64 = LIBOS_BASE + (96 << 30);
/// The context's frames as the libos sees them: this + gpa. Page-table frames are read-only in it.
pub const LIBOS_PHYS_VA: u64 = LIBOS_BASE + (128 << 30);

/// Lowest address that a program may map.
pub const USER_MIN: u64 = 0x1_0000;
/// First address that a program may not map.
pub const USER_END: u64 = 0x7fff_ffff_f000;

/// Ports of each context: the kernel opens a context's own to it and no others.
const PORTS: u16 = 8;
const FIRST_PORT: u16 = 0x510;

/// The port on which the libos of context `index` wakes the OS service (an `ioeventfd`: no return to the monitor).
#[must_use]
pub const fn doorbell_port(index: u32) -> u16 {
    FIRST_PORT + PORTS * index as u16
}

/// The port on which a vCPU of context `index` leaves to the monitor: the 32-bit value is a
/// [`crate::vcpu::MonitorCall`].
#[must_use]
pub const fn monitor_port(index: u32) -> u16 {
    doorbell_port(index) + 4
}

/// Last port that any context uses.
pub const LAST_PORT: u16 = monitor_port(MAX_CONTEXTS as u32 - 1) + 3;

/// The port by which a kernel on simulated hardware reaches it ([`crate::sim`]).
pub const SIM_PORT: u16 = 0x500;

/// The interrupt vector that the monitor injects to make a vCPU look at its state.
pub const KICK_VECTOR: u8 = 0x20;

/// Whether `[va, va + len)` lies where a program may map pages.
#[must_use]
pub const fn is_user_range(va: u64, len: u64) -> bool {
    let Some(end) = va.checked_add(len) else {
        return false;
    };
    va >= USER_MIN && end <= USER_END && (end <= LIBOS_BASE || va >= LIBOS_END)
}

crate::tripwire!(LIBOS_BASE == 0x6f00_0000_0000, "libos link address");
crate::tripwire!(
    LIBOS_PHYS_VA + SHARED_GPA <= LIBOS_END,
    "physical window inside the libos slot"
);
crate::tripwire!(
    FIRST_PORT.is_multiple_of(8),
    "a context's ports are one byte of the I/O bitmap"
);
crate::tripwire!(
    ROOT_GPA + MAX_CONTEXTS as u64 * PAGE <= SECRETS_GPA,
    "root tables below the pages of a measured launch"
);
crate::tripwire!(
    LAUNCH_TABLES_GPA + LAUNCH_TABLES * PAGE <= KERNEL_GPA,
    "page tables of a measured launch below the kernel"
);
crate::tripwire!(
    MAX_RAM + (HOLE_END - HOLE_START) <= PLATFORM_GPA,
    "RAM below the shared regions"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_contexts_are_their_own() {
        assert_eq!((doorbell_port(0), monitor_port(0)), (0x510, 0x514));
        assert_eq!((doorbell_port(15), monitor_port(15)), (0x588, 0x58c));
        for index in 0..MAX_CONTEXTS as u32 {
            // One byte of the I/O bitmap, and no other context's.
            assert_eq!(doorbell_port(index) % 8, 0);
            assert!(monitor_port(index) + 3 < doorbell_port(index + 1));
        }
    }

    #[test]
    fn user_ranges_stop_at_the_libos_slot() {
        assert!(is_user_range(0x40_0000, PAGE));
        assert!(is_user_range(LIBOS_BASE - PAGE, PAGE));
        assert!(!is_user_range(LIBOS_BASE - PAGE, 2 * PAGE));
        assert!(!is_user_range(LIBOS_BASE, PAGE));
        assert!(!is_user_range(LIBOS_BASE - PAGE, 1 << 40));
        assert!(is_user_range(LIBOS_END, PAGE));
        assert!(!is_user_range(0, PAGE));
        assert!(!is_user_range(u64::MAX - 10, PAGE));
        assert!(!is_user_range(USER_END, PAGE));
    }
}
