//! Where the monitor asks the libos for one more process, and learns how it ended.
//!
//! RAM behind the page of anchors: the OS side sees nothing of it. Where the launch is measured that is memory of the monitor's, as
//! the configuration is, and who starts something is the host: only where the manifest lets it. The monitor puts the request, records of
//! [`crate::config`], behind the head, says in `asked` whose it is and makes a vCPU look. The libos copies the request and
//! clears `asked`; from then on the buffer is free for the next one. What comes later, signals and sizes of the
//! terminal, stands in the process's slot, and a bit of `news` says so. When the process has ended, the libos leaves its
//! status in the slot and makes [`crate::vcpu::MonitorCall::Ended`].

use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::layout::{CONFIG_LEN, PAGE};

/// Most processes at a time.
pub const EXECS: usize = 24;
/// Words of a message.
pub const MESSAGE_WORDS: usize = 28;
/// Bytes of the head.
pub const HEAD_LEN: usize = 2 * PAGE as usize;
/// Most bytes of a request.
pub const REQUEST_MAX: usize = 128 << 10;
/// Bytes of all of it.
pub const LEN: u64 = (HEAD_LEN + REQUEST_MAX) as u64;

/// One process's place.
#[derive(Debug)]
#[repr(C)]
pub struct ExecSlot {
    /// Signals for it, bit `n - 1` for signal `n`. Written by the monitor, taken by the libos with an exchange.
    pub signals: AtomicU64,
    /// Rows, columns << 16 of its terminal; written by the monitor.
    pub window: AtomicU64,
    /// Written by the libos at its end: [`crate::ring::exit_status`].
    pub status: AtomicU64,
    /// Bytes of the message, if it could not be started.
    pub message_len: AtomicU64,
    /// Why it could not be started, UTF-8.
    pub message: [AtomicU64; MESSAGE_WORDS],
}

/// The head.
#[derive(Debug)]
#[repr(C)]
pub struct ExecPage {
    /// 1 + number of the slot whose request stands in the buffer; 0: none.
    pub asked: AtomicU32,
    /// Bytes of that request.
    pub len: AtomicU32,
    /// Slots with news, by bit. Written by the monitor, taken by the libos with an exchange.
    pub news: AtomicU64,
    pad: [AtomicU64; 6],
    /// By number.
    pub slots: [ExecSlot; EXECS],
}

/// Bits of the first number of [`crate::config::Tag::Exec`].
pub mod exec_flags {
    /// Its streams are those of a terminal: it gets one, inside, and the streams are the other side of it.
    pub const TERMINAL: u64 = 1;
}

/// Most bytes of a configuration where the launch is measured: the page of anchors and all of this lie behind it, and before the
/// shared region.
pub const MEASURED_CONFIG_MAX: u64 = CONFIG_LEN - PAGE - LEN;

/// Guest-physical address of the head.
#[must_use]
pub const fn head_at(config_gpa: u64, config_len: u64) -> u64 {
    crate::anchor::page_at(config_gpa, config_len) + PAGE
}

crate::tripwire!(size_of::<ExecSlot>() == 256, "ExecSlot");
crate::tripwire!(size_of::<ExecPage>() <= HEAD_LEN, "ExecPage");
crate::tripwire!(EXECS <= 64, "a bit of news for each slot");
