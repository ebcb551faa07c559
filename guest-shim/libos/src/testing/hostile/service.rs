//! The OS service that lies: a thread that serves the ring of this process.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cloak_abi::hostop::{HostOp, ROOT_FD};
use cloak_abi::ring::{BUFFER, EVENTS, QUEUE, SHARED_LEN, SLOTS, SLOTS_AT, Slot, buffer_at};

use super::dice::Dice;
use super::honest::Files;
use super::sealed;
use crate::{arch, host};

/// Whether it lies.
pub static LIES: AtomicBool = AtomicBool::new(false);
/// Answers given while it lied.
pub static ANSWERS: AtomicU64 = AtomicU64::new(0);
/// Of them, those that were changed.
pub static CHANGED: AtomicU64 = AtomicU64::new(0);
/// Answers by operation.
pub static BY_OP: [AtomicU64; 128] = [const { AtomicU64::new(0) }; 128];

/// Slots that few threads use: the free ones are handed out from the front.
const LIKELY: usize = 32;
/// Earlier answers kept for replays.
const KEPT: usize = 64;
/// Numbers of descriptors that no lie names, for the time when the service is honest again.
const HONEST_NUMBERS: u64 = 1 << 28;
/// Bytes of noise.
const NOISE: usize = 2 * BUFFER;

fn slot(index: usize) -> &'static Slot {
    assert!(index < SLOTS);
    // SAFETY: in the region by the assertion; atomics only.
    unsafe {
        &*arch::shared_base()
            .add(SLOTS_AT + index * size_of::<Slot>())
            .cast()
    }
}

#[allow(clippy::mut_from_ref)]
fn buffer(index: usize) -> &'static mut [u8] {
    assert!(index < SLOTS);
    // SAFETY: a slot's buffer in the region. The guest reads it as memory that anybody writes, which is the point.
    unsafe { std::slice::from_raw_parts_mut(arch::shared_base().add(buffer_at(index)), BUFFER) }
}

/// Makes the shared region and starts the service, honest for now.
pub fn start(seed: u64) {
    let region: &'static mut [u64] = vec![0u64; SHARED_LEN / 8 + 512].leak();
    let base = region.as_mut_ptr().cast::<u8>();
    // SAFETY: at most a page further, which was allocated on top.
    arch::set_shared_base(unsafe { base.add(base.align_offset(4096)) });
    let mut dice = Dice::new(seed);
    let noise: &'static [u8] = (0..NOISE).map(|_| dice.any() as u8).collect::<Vec<_>>().leak();
    let other = Dice::new(dice.any());
    std::thread::spawn(move || Service::new(dice, noise).run());
    std::thread::spawn(move || scribble(other, noise));
}

/// From now on it is honest. Whoever writes where the guest may be reading has ended.
pub fn repent() {
    LIES.store(false, Ordering::SeqCst);
    drop(SCRIBBLING.lock().expect("no panic"));
}

/// Rounds, begun honest and of all slots, in which there was nothing to do.
static QUIET: AtomicU64 = AtomicU64::new(0);

