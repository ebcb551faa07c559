//! The security processor: the commands of a launch, and the guest's messages after it.
//!
//! ```text
//! Idle ─start─▶ Launching ─update…─▶ Launching ─finish─▶ Running ─request…─▶ Running
//! ```
//! Any other command is refused with the firmware's own status, and changes nothing.

use cloak_attestation::bytes::{Bytes, Bytes32, Bytes48, Bytes64};
use cloak_attestation::measure::{Gpa, LaunchDigest, Page, PageKind};
use cloak_attestation::sim::{Endorsement, VekSpec};
use cloak_attestation::snp::{GuestPolicy, IdAuth, IdBlock, IdBlockError};
use hkdf::Hkdf;
use sha2::Sha384;
use zeroize::Zeroizing;

use crate::memory::{Fault, Gfn, PAGE, PageBytes, Ram};
use crate::message::{self, Header, MessageError, MessageType, Sealed};
use crate::requests::{KeyRequest, ReportRequest, RequestError, fields};

/// A command's status other than success: the firmware's number and name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u32)]
pub enum Status {
    /// The guest is not in the state that the command needs.
    #[error("INVALID_GUEST_STATE")]
    InvalidGuestState = 0x02,
    /// A signature of the ID block.
    #[error("BAD_SIGNATURE")]
    BadSignature = 0x0a,
    /// The policy can't be met.
    #[error("POLICY_FAILURE")]
    PolicyFailure = 0x07,
    /// Not authentic.
    #[error("BAD_MEASUREMENT")]
    BadMeasurement = 0x0b,
    /// A parameter.
    #[error("INVALID_PARAM")]
    InvalidParam = 0x16,
    /// The page is not in the state that the command needs.
    #[error("INVALID_PAGE_STATE")]
    InvalidPageState = 0x1a,
    /// The page is someone else's.
    #[error("INVALID_PAGE_OWNER")]
    InvalidPageOwner = 0x1c,
    /// Sequence numbers have run out.
    #[error("AEAD_OFLOW")]
    AeadOverflow = 0x1d,
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NotAssigned | Fault::OtherAddress => Self::InvalidPageOwner,
            _ => Self::InvalidPageState,
        }
    }
}

impl From<MessageError> for Status {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::NotAuthentic => Self::BadMeasurement,
            _ => Self::InvalidParam,
        }
    }
}

/// The ID block of a launch, as the host gives it: bytes of no proven shape.
#[derive(Debug, Clone, Copy)]
pub struct Vouched<'h> {
    /// The block.
    pub block: &'h [u8],
    /// What vouches for it.
    pub auth: &'h [u8],
    /// Whether the author key counts (AUTHOR_KEY_EN).
    pub author_key: bool,
}

/// What an ID block brought.
#[derive(Debug, Clone)]
struct Identity {
    family_id: Bytes<16>,
    image_id: Bytes<16>,
    guest_svn: u32,
    id_key_digest: Bytes48,
    author_key_digest: Option<Bytes48>,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            family_id: Bytes::ZERO,
            image_id: Bytes::ZERO,
            guest_svn: 0,
            id_key_digest: Bytes48::ZERO,
            author_key_digest: None,
        }
    }
}

/// What the launch fixed.
#[derive(Debug, Clone)]
struct Guest {
    policy: u64,
    host_data: [u8; 32],
    measurement: Bytes48,
    identity: Identity,
}

#[derive(Debug, Clone)]
enum State {
    Idle,
    Launching { policy: u64, digest: LaunchDigest },
    Running(Guest),
}

/// Where a report has COMMITTED_TCB.
const COMMITTED_TCB: std::ops::Range<usize> = 0x1e0..0x1e8;
/// Bytes of an entry of the page of CPUID values.
const CPUID_ENTRY: usize = 48;
/// Most entries of it.
const CPUID_MOST: u32 = 64;

