//! `ioctl` on pseudo-terminals (ioctl_tty(2)).

use alloc::sync::Arc;
use alloc::vec::Vec;

use zerocopy::{FromZeros, IntoBytes};

use super::control::{self, Access};
use super::termios::{IXON, TERMIOS, Termios, VSTART, VSTOP};
use super::{Pair, devpts, packet};
use crate::errno::{Errno, SysResult};
use crate::fs::flags::{O_CLOEXEC, O_NOCTTY};
use crate::fs::{OpenFile, signals};
use crate::process::Process;
use crate::user;

const TCGETS: u32 = 0x5401;
const TCSETS: u32 = 0x5402;
const TCSETSF: u32 = 0x5404;
const TCSBRK: u32 = 0x5409;
const TCXONC: u32 = 0x540a;
const TCFLSH: u32 = 0x540b;
const TIOCEXCL: u32 = 0x540c;
const TIOCNXCL: u32 = 0x540d;
const TIOCSCTTY: u32 = 0x540e;
const TIOCGPGRP: u32 = 0x540f;
const TIOCSPGRP: u32 = 0x5410;
const TIOCOUTQ: u32 = 0x5411;
const TIOCSTI: u32 = 0x5412;
const TIOCGWINSZ: u32 = 0x5413;
const TIOCSWINSZ: u32 = 0x5414;
const FIONREAD: u32 = 0x541b;
const TIOCPKT: u32 = 0x5420;
const TIOCNOTTY: u32 = 0x5422;
const TIOCGETD: u32 = 0x5424;
const TCSBRKP: u32 = 0x5425;
const TIOCGSID: u32 = 0x5429;
const TIOCGPTPEER: u32 = 0x5441;
const TCGETS2: u32 = 0x802c_542a;
const TCSETS2: u32 = 0x402c_542b;
const TCSETSF2: u32 = 0x402c_542d;
const TIOCGPTN: u32 = 0x8004_5430;
const TIOCSPTLCK: u32 = 0x4004_5431;
const TIOCSIG: u32 = 0x4004_5436;
const TIOCGPKT: u32 = 0x8004_5438;
const TIOCGPTLCK: u32 = 0x8004_5439;

fn give(address: u64, value: i32) -> SysResult {
    user::write(address, &value).map(|()| 0)
}

/// A request on the master.
///
/// # Errors
/// ENOTTY for one that it does not know; EFAULT; those of ioctl_tty(2).
pub fn on_master(pair: &Arc<Pair>, request: u32, argument: u64) -> SysResult {
    match request {
        TIOCGPTN => give(argument, pair.number as i32),
        TIOCSPTLCK => {
            let locked: i32 = user::read(argument)?;
            pair.state.lock().locked = locked != 0;
            Ok(0)
        }
        TIOCGPTLCK => give(argument, i32::from(pair.state.lock().locked)),
        TIOCPKT => {
            let on: i32 = user::read(argument)?;
            let mut state = pair.state.lock();
            (state.packets, state.news) = (on != 0, 0);
            Ok(0)
        }
        TIOCGPKT => give(argument, i32::from(pair.state.lock().packets)),
        TIOCGPTPEER => open_peer(pair, argument as u32),
        TIOCSIG => {
            let group = pair.state.lock().foreground;
            if !matches!(argument, 2 | 3 | 20) {
                return Err(Errno::EINVAL);
            }
            pair.raise(group, &[argument as u32]);
            Ok(0)
        }
        FIONREAD => {
            let len = pair.state.lock().output.len();
            give(argument, len as i32)
        }
        TIOCOUTQ => give(argument, 0),
        TCFLSH => flush(pair, argument ^ u64::from(argument < 2)),
        // Not of a session's terminal: what the slave's is, is said.
        TIOCGPGRP => give(argument, pair.state.lock().foreground),
        TIOCGSID => match pair.state.lock().session {
            0 => Err(Errno::ENOTTY),
            session => give(argument, session),
        },
        TIOCSCTTY | TIOCNOTTY | TIOCSPGRP => Err(Errno::ENOTTY),
        _ => on_both(pair, request, argument),
    }
}

/// A request on the slave.
///
/// # Errors
/// As [`on_master`].
pub fn on_slave(pair: &Arc<Pair>, request: u32, argument: u64) -> SysResult {
    let changes = matches!(
        request,
        TCSETS..=TCSETSF | TCSETS2..=TCSETSF2 | TCSBRK | TCXONC | TCFLSH | TCSBRKP
    );
    if changes {
        control::keep_out(pair, Access::Write)?;
    }
    let is_own = || pair.state.lock().session == signals::job().session;
    match request {
        TIOCSCTTY => control::acquire(pair, argument == 1),
        TIOCNOTTY => control::give_up(pair),
        TIOCGPGRP if is_own() => give(argument, pair.state.lock().foreground),
        TIOCGSID if is_own() => give(argument, pair.state.lock().session),
        TIOCGPGRP | TIOCGSID => Err(Errno::ENOTTY),
        TIOCSPGRP => control::set_foreground(pair, user::read(argument)?),
        TIOCSTI => {
            let byte: u8 = user::read(argument)?;
            insert(pair, byte)
        }
        FIONREAD => {
            let len = pair.state.lock().discipline.readable();
            give(argument, len as i32)
        }
        TIOCOUTQ => {
            let len = pair.state.lock().output.len();
            give(argument, len as i32)
        }
        TCFLSH => flush(pair, argument),
        TCXONC => flow(pair, argument),
        _ => on_both(pair, request, argument),
    }
}

