//! Futexes: waiting on a word of the program's memory.
//!
//! A waiter is queued under its bucket's lock after the word was compared under the same lock, so a wake-up
//! between the two can't be lost. The word is read without serving page faults there (a fault may park).

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;

use super::{Thread, current, current_arc, park};
use crate::arch;
use crate::errno::{Errno, SysResult};
use crate::mem::space;
use crate::user;

const BUCKETS: usize = 256;
/// Robust-list entries followed at a thread's end (`ROBUST_LIST_LIMIT`).
const ROBUST_LIMIT: usize = 2048;
const OWNER_DIED: u32 = 0x4000_0000;
const WAITERS: u32 = 0x8000_0000;
const TID_MASK: u32 = 0x3fff_ffff;

#[derive(Debug)]
struct Waiter {
    thread: Arc<Thread>,
    key: AtomicU64,
    bits: u32,
    woken: AtomicBool,
}

static TABLE: [Mutex<VecDeque<Arc<Waiter>>>; BUCKETS] = [const { Mutex::new(VecDeque::new()) }; BUCKETS];

/// Places that an empty queue keeps. A crowd's next process waits elsewhere, so its room here would never be used.
const KEPT: usize = 32;

/// Held while a waiter is between two queues, and by whoever withdraws one.
static MOVING: Mutex<()> = Mutex::new(());

fn bucket(key: u64) -> &'static Mutex<VecDeque<Arc<Waiter>>> {
    &TABLE[(key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize]
}

/// Frees what an empty queue holds beyond [`KEPT`].
fn give_back(queue: &mut VecDeque<Arc<Waiter>>) {
    if queue.is_empty() && queue.capacity() > KEPT {
        *queue = VecDeque::new();
    }
}

/// What identifies the futex at `address`: the frame for shared memory, else the address space and the address.
///
/// # Errors
/// EFAULT, EINVAL.
pub fn key(address: u64, private: bool) -> SysResult<u64> {
    user::check_word(address)?;
    if private {
        return Ok(private_key(address));
    }
    let _: u32 = user::read(address)?; // bring the page in
    Ok(space::current()
        .shared_key(address)
        .map_or_else(|| private_key(address), |k| k | 1))
}

/// Addresses have 47 bits.
fn private_key(address: u64) -> u64 {
    address | u64::from(space::current().tables.number()) << 47
}

/// Waits while the word is `expected`, for wake-ups that share a bit with `bits`.
///
/// # Errors
/// EAGAIN when the word differs, ETIMEDOUT, EINTR, EFAULT.
pub fn wait(address: u64, key: u64, expected: u32, bits: u32, deadline: u64) -> SysResult {
    if bits == 0 {
        return Err(Errno::EINVAL);
    }
    let waiter = Arc::new(Waiter {
        thread: current_arc(),
        key: AtomicU64::new(key),
        bits,
        woken: AtomicBool::new(false),
    });
    loop {
        let mut queue = bucket(key).lock();
        match arch::read_program_word(address) {
            Some(found) if found != expected => return Err(Errno::EAGAIN),
            Some(_) => {
                queue.push_back(waiter.clone());
                break;
            }
            None => {
                drop(queue);
                let _: u32 = user::read(address)?;
            }
        }
    }
    loop {
        if waiter.woken.load(Ordering::SeqCst) {
            return Ok(0);
        }
        let timed_out = deadline != u64::MAX && arch::ticks() >= deadline;
        if timed_out || current().has_signal() {
            return if withdraw(&waiter) {
                Err(if timed_out { Errno::ETIMEDOUT } else { Errno::EINTR })
            } else {
                Ok(0)
            };
        }
        park(deadline);
    }
}

/// Takes a waiter out of its queue; `false` when it was woken meanwhile.
fn withdraw(waiter: &Arc<Waiter>) -> bool {
    let _moving = MOVING.lock();
    let mut queue = bucket(waiter.key.load(Ordering::SeqCst)).lock();
    queue.retain(|w| !Arc::ptr_eq(w, waiter));
    give_back(&mut queue);
    !waiter.woken.load(Ordering::SeqCst)
}

/// Wakes up to `count` waiters that share a bit with `bits`; gives how many.
pub fn wake(key: u64, count: usize, bits: u32) -> usize {
    let mut woken = VecDeque::new();
    {
        let mut queue = bucket(key).lock();
        if queue.is_empty() {
            return 0;
        }
        let mut i = 0;
        while i < queue.len() && woken.len() < count {
            if queue[i].key.load(Ordering::Relaxed) == key && queue[i].bits & bits != 0 {
                if let Some(waiter) = queue.remove(i) {
                    waiter.woken.store(true, Ordering::SeqCst);
                    woken.push_back(waiter);
                }
            } else {
                i += 1;
            }
        }
        give_back(&mut queue);
    }
    woken.iter().for_each(|w| w.thread.unpark());
    woken.len()
}