/// Waits until nothing of the program is left, once it has ended, nor of the service's last lie, in which it may have been
/// interrupted. The service may hold a late answer for a slot whose request the guest gave up, and must not give it when the
/// next honest request uses the slot.
pub fn settle() {
    // One may be ending now that began before.
    let enough = QUIET.load(Ordering::SeqCst) + 2;
    while QUIET.load(Ordering::SeqCst) < enough {
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
}

/// Held while writing where the guest may be reading: who is interrupted there by other threads would go on later.
static SCRIBBLING: Mutex<()> = Mutex::new(());

/// Writes where the guest may be reading, as long as the service lies.
fn scribble(mut dice: Dice, noise: &[u8]) {
    loop {
        let scribbling = SCRIBBLING.lock().expect("no panic");
        if LIES.load(Ordering::SeqCst) {
            for _ in 0..8 {
                rewrite(&mut dice, noise, LIKELY);
            }
        }
        drop(scribbling);
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
}

/// Changes some of one slot's answer or buffer.
fn rewrite(dice: &mut Dice, noise: &[u8], slots: usize) {
    let index = dice.below(slots as u64) as usize;
    let len = 1 << dice.below(10);
    let at = if dice.one_in(2) {
        0
    } else {
        dice.below((BUFFER - len) as u64) as usize
    };
    match dice.below(6) {
        0 => slot(index).result.store(number(dice, 64), Ordering::Relaxed),
        1 => slot(index)
            .extra
            .store(number(dice, 64) as u64, Ordering::Relaxed),
        _ => {
            let from = dice.below((noise.len() - len) as u64) as usize;
            buffer(index)[at..at + len].copy_from_slice(&noise[from..from + len]);
        }
    }
}

/// A number such as those that break things. `asked`: what the request asked for.
fn number(dice: &mut Dice, asked: u64) -> i64 {
    let asked = asked as i64;
    match dice.below(8) {
        0 => dice.pick(&[
            0,
            1,
            2,
            3,
            -1,
            -4,
            -11,
            -4095,
            -4096,
            -4097,
            i64::MIN,
            i64::MAX,
            i64::MIN + 1,
        ]),
        1 => asked.wrapping_add(dice.pick(&[-1, 1, 8, 4096])),
        2 => BUFFER as i64 + dice.pick(&[-1, 0, 1]),
        3 => dice.pick(&[
            1 << 31,
            1 << 32,
            (1 << 32) - 1,
            (1 << 31) - 1,
            -(1 << 31),
            -(1 << 32),
            65535,
            65536,
            65537,
        ]),
        4 => i64::from(ROOT_FD) + dice.pick(&[-1, 0, 1, 2, 63, 64]),
        5 => -(dice.below(140) as i64),
        6 => dice.below(300) as i64,
        _ => dice.any() as i64,
    }
}

struct Kept {
    op: HostOp,
    result: i64,
    extra: u64,
    bytes: Vec<u8>,
}

struct Service {
    dice: Dice,
    noise: &'static [u8],
    files: Files,
    served: [u64; SLOTS],
    late: Vec<(usize, u64, u64)>,
    earlier: VecDeque<Kept>,
    completed: u32,
    posted: u32,
    round: u64,
    rate: u64,
    lied: bool,
}

impl Service {
    fn new(dice: Dice, noise: &'static [u8]) -> Self {
        Self {
            dice,
            noise,
            files: Files::new(3),
            served: [0; SLOTS],
            late: Vec::new(),
            earlier: VecDeque::new(),
            completed: 0,
            posted: 0,
            round: 0,
            rate: 2,
            lied: false,
        }
    }

    fn run(mut self) {
        let mut idle = 0u32;
        loop {
            self.round += 1;
            let lies = LIES.load(Ordering::SeqCst);
            if self.lied && !lies {
                self.files.number_from(HONEST_NUMBERS);
                self.reform();
            }
            self.lied = lies;
            let busy = self.take(lies);
            if !lies && !busy && self.looks_at_all() {
                QUIET.fetch_add(1, Ordering::SeqCst);
            }
            if lies && (busy || idle.is_multiple_of(64)) {
                self.misbehave();
            }
            host::poll(0);
            idle = if busy { 0 } else { idle + 1 };
            // No yielding: on a machine with other work each would cost a time slice.
            if idle > 40 {
                std::thread::sleep(std::time::Duration::from_micros(30));
            }
        }
    }

    /// Puts right what it can put right.
    fn reform(&mut self) {
        host::header().service_gone.store(0, Ordering::SeqCst);
        host::header().service_asleep.store(0, Ordering::SeqCst);
        // A tail that was put back took with it completions that were not read yet.
        (0..SLOTS as u32).for_each(|index| self.complete(index));
    }

    /// Whether this round is one of all slots.
    fn looks_at_all(&self) -> bool {
        self.round.is_multiple_of(32)
    }

    /// Takes new requests and answers some, in any order. Whether there were any.
    fn take(&mut self, lies: bool) -> bool {
        let mut now = Vec::new();
        let slots = if self.looks_at_all() { SLOTS } else { LIKELY };
        for index in 0..slots {
            let seq = slot(index).seq.load(Ordering::Acquire);
            if seq == 0 || seq == self.served[index] {
                continue;
            }
            self.served[index] = seq;
            if self.dice.one_in(if lies { 96 } else { 8 }) {
                // Later. Meanwhile something that looks as if it were done.
                let due = self.round + self.dice.below(8);
                self.late.push((index, seq, due));
                self.complete(index as u32);
            } else {
                now.push((index, seq));
            }
        }
        let round = self.round;
        for (index, seq, _) in self
            .late
            .extract_if(.., |(.., due)| *due <= round || !lies && *due > round + 8)
        {
            now.push((index, seq));
        }
        if lies && now.len() > 1 {
            let by = self.dice.below(now.len() as u64) as usize;
            now.rotate_left(by);
        }
        for &(index, seq) in &now {
            // A guest that gave up meanwhile may have given the slot to another request.
            if self.served[index] == seq {
                self.answer(index, seq, lies);
            }
        }
        !now.is_empty() || !self.late.is_empty()
    }

    fn answer(&mut self, index: usize, seq: u64, lies: bool) {
        let shared = slot(index);
        let args = std::array::from_fn(|i| shared.args[i].load(Ordering::Relaxed));
        let op = HostOp::from_u32(shared.op.load(Ordering::Relaxed)).expect("a known operation");
        let (mut result, mut extra) = self.files.serve(op, args, buffer(index));
        BY_OP[op as usize].fetch_add(1, Ordering::Relaxed);
        if lies {
            ANSWERS.fetch_add(1, Ordering::Relaxed);
            if self.dice.below(10) < self.rate {
                CHANGED.fetch_add(1, Ordering::Relaxed);
                self.lie(op, args, &mut result, &mut extra, buffer(index));
            }
            self.keep(op, result, extra, index);
            if self.dice.one_in(16) {
                let wrong = [0, seq - 1, seq + 1, u64::MAX, self.dice.any()];
                shared.done.store(self.dice.pick(&wrong), Ordering::SeqCst);
                self.complete(index as u32);
                host::poll(0);
            }
        }
        shared.result.store(result, Ordering::Relaxed);
        shared.extra.store(extra, Ordering::Relaxed);
        shared.done.store(seq, Ordering::SeqCst);
        self.complete(index as u32);
        if lies && self.dice.one_in(8) {
            rewrite(&mut self.dice, self.noise, index + 1);
        }
    }

    fn keep(&mut self, op: HostOp, result: i64, extra: u64, index: usize) {
        if self.dice.one_in(8) {
            self.earlier.truncate(KEPT - 1);
            let bytes = buffer(index)[..256].to_vec();
            self.earlier.push_front(Kept {
                op,
                result,
                extra,
                bytes,
            });
        }
    }

    fn complete(&mut self, index: u32) {
        let queue = host::queue(0);
        queue.cq[self.completed as usize % QUEUE].store(index, Ordering::Relaxed);
        self.completed = self.completed.wrapping_add(1);
        queue.cq_tail.store(self.completed, Ordering::Release);
    }

    fn lie(&mut self, op: HostOp, args: [u64; 6], result: &mut i64, extra: &mut u64, buffer: &mut [u8]) {
        let dice = &mut self.dice;
        if op == HostOp::GetDents && dice.one_in(4) {
            // The position after each of the records.
            let at = dice.pick(&[8, 32, 56]);
            let position = dice.pick(&[u64::MAX - 3, 1 << 63, i64::MAX as u64, 0, 77]);
            buffer[at..at + 8].copy_from_slice(&position.to_ne_bytes());
            return;
        }
        if op == HostOp::PRead
            && let Some(at) = self.files.container(args[0])
        {
            sealed::lie(dice, at, args, result, buffer);
            return;
        }
        if op == HostOp::Streams && dice.one_in(2) {
            // A descriptor that somebody has, one that comes twice, one that none can be.
            let number = match dice.below(3) {
                0 => self.files.one(dice.below(1 << 20) as usize) as u32,
                1 => u32::from_le_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]),
                _ => number(dice, u64::from(ROOT_FD)) as u32,
            };
            let at = 4 * dice.below(3) as usize;
            buffer[at..at + 4].copy_from_slice(&number.to_le_bytes());
            return;
        }
        let asked = args[1 + dice.below(4) as usize];
        match dice.below(10) {
            0 => *result = number(dice, asked),
            1 => *extra = number(dice, asked) as u64,
            2 => *result = -(1 + dice.below(133) as i64),
            3 => *result = -dice.pick(&[4, 5, 11, 17, 18, 20, 30, 40, 114, 115, 512, 4095, 4096]),
            4 => *result = self.files.one(dice.below(1 << 20) as usize) as i64,
            5 => {
                // As when another job has the terminal.
                *result = -5;
                *extra = dice.pick(&[21, 22, 9, 19]);
            }
            6 | 7 => {
                let len = 1 << dice.below(10);
                let from = dice.below((self.noise.len() - len) as u64) as usize;
                let at = dice.pick(&[0, 0, 8, 16, 24, 48, 56, 72, 128, 1152]);
                buffer[at..at + len].copy_from_slice(&self.noise[from..from + len]);
            }
            8 => {
                let at = dice.below(256) as usize;
                let word = number(dice, asked).to_ne_bytes();
                buffer[at..at + 8].copy_from_slice(&word);
            }
            _ => {
                let same = self.earlier.iter().filter(|k| k.op == op).count();
                let other = dice.one_in(4) || same == 0;
                let mut fitting = self.earlier.iter().filter(|k| other || k.op == op);
                let at = dice.below(KEPT as u64) as usize % same.max(1);
                if let Some(kept) = fitting.nth(at) {
                    (*result, *extra) = (kept.result, kept.extra);
                    buffer[..256].copy_from_slice(&kept.bytes);
                }
            }
        }
    }

    /// Lies that belong to no request.
    fn misbehave(&mut self) {
        let (queue, events, header) = (host::queue(0), host::events(), host::header());
        match self.dice.below(40) {
            0 => {
                let index = self.dice.any() as u32;
                self.complete(index);
            }
            1 => self.complete((self.round % SLOTS as u64) as u32),
            2 => {
                let jump = self
                    .dice
                    .pick(&[1, 7, QUEUE as u32, QUEUE as u32 + 1, 1 << 31, u32::MAX]);
                self.completed = self.completed.wrapping_add(jump);
                queue.cq_tail.store(self.completed, Ordering::Release);
            }
            3 => queue.cq_head.store(self.dice.any() as u32, Ordering::Relaxed),
            4 => queue.sq_head.store(self.dice.any() as u32, Ordering::Relaxed),
            5 => queue.sq_tail.store(self.dice.any() as u32, Ordering::Relaxed),
            6..10 => {
                for _ in 0..self.dice.below(200) {
                    let token = self.dice.any() >> self.dice.pick(&[32, 48, 54, 58]);
                    let bits = self.dice.any() & 0x3fff;
                    self.post(token << 32 | bits);
                }
            }
            10 => {
                let jump = self
                    .dice
                    .pick(&[1, 100, EVENTS as u32, EVENTS as u32 + 1, 1 << 31, u32::MAX]);
                self.posted = self.posted.wrapping_add(jump);
                events.tail.store(self.posted, Ordering::Release);
            }
            11 | 12 => events
                .overflow
                .store(self.dice.any() as u32 | 1, Ordering::SeqCst),
            13 => events.head.store(self.dice.any() as u32, Ordering::Relaxed),
            14 => {
                // Gone for good would end the test, as it ends a context.
                header.service_gone.store(1, Ordering::SeqCst);
                self.complete((self.round % LIKELY as u64) as u32);
                host::poll(0);
                if self.dice.one_in(64) {
                    std::thread::yield_now();
                }
                header.service_gone.store(0, Ordering::SeqCst);
            }
            16 => header
                .service_asleep
                .store(self.dice.any() as u32, Ordering::SeqCst),
            17 => header.waiting.store(self.dice.any() as u32, Ordering::SeqCst),
            18 => header.timer.store(self.dice.any(), Ordering::SeqCst),
            19 => self.rate = self.dice.pick(&[0, 1, 2, 2, 3, 5, 9]),
            _ => {}
        }
    }

    fn post(&mut self, entry: u64) {
        let page = host::events();
        page.entries[self.posted as usize % EVENTS].store(entry, Ordering::Relaxed);
        self.posted = self.posted.wrapping_add(1);
        page.tail.store(self.posted, Ordering::Release);
    }
}
