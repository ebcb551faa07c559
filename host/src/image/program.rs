//! The shim's two programs, as their ELF files have them.

use cloak_abi::boot::{LIBOS_MAGIC, LibosHeader};
use cloak_abi::kcall::{PTE_NX, PTE_W};
use cloak_abi::layout::{KERNEL_VA, LIBOS_BASE, LIBOS_IMAGE_MAX};
use object::Endianness;
use object::elf::{FileHeader64, PF_W, PF_X, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use zerocopy::FromBytes;

use super::memory::GuestPages;
use crate::vm::error::VmError;

/// Kernel and libos.
#[derive(Debug)]
pub struct Shim<'a> {
    /// CPL 0.
    pub kernel: Program<'a>,
    /// CPL 3.
    pub libos: Program<'a>,
    /// First bytes of the libos.
    pub header: LibosHeader,
}

impl Shim<'static> {
    /// The one that this build carries.
    ///
    /// # Errors
    /// [`VmError::Shim`]: damaged.
    pub fn embedded() -> Result<Self, VmError> {
        Self::of(cloak_shim_image::KERNEL, cloak_shim_image::LIBOS)
    }
}

impl<'a> Shim<'a> {
    /// The one of two ELF files, each at an address that is a multiple of 8.
    ///
    /// # Errors
    /// [`VmError::Shim`]: not a shim of this version.
    pub fn of(kernel: &'a [u8], libos: &'a [u8]) -> Result<Self, VmError> {
        let kernel = Program::parse(kernel, KERNEL_VA)?;
        let libos = Program::parse(libos, LIBOS_BASE)?;
        let header = libos.header()?;
        Ok(Self {
            kernel,
            libos,
            header,
        })
    }
}

/// One loadable part of a program.
#[derive(Debug)]
pub struct Part<'a> {
    /// First guest-virtual address.
    pub va: u64,
    /// Bytes in memory; zeros after `data`.
    pub memory: u64,
    /// Its content.
    pub data: &'a [u8],
    elf_flags: u32,
}

impl Part<'_> {
    /// How its pages are mapped: writable or executable, never both unless the file says so.
    #[must_use]
    pub fn flags(&self) -> u64 {
        let write = if self.elf_flags & PF_W != 0 { PTE_W } else { 0 };
        let execute = if self.elf_flags & PF_X != 0 { 0 } else { PTE_NX };
        write | execute
    }
}

/// One of the shim's programs.
#[derive(Debug)]
pub struct Program<'a> {
    /// Guest-virtual address of its first byte.
    pub base: u64,
    /// Its first instruction.
    pub entry: u64,
    /// Bytes in memory, from `base`.
    pub len: u64,
    /// Its parts.
    pub parts: Vec<Part<'a>>,
}

impl<'a> Program<'a> {
    fn parse(file: &'a [u8], base: u64) -> Result<Self, VmError> {
        let bad = |_| VmError::Shim("not an ELF file");
        let elf = FileHeader64::<Endianness>::parse(file).map_err(bad)?;
        let endian = elf.endian().map_err(bad)?;
        let mut parts = Vec::new();
        let mut len = 0;
        for ph in elf.program_headers(endian, file).map_err(bad)? {
            if ph.p_type(endian) != PT_LOAD || ph.p_memsz(endian) == 0 {
                continue;
            }
            let va = ph.p_vaddr(endian);
            let data = ph
                .data(endian, file)
                .map_err(|()| VmError::Shim("segment outside the file"))?;
            let memory = ph.p_memsz(endian);
            let end = va.checked_sub(base).and_then(|offset| offset.checked_add(memory));
            len = len.max(end.ok_or(VmError::Shim("segment below its base"))?);
            parts.push(Part {
                va,
                memory,
                data,
                elf_flags: ph.p_flags(endian),
            });
        }
        if len > LIBOS_IMAGE_MAX {
            return Err(VmError::Shim("image too large"));
        }
        Ok(Self {
            base,
            entry: elf.e_entry(endian),
            len,
            parts,
        })
    }

    /// Writes its content from `gpa` on, into memory that is zero.
    ///
    /// # Errors
    /// [`VmError::Shim`]: no such memory.
    pub fn place(&self, memory: &mut impl GuestPages, gpa: u64) -> Result<(), VmError> {
        self.parts
            .iter()
            .try_for_each(|part| memory.put(gpa + (part.va - self.base), part.data))
    }

    fn header(&self) -> Result<LibosHeader, VmError> {
        let first = self
            .parts
            .iter()
            .find(|s| s.va == self.base)
            .ok_or(VmError::Shim("no first segment"))?;
        let (header, _) =
            LibosHeader::read_from_prefix(first.data).map_err(|_| VmError::Shim("no header"))?;
        let in_image = |va: u64| va.checked_sub(self.base).is_some_and(|o| o < self.len);
        if header.magic != LIBOS_MAGIC || header.version != u64::from(cloak_abi::VERSION) {
            return Err(VmError::Shim("libos header of another version"));
        }
        if !in_image(header.boot_copy) {
            return Err(VmError::Shim("libos header points outside"));
        }
        Ok(header)
    }
}
