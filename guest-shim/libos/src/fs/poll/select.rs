//! `select` and `pselect6`.

use alloc::vec;
use alloc::vec::Vec;

use super::{Watch, left, restart, wait_any};
use crate::errno::{Errno, SysResult};
use crate::fs::file::ready;
use crate::fs::{fd, signals};
use crate::process::Process;
use crate::sched::clock::{self, SECOND, Timespec};
use crate::sched::time_calls::timeout_at;
use crate::syscall::Args;
use crate::user;

/// POLLRDBAND and POLLWRBAND, which `select` counts in.
const RDBAND: u32 = 0x80;
const WRBAND: u32 = 0x200;
/// What makes a descriptor readable, writable, exceptional.
const SETS: [u32; 3] = [
    ready::IN | ready::RDNORM | RDBAND | ready::HUP | ready::ERR,
    ready::OUT | ready::WRNORM | WRBAND | ready::ERR,
    ready::PRI,
];

pub(super) fn select(args: &Args) -> SysResult {
    let timeout = args.u64(4);
    let deadline = match timeout {
        0 => u64::MAX,
        _ => {
            let [sec, micros] = user::read::<[i64; 2]>(timeout)?;
            // Microseconds beyond a second are carried over, as Linux does.
            let carried = sec.saturating_add(micros / 1_000_000);
            let time = Timespec {
                sec: carried,
                nsec: micros % 1_000_000 * 1000,
            };
            clock::deadline_in(time.to_ns()?)
        }
    };
    let result = run(args, deadline);
    if timeout != 0 {
        let left = left(deadline);
        // As Linux: the time left, where it can be written.
        let _ = user::write(timeout, &[left / SECOND, left % SECOND / 1000]);
    }
    result
}

pub(super) fn pselect6(args: &Args) -> SysResult {
    let deadline = timeout_at(args.u64(4))?;
    // The sixth argument points to the address and the size of the signal set.
    let [mask, size] = if args.u64(5) == 0 {
        [0, 0]
    } else {
        user::read::<[u64; 2]>(args.u64(5))?
    };
    let result = signals::with_mask(mask, size as usize, || run(args, deadline));
    if args.u64(4) != 0 {
        // As above.
        let _ = user::write(args.u64(4), &Timespec::from_ns(left(deadline)));
    }
    result
}

/// Reads the first `words` words of the set at `address`; empty when it is 0.
fn read_set(address: u64, words: usize) -> SysResult<Vec<u64>> {
    if address == 0 {
        Ok(vec![0; words])
    } else {
        user::read_array(address, words)
    }
}

fn run(args: &Args, deadline: u64) -> SysResult {
    let count = usize::try_from(args.i32(0)).map_err(|_| Errno::EINVAL)?;
    let count = count.min(Process::current().files.limits().1.max(1024));
    let words = count.div_ceil(64);
    let addresses = [args.u64(1), args.u64(2), args.u64(3)];
    let mut sets = Vec::with_capacity(3);
    for address in addresses {
        sets.push(read_set(address, words)?);
    }
    let (numbers, mut watches) = watches(&sets, count)?;
    wait_any(&mut watches, deadline).map_err(|e| restart(e, Errno::ERESTARTNOHAND))?;
    let mut total = 0;
    for ((set, address), bits) in sets.iter().zip(addresses).zip(SETS) {
        let mut result = vec![0u64; words];
        for (&number, watch) in numbers.iter().zip(&watches) {
            let bit = 1 << (number % 64);
            if set[number / 64] & bit != 0 && watch.found & bits != 0 {
                result[number / 64] |= bit;
                total += 1;
            }
        }
        if address != 0 {
            user::write(address, result.as_slice())?;
        }
    }
    Ok(total)
}

/// The descriptors in any of the sets, with what is asked of each.
fn watches(sets: &[Vec<u64>], count: usize) -> SysResult<(Vec<usize>, Vec<Watch>)> {
    let mut numbers = Vec::new();
    let mut watches = Vec::new();
    for number in 0..count {
        let asked = |set: &Vec<u64>| set[number / 64] >> (number % 64) & 1 != 0;
        let events = sets
            .iter()
            .zip(SETS)
            .filter(|(set, _)| asked(set))
            .fold(0, |all, (_, bits)| all | bits);
        if events != 0 {
            let open = fd::get(i32::try_from(number).map_err(|_| Errno::EBADF)?)?;
            numbers.push(number);
            watches.push(Watch {
                open: Some(open),
                events,
                found: 0,
            });
        }
    }
    Ok((numbers, watches))
}
