//! Pages that leave and come back ([`swap`]): which, when, and that nobody uses them meanwhile.
//!
//! A second chance by accessed bits: what was accessed since the hand came by last stays, and the bit is cleared. The lock of the
//! address space is held all the time, also while the OS side is asked.

use alloc::vec::Vec;

use cloak_abi::kcall::{PTE_A, PTE_ALLOWED};
use cloak_abi::layout::PAGE;
use cloak_abi::ring::exit_status;

use super::{Fault, Inner};
use crate::arch;
use crate::mem::area::{Backing, Protection};
use crate::mem::frames;
use crate::mem::swap::{self, Left, TOGETHER};
use crate::mem::tables::{self, Batch, Leaf};
use crate::user::Buf;

/// Most pages that are looked at for each batch that leaves.
const LOOKED_AT: usize = 1024;
/// Most pages that leave for one fault that takes fewer.
const LEAST: u64 = 64;
/// Pages of its own that an address space keeps whatever the limit: without them it would fault at each step.
const KEPT: usize = 1024;
/// Faults for which nothing is looked for, after nothing was found.
const PAUSE: u32 = 64;

impl Inner {
    /// Lets pages leave until `pages` frames can be taken within the limit. Where nothing can leave, the limit is passed: memory
    /// that is not a program's own is needed all the same.
    pub(super) fn make_room(&mut self, pages: u64) {
        let Some(over) = frames::beyond_limit(pages).filter(|_| swap::is_there()) else {
            return;
        };
        if let Some(left) = self.pause.checked_sub(1) {
            self.pause = left;
            return;
        }
        // Not all at once: where what can't leave is beyond the limit already, every fault would send away everything else.
        let mut wanted = over.min(LEAST.max(pages));
        while wanted > 0 {
            let gone = self.send_some() as u64;
            if gone == 0 {
                self.pause = PAUSE;
                return;
            }
            wanted = wanted.saturating_sub(gone);
        }
    }

    /// One batch leaves; gives how many.
    fn send_some(&mut self) -> usize {
        let victims = self.victims();
        let mut batch = Batch::new(self.tables);
        if victims.is_empty() {
            return 0;
        }
        let unmapped = victims
            .iter()
            .try_for_each(|(va, _)| batch.unmap(*va, PAGE, PAGE));
        // From here on nobody can write them. Small pages go without a table more.
        if unmapped.and_then(|()| batch.run()).is_err() {
            arch::panic_exit("pages that are to leave can't be unmapped");
        }
        let mut bytes = alloc::vec![0; victims.len() * PAGE as usize];
        for ((_, leaf), page) in victims.iter().zip(bytes.chunks_mut(PAGE as usize)) {
            let from = frames::window(leaf.gpa) as *const u8;
            // SAFETY: the frame is this address space's alone, is mapped by nobody, and the window maps it.
            unsafe { arch::copy_own(page.as_mut_ptr(), from, PAGE as usize) };
        }
        match swap::send(&mut bytes) {
            Ok(left) => {
                for ((va, leaf), left) in victims.iter().zip(left) {
                    if let Some((_, area)) = self.areas.find_mut(*va) {
                        area.left.insert(*va, left);
                    }
                    frames::release_run(leaf.gpa, 1);
                }
                victims.len()
            }
            Err(_) => {
                // They stay: the OS side's refusal costs memory, no data.
                for (va, leaf) in &victims {
                    let _ = batch.map(*va, leaf.gpa, PAGE, leaf.flags & PTE_ALLOWED);
                }
                if batch.run().is_err() {
                    arch::panic_exit("pages that could not leave can't be mapped again");
                }
                0
            }
        }
    }

