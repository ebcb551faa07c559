//! The TDX module: a domain's life, its measurement and its registers (TDX module ABI 1.5, sections on TDH and TDG functions).
//!
//! ```text
//! Made ─init─▶ Initialised ─page add, extend…─▶ Initialised ─finalize─▶ Runnable
//! ```
//! Any other call is refused with the module's own status, and changes nothing.

use sha2::{Digest, Sha384};
use zerocopy::{FromZeros, IntoBytes};

use super::report::{TdInfo, TdReport};
use super::sept::{Memory, SecureEpt};
use crate::memory::{Gfn, Hfn, PAGE, PageBytes};

/// A status other than success, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u64)]
pub enum ModuleError {
    /// A value that is not taken.
    #[error("TDX_OPERAND_INVALID")]
    OperandInvalid = 0xc000_0100_0000_0000,
    /// ATTRIBUTES that are not offered.
    #[error("TDX_OPERAND_INVALID, ATTRIBUTES")]
    Attributes = 0xc000_0100_0000_0040,
    /// XFAM that is not offered or not possible.
    #[error("TDX_OPERAND_INVALID, XFAM")]
    Xfam = 0xc000_0100_0000_0041,
    /// The host page is in use.
    #[error("TDX_PAGE_METADATA_INCORRECT")]
    PageMetadata = 0xc000_0300_0000_0000,
    /// Not in this state of the domain.
    #[error("TDX_OP_STATE_INCORRECT")]
    OpState = 0xc000_0608_0000_0000,
    /// Nothing is mapped there.
    #[error("TDX_EPT_WALK_FAILED")]
    WalkFailed = 0xc000_0b00_0000_0000,
    /// The page is not blocked.
    #[error("TDX_GPA_RANGE_NOT_BLOCKED")]
    NotBlocked = 0xc000_0b06_0000_0000,
    /// A vCPU may still have a translation.
    #[error("TDX_TLB_TRACKING_NOT_DONE")]
    NotTracked = 0xc000_0b08_0000_0000,
    /// The page is in another state.
    #[error("TDX_EPT_ENTRY_STATE_INCORRECT")]
    EntryState = 0xc000_0b0d_0000_0000,
}

/// ATTRIBUTES that may be set: DEBUG, SEPT_VE_DISABLE, PKS.
pub const SUPPORTED_ATTRIBUTES: u64 = 1 | 1 << 28 | 1 << 30;
/// XFAM bits that may be set, as on a Xeon of the fourth generation.
pub const SUPPORTED_XFAM: u64 = 0x6_1ae7;
/// XFAM bits that have to be set: x87 and SSE.
const FIXED_XFAM: u64 = 0b11;
const AVX: u64 = 1 << 2;
const AVX_512: u64 = 0xe0;
const AMX: u64 = 0x6_0000;
/// Bytes that one TDH.MR.EXTEND measures.
const CHUNK: usize = 256;

/// TD_PARAMS, as far as reports tell of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    /// ATTRIBUTES.
    pub attributes: u64,
    /// XFAM.
    pub xfam: u64,
    /// MRCONFIGID.
    pub mr_config_id: [u8; 48],
    /// MROWNER.
    pub mr_owner: [u8; 48],
    /// MROWNERCONFIG.
    pub mr_owner_config: [u8; 48],
}

#[derive(Debug, Clone)]
enum State {
    Made,
    Initialised { params: Params, mrtd: Sha384 },
    Runnable(TdInfo),
}

/// The module with one domain.
#[derive(Debug)]
pub struct Module<M = Memory> {
    /// The machine's RAM.
    pub memory: M,
    state: State,
    vcpus: u32,
    key: [u8; 32],
}

impl Module {
    /// A module whose domain's memory has one key, and whose reports another: the processor's.
    #[must_use]
    pub fn new(memory_key: &[u8; 64], report_key: [u8; 32]) -> Self {
        Self::of(Memory::new(memory_key), report_key)
    }
}

impl<M: SecureEpt> Module<M> {
    /// A module over RAM of any kind.
    #[must_use]
    pub fn of(memory: M, report_key: [u8; 32]) -> Self {
        Self {
            memory,
            state: State::Made,
            vcpus: 0,
            key: report_key,
        }
    }

    /// TDH.MNG.INIT.
    ///
    /// # Errors
    /// [`ModuleError`].
    pub fn init(&mut self, params: Params) -> Result<(), ModuleError> {
        if !matches!(self.state, State::Made) {
            return Err(ModuleError::OpState);
        }
        if params.attributes & !SUPPORTED_ATTRIBUTES != 0 {
            return Err(ModuleError::Attributes);
        }
        let xfam = params.xfam;
        let offered = xfam & !SUPPORTED_XFAM == 0 && xfam & FIXED_XFAM == FIXED_XFAM;
        let whole = |bits| xfam & bits == 0 || xfam & bits == bits;
        if !offered || !whole(AVX_512) || !whole(AMX) || (xfam & AVX_512 != 0 && xfam & AVX == 0) {
            return Err(ModuleError::Xfam);
        }
        let mrtd = Sha384::new();
        self.state = State::Initialised { params, mrtd };
        Ok(())
    }

