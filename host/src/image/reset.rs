//! The page below 4 GiB: where each vCPU of a TDX domain starts, in 32-bit protected mode without paging, and where the
//! vCPUs of an SNP guest that the kernel has not started yet wait.
//!
//! Instructions are bytes here because no assembler of the build makes 32-bit code; a test disassembles them and another
//! runs them on KVM.

use cloak_abi::layout::{LAUNCH_TABLES_GPA, MAX_VCPUS, PAGE, RESET_GPA};

use super::registers::{CR0, CR4, EFER};

/// Guest-physical, and guest-virtual, address of the loop that does nothing, 64-bit.
pub const PARKED: u64 = RESET_GPA + PARK as u64;
/// Where a TDX vCPU starts.
pub const VECTOR: u64 = RESET_GPA + RESET as u64;

const RESET: usize = 0xff0;
const PARK: usize = 0x80;
const SPIN: usize = 0x90;
const LONG: usize = 0x60;
const GDT: usize = 0xc0;
const GDTR: usize = 0xe0;

/// The page, for a kernel whose first instruction is at `entry`. The number of the vCPU comes in ESI (TDX module ABI,
/// initial state of a vCPU) and goes on in EDI. One that the kernel has no stack for goes no further: how many a host adds is not
/// measured.
#[must_use]
pub fn page(entry: u64) -> [u8; PAGE as usize] {
    let mut page = [0xf4; PAGE as usize]; // HLT: whoever comes here by mistake stops.
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        page[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    let low = |address: u64| (address as u32).to_le_bytes();
    put(&[0xfa]); // cli
    put(&[0x83, 0xfe, MAX_VCPUS as u8]); // cmp esi, MAX_VCPUS
    let beyond = (SPIN as i32 - 10).to_le_bytes();
    put(&[0x0f, 0x83]);
    put(&beyond); // jae SPIN
    put(&[0x0f, 0x20, 0xe0]); // mov eax, cr4: the module has set bits of its own, which stay
    put(&[0x0d]);
    put(&low(CR4)); // or eax, CR4
    put(&[0x0f, 0x22, 0xe0]); // mov cr4, eax
    put(&[0xb8]);
    put(&low(LAUNCH_TABLES_GPA)); // mov eax, root table
    put(&[0x0f, 0x22, 0xd8]); // mov cr3, eax
    put(&[0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32]); // mov ecx, IA32_EFER; rdmsr
    put(&[0x89, 0xc3, 0x0d]);
    put(&low(EFER & !LMA)); // mov ebx, eax; or eax, EFER
    put(&[0x39, 0xd8, 0x74, 0x02, 0x0f, 0x30]); // cmp eax, ebx; je +2; wrmsr: TDX traps a write, even of what is there
    put(&[0x0f, 0x20, 0xc0, 0x0d]);
    put(&low(CR0)); // mov eax, cr0; or eax, CR0
    put(&[0x0f, 0x01, 0x15]);
    put(&low(RESET_GPA + GDTR as u64)); // lgdt [GDTR]
    put(&[0x0f, 0x22, 0xc0]); // mov cr0, eax: paging is on, and with it long mode
    put(&[0xea]);
    put(&low(RESET_GPA + LONG as u64));
    put(&[0x10, 0x00]); // ljmp 0x10:LONG
    debug_assert!(at <= LONG);
    at = LONG;
    let mut put = |bytes: &[u8]| {
        page[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&[0x31, 0xc0, 0x8e, 0xd0, 0x8e, 0xd8, 0x8e, 0xc0]); // xor eax, eax; mov ss, ds, es, ax
    put(&[0x89, 0xf7]); // mov edi, esi
    put(&[0x48, 0xb8]);
    put(&entry.to_le_bytes()); // mov rax, entry
    put(&[0xff, 0xe0]); // jmp rax
    page[PARK..PARK + 4].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfc]); // cli; hlt; jmp to the cli
    page[SPIN..SPIN + 4].copy_from_slice(&[0xf3, 0x90, 0xeb, 0xfc]); // pause; jmp to the pause: HLT would need a handler in TDX
    // Null, null, 64-bit code at 0x10 as in the kernel's own table.
    page[GDT..GDT + 16].fill(0);
    page[GDT + 16..GDT + 24].copy_from_slice(&0x00af_9b00_0000_ffffu64.to_le_bytes());
    page[GDTR..GDTR + 2].copy_from_slice(&23u16.to_le_bytes());
    page[GDTR + 2..GDTR + 6].copy_from_slice(&low(RESET_GPA + GDT as u64));
    let jump = (RESET as i32 + 5).wrapping_neg().to_le_bytes();
    page[RESET] = 0xe9; // jmp to the start of the page
    page[RESET + 1..RESET + 5].copy_from_slice(&jump);
    page
}

