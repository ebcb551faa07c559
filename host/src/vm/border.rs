//! What a context has in common with its OS service.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use super::ContextOptions;
use super::error::{Step, VmError};
use super::shared::SharedRegion;
use crate::os::handed;

/// One for each context; it must exist before the OS service is started.
pub struct Border {
    /// The shared region.
    pub shared: Arc<SharedRegion>,
    /// Rung by the guest's doorbell.
    pub doorbell: OwnedFd,
    /// The monitor's end and the service's of the socket for further standard streams.
    pub streams: Option<(OwnedFd, OwnedFd)>,
    /// One per vCPU.
    pub wakes: Vec<OwnedFd>,
}

impl Border {
    /// The service's end of the socket for further standard streams.
    ///
    /// # Panics
    /// When the monitor has taken the ends already, which it does after the services have started.
    pub fn service_streams(&self) -> BorrowedFd<'_> {
        let (_, service) = self
            .streams
            .as_ref()
            .expect("taken once the services have started");
        service.as_fd()
    }

    /// Makes it.
    ///
    /// # Errors
    /// When there are no descriptors left, or no memory.
    pub fn new(options: &ContextOptions) -> Result<Self, VmError> {
        Ok(Self {
            shared: Arc::new(SharedRegion::create(options.vcpus as u32)?),
            doorbell: eventfd()?,
            streams: Some(
                handed::channel()
                    .map_err(io::Error::from)
                    .step("making a socket")?,
            ),
            wakes: (0..options.vcpus).map(|_| eventfd()).collect::<Result<_, _>>()?,
        })
    }
}

/// A fresh event counter that never blocks.
///
/// # Errors
/// When there are no descriptors left.
pub fn eventfd() -> Result<OwnedFd, VmError> {
    // SAFETY: constants; the result is checked.
    let raw = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if raw < 0 {
        return Err(VmError::last_os("making an eventfd"));
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