/// Wakes at an address, private and shared.
pub fn wake_address(address: u64, count: usize) {
    wake(private_key(address), count, !0);
    if let Some(key) = space::current().shared_key(address) {
        wake(key | 1, count, !0);
    }
}

/// Wakes up to `wake_count` waiters of `from` and moves up to `move_count` others to `to`; with `expected`
/// only if the word at `address` still has that value.
///
/// # Errors
/// EAGAIN, EFAULT.
pub fn requeue(
    address: u64,
    from: u64,
    to: u64,
    wake_count: usize,
    move_count: usize,
    expected: Option<u32>,
) -> SysResult {
    if let Some(expected) = expected
        && user::read::<u32>(address)? != expected
    {
        return Err(Errno::EAGAIN);
    }
    let woken = wake(from, wake_count, !0);
    let mut moved = 0;
    while moved < move_count {
        // Two bucket locks are never held together.
        let _moving = MOVING.lock();
        let waiter = {
            let mut queue = bucket(from).lock();
            let at = queue.iter().position(|w| w.key.load(Ordering::Relaxed) == from);
            match at.and_then(|i| queue.remove(i)) {
                Some(waiter) => {
                    give_back(&mut queue);
                    waiter.key.store(to, Ordering::SeqCst);
                    waiter
                }
                None => break,
            }
        };
        bucket(to).lock().push_back(waiter);
        moved += 1;
    }
    Ok((woken + moved) as u64)
}

/// `FUTEX_WAKE_OP`.
///
/// # Errors
/// EFAULT, ENOSYS for an unknown operation.
pub fn wake_op(
    first: u64,
    second: u64,
    address: u64,
    wake_count: usize,
    wake_count2: usize,
    op: u32,
) -> SysResult {
    let operation = op >> 28 & 7;
    let mut argument = ((op >> 12 & 0xfff) << 20) as i32 >> 20;
    if op >> 31 != 0 {
        argument = 1i32.wrapping_shl(argument as u32);
    }
    let compare_to = ((op & 0xfff) << 20) as i32 >> 20;
    let old = loop {
        let old = user::read::<u32>(address)?;
        let a = argument as u32;
        let new = match operation {
            0 => a,
            1 => old.wrapping_add(a),
            2 => old | a,
            3 => old & !a,
            4 => old ^ a,
            _ => return Err(Errno::ENOSYS),
        };
        if arch::compare_exchange_program(address, old, new)? == old {
            break old as i32;
        }
    };
    let passes = match op >> 24 & 0xf {
        0 => old == compare_to,
        1 => old != compare_to,
        2 => old < compare_to,
        3 => old <= compare_to,
        4 => old > compare_to,
        5 => old >= compare_to,
        _ => return Err(Errno::ENOSYS),
    };
    let mut woken = wake(first, wake_count, !0);
    if passes {
        woken += wake(second, wake_count2, !0);
    }
    Ok(woken as u64)
}

/// Marks the robust futexes that an ending thread still holds and wakes a waiter of each.
pub fn release_robust(thread: &Thread) {
    let head = thread.robust_list.load(Ordering::Relaxed);
    if head == 0 {
        return;
    }
    let Ok([mut entry, offset, pending]) = user::read::<[u64; 3]>(head) else {
        return;
    };
    let release = |entry: u64| {
        let address = (entry & !1).wrapping_add(offset);
        let Ok(mut word) = user::read::<u32>(address) else {
            return;
        };
        while word & TID_MASK == thread.tid() as u32 {
            let new = word & WAITERS | OWNER_DIED;
            match arch::compare_exchange_program(address, word, new) {
                Ok(found) if found == word => {
                    if word & WAITERS != 0 {
                        wake_address(address, 1);
                    }
                    return;
                }
                Ok(found) => word = found,
                Err(_) => return,
            }
        }
    };
    for _ in 0..ROBUST_LIMIT {
        if entry & !1 == head {
            break;
        }
        if entry != pending {
            release(entry);
        }
        match user::read::<u64>(entry & !1) {
            Ok(next) => entry = next,
            Err(_) => break,
        }
    }
    if pending != 0 {
        release(pending);
    }
}