/// One processor with one guest.
pub struct Processor {
    state: State,
    keys: [Zeroizing<[u8; 32]>; 4],
    /// Last sequence number used under each key.
    counts: [u64; 4],
    chip_secret: Zeroizing<[u8; 32]>,
    endorsement: Endorsement,
    spec: VekSpec,
}

impl std::fmt::Debug for Processor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Processor")
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl Processor {
    /// A chip with a secret, from which its derived keys come, and an endorsement under simulated roots; `keys` are what the
    /// guest's messages will be sealed with.
    #[must_use]
    pub fn new(chip_secret: [u8; 32], keys: [[u8; 32]; 4], endorsement: Endorsement, spec: VekSpec) -> Self {
        Self {
            state: State::Idle,
            keys: keys.map(Zeroizing::new),
            counts: [0; 4],
            chip_secret: Zeroizing::new(chip_secret),
            endorsement,
            spec,
        }
    }

    /// SNP_LAUNCH_START.
    ///
    /// # Errors
    /// [`Status`].
    pub fn start(&mut self, policy: u64) -> Result<(), Status> {
        if !matches!(self.state, State::Idle) {
            return Err(Status::InvalidGuestState);
        }
        let policy_field = GuestPolicy(policy);
        // The firmware's own version, which the policy may ask to be higher.
        if !policy_field.reserved_bits_hold() || policy_field.minimum_abi() > (1, 55) {
            return Err(Status::PolicyFailure);
        }
        // There is no migration agent to bind to.
        if policy_field.allows_migration_agent() {
            return Err(Status::PolicyFailure);
        }
        self.state = State::Launching {
            policy,
            digest: LaunchDigest::default(),
        };
        Ok(())
    }

    /// SNP_LAUNCH_UPDATE of one page. A page of CPUID values that it doesn't like it corrects in `contents`.
    ///
    /// # Errors
    /// [`Status`].
    pub fn update(
        &mut self,
        memory: &mut impl Ram,
        gfn: Gfn,
        kind: PageKind,
        contents: &mut PageBytes,
    ) -> Result<(), Status> {
        let State::Launching { digest, .. } = &mut self.state else {
            return Err(Status::InvalidGuestState);
        };
        memory.launchable(gfn)?;
        let written = match kind {
            PageKind::Cpuid if correct_cpuid(contents) => return Err(Status::InvalidParam),
            PageKind::Secrets => secrets(&self.keys),
            PageKind::Zero => [0; PAGE],
            PageKind::Normal | PageKind::Unmeasured | PageKind::Cpuid => *contents,
        };
        memory.launch(gfn, &written)?;
        *digest = digest.add_page(&Page {
            gpa: Gpa(gfn.0 * PAGE as u64),
            kind,
            contents: &contents[..],
        });
        Ok(())
    }

    /// SNP_LAUNCH_UPDATE of a vCPU's state.
    ///
    /// # Errors
    /// [`Status`].
    pub fn update_state(&mut self, vmsa: &PageBytes) -> Result<(), Status> {
        let State::Launching { digest, .. } = &mut self.state else {
            return Err(Status::InvalidGuestState);
        };
        *digest = digest.add_vmsa(vmsa);
        Ok(())
    }

    /// SNP_LAUNCH_FINISH. Where it is refused, the launch is not over.
    ///
    /// # Errors
    /// [`Status`].
    pub fn finish(&mut self, host_data: [u8; 32], id: Option<Vouched<'_>>) -> Result<(), Status> {
        let State::Launching { policy, digest } = self.state else {
            return Err(Status::InvalidGuestState);
        };
        let identity = match id {
            Some(id) => identified(id, digest.measurement(), GuestPolicy(policy))?,
            None => Identity::default(),
        };
        self.state = State::Running(Guest {
            policy,
            host_data,
            measurement: digest.measurement(),
            identity,
        });
        Ok(())
    }

    /// What the launch measured, once it is over.
    #[must_use]
    pub fn measurement(&self) -> Option<Bytes48> {
        match &self.state {
            State::Running(guest) => Some(guest.measurement),
            _ => None,
        }
    }

    /// SNP_GUEST_REQUEST: answers the message at the start of a page.
    ///
    /// # Errors
    /// [`Status`]: no message of the guest's, or not the next one. It changes nothing, so that a number that was used once
    /// is never used again.
    pub fn request(&mut self, page: &[u8]) -> Result<Vec<u8>, Status> {
        let State::Running(guest) = &self.state else {
            return Err(Status::InvalidGuestState);
        };
        let sealed = Sealed::parse(page)?;
        let header = sealed.header;
        let which = usize::from(header.key);
        let answer = self.counts[which].checked_add(2).ok_or(Status::AeadOverflow)?;
        if header.sequence.checked_add(1) != Some(answer) {
            return Err(Status::InvalidParam);
        }
        let payload = sealed.open(&self.keys[which])?;
        let (kind, response) = match header.kind {
            MessageType::ReportRequest => (
                MessageType::ReportResponse,
                self.report(guest, &payload, header.key),
            ),
            MessageType::KeyRequest => (MessageType::KeyResponse, self.key(guest, &payload, header.key)),
            MessageType::ReportResponse | MessageType::KeyResponse => return Err(Status::InvalidParam),
        };
        let header = Header {
            sequence: answer,
            kind,
            key: header.key,
        };
        let bytes = message::seal(header, &self.keys[which], &response)?;
        self.counts[which] = answer;
        Ok(bytes)
    }

    /// MSG_REPORT_RSP: status, size, 24 bytes reserved, report.
    fn report(&self, guest: &Guest, payload: &[u8], asker: u8) -> Vec<u8> {
        let report = ReportRequest::parse(payload, asker).map(|request| {
            let mut fields = self.endorsement.fields(&self.spec);
            fields.policy = GuestPolicy(guest.policy);
            fields.vmpl = request.vmpl;
            fields.report_data = Bytes64::from(request.report_data);
            fields.measurement = guest.measurement;
            fields.host_data = Bytes32::from(guest.host_data);
            let identity = &guest.identity;
            fields.family_id = identity.family_id;
            fields.image_id = identity.image_id;
            fields.guest_svn = identity.guest_svn;
            fields.id_key_digest = identity.id_key_digest;
            fields.author_key_digest = identity.author_key_digest.unwrap_or(Bytes48::ZERO);
            fields.key_info |= u32::from(identity.author_key_digest.is_some());
            self.endorsement.attest(&fields).report
        });
        let (status, report) = status_of(report);
        let size = report.len() as u32;
        [&status.to_le_bytes()[..], &size.to_le_bytes(), &[0; 24], &report].concat()
    }

    /// MSG_KEY_RSP: status, 28 bytes reserved, key.
    fn key(&self, guest: &Guest, payload: &[u8], asker: u8) -> Vec<u8> {
        let tcb = self.committed_tcb();
        let key = KeyRequest::parse(payload, asker, guest.identity.guest_svn, tcb)
            .map(|request| self.derive(guest, &request));
        let (status, mut key) = status_of(key);
        key.resize(32, 0);
        [&status.to_le_bytes()[..], &[0; 28], &key].concat()
    }

    /// As its reports have it: its layout is the product's.
    fn committed_tcb(&self) -> [u8; 8] {
        let report = self
            .endorsement
            .attest(&self.endorsement.fields(&self.spec))
            .report;
        let mut tcb = [0; 8];
        tcb.copy_from_slice(&report[COMMITTED_TCB]);
        tcb
    }

    /// The firmware's own derivation is not published; what counts is what a key depends on.
    fn derive(&self, guest: &Guest, request: &KeyRequest) -> Vec<u8> {
        let mut info = request.field_select.to_le_bytes().to_vec();
        info.extend_from_slice(&request.vmpl.to_le_bytes());
        let mut mix = |field: u64, bytes: &[u8]| {
            if request.field_select & field != 0 {
                info.extend_from_slice(&field.to_le_bytes());
                info.extend_from_slice(bytes);
            }
        };
        mix(fields::POLICY, &guest.policy.to_le_bytes());
        mix(fields::IMAGE_ID, &guest.identity.image_id.0);
        mix(fields::FAMILY_ID, &guest.identity.family_id.0);
        mix(fields::MEASUREMENT, &guest.measurement.0);
        mix(fields::GUEST_SVN, &request.guest_svn.to_le_bytes());
        mix(fields::TCB, &request.tcb);
        let mut key = vec![0; 32];
        // 32 bytes are within what one expansion gives.
        Hkdf::<Sha384>::new(Some(b"simulated chip"), &self.chip_secret[..])
            .expand(&info, &mut key)
            .unwrap_or_else(|_| key.fill(0));
        key
    }

    /// Certificates from the chip's key up to the simulated root, as the host gives them out beside a report.
    #[must_use]
    pub fn evidence(&self, report: Vec<u8>) -> cloak_attestation::evidence::SnpEvidence {
        cloak_attestation::evidence::SnpEvidence {
            report,
            ..self.endorsement.attest(&self.endorsement.fields(&self.spec))
        }
    }
}

