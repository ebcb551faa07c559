//! Reports about the machine, from the kernel, and what the libos itself has to know from one.
//!
//! | platform | a report | evidence, which others can verify |
//! |---|---|---|
//! | SNP | the security processor's, signed | the same, with the host's certificates |
//! | TDX | the module's, which only this machine can verify | a quote ([`crate::quote`]) |

use alloc::vec::Vec;

use cloak_abi::boot::platform;
use cloak_abi::kcall::{EXTENSION, Kcall, KcallError, REPORT_DATA, ROOT_KEY};
use cloak_abi::layout::CERTIFICATES_GPA;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use sha2::{Digest, Sha384};

use crate::errno::{Errno, SysResult};
use crate::fs::certificates;
use crate::fs::file::File;
use crate::keys::Root;
use crate::mem::frames;
use crate::user::Buf;
use crate::{arch, identity, quote};

/// Where HOST_DATA is in a report (SNP ABI, table 23).
const HOST_DATA: core::ops::Range<usize> = 0xc0..0xe0;
/// Where MRCONFIGID is in a TDREPORT (TDX module ABI, TDINFO_BASE).
const CONFIG_ID: core::ops::Range<usize> = 576..624;
/// Run-time registers of TDX: what the manifest, and what the program extends.
const MANIFEST_REGISTER: u64 = 2;
const PROGRAM_REGISTER: u64 = 3;

/// The name by which Linux knows who makes reports here.
#[must_use]
pub fn provider() -> Option<&'static str> {
    match u64::from(arch::boot().platform) {
        platform::SNP => Some("sev_guest"),
        platform::TDX => Some("tdx_guest"),
        _ => None,
    }
}

/// What manifests call the kind of machine, where the launch is measured.
#[must_use]
pub fn platform() -> Option<&'static str> {
    match u64::from(arch::boot().platform) {
        platform::SNP => Some("snp"),
        platform::TDX => Some("tdx"),
        _ => None,
    }
}

static SIMULATED: AtomicBool = AtomicBool::new(false);

/// The host says that the machine is simulated.
pub fn set_simulated(on: bool) {
    SIMULATED.store(on, Ordering::Relaxed);
}

/// The machine, as evidence calls it.
#[must_use]
pub fn machine() -> &'static str {
    match (platform(), SIMULATED.load(Ordering::Relaxed)) {
        (Some("snp"), false) => "sev-snp",
        (Some("snp"), true) => "simulated-snp",
        (Some(_), false) => "tdx",
        (Some(_), true) => "simulated-tdx",
        (None, _) => "plain",
    }
}

/// The root of the context's keys, from the machine, if it is `needed`; else none, and nobody else gets it either. Once.
///
/// # Errors
/// Why there is none, for people.
pub fn take_root(needed: bool) -> Result<Root, &'static str> {
    let len = arch::kcall(Kcall::Key, u64::from(needed));
    let mut root = Root::default();
    if !needed {
        return Ok(root);
    }
    match len {
        len if len == ROOT_KEY as i64 => {}
        len if len == -(KcallError::Absent as i64) => {
            return Err(
                "this machine makes no keys: the manifest has to name the secret that they follow from (keys.released)",
            );
        }
        _ => {
            return Err(
                "the security processor makes no key: the hypervisor does not carry messages as it must",
            );
        }
    }
    for (part, word) in root.as_chunks_mut::<8>().0.iter_mut().zip(words()) {
        *part = word.swap(0, Ordering::Relaxed).to_le_bytes();
    }
    Ok(root)
}

/// The words of the vCPU's block by which bytes go to and from the kernel.
fn words() -> impl Iterator<Item = &'static AtomicU64> {
    let all = arch::vcpu_block(arch::vcpu_index()).ops.iter();
    all.flat_map(|op| [&op.va_kind, &op.len, &op.gpa, &op.flags])
}

