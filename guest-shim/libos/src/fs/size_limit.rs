//! `RLIMIT_FSIZE`: how large a process may make a file.
//!
//! Holds for regular files, as on Linux: a write that would begin at or behind the limit raises SIGXFSZ and gives EFBIG,
//! one that would cross it is cut; a new size beyond it is refused.

use core::sync::atomic::{AtomicBool, Ordering};

use super::flags::{O_APPEND, S_IFMT, S_IFREG};
use super::{OpenFile, providers, signals};
use crate::errno::{Errno, SysResult};
use crate::user::Buf;

/// `RLIMIT_FSIZE`.
const FSIZE: usize = 1;
const SIGXFSZ: u32 = 25;

/// Whether any process was ever given a limit: most contexts never have one, and writes should not look for it.
static IS_USED: AtomicBool = AtomicBool::new(false);

/// From now on, limits are looked at.
pub fn begin() {
    IS_USED.store(true, Ordering::Relaxed);
}

/// The caller's limit for this file, if it has one.
fn limit(open: &OpenFile) -> SysResult<Option<u64>> {
    if !IS_USED.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let providers = providers::get();
    let [soft, _] = providers.limits(providers.current().0)[FSIZE];
    let is_regular = || -> SysResult<bool> { Ok(open.file.stat()?.mode & S_IFMT == S_IFREG) };
    Ok((soft != u64::MAX && is_regular()?).then_some(soft))
}

fn exceeded() -> Errno {
    signals::raise(SIGXFSZ);
    Errno::EFBIG
}

/// Cuts what is to be written at `offset` (none: at the file's position) down to what the limit allows.
///
/// # Errors
/// EFBIG, with SIGXFSZ; what the file reports of its attributes.
pub fn cut(open: &OpenFile, offset: Option<u64>, from: &mut Buf) -> SysResult<()> {
    let Some(limit) = limit(open)? else {
        return Ok(());
    };
    let at = match offset {
        Some(offset) => offset,
        None if open.flags() & O_APPEND != 0 => u64::try_from(open.file.stat()?.size).unwrap_or(0),
        None => open.position.with(|position| *position),
    };
    let room = limit.saturating_sub(at);
    if room == 0 && !from.is_empty() {
        return Err(exceeded());
    }
    from.truncate(usize::try_from(room).unwrap_or(usize::MAX).min(from.len()));
    Ok(())
}

/// Whether the file may get this size.
///
/// # Errors
/// EFBIG, with SIGXFSZ; what the file reports of its attributes.
pub fn check(open: &OpenFile, size: u64) -> SysResult<()> {
    let Some(limit) = limit(open)? else {
        return Ok(());
    };
    let now = u64::try_from(open.file.stat()?.size).unwrap_or(0);
    if size > limit && size > now {
        return Err(exceeded());
    }
    Ok(())
}