/// What an ID block says of a guest, once its signatures and what it expects hold (SNP ABI, SNP_LAUNCH_FINISH).
fn identified(id: Vouched<'_>, measurement: Bytes48, policy: GuestPolicy) -> Result<Identity, Status> {
    let block = IdBlock::parse(id.block)?;
    let auth = IdAuth::parse(id.auth)?;
    auth.verify(&block)?;
    // An author key that the host does not speak of, or speaks of where there is none.
    if auth.has_author() != id.author_key {
        return Err(Status::InvalidParam);
    }
    block.agree(measurement, policy)?;
    Ok(Identity {
        family_id: block.family_id(),
        image_id: block.image_id(),
        guest_svn: block.guest_svn(),
        id_key_digest: auth.id_key_digest(),
        author_key_digest: auth.author_key_digest(),
    })
}

impl From<IdBlockError> for Status {
    fn from(error: IdBlockError) -> Self {
        match error {
            IdBlockError::Length { .. } | IdBlockError::Version(_) | IdBlockError::Algorithm(_) => {
                Self::InvalidParam
            }
            IdBlockError::Signature(_) => Self::BadSignature,
            IdBlockError::Measurement { .. } => Self::BadMeasurement,
            IdBlockError::Policy { .. } => Self::PolicyFailure,
        }
    }
}

