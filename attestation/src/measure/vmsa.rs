//! The state save area in which a vCPU starts (AMD64 Architecture Programmer's Manual, volume 2, table B-4).
//!
//! KVM fills one page for each vCPU from the registers that the launcher set, and the firmware measures it. Every
//! register is written here, so a prediction depends on nothing but what this page says.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::page::PAGE_BYTES;
use crate::snp::Product;

/// A segment or table register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Attributes, as the VMSA packs them: type, S, DPL and P in bits 7:0, AVL, L, DB and G in 11:8.
    pub attributes: u16,
    /// Limit in bytes.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

/// The registers of a vCPU at its first instruction. What is not written in a description is as in
/// [`Vmsa::protected_mode`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Vmsa {
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    /// GDTR.
    pub gdtr: Segment,
    /// LDTR.
    pub ldtr: Segment,
    /// IDTR.
    pub idtr: Segment,
    /// TR.
    pub tr: Segment,
    /// EFER; bit 12 (SVME) is set in every VMSA.
    pub efer: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// RIP.
    pub rip: u64,
    /// RSP.
    pub rsp: u64,
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX; at reset it holds the processor's signature.
    pub rdx: u64,
    /// RBP.
    pub rbp: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// SEV_FEATURES; bit 0 is SNP.
    pub sev_features: u64,
}

const RFLAGS_RESERVED: u64 = 2;
const DR7_RESET: u64 = 0x400;
const DR6_RESET: u64 = 0xffff_0ff0;
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
const SVME: u64 = 1 << 12;
const MXCSR_RESET: u32 = 0x1f80;
const FCW_RESET: u16 = 0x37f;

impl Default for Vmsa {
    fn default() -> Self {
        Self::protected_mode(0)
    }
}

impl Vmsa {
    /// Flat 32-bit protected mode with paging off, every general register zero, at `entry`.
    pub fn protected_mode(entry: u32) -> Self {
        let data = Segment {
            selector: 0x10,
            attributes: 0xc93,
            limit: u32::MAX,
            base: 0,
        };
        let code = Segment {
            selector: 0x08,
            attributes: 0xc9b,
            ..data
        };
        let table = Segment {
            selector: 0,
            attributes: 0,
            limit: 0xffff,
            base: 0,
        };
        Self {
            segments: [data, code, data, data, data, data],
            gdtr: table,
            ldtr: Segment {
                attributes: 0x82,
                ..table
            },
            idtr: table,
            tr: Segment {
                attributes: 0x8b,
                ..table
            },
            efer: SVME,
            // PE, ET and NE.
            cr0: 0x31,
            cr3: 0,
            // MCE, which the architecture forces on.
            cr4: 0x40,
            rip: entry.into(),
            rsp: 0,
            rax: 0,
            rbx: 0,
            rcx: 0,
            rdx: 0,
            rbp: 0,
            rsi: 0,
            rdi: 0,
            sev_features: 1,
        }
    }

    /// The state after reset, at the reset vector, with the signature that a vCPU model of `product` has.
    pub fn reset(product: Product) -> Self {
        let data = Segment {
            selector: 0,
            attributes: 0x93,
            limit: 0xffff,
            base: 0,
        };
        let code = Segment {
            selector: 0xf000,
            attributes: 0x9b,
            limit: 0xffff,
            base: 0xffff_0000,
        };
        let signature = match product {
            Product::Milan => 0x00a0_0f11,
            Product::Genoa => 0x00a1_0f10,
            Product::Turin => 0x00b0_0f20,
        };
        Self {
            segments: [data, code, data, data, data, data],
            cr0: 0x10,
            rip: 0xfff0,
            rdx: signature,
            ..Self::protected_mode(0)
        }
    }

    /// The page that the firmware measures.
    pub fn to_page(&self) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        let mut put = |offset: usize, bytes: &[u8]| page[offset..offset + bytes.len()].copy_from_slice(bytes);
        let tables = [&self.gdtr, &self.ldtr, &self.idtr, &self.tr];
        for (index, segment) in self.segments.iter().chain(tables).enumerate() {
            put(index * 16, &segment.selector.to_le_bytes());
            put(index * 16 + 2, &segment.attributes.to_le_bytes());
            put(index * 16 + 4, &segment.limit.to_le_bytes());
            put(index * 16 + 8, &segment.base.to_le_bytes());
        }
        let words = [
            (0x0d0, self.efer | SVME),
            (0x148, self.cr4),
            (0x150, self.cr3),
            (0x158, self.cr0),
            (0x160, DR7_RESET),
            (0x168, DR6_RESET),
            (0x170, RFLAGS_RESERVED),
            (0x178, self.rip),
            (0x1d8, self.rsp),
            (0x1f8, self.rax),
            (0x268, PAT_RESET),
            (0x308, self.rcx),
            (0x310, self.rdx),
            (0x318, self.rbx),
            (0x328, self.rbp),
            (0x330, self.rsi),
            (0x338, self.rdi),
            (0x3b0, self.sev_features),
            (0x3e8, 1), // XCR0: x87 alone
        ];
        for (offset, word) in words {
            put(offset, &word.to_le_bytes());
        }
        put(0x408, &MXCSR_RESET.to_le_bytes());
        put(0x410, &FCW_RESET.to_le_bytes());
        page
    }
}