/// EFER.LMA, which the CPU sets.
const LMA: u64 = 1 << 10;

// The comparison's operand is a signed byte.
const _: () = assert!(MAX_VCPUS < 128);

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

    fn disassembled(page: &[u8], bits: u32, from: usize) -> Vec<Instruction> {
        let start = RESET_GPA + from as u64;
        Decoder::with_ip(bits, &page[from..], start, DecoderOptions::NONE)
            .into_iter()
            .take(24)
            .collect()
    }

    #[test]
    fn the_vector_leads_to_the_start_and_the_start_to_the_kernel() {
        let entry = 0xffff_ffff_8020_0465;
        let page = page(entry);
        let vector = disassembled(&page, 32, RESET)[0];
        assert_eq!(
            (vector.mnemonic(), vector.near_branch32()),
            (Mnemonic::Jmp, RESET_GPA as u32)
        );
        let start = disassembled(&page, 32, 0);
        let mnemonics: Vec<_> = start.iter().map(Instruction::mnemonic).take(20).collect();
        use Mnemonic::{Cli, Cmp, Jae, Je, Jmp, Lgdt, Mov, Or, Rdmsr, Wrmsr};
        assert_eq!(
            mnemonics,
            [
                Cli, Cmp, Jae, Mov, Or, Mov, Mov, Mov, Mov, Rdmsr, Mov, Or, Cmp, Je, Wrmsr, Mov, Or, Lgdt,
                Mov, Jmp
            ]
        );
        assert_eq!(start[1].immediate8(), MAX_VCPUS as u8);
        assert_eq!(start[2].near_branch32(), (RESET_GPA + SPIN as u64) as u32);
        assert_eq!(start[4].immediate32(), CR4 as u32);
        assert_eq!(start[6].immediate32(), LAUNCH_TABLES_GPA as u32);
        assert_eq!(
            start[13].near_branch32(),
            start[15].ip32(),
            "skips the write only"
        );
        assert_eq!(start[16].immediate32(), CR0 as u32);
        assert_eq!(
            start[17].memory_displacement32(),
            (RESET_GPA + GDTR as u64) as u32
        );
        assert_eq!(start[19].far_branch32(), (RESET_GPA + LONG as u64) as u32);
        assert_eq!(start[19].far_branch_selector(), 0x10);
        let long = disassembled(&page, 64, LONG);
        assert_eq!(
            (long[5].mnemonic(), long[5].immediate64()),
            (Mnemonic::Mov, entry)
        );
        assert_eq!(long[6].mnemonic(), Mnemonic::Jmp);
        let spin = disassembled(&page, 32, SPIN);
        assert_eq!(spin[0].mnemonic(), Mnemonic::Pause);
        assert_eq!(spin[1].near_branch32(), (RESET_GPA + SPIN as u64) as u32);
        let park = disassembled(&page, 64, PARK);
        assert_eq!(park[1].mnemonic(), Mnemonic::Hlt);
        assert_eq!(park[2].near_branch64(), PARKED);
    }
}
