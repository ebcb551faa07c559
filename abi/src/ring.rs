//! The shared region: the only memory that the guest and the OS side both read and write.
//!
//! ```text
//! 0x0_0000  SharedHeader
//! 0x0_1000  QueuePage of vCPU 0, 1, ... MAX_VCPUS-1
//! 0x4_1000  EventPage: readiness events
//! 0x4_8000  Slot[SLOTS]
//! 0x10_0000 buffers: BUFFER bytes for each slot
//! ```
//!
//! A request: the guest takes a free slot (its own bookkeeping, never read back from here), fills the
//! slot and its buffer, pushes the slot's index on its vCPU's submission queue. The OS service writes
//! `result`, then `done = seq`, then pushes the index on that vCPU's completion queue. A `done` that is not
//! the `seq` of the request is not an answer. Everything read from here may be a lie: it is copied once,
//! then parsed.
//!
//! Heads and tails count freely and wrap at 2^32; entry `n` of a queue is at `n` modulo its length. Each side
//! keeps its own count in private memory and never reads it back from here.
//!
//! No wake-up is lost, because each side writes its own word, fences (SeqCst), and reads the other's: the
//! guest stores `sq_tail` (release), fences, and rings the doorbell if `service_asleep` is 1; a vCPU that
//! halts stores `state = Halted`, fences, looks at its completion queue and at the event queue once more, and
//! only then leaves to the monitor. The service does the same from its side. A vCPU that leaves `Polling`,
//! for whatever state, looks at the event queue once more as well: the service rings nobody for an event
//! while one polls.

use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

/// "CLOAKSH1", little endian.
pub const SHARED_MAGIC: u64 = u64::from_le_bytes(*b"CLOAKSH1");
/// Distance of the bits of [`SharedHeader::signals`] for what was typed at the terminal from those for what was sent.
pub const TYPED: u32 = 32;
/// Number of request slots.
pub const SLOTS: usize = 256;
/// Buffer bytes of each slot.
pub const BUFFER: usize = 128 << 10;
/// Entries of a submission or completion queue (holds all slots: it can't overflow).
pub const QUEUE: usize = SLOTS;
/// Entries of the event queue.
pub const EVENTS: usize = 2048;
/// Offset of the first queue page.
pub const QUEUES_AT: usize = 0x1000;
/// Bytes of a queue page.
pub const QUEUE_PAGE: usize = 4096;
/// Offset of the event page.
pub const EVENTS_AT: usize = QUEUES_AT + crate::layout::MAX_VCPUS * QUEUE_PAGE;
/// Offset of the slots.
pub const SLOTS_AT: usize = 0x4_8000;
/// Offset of the buffers.
pub const BUFFERS_AT: usize = 0x10_0000;
/// Bytes of the whole region: a multiple of a large page.
pub const SHARED_LEN: usize = (BUFFERS_AT + SLOTS * BUFFER).next_multiple_of(2 << 20);

/// At offset 0.
#[derive(Debug)]
#[repr(C)]
pub struct SharedHeader {
    /// [`SHARED_MAGIC`].
    pub magic: AtomicU64,
    /// [`crate::VERSION`].
    pub version: AtomicU32,
    /// 1 while the OS service sleeps and needs the doorbell.
    pub service_asleep: AtomicU32,
    /// Signals that arrived at the monitor for the program, bit `n - 1` for signal `n`, and [`TYPED`] above that for one that the
    /// terminal sent to all of its foreground. The guest takes them with an exchange.
    pub signals: AtomicU64,
    /// Written by the libos before it ends the VM: [`exit_status`] encoding.
    pub exit_status: AtomicU64,
    /// Bytes of the panic message in `message`, if the shim ended in one.
    pub message_len: AtomicU32,
    /// Number of vCPUs.
    pub vcpus: AtomicU32,
    /// Set by the monitor when the OS service has died: no answer will come.
    pub service_gone: AtomicU32,
    /// Threads that wait for a vCPU: when not 0, the monitor kicks vCPUs that have run for a time slice.
    pub waiting: AtomicU32,
    /// How many vCPUs the host advises to keep awake, the first ones; 0: all.
    pub awake: AtomicU32,
    /// Zero.
    pub reserved: AtomicU32,
    /// Guest TSC at which the next timer is due (`u64::MAX`: none), for when every vCPU is busy.
    pub timer: AtomicU64,
    /// `--stats` counters that the libos leaves at its end, indexed by [`Stat`].
    pub stats: [AtomicU64; STATS],
    /// Panic message, UTF-8.
    pub message: [AtomicU64; 128],
}

impl SharedHeader {
    /// How many of `vcpus` the host advises to keep awake.
    #[must_use]
    pub fn awake_of(&self, vcpus: usize) -> usize {
        match self.awake.load(Ordering::Relaxed) {
            0 => vcpus,
            advised => vcpus.min(advised as usize),
        }
    }
}

/// Number of counters.
pub const STATS: usize = 17;

