//! ioctl(2): a list of requests whose argument is a plain value of known size.

use std::os::fd::AsFd;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::request::{Answer, Call, Refusal, Reply};
use super::sys;
use super::table::{Entry, Kind};
use super::terminal;

/// What a request is made to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Anything,
    Terminal,
    /// A change of a terminal: not from the background.
    TerminalChange,
    /// The same, after output has drained: may wait.
    TerminalDrain,
    Socket,
    File,
}

/// A request: its number, what it is made to, bytes read and bytes written by the kernel.
#[derive(Debug, Clone, Copy)]
struct Known(u32, Of, usize, usize);

const TIOCGPGRP: u32 = 0x540f;
const TIOCSPGRP: u32 = 0x5410;
const SIOCGIFCONF: u32 = 0x8912;

const KNOWN: &[Known] = &[
    Known(0x5401, Of::Terminal, 0, 36),            // TCGETS
    Known(0x5402, Of::TerminalChange, 36, 0),      // TCSETS
    Known(0x5403, Of::TerminalDrain, 36, 0),       // TCSETSW
    Known(0x5404, Of::TerminalDrain, 36, 0),       // TCSETSF
    Known(0x802c_542a, Of::Terminal, 0, 44),       // TCGETS2
    Known(0x402c_542b, Of::TerminalChange, 44, 0), // TCSETS2
    Known(0x402c_542c, Of::TerminalDrain, 44, 0),  // TCSETSW2
    Known(0x402c_542d, Of::TerminalDrain, 44, 0),  // TCSETSF2
    Known(0x5411, Of::Anything, 0, 4),             // TIOCOUTQ
    Known(0x5413, Of::Terminal, 0, 8),             // TIOCGWINSZ
    Known(0x5414, Of::Terminal, 8, 0),             // TIOCSWINSZ
    Known(TIOCGPGRP, Of::Terminal, 0, 4),
    Known(TIOCSPGRP, Of::TerminalChange, 4, 0),
    Known(0x5415, Of::Terminal, 0, 4),      // TIOCMGET
    Known(0x5420, Of::Terminal, 4, 0),      // TIOCPKT
    Known(0x541b, Of::Anything, 0, 4),      // FIONREAD
    Known(0x5429, Of::Terminal, 0, 4),      // TIOCGSID
    Known(0x8004_5430, Of::Terminal, 0, 4), // TIOCGPTN
    Known(0x4004_5431, Of::Terminal, 4, 0), // TIOCSPTLCK
    Known(0x8004_5439, Of::Terminal, 0, 4), // TIOCGPTLCK
    Known(0x5460, Of::File, 0, 8),          // FIOQSIZE
    Known(0x8905, Of::Socket, 0, 4),        // SIOCATMARK
    Known(0x894b, Of::Socket, 0, 4),        // SIOCOUTQNSD
    Known(0x8910, Of::Socket, 40, 40),      // SIOCGIFNAME
    Known(0x8913, Of::Socket, 40, 40),      // SIOCGIFFLAGS
    Known(0x8915, Of::Socket, 40, 40),      // SIOCGIFADDR
    Known(0x8917, Of::Socket, 40, 40),      // SIOCGIFDSTADDR
    Known(0x8919, Of::Socket, 40, 40),      // SIOCGIFBRDADDR
    Known(0x891b, Of::Socket, 40, 40),      // SIOCGIFNETMASK
    Known(0x891d, Of::Socket, 40, 40),      // SIOCGIFMETRIC
    Known(0x8921, Of::Socket, 40, 40),      // SIOCGIFMTU
    Known(0x8927, Of::Socket, 40, 40),      // SIOCGIFHWADDR
    Known(0x8933, Of::Socket, 40, 40),      // SIOCGIFINDEX
    Known(0x8942, Of::Socket, 40, 40),      // SIOCGIFTXQLEN
    Known(0x8970, Of::Socket, 40, 40),      // SIOCGIFMAP
    Known(0x125e, Of::File, 0, 4),          // BLKROGET
    Known(0x1260, Of::File, 0, 8),          // BLKGETSIZE
    Known(0x1268, Of::File, 0, 4),          // BLKSSZGET
    Known(0x127b, Of::File, 0, 4),          // BLKPBSZGET
    Known(0x8008_1272, Of::File, 0, 8),     // BLKGETSIZE64
    Known(0x8008_6601, Of::File, 0, 8),     // FS_IOC_GETFLAGS
    Known(0x8008_7601, Of::File, 0, 8),     // FS_IOC_GETVERSION
    Known(0x801c_581f, Of::File, 0, 28),    // FS_IOC_FSGETXATTR
];

