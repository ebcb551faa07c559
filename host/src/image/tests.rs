use std::collections::HashMap;

use cloak_abi::kcall::{PTE_ADDR, PTE_P, PTE_PS, PTE_U};
use cloak_abi::layout::{LIBOS_BASE, SIM_PORT};
use cloak_abi::sim::{SimCall, TdRegisters};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use zerocopy::FromBytes;

use super::*;

fn image(platform: Measuring) -> LaunchImage {
    LaunchImage::new(&Shim::embedded().expect("our own"), platform).expect("an image")
}

/// ELF structures are read in place: a copy has to be aligned as the original is.
struct Aligned(Vec<u64>, usize);

impl Aligned {
    fn of(bytes: &[u8]) -> Self {
        let words = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        });
        Self(words.collect(), bytes.len())
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0.as_mut_bytes()[..self.1]
    }
}

#[test]
fn two_descriptions_of_one_shim_are_equal() {
    for platform in [Measuring::Snp, Measuring::Tdx] {
        assert_eq!(image(platform), image(platform));
    }
    assert_ne!(image(Measuring::Snp), image(Measuring::Tdx));
}

#[test]
fn pages_come_once_and_in_the_order_of_their_addresses() {
    for platform in [Measuring::Snp, Measuring::Tdx] {
        let image = image(platform);
        assert!(image.pages.iter().all(|page| page.gpa.is_multiple_of(PAGE)));
        assert!(image.pages.is_sorted_by(|a, b| a.gpa < b.gpa));
        let of = |kind| {
            let own = image.pages.iter().filter(|page| page.kind == kind);
            own.map(|page| page.gpa).collect::<Vec<_>>()
        };
        assert_eq!(of(Kind::Unmeasured), [PARAMETERS_GPA]);
        let snp = platform == Measuring::Snp;
        assert_eq!(of(Kind::Secrets), if snp { vec![SECRETS_GPA] } else { vec![] });
        assert_eq!(of(Kind::Cpuid), if snp { vec![CPUID_GPA] } else { vec![] });
        let host = image.pages.iter().filter(|page| page.kind != Kind::Measured);
        assert!(host.into_iter().all(|page| page.contents.iter().all(|&b| b == 0)));
    }
}

/// Every byte of both programs that is loaded is on a measured page, where it belongs.
#[test]
fn a_byte_of_either_program_changes_one_page() {
    let before = image(Measuring::Snp);
    let (mut kernel, mut libos) = (
        Aligned::of(cloak_shim_image::KERNEL),
        Aligned::of(cloak_shim_image::LIBOS),
    );
    // In the text of each: their files' first parts start at the second page.
    let mut changed_pages = |change_kernel: bool, at: usize| {
        let file = if change_kernel { &mut kernel } else { &mut libos };
        file.bytes()[at] ^= 1;
        let shim = Shim::of(kernel.bytes(), libos.bytes()).expect("still a shim");
        let after = LaunchImage::new(&shim, Measuring::Snp).expect("an image");
        let file = if change_kernel { &mut kernel } else { &mut libos };
        file.bytes()[at] ^= 1;
        assert_eq!(before.pages.len(), after.pages.len());
        let pairs = before.pages.iter().zip(&after.pages);
        pairs
            .filter(|(a, b)| a != b)
            .map(|(a, _)| a.gpa)
            .collect::<Vec<_>>()
    };
    assert_eq!(changed_pages(true, 0x1000 + 0x1234), [KERNEL_GPA + 0x1000]);
    let libos = changed_pages(false, 0x1000 + 0x4321);
    assert_eq!(libos.len(), 1);
    assert!(libos[0] > KERNEL_GPA);
}

#[test]
fn the_block_names_the_parts_of_the_libos() {
    let image = image(Measuring::Snp);
    let page = |gpa| {
        let found = image.pages.iter().find(|page| page.gpa == gpa);
        found.expect("a page of the image")
    };
    let (block, _) = LaunchBlock::read_from_prefix(&page(BOOT_GPA).contents[..]).expect("long enough");
    assert_eq!(
        (block.magic, block.platform, block.private),
        (LAUNCH_MAGIC, 1, C_BIT)
    );
    assert_ne!(
        block.magic,
        cloak_abi::boot::BOOT_MAGIC,
        "a kernel for plain KVM stops at it"
    );
    let first = block.libos[0];
    assert_eq!(first.va, LIBOS_BASE);
    assert_eq!(
        page(first.gpa).contents[..],
        Shim::embedded().expect("own").libos.parts[0].data[..PAGE as usize]
    );
    let last = block
        .libos
        .iter()
        .rev()
        .find(|part| part.memory > 0)
        .expect("parts");
    assert_eq!(block.end, (last.gpa + last.content).next_multiple_of(PAGE));
    assert!(
        image
            .pages
            .iter()
            .all(|page| page.gpa < block.end || page.gpa == RESET_GPA)
    );
}