/// A report over `data`.
///
/// # Errors
/// ENXIO: there are none on this platform; EIO: the security processor, or the way to it, fails.
pub fn report(data: &[u8; REPORT_DATA]) -> SysResult<Vec<u8>> {
    ask(data, 0)
}

/// Evidence over `data`, and what the host adds to it.
///
/// # Errors
/// As [`report`]; EBUSY, EINTR: as [`quote::of`].
pub fn evidence(data: &[u8; REPORT_DATA]) -> SysResult<(Vec<u8>, Vec<u8>)> {
    if is_domain() {
        return quote::of(data).map(|quote| (quote, Vec::new()));
    }
    let report = ask(data, 1)?;
    let head = host_bytes(certificates::HEAD);
    let len = certificates::table_len(&head).ok_or(Errno::EIO)?;
    Ok((report, host_bytes(len)))
}

fn is_domain() -> bool {
    u64::from(arch::boot().platform) == platform::TDX
}

fn argument(data: &[u8]) {
    for (word, part) in words().zip(data.as_chunks::<8>().0) {
        word.store(u64::from_le_bytes(*part), Ordering::Relaxed);
    }
}

/// Asks the kernel for a report; `more` asks the host for what makes evidence of it.
pub(crate) fn ask(data: &[u8; REPORT_DATA], more: u64) -> SysResult<Vec<u8>> {
    provider().ok_or(Errno::ENXIO)?;
    argument(data);
    let len = arch::kcall(Kcall::Report, more);
    if len == -(KcallError::Busy as i64) {
        return Err(Errno::EAGAIN);
    }
    let len = usize::try_from(len).map_err(|_| Errno::EIO)?;
    let bytes = words().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes());
    Ok(bytes.take(len).collect())
}

/// A copy of what the host left where certificates are.
pub(crate) fn host_bytes(len: usize) -> Vec<u8> {
    let mut bytes = alloc::vec![0; len];
    let from = frames::window(CERTIFICATES_GPA) as *const u8;
    // SAFETY: the window maps all of it, no table is longer, and the copy is ours.
    unsafe { arch::copy_own(bytes.as_mut_ptr(), from, len) };
    bytes
}

/// Where the launch is measured, the manifest that came with the configuration is the one that the guest was launched for, or
/// the host has put another in its place: the security processor says.
pub fn check_manifest() {
    if provider().is_none() {
        return;
    }
    let told = report(&[0; REPORT_DATA]);
    let Ok(told) = told else {
        arch::panic_exit(
            "the security processor gives no report: the hypervisor does not carry messages as it must",
        );
    };
    let (bound, digest) = if is_domain() {
        (told.get(CONFIG_ID), &identity::manifest_digest_384()[..])
    } else {
        (told.get(HOST_DATA), &identity::manifest_digest()[..])
    };
    if bound != Some(digest) {
        arch::panic_exit(
            "the manifest is not the one that the machine was launched for (HOST_DATA, MRCONFIGID)",
        );
    }
    extend(MANIFEST_REGISTER, &identity::manifest_digest_384());
}

/// The program that is started first goes into the run-time register that is for it: SHA-384 of its file, as it is read now.
///
/// # Errors
/// What reading the file gives.
pub fn extend_with_program(file: &dyn File) -> SysResult<()> {
    const PART: usize = 256 << 10;
    if !is_domain() {
        return Ok(());
    }
    let (mut digest, mut part, mut at) = (Sha384::new(), alloc::vec![0; PART], 0);
    loop {
        let got = file.read_at(at, &mut Buf::own_mut(&mut part))?;
        if got == 0 {
            break;
        }
        digest.update(&part[..got]);
        at += got as u64;
    }
    extend(PROGRAM_REGISTER, &digest.finalize().into());
    Ok(())
}

/// Extends a run-time register, where there are such.
fn extend(register: u64, digest: &[u8; EXTENSION]) {
    if !is_domain() {
        return;
    }
    argument(digest);
    if arch::kcall(Kcall::Extend, register) != 0 {
        arch::panic_exit("the TDX module does not extend a run-time register");
    }
}