/// Requests whose argument is a number: TCSBRK, TCXONC, TCFLSH, TCSBRKP.
const BY_VALUE: [u32; 4] = [0x5409, 0x540a, 0x540b, 0x5425];

/// [`cloak_abi::hostop::HostOp::Ioctl`]
pub fn ioctl(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    let request = call.word(1);
    if BY_VALUE.contains(&request) {
        return by_value(call, &entry, request);
    }
    if request == SIOCGIFCONF {
        return interfaces(call, &entry);
    }
    let Known(_, of, read, written) = *KNOWN
        .iter()
        .find(|known| known.0 == request)
        .ok_or(Errno::NOTTY)?;
    check_kind(call, &entry, of)?;
    let (given, space) = (call.len(2)?, call.len(3)?);
    if given < read || space < written {
        return Err(Errno::INVAL.into());
    }
    let mut argument = [0u64; 32];
    call.buffer()
        .part(0, read)?
        .read(&mut argument.as_mut_bytes()[..read]);
    if request == TIOCSPGRP && argument[0] as u32 == 0 {
        argument[0] = u64::from(own_group());
    }
    let result = sys::ioctl(entry.as_fd(), request, &mut argument)?;
    call.buffer()
        .part(0, written)?
        .write(&argument.as_bytes()[..written]);
    let is_own = request == TIOCGPGRP && argument[0] as u32 == own_group();
    Ok(Answer::with(result, u64::from(is_own)))
}

fn own_group() -> u32 {
    rustix::process::getpgrp().as_raw_nonzero().get().cast_unsigned()
}

fn check_kind(call: &Call<'_>, entry: &Entry, of: Of) -> Result<(), Refusal> {
    let fits = match of {
        Of::Anything => true,
        Of::Terminal | Of::TerminalChange | Of::TerminalDrain => entry.terminal,
        Of::Socket => matches!(entry.kind, Kind::Socket | Kind::SharedSocket),
        Of::File => matches!(entry.kind, Kind::Regular | Kind::Directory),
    };
    if !fits {
        return Err(Errno::NOTTY.into());
    }
    if matches!(of, Of::TerminalChange | Of::TerminalDrain) {
        terminal::may_change(entry, call.arg(4) == 1)?;
    }
    if of == Of::TerminalDrain {
        call.may_take_long()?;
    }
    call.may_be_remote(entry)
}

fn by_value(call: &Call<'_>, entry: &Entry, request: u32) -> Reply {
    check_kind(call, entry, Of::TerminalDrain)?;
    let value = i32::from_ne_bytes(call.buffer().array(0)?);
    Ok(sys::ioctl_number(entry.as_fd(), request, value)?.into())
}

/// `SIOCGIFCONF`: `buf out` is a list of `struct ifreq`, a3 its space; result its length.
fn interfaces(call: &Call<'_>, entry: &Entry) -> Reply {
    check_kind(call, entry, Of::Socket)?;
    Ok(sys::interface_list(entry.as_fd(), &call.data(3)?)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_fit_what_the_kernel_is_given() {
        for Known(request, _, read, written) in KNOWN {
            assert!(*read <= 256 && *written <= 256, "{request:#x}");
            // Where the number states a size, it is the one in the list.
            let stated = (request >> 16 & 0x3fff) as usize;
            assert!(
                stated == 0 || stated == *read.max(written),
                "{request:#x} states {stated}"
            );
        }
    }
}