/// Counters of `--stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Stat {
    /// System calls served by the libos in all.
    Calls = 0,
    /// Of them, those that entered through a trap (not a patched site).
    Trapped = 1,
    /// Requests to the OS service.
    Forwarded = 2,
    /// Exceptions that entered the kernel.
    Exceptions = 3,
    /// Kernel calls.
    Kcalls = 4,
    /// Interrupts.
    Interrupts = 5,
    /// System-call sites patched.
    Patched = 6,
    /// Thread switches in the libos.
    Switches = 7,
    /// Times a vCPU halted.
    Halts = 8,
    /// Page faults served.
    Faults = 9,
    /// Doorbells rung.
    Doorbells = 10,
    /// Signals delivered to the program.
    Signals = 11,
    /// When the program's first instruction came, guest TSC.
    Entered = 12,
    /// Frames in use at the end.
    Frames = 13,
    /// Host descriptors held at the end.
    HostFiles = 14,
    /// Threads that there were at the end.
    Threads = 15,
    /// Interrupts and exceptions that the kernel dropped, because nobody but a hypervisor that lies sends them.
    Dropped = 16,
}

/// Encoding of [`SharedHeader::exit_status`].
pub mod exit_status {
    /// The program ended with this code.
    #[must_use]
    pub const fn exited(code: u8) -> u64 {
        1 << 32 | code as u64
    }
    /// A signal ended the program.
    #[must_use]
    pub const fn signalled(signal: u8) -> u64 {
        2 << 32 | signal as u64
    }
    /// The shim could not start the program; the message says why; `code` is 125, 126 or 127.
    #[must_use]
    pub const fn refused(code: u8) -> u64 {
        3 << 32 | code as u64
    }
    /// The shim failed; the message says why.
    pub const PANIC: u64 = 4 << 32;
}

/// Queues of one vCPU.
#[derive(Debug)]
#[repr(C)]
pub struct QueuePage {
    /// Next entry that the OS service takes.
    pub sq_head: AtomicU32,
    pad0: [AtomicU32; 15],
    /// Next entry that the guest writes.
    pub sq_tail: AtomicU32,
    /// [`crate::vcpu::VcpuState`] as a hint to wakers; written by the guest.
    pub state: AtomicU32,
    pad1: [AtomicU32; 2],
    /// Absolute deadline of a halt, in guest TSC ticks (`u64::MAX`: never).
    pub deadline: AtomicU64,
    pad2: [AtomicU64; 5],
    /// Next entry that the OS service writes.
    pub cq_tail: AtomicU32,
    pad3: [AtomicU32; 15],
    /// Next entry that the guest takes.
    pub cq_head: AtomicU32,
    pad4: [AtomicU32; 15],
    /// Slot indices submitted.
    pub sq: [AtomicU32; QUEUE],
    /// Slot indices completed.
    pub cq: [AtomicU32; QUEUE],
}

/// Readiness events, from the OS service to whichever vCPU looks first.
#[derive(Debug)]
#[repr(C)]
pub struct EventPage {
    /// Next entry that the OS service writes.
    pub tail: AtomicU32,
    pad0: [AtomicU32; 15],
    /// Next entry that the guest takes.
    pub head: AtomicU32,
    pad1: [AtomicU32; 15],
    /// Set to 1 when an event was dropped because the queue was full: the guest treats every watched
    /// file as ready.
    pub overflow: AtomicU32,
    pad2: [AtomicU32; 15],
    /// `token << 32 | epoll events`.
    pub entries: [AtomicU64; EVENTS],
}

/// One request.
#[derive(Debug)]
#[repr(C)]
pub struct Slot {
    /// [`crate::hostop::HostOp`].
    pub op: AtomicU32,
    /// vCPU whose completion queue gets the answer.
    pub vcpu: AtomicU32,
    /// Arguments, as the operation says.
    pub args: [AtomicU64; 6],
    /// Identifies the request; never 0.
    pub seq: AtomicU64,
    /// Result: not negative, or a negative Linux error number.
    pub result: AtomicI64,
    /// Second result, where the operation has one.
    pub extra: AtomicU64,
    /// `seq` of the request that `result` answers.
    pub done: AtomicU64,
    pad: [AtomicU64; 5],
}

/// Offset of slot `index`'s buffer.
#[must_use]
pub const fn buffer_at(index: usize) -> usize {
    BUFFERS_AT + index * BUFFER
}

crate::tripwire!(size_of::<SharedHeader>() <= QUEUES_AT, "SharedHeader");
crate::tripwire!(size_of::<QueuePage>() <= QUEUE_PAGE, "QueuePage");
crate::tripwire!(EVENTS_AT + size_of::<EventPage>() <= SLOTS_AT, "EventPage");
crate::tripwire!(size_of::<Slot>() == 128, "Slot");
crate::tripwire!(SLOTS_AT + SLOTS * size_of::<Slot>() <= BUFFERS_AT, "slots");
crate::tripwire!(SHARED_LEN.is_multiple_of(2 << 20), "shared region");
