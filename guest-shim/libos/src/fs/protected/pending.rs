//! Protected volumes whose keys follow from a root that a broker releases: they wait, unmounted, until the helper that fetches it
//! writes it to `/sys/kernel/cloak/root_key`. Once, and before the program starts, as only the helper runs until then.

use alloc::sync::Arc;
use alloc::vec::Vec;

use spin::Mutex;

use super::{Record, mount};
use crate::errno::{Errno, SysResult};
use crate::fs::mount as table;
use crate::keys::{self, Root};

/// What waits.
struct Pending {
    records: Vec<Record>,
    identity: [u8; 48],
    owner: [u32; 2],
    /// Bytes of decrypted blocks that each keeps.
    cache: usize,
}

static PENDING: Mutex<Option<Pending>> = Mutex::new(None);

/// Lets volumes wait for their root.
pub fn wait(records: Vec<Record>, identity: [u8; 48], owner: [u32; 2], cache: usize) {
    *PENDING.lock() = Some(Pending {
        records,
        identity,
        owner,
        cache,
    });
}

/// Whether a root is waited for.
#[must_use]
pub fn is_waiting() -> bool {
    PENDING.lock().is_some()
}

/// Takes the root, and mounts what waits for it. A volume that does not open ends the context, as it does at the start.
///
/// # Errors
/// EINVAL for what has another length than a key; EPERM where nothing waits, or not any more.
pub fn take(bytes: &[u8]) -> SysResult<()> {
    let root = Root::new(bytes.try_into().map_err(|_| Errno::EINVAL)?);
    let pending = PENDING.lock().take().ok_or(Errno::EPERM)?;
    for mut record in pending.records {
        let key = keys::of_volume(&root, &pending.identity, record.path());
        record.set_key(&key, pending.owner);
        let mounted = mount(record, pending.cache).unwrap_or_else(|why| end(&why));
        table::change(|all| {
            all.push(Arc::new(mounted));
            Ok(())
        })?;
    }
    Ok(())
}

fn end(why: &str) -> ! {
    #[cfg(feature = "bare")]
    crate::arch::exit(cloak_abi::ring::exit_status::refused(125), why);
    #[cfg(not(feature = "bare"))]
    panic!("{why}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_taken_once_and_only_where_one_is_waited_for() {
        assert_eq!(take(&[1; 32]), Err(Errno::EPERM));
        wait(Vec::new(), [0; 48], [0, 0], 0);
        assert!(is_waiting());
        assert_eq!(take(&[1; 31]), Err(Errno::EINVAL));
        assert_eq!(take(&[1; 32]), Ok(()));
        assert_eq!(take(&[1; 32]), Err(Errno::EPERM));
    }
}
