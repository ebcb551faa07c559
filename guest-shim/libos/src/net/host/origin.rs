//! Where connections come from: ports that sockets of this context are connected to.

use alloc::vec::Vec;

use spin::Mutex;

use crate::net::address::Address;

static CONNECTED: Mutex<Vec<u16>> = Mutex::new(Vec::new());

/// A socket of this context may be connected to this port, as long as this is kept.
#[derive(Debug)]
pub struct Connected(u16);

impl Connected {
    /// To be called before the host connects. None for an address without a port.
    pub fn to(address: &Address) -> Option<Self> {
        let port = address.port()?;
        CONNECTED.lock().push(port);
        Some(Self(port))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut ports = CONNECTED.lock();
        if let Some(at) = ports.iter().position(|&port| port == self.0) {
            ports.swap_remove(at);
        }
    }
}

/// Whether who is connected to `port` may be a socket of this context.
pub fn may_be_own(port: u16) -> bool {
    CONNECTED.lock().contains(&port)
}
