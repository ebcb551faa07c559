//! Resource limits: what a process that was taken over may use up.

use rustix::process::{Resource, Rlimit};

use super::JailError;

/// Bytes of addresses that the OS service may have: shared region, stacks of workers, what the allocator holds.
const ADDRESSES: u64 = 8 << 30;

/// A limit, its value, and what it keeps from happening.
pub type Limit = (Resource, &'static str, u64, &'static str);

/// Of the OS service.
pub const SERVICE: &[Limit] = &[
    (
        Resource::As,
        "RLIMIT_AS",
        ADDRESSES,
        "the host's memory is not used up",
    ),
    (Resource::Core, "RLIMIT_CORE", 0, "no core file"),
    (Resource::Memlock, "RLIMIT_MEMLOCK", 0, "no memory is locked"),
    (Resource::Msgqueue, "RLIMIT_MSGQUEUE", 0, "no message queues"),
    (Resource::Rtprio, "RLIMIT_RTPRIO", 0, "no real-time priority"),
];

/// Of the monitor. Its memory is the guest's, and bounded by what was asked for.
pub const MONITOR: &[Limit] = &[
    (Resource::Core, "RLIMIT_CORE", 0, "no core file"),
    (Resource::Msgqueue, "RLIMIT_MSGQUEUE", 0, "no message queues"),
    (Resource::Rtprio, "RLIMIT_RTPRIO", 0, "no real-time priority"),
];

/// Sets these limits for good; one that is lower already stays.
///
/// # Errors
/// When the kernel refuses.
pub fn set(limits: &[Limit]) -> Result<(), JailError> {
    for &(resource, _, most, _) in limits {
        let now = rustix::process::getrlimit(resource);
        let lower = |limit: Option<u64>| Some(limit.map_or(most, |limit| limit.min(most)));
        let limit = Rlimit {
            current: lower(now.current),
            maximum: lower(now.maximum),
        };
        rustix::process::setrlimit(resource, limit).map_err(|errno| JailError::System {
            step: "setting a resource limit",
            source: errno.into(),
        })?;
    }
    Ok(())
}