fn on_both(pair: &Pair, request: u32, argument: u64) -> SysResult {
    match request {
        TCGETS | TCGETS2 => {
            let termios = pair.state.lock().discipline.termios;
            let len = if request == TCGETS {
                TERMIOS
            } else {
                size_of::<Termios>()
            };
            user::copy_out(argument, &termios.as_bytes()[..len]).map(|()| 0)
        }
        TCSETS..=TCSETSF => set(pair, argument, TERMIOS, request == TCSETSF),
        TCSETS2..=TCSETSF2 => set(pair, argument, size_of::<Termios>(), request == TCSETSF2),
        TIOCGWINSZ => {
            let size = pair.state.lock().size;
            user::write(argument, &size).map(|()| 0)
        }
        TIOCSWINSZ => {
            pair.set_size(user::read(argument)?);
            Ok(0)
        }
        TIOCEXCL | TIOCNXCL => {
            pair.state.lock().exclusive = request == TIOCEXCL;
            Ok(0)
        }
        TIOCGETD => give(argument, 0),
        // Output is where it goes at once: nothing to wait for, and no break on no line.
        TCSBRK | TCSBRKP => Ok(0),
        _ => Err(Errno::ENOTTY),
    }
}

fn set(pair: &Pair, address: u64, len: usize, flush: bool) -> SysResult {
    let mut termios = Termios::new_zeroed();
    {
        let old = pair.state.lock().discipline.termios;
        (termios.ispeed, termios.ospeed) = (old.ispeed, old.ospeed);
    }
    user::copy_in(&mut termios.as_mut_bytes()[..len], address)?;
    {
        let mut state = pair.state.lock();
        if flush {
            state.discipline.flush_input();
        }
        let flows = |t: &Termios| t.iflag & IXON != 0 && (t.cc[VSTART], t.cc[VSTOP]) == (17, 19);
        let (before, after) = (flows(&state.discipline.termios), flows(&termios));
        if before != after {
            state.news &= !(packet::DO_STOP | packet::NO_STOP);
            state.news |= if after { packet::DO_STOP } else { packet::NO_STOP };
        }
        if termios.iflag & IXON == 0 {
            state.stop(false);
            state.news &= !(packet::STOP | packet::START);
        }
        state.discipline.set(termios);
    }
    pair.changed();
    Ok(0)
}

/// `tcflush`: 0 input, 1 output, 2 both.
fn flush(pair: &Pair, which: u64) -> SysResult {
    if which > 2 {
        return Err(Errno::EINVAL);
    }
    {
        let mut state = pair.state.lock();
        if which != 1 {
            state.discipline.flush_input();
            state.news |= packet::FLUSH_READ;
        }
        if which != 0 {
            state.output = Vec::new();
            state.news |= packet::FLUSH_WRITE;
        }
    }
    pair.changed();
    Ok(0)
}

/// `tcflow`: 0 and 1 stop and start output; 2 and 3 send the characters that do so to the other side.
fn flow(pair: &Pair, which: u64) -> SysResult {
    {
        let mut state = pair.state.lock();
        let cc = state.discipline.termios.cc;
        match which {
            0 | 1 => state.stop(which == 0),
            2 => state.output.push(cc[VSTOP]),
            3 => state.output.push(cc[VSTART]),
            _ => return Err(Errno::EINVAL),
        }
    }
    pair.changed();
    Ok(0)
}

/// `TIOCSTI`: as if it came from the master. Of one's own terminal only, or as root.
fn insert(pair: &Pair, byte: u8) -> SysResult {
    let is_own = pair.state.lock().session == signals::job().session;
    if !is_own && crate::fs::node::credentials().uid[1] != 0 {
        return Err(Errno::EPERM);
    }
    let (raised, foreground) = {
        let mut state = pair.state.lock();
        let effects = state.discipline.receive(&[byte]);
        (pair.received(&mut state, effects), state.foreground)
    };
    pair.raise(foreground, &raised);
    pair.changed();
    Ok(0)
}

/// `TIOCGPTPEER`: the slave, whatever names there are.
fn open_peer(pair: &Arc<Pair>, flags: u32) -> SysResult {
    let node = devpts::slave(pair.number)?;
    let file = node.open(flags | O_NOCTTY)?;
    let path = alloc::format!("/dev/pts/{}", pair.number).into_bytes();
    let open = OpenFile::new(file, flags & !(O_NOCTTY | O_CLOEXEC), path);
    let number = Process::current().files.insert(open, flags & O_CLOEXEC != 0, 0)?;
    Ok(number as u64)
}