/// What the measured tables map, page by page: address, where to, entry. 2 MiB pages as one.
fn mapped(image: &LaunchImage) -> Vec<(u64, u64)> {
    let pages: HashMap<u64, &PageBytes> = image.pages.iter().map(|p| (p.gpa, &*p.contents)).collect();
    let private = image.platform.private();
    let mut found = Vec::new();
    let mut tables = vec![(image.first.root, 0u64, 39u32)];
    while let Some((table, base, shift)) = tables.pop() {
        for (index, entry) in pages[&table].as_chunks::<8>().0.iter().enumerate() {
            let entry = u64::from_le_bytes(*entry);
            if entry & PTE_P == 0 {
                continue;
            }
            let shared = entry & PTE_PS != 0 && entry & PTE_ADDR & !C_BIT >= PLATFORM_GPA;
            assert_eq!(
                entry & C_BIT,
                if shared { 0 } else { private },
                "every entry says that its page is private, but for what is shared with the hypervisor"
            );
            let bit = image.platform.shared();
            assert_eq!(
                entry & bit,
                if shared { bit } else { 0 },
                "what is shared says so on TDX"
            );
            let va = base | (index as u64) << shift;
            if shift == 12 || entry & PTE_PS != 0 {
                found.push((va, entry));
            } else {
                tables.push((entry & PTE_ADDR & !C_BIT, va, shift - 9));
            }
        }
    }
    found
}

#[test]
fn the_measured_tables_map_the_kernel_and_two_windows() {
    for platform in [Measuring::Snp, Measuring::Tdx] {
        let image = image(platform);
        let mapped = mapped(&image);
        let shim = Shim::embedded().expect("own");
        assert!(
            mapped.iter().all(|(_, entry)| entry & PTE_U == 0),
            "for CPL 0 only"
        );
        let executable = mapped.iter().filter(|(_, entry)| entry & PTE_NX == 0);
        for (va, entry) in executable {
            assert_eq!(entry & PTE_W, 0, "{va:#x} can be written and executed");
        }
        let canonical = |va: u64| ((va << 16) as i64 >> 16) as u64;
        let kernel = mapped
            .iter()
            .filter(|(va, _)| canonical(*va) >= KERNEL_VA)
            .count() as u64;
        let parts = shim.kernel.parts.iter();
        let wanted: u64 = parts
            .map(|p| ((p.va + p.memory).next_multiple_of(PAGE) - (p.va & !(PAGE - 1))) / PAGE)
            .sum();
        assert_eq!(kernel, wanted);
        let platform = PLATFORM_GPA..PLATFORM_GPA + PLATFORM_LEN;
        let bits = C_BIT | image.platform.shared();
        let mut where_to = mapped.iter().map(|(_, entry)| entry & PTE_ADDR & !bits);
        let known = |gpa| gpa < LAUNCH_WINDOW || gpa == RESET_GPA || platform.contains(&gpa);
        assert!(where_to.all(known));
    }
}

/// RAM with the image in it, and the page of the reset vector.
fn launched(vm: &VmFd, image: &LaunchImage) -> GuestMemoryMmap {
    let ranges = [
        (GuestAddress(0), 64 << 20),
        (GuestAddress(RESET_GPA), PAGE as usize),
    ];
    let memory = GuestMemoryMmap::from_ranges(&ranges).expect("RAM");
    for (slot, (start, len)) in (0..).zip(ranges) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: start.0,
            memory_size: len as u64,
            userspace_addr: memory.get_host_address(start).expect("inside") as u64,
        };
        // SAFETY: the mapping outlives the VM in each test, and only the guest and vm-memory reach it.
        unsafe { vm.set_user_memory_region(region) }.expect("a slot");
    }
    for page in &image.pages {
        memory
            .write_slice(&page.contents[..], GuestAddress(page.gpa))
            .expect("inside");
    }
    memory
}

/// The state that a TDX module gives a vCPU: flat 32-bit protected mode, paging off, at the reset vector; and the measured
/// state of an SNP one. From both the kernel gets as far as its first question to the TDX module, which is not there: it asks
/// simulated hardware, as a kernel on a machine without TDX does.
#[test]
fn both_starts_lead_into_the_kernel_on_kvm() {
    let Ok(kvm) = Kvm::new() else {
        crate::skipped::skip("no KVM here");
        return;
    };
    // Private pages have no bit on plain KVM, as on TDX.
    let image = image(Measuring::Tdx);
    for long in [false, true] {
        let vm = kvm.create_vm().expect("a VM");
        let memory = launched(&vm, &image);
        let mut vcpu = vm.create_vcpu(0).expect("a vCPU");
        let cpuid = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .expect("CPUID");
        if long {
            crate::kvm::prepare_vcpu(&vcpu, &cpuid, image.first).expect("registers");
        } else {
            crate::kvm::prepare_domain_vcpu(&vcpu, &cpuid, 0).expect("registers");
        }
        let exit = vcpu.run().expect("a run");
        let VcpuExit::IoOut(port, data) = exit else {
            panic!("expected the kernel's stop, found {exit:?} (long {long})");
        };
        let call = (SimCall::Tdcall as u32).to_le_bytes();
        assert_eq!((port, data), (SIM_PORT, &call[..]));
        let at = vcpu.get_regs().expect("registers").rdi;
        let mut registers = [0; size_of::<TdRegisters>()];
        memory
            .read_slice(&mut registers, GuestAddress(at))
            .expect("the kernel's memory");
        let registers = TdRegisters::read_from_bytes(&registers).expect("as long");
        assert_eq!(registers.rax, cloak_tdx::module::leaf::INFO);
        drop(memory);
    }
}
