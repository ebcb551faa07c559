//! What a guest asks the security processor for: reports and keys (SNP ABI, sections 7.2 and 7.3).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// MSG_REPORT_REQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReportRequest {
    /// REPORT_DATA.
    pub report_data: [u8; 64],
    /// The VMPL that the report is to name: not below the one that asks.
    pub vmpl: u32,
    /// Zero.
    pub reserved: [u8; 28],
}

/// Bit 0 of [`KeyRequest::root_key_select`]: from the migration key, of which there is none here.
const VMRK: u32 = 1;

/// MSG_KEY_REQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KeyRequest {
    /// 0: from the chip's key.
    pub root_key_select: u32,
    /// Zero.
    pub reserved: u32,
    /// [`fields`].
    pub field_select: u64,
    /// VMPL: not below the one that asks.
    pub vmpl: u32,
    /// Guest SVN: not above the guest's.
    pub guest_svn: u32,
    /// TCB version: in no component above the committed one.
    pub tcb: [u8; 8],
}

/// What is mixed into a key.
pub mod fields {
    /// Guest policy.
    pub const POLICY: u64 = 1;
    /// Image id.
    pub const IMAGE_ID: u64 = 2;
    /// Family id.
    pub const FAMILY_ID: u64 = 4;
    /// Launch measurement.
    pub const MEASUREMENT: u64 = 8;
    /// Guest SVN.
    pub const GUEST_SVN: u64 = 16;
    /// TCB version.
    pub const TCB: u64 = 32;
    /// All of them.
    pub const ALL: u64 = 63;
}

/// Why a request is not one that can be answered. The guest learns it as a status of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Another length than its type has.
    #[error("its length is wrong")]
    Length,
    /// A reserved byte, or a bit of a selection, is not zero.
    #[error("a reserved field is not zero")]
    Reserved,
    /// A VMPL that there is not, or that is more privileged than who asks.
    #[error("VMPL {0} is not the guest's to speak for")]
    Vmpl(u32),
    /// A version that is newer than what runs.
    #[error("a security version that has not been reached")]
    Version,
    /// There is no migration agent.
    #[error("there is no migration key")]
    NoMigrationKey,
}

fn vmpl(vmpl: u32, asker: u8) -> Result<(), RequestError> {
    if vmpl > 3 || vmpl < u32::from(asker) {
        return Err(RequestError::Vmpl(vmpl));
    }
    Ok(())
}

impl ReportRequest {
    /// Takes a request that came under the key of VMPL `asker`.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn parse(payload: &[u8], asker: u8) -> Result<Self, RequestError> {
        let request = Self::read_from_bytes(payload).map_err(|_| RequestError::Length)?;
        if request.reserved != [0; 28] {
            return Err(RequestError::Reserved);
        }
        vmpl(request.vmpl, asker)?;
        Ok(request)
    }
}

impl KeyRequest {
    /// Takes a request that came under the key of VMPL `asker`, from a guest of version `guest_svn` on a machine that has
    /// committed to `tcb`.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn parse(payload: &[u8], asker: u8, guest_svn: u32, tcb: [u8; 8]) -> Result<Self, RequestError> {
        let request = Self::read_from_bytes(payload).map_err(|_| RequestError::Length)?;
        if request.root_key_select & !VMRK != 0
            || request.reserved != 0
            || request.field_select & !fields::ALL != 0
        {
            return Err(RequestError::Reserved);
        }
        if request.root_key_select == VMRK {
            return Err(RequestError::NoMigrationKey);
        }
        vmpl(request.vmpl, asker)?;
        if request.guest_svn > guest_svn || request.tcb.iter().zip(tcb).any(|(asked, has)| *asked > has) {
            return Err(RequestError::Version);
        }
        Ok(request)
    }
}

const _: () = assert!(size_of::<ReportRequest>() == 96);
const _: () = assert!(size_of::<KeyRequest>() == 32);
