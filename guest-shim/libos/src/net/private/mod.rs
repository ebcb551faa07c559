//! A network of the context's own (`--network private`).
//!
//! | module | concept |
//! |---|---|
//! | [`network`] | its addresses, and where an address leads |
//! | [`endpoint`] | addresses as values |
//! | [`ports`] | which socket has which port |
//! | [`socket`] | its sockets |
//! | [`stream`], [`datagram`] | what each kind does |
//! | [`outside`] | sockets of the host behind them |
//! | [`options`] | socket options |
//! | [`interfaces`], [`netlink`] | how programs learn of it |
//! | [`texts`] | files about it in `/proc/net`, `/sys/class/net` and `/etc` |
//!
//! ```text
//!  program ── PrivateSocket ──┬── inbox of another PrivateSocket      127.0.0.0/8, ::1, 192.0.0.2: never leaves
//!                             ├── HostSocket that connects or sends   everywhere else: as a gateway would
//!                             └── HostSocket that is bound            a published port, and nothing else
//! ```
//! The host has a listening socket for a published port only, from the moment when a program binds it.

mod datagram;
mod endpoint;
pub mod interfaces;
mod netlink;
pub mod network;
mod options;
mod outside;
mod ports;
mod socket;
mod stream;
pub mod texts;

#[cfg(test)]
mod tests;

pub use self::netlink::NetlinkSocket;
pub use self::socket::PrivateSocket;