    /// TDH.VP.INIT.
    ///
    /// # Errors
    /// [`ModuleError::OpState`].
    pub fn add_vcpu(&mut self) -> Result<(), ModuleError> {
        match self.state {
            State::Initialised { .. } => {
                self.vcpus += 1;
                Ok(())
            }
            _ => Err(ModuleError::OpState),
        }
    }

    /// TDH.MEM.PAGE.ADD: measures that the page is there, not what it holds.
    ///
    /// # Errors
    /// [`ModuleError`].
    pub fn page_add(&mut self, gfn: Gfn, page: Hfn, bytes: &PageBytes) -> Result<(), ModuleError> {
        let State::Initialised { mrtd, .. } = &mut self.state else {
            return Err(ModuleError::OpState);
        };
        self.memory.add(gfn, page, bytes)?;
        mrtd.update(operation(b"MEM.PAGE.ADD", gfn.0 * PAGE as u64));
        Ok(())
    }

    /// TDH.MR.EXTEND: measures 256 bytes, from the domain's memory.
    ///
    /// # Errors
    /// [`ModuleError`].
    pub fn mr_extend(&mut self, gpa: u64) -> Result<(), ModuleError> {
        let State::Initialised { mrtd, .. } = &mut self.state else {
            return Err(ModuleError::OpState);
        };
        if !gpa.is_multiple_of(CHUNK as u64) {
            return Err(ModuleError::OperandInvalid);
        }
        let page = self.memory.read(Gfn(gpa / PAGE as u64));
        let page = page.map_err(|_| ModuleError::WalkFailed)?;
        let at = (gpa % PAGE as u64) as usize;
        mrtd.update(operation(b"MR.EXTEND", gpa));
        mrtd.update(&page[at..at + CHUNK]);
        Ok(())
    }

    /// TDH.MR.FINALIZE.
    ///
    /// # Errors
    /// [`ModuleError::OpState`].
    pub fn finalize(&mut self) -> Result<(), ModuleError> {
        let State::Initialised { params, mrtd } = &self.state else {
            return Err(ModuleError::OpState);
        };
        let mut info = TdInfo::new_zeroed();
        info.attributes = params.attributes.to_le_bytes();
        info.xfam = params.xfam.to_le_bytes();
        info.mrtd = mrtd.clone().finalize().into();
        info.mr_config_id = params.mr_config_id;
        info.mr_owner = params.mr_owner;
        info.mr_owner_config = params.mr_owner_config;
        self.state = State::Runnable(info);
        Ok(())
    }

    /// TDH.MEM.PAGE.AUG.
    ///
    /// # Errors
    /// [`ModuleError`].
    pub fn page_aug(&mut self, gfn: Gfn, page: Hfn) -> Result<(), ModuleError> {
        match self.state {
            State::Runnable(_) => self.memory.aug(gfn, page),
            _ => Err(ModuleError::OpState),
        }
    }

    /// The domain as it runs.
    #[must_use]
    pub fn info(&self) -> Option<&TdInfo> {
        match &self.state {
            State::Runnable(info) => Some(info),
            _ => None,
        }
    }

    /// vCPUs of the domain.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// TDG.MR.RTMR.EXTEND.
    ///
    /// # Errors
    /// [`ModuleError::OperandInvalid`]: no such register; [`ModuleError::OpState`].
    pub fn rtmr_extend(&mut self, index: usize, data: &[u8; 48]) -> Result<(), ModuleError> {
        let State::Runnable(info) = &mut self.state else {
            return Err(ModuleError::OpState);
        };
        let register = info.rtmrs.get_mut(index).ok_or(ModuleError::OperandInvalid)?;
        let extended = Sha384::new().chain_update(*register).chain_update(data);
        *register = extended.finalize().into();
        Ok(())
    }

    /// TDG.MR.REPORT.
    ///
    /// # Errors
    /// [`ModuleError::OpState`].
    pub fn report(&self, report_data: [u8; 64]) -> Result<TdReport, ModuleError> {
        let info = self.info().ok_or(ModuleError::OpState)?;
        Ok(TdReport::new(info.clone(), report_data, &self.key))
    }
}

/// What the module hashes for an operation: its name, the address, zeros up to 128 bytes.
fn operation(name: &[u8], gpa: u64) -> [u8; 128] {
    let mut block = [0; 128];
    block[..name.len()].copy_from_slice(name);
    block[16..24].copy_from_slice(gpa.as_bytes());
    block
}
