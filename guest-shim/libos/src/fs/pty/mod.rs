//! Pseudo-terminals: `/dev/ptmx` and `/dev/pts`, all in the guest.
//!
//! | module | concept |
//! |---|---|
//! | this | a pair: its state, and what happens to it |
//! | [`termios`], [`discipline`] | settings; the line discipline, a pure machine |
//! | [`master`], [`slave`] | the two sides as files |
//! | [`ioctl`] | requests that both know |
//! | [`control`] | the terminal of a session, and job control on it |
//! | [`devpts`] | the file system of the slaves |
//!
//! ```text
//!            write ─▶ receive ─▶ input ─▶ read
//!  master                │ echo                slave
//!            read  ◀─ output ◀─ output ◀─ write
//! ```

mod control;
mod devpts;
mod discipline;
mod ioctl;
mod master;
mod slave;
mod termios;

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use spin::Mutex;

pub use control::{controlling, session_ended};
pub use devpts::root;
pub use master::open_master;

use self::discipline::{Discipline, Effects, Signal};
use super::file::{File, ready};
use super::flags::{O_NONBLOCK, O_RDWR};
use super::{OpenFile, providers, signals};
use crate::errno::SysResult;
use crate::sched::WaitQueue;

/// Major number of the slaves.
const SLAVE_MAJOR: u32 = 136;
/// Most bytes of output that the master has not yet read.
const OUTPUT_MAX: usize = 16 << 10;
/// Most pairs.
const PAIRS_MAX: usize = 4096;

const SIGHUP: u32 = 1;
const SIGCONT: u32 = 18;
const SIGWINCH: u32 = 28;

/// Bits of a packet's first byte (`TIOCPKT_*`).
mod packet {
    pub const FLUSH_READ: u8 = 1;
    pub const FLUSH_WRITE: u8 = 2;
    pub const STOP: u8 = 4;
    pub const START: u8 = 8;
    pub const NO_STOP: u8 = 0x10;
    pub const DO_STOP: u8 = 0x20;
}

/// A master and its slave.
struct Pair {
    number: u32,
    state: Mutex<State>,
    /// Waiting at the master, and at the slave.
    master: WaitQueue,
    slave: WaitQueue,
    /// Whose it is: user and group, and when it was made.
    owner: Mutex<Owner>,
}

/// What `stat` says of the slave, and can be changed.
#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
    mode: u32,
    times: [[i64; 2]; 3],
}

#[derive(Default)]
struct State {
    discipline: Discipline,
    /// To the master.
    output: Vec<u8>,
    /// Rows, columns, pixels.
    size: [u16; 4],
    locked: bool,
    /// The slave was stopped by its STOP character, or by TCXONC.
    stopped: bool,
    master_gone: bool,
    /// Open files of the slave, dead ones too, and whether there was ever one.
    slaves: usize,
    had_slave: bool,
    /// How often the slave was hung up: files that were opened before are dead.
    hang_ups: u64,
    /// The session whose terminal it is, and its group in the foreground; 0: none.
    session: i32,
    foreground: i32,
    /// The master reads packets; what the next one is to say.
    packets: bool,
    news: u8,
    exclusive: bool,
}

static PAIRS: Mutex<BTreeMap<u32, Weak<Pair>>> = Mutex::new(BTreeMap::new());

/// The pair of this number.
fn pair(number: u32) -> Option<Arc<Pair>> {
    PAIRS.lock().get(&number).and_then(Weak::upgrade)
}

/// All pairs whose master is open.
fn pairs() -> Vec<Arc<Pair>> {
    let all: Vec<_> = PAIRS.lock().values().filter_map(Weak::upgrade).collect();
    all.into_iter().filter(|p| !p.state.lock().master_gone).collect()
}

impl Pair {
    fn now(&self) -> [i64; 2] {
        providers::get().now()
    }

    /// Both sides look again.
    fn changed(&self) {
        let all = ready::IN | ready::OUT | ready::HUP | ready::PRI | ready::RDNORM | ready::WRNORM;
        self.master.wake_all(all);
        self.slave.wake_all(all);
    }

    /// Input came: echoes, signals, readers.
    fn received(&self, state: &mut State, effects: Effects) -> Vec<u32> {
        if effects.flush_output {
            state.output.clear();
            state.news |= packet::FLUSH_WRITE | packet::FLUSH_READ;
        }
        if let Some(stops) = effects.stops {
            state.stop(stops);
        }
        state.output.extend_from_slice(&effects.echo);
        let number = |signal: &Signal| match signal {
            Signal::Interrupt => 2,
            Signal::Quit => 3,
            Signal::Suspend => 20,
        };
        effects.signals.iter().map(number).collect()
    }

    /// Signals for the group in the foreground.
    fn raise(&self, group: i32, numbers: &[u32]) {
        if group > 0 {
            numbers
                .iter()
                .for_each(|number| signals::raise_in_group(group, *number));
        }
    }

    /// What is open of the slave is dead from now on; its session loses it.
    fn hang_up_slave(&self) {
        let (session, foreground) = {
            let mut state = self.state.lock();
            state.hang_ups += 1;
            state.stopped = false;
            let theirs = (state.session, state.foreground);
            (state.session, state.foreground) = (0, 0);
            theirs
        };
        self.changed();
        if session > 0 {
            signals::raise_in_process(session, SIGHUP);
            signals::raise_in_process(session, SIGCONT);
            self.raise(foreground, &[SIGHUP, SIGCONT]);
        }
    }

    fn set_size(&self, size: [u16; 4]) {
        let foreground = {
            let mut state = self.state.lock();
            if state.size == size {
                return;
            }
            state.size = size;
            state.foreground
        };
        self.raise(foreground, &[SIGWINCH]);
    }
}

/// A handle on a pair for who is neither of its sides.
pub struct Terminal(Arc<Pair>);

impl core::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Terminal").field(&self.0.number).finish()
    }
}

impl Terminal {
    /// Rows and columns.
    pub fn resize(&self, [rows, columns]: [u16; 2]) {
        let [_, _, x, y] = self.0.state.lock().size;
        self.0.set_size([rows, columns, x, y]);
    }
}

/// A new pair: its master, which does not wait, a handle, and its slave. A caller that leads a session without a terminal
/// has it as its terminal then.
///
/// # Errors
/// ENOSPC when there are too many.
pub fn open_pair() -> SysResult<(Arc<OpenFile>, Terminal, Arc<OpenFile>)> {
    let pair = master::new_pair()?;
    pair.state.lock().locked = false;
    let master: Arc<dyn File> = Arc::new(master::Master(pair.clone()));
    let slave = devpts::slave(pair.number)?.open(O_RDWR)?;
    let path = alloc::format!("/dev/pts/{}", pair.number).into_bytes();
    Ok((
        OpenFile::new(master, O_RDWR | O_NONBLOCK, b"/dev/ptmx".to_vec()),
        Terminal(pair),
        OpenFile::new(slave, O_RDWR, path),
    ))
}

impl State {
    fn stop(&mut self, stops: bool) {
        if self.stopped != stops {
            self.stopped = stops;
            self.news = self.news & !(packet::STOP | packet::START)
                | if stops { packet::STOP } else { packet::START };
        }
    }

    /// Room for output of the slave.
    fn output_room(&self) -> usize {
        if self.stopped {
            0
        } else {
            OUTPUT_MAX.saturating_sub(self.output.len())
        }
    }
}