    /// The next pages that leave: none where there are few that could.
    fn victims(&mut self) -> Vec<(u64, Leaf)> {
        let mut chosen: Vec<(u64, Leaf)> = Vec::new();
        let mut spared: Vec<(u64, Leaf)> = Vec::new();
        // From the hand to the end, then once from the beginning.
        let (mut wrapped, mut around) = (false, false);
        let mut at = self.hand;
        while chosen.len() < TOGETHER && chosen.len() + spared.len() < LOOKED_AT {
            let Some((va, leaf)) = self.next_own(at) else {
                if wrapped {
                    around = true;
                    break;
                }
                (wrapped, at) = (true, 0);
                continue;
            };
            at = va + PAGE;
            if wrapped && at > self.hand {
                around = true;
                break;
            }
            if leaf.flags & PTE_A == 0 {
                chosen.push((va, leaf));
            } else {
                spared.push((va, leaf));
            }
        }
        self.hand = at;
        if around && chosen.len() + spared.len() < KEPT {
            return Vec::new();
        }
        let missing = (TOGETHER - chosen.len().min(TOGETHER)).min(spared.len());
        // Where all were accessed the first ones go.
        chosen.extend(spared.drain(..missing));
        let mut batch = Batch::new(self.tables);
        for (va, leaf) in spared {
            let _ = batch.protect(va, PAGE, leaf.flags & PTE_ALLOWED & !PTE_A);
        }
        // A bit that stays is a second chance more.
        let _ = batch.run();
        chosen.sort_unstable_by_key(|(va, _)| *va);
        chosen
    }

    /// The next page from `at` on that could leave.
    fn next_own(&self, at: u64) -> Option<(u64, Leaf)> {
        let first = self.areas.find(at).map_or(at, |(start, _)| start);
        for (start, area) in self.areas.from(first) {
            // Code is patched by its frames (`crate::patch`).
            let usable = matches!(area.backing, Backing::Anonymous)
                && !area.protection.is_empty()
                && !area.protection.contains(Protection::EXECUTE);
            let mut va = start.max(at);
            while usable && va < area.end {
                let (leaf, next) = self.tables.look(va);
                if let Some(leaf) = leaf
                    && !leaf.large
                    && !leaf.is_shared()
                    && !frames::is_shared(leaf.gpa)
                {
                    return Some((va, leaf));
                }
                va = next;
            }
        }
        None
    }

    /// The page at `page` comes back if it has left, with those behind it that left together.
    pub(super) fn bring_back(&mut self, page: u64) -> Option<Result<(), Fault>> {
        let (_, area) = self.areas.find(page)?;
        let first = area.left.get(&page)?.place();
        let run: Vec<Left> = (0..TOGETHER as u64)
            .map_while(|i| {
                let left = area.left.get(&(page + i * PAGE))?;
                (left.place() == first + i).then(|| left.clone())
            })
            .collect();
        let protection = area.protection;
        Some(self.come(page, &run, protection))
    }

    fn come(&mut self, page: u64, run: &[Left], protection: Protection) -> Result<(), Fault> {
        self.make_room(run.len() as u64);
        let mut bytes = alloc::vec![0; run.len() * PAGE as usize];
        swap::fetch(run, &mut bytes).unwrap_or_else(|why| arch::exit(exit_status::refused(125), &why.text()));
        let mut batch = Batch::new(self.tables);
        for (va, content) in (page..).step_by(PAGE as usize).zip(bytes.chunks(PAGE as usize)) {
            let gpa = match frames::take_run_dirty(1) {
                Ok(gpa) => gpa,
                // The others come at their own faults.
                Err(_) if va > page => break,
                Err(_) => return Err(Fault::Bus),
            };
            let copied = Buf::own_raw(frames::window(gpa), PAGE as usize).put(content);
            debug_assert!(copied.is_ok(), "own frames can't fault");
            if batch.map(va, gpa, PAGE, tables::flags(protection)).is_err() {
                frames::release_run(gpa, 1);
                return Err(Fault::Bus);
            }
            if let Some((_, area)) = self.areas.find_mut(va) {
                area.left.remove(&va);
            }
        }
        // What was in passing is plaintext.
        bytes.fill(0);
        core::hint::black_box(&bytes);
        batch.run().map_err(|_| Fault::Bus)
    }

    /// The parts of `[low, high)` in which nothing is, neither mapped nor elsewhere.
    pub(super) fn untouched(&self, low: u64, high: u64) -> Vec<(u64, u64)> {
        let holes = self.tables.holes(low, high);
        let Some((_, area)) = self.areas.find(low).filter(|(_, area)| !area.left.is_empty()) else {
            return holes;
        };
        let mut parts = Vec::new();
        for (mut first, last) in holes {
            for (&va, _) in area.left.range(first..last) {
                if va > first {
                    parts.push((first, va));
                }
                first = va + PAGE;
            }
            if first < last {
                parts.push((first, last));
            }
        }
        parts
    }
}
