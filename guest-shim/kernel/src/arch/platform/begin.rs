//! What a start from a measured image does whichever hardware measured it.
//!
//! The VM has one context, whose libos runs where it was measured: nothing of it is copied.

use core::arch::asm;
use core::ptr;
use core::sync::atomic::Ordering;

use cloak_abi::boot::{LaunchBlock, LibosHeader};
use cloak_abi::kcall::{KcallError, PTE_NX, PTE_U, PTE_W};
use cloak_abi::layout::{
    BOOT_GPA, CERTIFICATES_GPA, KERNEL_PHYS_VA, KERNEL_VA, LIBOS_PHYS_VA, LIBOS_SHARED_VA, LIBOS_VCPU_VA,
    PAGE, PLATFORM_GPA, PLATFORM_LEN, SHARED_GPA,
};
use cloak_abi::ring::SHARED_LEN;
use cloak_abi::sim::SimCall;
use cloak_abi::stop::Stop;
use cloak_measured::start::Division;
use cloak_pagetables::first::First;
use cloak_pagetables::frames::Memory;
use zerocopy::{FromZeros, IntoBytes};

use super::simulated;
use crate::arch::{Cpu, Window, block};

/// The measured block.
///
/// # Errors
/// [`Stop::BootBlock`]: of another version, or for another platform than `platform`.
pub fn image(platform: u64) -> Result<LaunchBlock, Stop> {
    // SAFETY: measured, and nobody's to change.
    let image = unsafe { ptr::read_volatile((KERNEL_PHYS_VA + BOOT_GPA) as *const LaunchBlock) };
    if image.version != u64::from(cloak_abi::VERSION) || image.platform != platform {
        return Err(Stop::BootBlock);
    }
    Ok(image)
}

/// The context's first tables: what the monitor makes on plain KVM. `shared` is the bit of an entry that leads to memory that the
/// hypervisor has, too, or 0.
pub fn tables(division: &mut Division, image: &LaunchBlock, shared: u64) -> Result<(), KcallError> {
    let context = &mut division.context;
    let memory = &mut Window;
    let pool = [context.table_pool, context.table_pool_end];
    let mut tables = First::new(memory, pool, context.private())?;
    let (own, user) = (PTE_W | PTE_NX, PTE_W | PTE_NX | PTE_U);
    // The kernel is mapped by measured tables, which stay.
    let slot = 8 * (KERNEL_VA >> 39 & 511);
    let kernel = tables.memory.read(image.root + slot);
    tables.memory.write(tables.root + slot, kernel);
    for [start, end] in division.ram {
        tables.map(KERNEL_PHYS_VA + start, start, end - start, own)?;
    }
    tables.map_shared(
        KERNEL_PHYS_VA + PLATFORM_GPA,
        PLATFORM_GPA,
        PLATFORM_LEN,
        own | shared,
    )?;
    for part in image.libos.iter().filter(|part| part.memory > 0) {
        tables.map(
            part.va,
            part.gpa,
            part.content.next_multiple_of(PAGE),
            part.flags | PTE_U,
        )?;
    }
    let zeros = division.zeros;
    tables.map(zeros.va, zeros.gpa, zeros.len, user)?;
    for [start, end] in context.frames {
        tables.map(LIBOS_PHYS_VA + start, start, end - start, user)?;
    }
    let told = PLATFORM_GPA + PLATFORM_LEN - CERTIFICATES_GPA;
    tables.map_shared(
        LIBOS_PHYS_VA + CERTIFICATES_GPA,
        CERTIFICATES_GPA,
        told,
        user | shared,
    )?;
    let blocks_len = u64::from(context.vcpus) * PAGE;
    tables.map(LIBOS_VCPU_VA, context.vcpu_blocks, blocks_len, user)?;
    tables.map_shared(LIBOS_SHARED_VA, SHARED_GPA, SHARED_LEN as u64, user | shared)?;
    context.root = tables.root;
    context.table_pool_next = tables.next();
    Ok(())
}

/// Leaves the context's block in its libos; gives the libos's header.
pub fn libos(division: &Division, image: &LaunchBlock) -> Result<LibosHeader, Stop> {
    let mut header = LibosHeader::new_zeroed();
    for (index, word) in (0u64..).zip(header.as_mut_bytes().as_chunks_mut::<8>().0) {
        *word = Window.read(division.context.libos_gpa + 8 * index).to_le_bytes();
    }
    let context = division.context.as_bytes();
    let place = image.libos.iter().find_map(|part| {
        let offset = header.boot_copy.checked_sub(part.va)?;
        let fits = offset.checked_add(context.len() as u64)? <= part.content;
        (fits && offset.is_multiple_of(8)).then_some(part.gpa + offset)
    });
    let place = place.ok_or(Stop::Libos)?;
    for (index, word) in (0u64..).zip(context.as_chunks::<8>().0) {
        Window.write(place + 8 * index, u64::from_le_bytes(*word));
    }
    Ok(header)
}

/// Turns on vector state: a mask that the processor takes. Simulated hardware is told.
pub fn enable_vector_state(mask: u64, simulated: bool) {
    // SAFETY: CR4.OSXSAVE is set, and the mask is one that a processor with these parts takes.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") mask as u32, in("edx") (mask >> 32) as u32, options(nostack, nomem));
    }
    if simulated {
        simulated::call(SimCall::VectorState, mask, 0);
    }
}

/// Words of the vCPU's block in which bytes go to and from the libos.
fn words(cpu: &Cpu) -> impl Iterator<Item = &core::sync::atomic::AtomicU64> {
    let all = block(cpu).ops.iter();
    all.flat_map(|op| [&op.va_kind, &op.len, &op.gpa, &op.flags])
}

/// What the libos left for a kernel call: a multiple of eight bytes.
pub fn argument<const N: usize>(cpu: &Cpu) -> [u8; N] {
    let mut bytes = [0; N];
    for (part, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words(cpu)) {
        *part = word.load(Ordering::Relaxed).to_le_bytes();
    }
    bytes
}

/// Leaves words for the libos.
pub fn answer(cpu: &Cpu, values: impl Iterator<Item = u64>) {
    for (word, value) in words(cpu).zip(values) {
        word.store(value, Ordering::Relaxed);
    }
}
