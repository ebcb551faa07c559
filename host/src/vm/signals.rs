//! Signals that arrive at `cloak` go to the program: the monitor blocks them everywhere and one thread
//! takes them and leaves them in the shared header.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cloak_abi::ring::TYPED;
use cloak_abi::vcpu::VcpuState;

use super::shared::SharedRegion;
use super::vcpu::{Handle, KICK_SIGNAL};

/// `si_code` of a signal that the kernel sends: of these, those of the terminal, and its end.
const SI_KERNEL: libc::c_int = 0x80;
/// Signals that are passed on. SIGKILL and SIGSTOP can't be; those that a fault raises are the monitor's own.
const FORWARDED: &[libc::c_int] = &[
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTERM,
    libc::SIGCONT,
    libc::SIGTSTP,
    // Servers take these two for commands (gunicorn: one worker more, one less).
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGALRM,
    libc::SIGWINCH,
    libc::SIGURG,
    libc::SIGVTALRM,
    libc::SIGPROF,
];

/// Numbers are 1 to this.
const SIGNALS: libc::c_int = 64;

/// What the caller leaves to the programs that it starts, as `nohup` and the background of a script do: bit 0 is signal 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inherited {
    /// Do nothing.
    pub ignored: u64,
    /// Wait.
    pub blocked: u64,
}

impl Inherited {
    /// What this process had of its caller: to be asked before it changes any of it.
    #[must_use]
    pub fn now() -> Self {
        // SAFETY: only asks; a zeroed sigset_t is space for the answer.
        let mask = unsafe {
            let mut mask: libc::sigset_t = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask);
            mask
        };
        Self {
            ignored: bits(|signal| match signal {
                libc::SIGPIPE => PIPE_IGNORED.load(Ordering::Relaxed),
                other => is_ignored(other),
            }),
            // SAFETY: only reads a valid set.
            blocked: bits(|signal| unsafe { libc::sigismember(&raw const mask, signal) } == 1),
        }
    }
}

/// Whether the caller ignores SIGPIPE.
static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);

/// Rust's start-up ignores SIGPIPE before `main`. What the caller had is to be seen before that only, and the C library calls
/// what stands here earlier.
#[used]
// SAFETY: the section holds addresses of functions, and this one needs nothing that is set up later.
#[unsafe(link_section = ".init_array")]
static BEFORE_START: extern "C" fn() = {
    extern "C" fn look() {
        PIPE_IGNORED.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
    }
    look
};

/// Blocks the forwarded signals in the calling thread, and so in all that it starts, whatever the caller had blocked; gives
/// the kick signal its empty handler, and SIGCHLD what waiting for the OS service needs. To be called before any thread is
/// started. Gives what the program is to find.
pub fn block() -> Inherited {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    let inherited = Inherited::now();
    // SAFETY: a zeroed sigaction is valid; the handler does nothing, so it is async-signal-safe. It
    // interrupts KVM_RUN because SA_RESTART is not set.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut());
        action.sa_sigaction = handler as usize;
        libc::sigaction(KICK_SIGNAL, &raw const action, std::ptr::null_mut());
        libc::pthread_sigmask(
            libc::SIG_SETMASK,
            &raw const *set().as_ref(),
            std::ptr::null_mut(),
        );
    }
    inherited
}

fn is_ignored(signal: libc::c_int) -> bool {
    // Handler, flags, restorer, mask. The C library's own call tells nothing of the two signals that it keeps for itself.
    let mut action = [0usize; 4];
    // SAFETY: only asks, and there is room for the answer.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            std::ptr::null::<usize>(),
            action.as_mut_ptr(),
            size_of::<u64>(),
        )
    };
    action[0] == libc::SIG_IGN
}

fn bits(has: impl Fn(libc::c_int) -> bool) -> u64 {
    (1..=SIGNALS)
        .filter(|&signal| has(signal))
        .fold(0, |bits, signal| bits | 1 << (signal - 1))
}

/// Ends this process by `signal` as if nothing handled it (without a core dump: the monitor has forbidden that at
/// its start). Returns for signals that end nothing.
pub fn die_by(signal: u8) {
    let signal = libc::c_int::from(signal);
    // SAFETY: plain calls; a zeroed sigaction is SIG_DFL.
    unsafe {
        let action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        // To this thread: the one that forwards signals would take it otherwise.
        libc::raise(signal);
    }
}

fn set() -> Box<libc::sigset_t> {
    // SAFETY: sigset_t is plain data, made valid by sigemptyset.
    unsafe {
        let mut set: Box<libc::sigset_t> = Box::new(std::mem::zeroed());
        libc::sigemptyset(&raw mut *set);
        for &signal in FORWARDED {
            libc::sigaddset(&raw mut *set, signal);
        }
        set
    }
}

/// What is needed to tell a context something.
#[derive(Debug)]
pub struct Reach {
    /// Its shared region.
    pub shared: Arc<SharedRegion>,
    /// Its vCPUs.
    pub handles: Arc<[Arc<Handle>]>,
}

/// Starts the thread that passes them on, to every context.
pub fn forward(contexts: Vec<Reach>) {
    let body = move || {
        let set = set();
        loop {
            // SAFETY: a valid set, and space for the information, which is plain data.
            let (signal, code) = unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                (libc::sigwaitinfo(&raw const *set, &raw mut info), info.si_code)
            };
            if signal > 0 {
                let typed = if code == SI_KERNEL { TYPED } else { 0 };
                for Reach { shared, handles } in &contexts {
                    shared
                        .header()
                        .signals
                        .fetch_or(1 << (signal as u32 - 1 + typed), Ordering::SeqCst);
                    notify(shared, handles);
                }
            }
        }
    };
    // Without this thread signals stay pending; a VM that can't have one more thread fails elsewhere, loudly.
    let _ = std::thread::Builder::new()
        .name("signals".to_owned())
        .stack_size(64 << 10)
        .spawn(body);
}

/// One vCPU that can look at the header does: one that sleeps or polls if there is, else one that runs.
pub(super) fn notify(shared: &SharedRegion, handles: &[Arc<Handle>]) {
    let state = |i: usize| shared.queue(i).state.load(Ordering::SeqCst);
    let chosen = (0..handles.len()).find(|&i| state(i) == VcpuState::Halted as u32);
    match chosen {
        Some(i) => handles[i].wake(),
        None => handles[0].kick(),
    }
}