/// Status 0x16 of a response: a parameter of the request.
fn status_of(result: Result<Vec<u8>, RequestError>) -> (u32, Vec<u8>) {
    match result {
        Ok(bytes) => (0, bytes),
        Err(_) => (Status::InvalidParam as u32, Vec::new()),
    }
}

/// The secrets page (SNP ABI, section 8.15.2.7): version 4, then the keys.
fn secrets(keys: &[Zeroizing<[u8; 32]>; 4]) -> PageBytes {
    let mut page = [0; PAGE];
    page[0] = 4;
    for (slot, key) in page[0x20..0xa0].chunks_exact_mut(32).zip(keys) {
        slot.copy_from_slice(&key[..]);
    }
    page
}

/// Puts right what can't be on any processor; says whether there was something: too many entries, or more state in use than
/// x87 and SSE have while XCR0 is 1 or 3.
fn correct_cpuid(page: &mut PageBytes) -> bool {
    let word = |page: &PageBytes, at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&page[at..at + 4]);
        u32::from_le_bytes(word)
    };
    let count = word(page, 0);
    if count > CPUID_MOST {
        page[..4].copy_from_slice(&CPUID_MOST.to_le_bytes());
        return true;
    }
    let mut corrected = false;
    for index in 0..count as usize {
        let at = 16 + index * CPUID_ENTRY;
        let size = word(page, at + 28);
        if word(page, at) == 0xd && word(page, at + 4) == 0 && word(page, at + 8) <= 3 && size != 0x240 {
            page[at + 28..at + 32].copy_from_slice(&0x240u32.to_le_bytes());
            corrected = true;
        }
    }
    corrected
}
