//! What the OS service and the monitor may still ask of the host once they have started.
//!
//! The OS service is not trusted by the program, and it carries out what the guest asks: whoever takes it over is to
//! find nothing there but what the guest may use anyway. The monitor is trusted on plain KVM and reads what the OS
//! service writes; once the VM runs it needs little. Each gives up, in this order, what it can't get back:
//!
//! | layer | OS service | monitor |
//! |---|---|---|
//! | privileges ([`privileges`]) | capabilities for files of others and low ports only, no new ones | none |
//! | files ([`files`], Landlock) | its mounts, as far as each may be changed | none |
//! | namespaces ([`namespaces`]) | mounts, IPC, host name; without network that too | mounts, IPC, host name |
//! | limits ([`limits`]) | memory, and what it has no use for | what it has no use for |
//! | calls ([`calls`], seccomp) | those that it uses | those that it uses |
//!
//! A third process, which fetches the quotes of a TDX domain, has a smaller jail yet ([`crate::tdvmcall::courier`]).
//!
//! A call that is not in the table ends the process: it was made by nobody of ours. `docs/jail.md` shows the tables; a
//! test compares the two, another tries every call.

pub mod calls;
pub mod files;
pub mod limits;
pub mod namespaces;
pub mod privileges;

use self::namespaces::{Network, Owners};

/// Closes the monitor's jail around the calling thread and those that it starts: no file, no capability. Calls are
/// closed when all is started ([`calls::close`]).
///
/// # Errors
/// When the kernel refuses.
pub fn enter_monitor() -> Result<(), JailError> {
    privileges::no_new_privileges()?;
    limits::set(limits::MONITOR)?;
    namespaces::enter(Network::Host, Owners::Matter)?;
    privileges::drop_capabilities(&[])?;
    files::Rules::new(&[], &[])?.close()
}

/// Why a jail could not be closed. Nothing runs outside of it then.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A system call failed.
    #[error("{step}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The filter is wrong, or the kernel knows no filters.
    #[error("closing the system-call filter: {0} (CONFIG_SECCOMP_FILTER)")]
    Calls(#[from] seccompiler::Error),
    /// The filter could not be built.
    #[error("building the system-call filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// Landlock refused.
    #[error("closing the file rules: {0}")]
    Files(#[from] landlock::RulesetError),
}

impl JailError {
    pub(crate) fn last_os(step: &'static str) -> Self {
        Self::System {
            step,
            source: std::io::Error::last_os_error(),
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod walls_tests;
