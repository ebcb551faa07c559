//! Two contexts that share a VM, each of whose libos asks for anything at all: no CPU may ever find, in any table that
//! it may still know, a frame that is not its context's own.
//!
//! A CPU remembers tables, not only translations (Intel SDM volume 3, section 4.10.3; AMD APM volume 2, section 5.5.2):
//! until it forgets, it may go on from any table that was ever reachable, as what that table was then. The libos need
//! not ask for a shoot-down, so only what the kernel makes it forget counts.

use std::collections::BTreeSet;

use cloak_abi::kcall::KcallError;
use cloak_abi::layout::{LARGE, LIBOS_BASE, PAGE};

use super::*;
use crate::frames::tests::Ram;
use crate::frames::{Owned, Pool};

/// Tables per pool: few, so that they are used again soon.
const TABLES: u64 = 24;
const SPACES: usize = 3;
const BASE: u64 = 0x7f00_0000_0000;

struct Rng(u64);

impl Rng {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.next(list.len() as u64) as usize]
    }
}

struct Context {
    owned: Owned,
    frames: (u64, u64),
    tables: (u64, u64),
    pool: Pool,
    roots: [u64; SPACES],
    /// What its CPUs may know: level (1: its entries are pages) and table.
    known: BTreeSet<(u32, u64)>,
}

impl Context {
    fn new(index: u64) -> Self {
        let root = 0x1000 + index * PAGE;
        let tables = 0x1_0000 + index * TABLES * PAGE;
        let tables = (tables, tables + TABLES * PAGE);
        let frames = ((1 + 8 * index) * LARGE, (9 + 8 * index) * LARGE);
        Self {
            owned: Owned::new(frames, (0, 0)),
            frames,
            tables,
            pool: Pool::new(tables.0, tables.1),
            roots: [root, 0, 0],
            known: BTreeSet::new(),
        }
    }

    /// A CPU walks everything that is mapped and remembers the tables on the way.
    fn learn(&mut self, ram: &Ram) {
        for root in self.roots.iter().filter(|&&root| root != 0) {
            let mut level = vec![*root];
            for depth in [3, 2, 1] {
                let below = level.iter().flat_map(|table| {
                    (0..512u64)
                        .map(move |i| ram.read(table + 8 * i))
                        .filter(|&value| is_table(value))
                        .map(|value| value & PTE_ADDR)
                });
                level = below.collect();
                self.known.extend(level.iter().map(|&table| (depth, table)));
            }
        }
    }

    /// Whether all that a CPU could reach from what it knows is the context's own.
    fn is_separate(&self, ram: &Ram) -> bool {
        self.known
            .iter()
            .all(|&(level, table)| self.leads_to_own(ram, level, table))
    }

    fn leads_to_own(&self, ram: &Ram, level: u32, table: u64) -> bool {
        // A table that the program can write would map whatever it likes.
        let is_table_frame = (self.tables.0..self.tables.1).contains(&table);
        is_table_frame
            && (0..512).all(|i| {
                let value = ram.read(table + 8 * i);
                let at = value & PTE_ADDR;
                match level {
                    _ if value & PTE_P == 0 => true,
                    1 => self.owned.contains(at, PAGE),
                    2 if value & PTE_PS != 0 => self.owned.contains(at & !(LARGE - 1), LARGE),
                    // No table of this level ever has an entry for a page.
                    _ if value & PTE_PS != 0 => false,
                    _ => self.leads_to_own(ram, level - 1, at),
                }
            })
    }

    /// One call of a libos that means no good. `waits`: freed tables rest until CPUs have forgotten them.
    fn misuse(&mut self, ram: &mut Ram, rng: &mut Rng, waits: bool) {
        match rng.next(8) {
            0 => {
                let (number, source) = (rng.next(SPACES as u64) as usize, rng.next(SPACES as u64) as usize);
                let source = self.roots[source];
                if self.roots[number] == 0 && source != 0 {
                    let first = self.roots[0];
                    let made = self.with_tables(ram, waits, |ram, pool| {
                        let root = pool.take(ram)?;
                        let mut editor = Editor {
                            root,
                            memory: ram,
                            pool,
                        };
                        editor.begin(first);
                        if let Err(error) = editor.copy(source) {
                            editor.end();
                            return Err(error);
                        }
                        Ok(root)
                    });
                    self.roots[number] = made.unwrap_or(0);
                }
            }
            1 => {
                let number = 1 + rng.next(SPACES as u64 - 1) as usize;
                let root = std::mem::take(&mut self.roots[number]);
                if root != 0 {
                    Editor {
                        root,
                        memory: ram,
                        pool: &mut self.pool,
                    }
                    .end();
                }
            }
            _ => {
                let root = rng.one_of(&self.roots);
                let words = self.words(rng);
                let Ok(op) = Op::check(words[0], words[1], words[2], words[3], &self.owned) else {
                    return;
                };
                if root != 0 {
                    let _refused = self.with_tables(ram, waits, |memory, pool| {
                        Editor { root, memory, pool }.apply(&op)
                    });
                }
            }
        }
    }

    /// Arguments of a page operation: near what is allowed, across its borders, or anything.
    fn words(&self, rng: &mut Rng) -> [u64; 4] {
        let (start, end) = self.frames;
        let any = rng.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let va = rng.one_of(&[
            BASE,
            BASE,
            BASE,
            BASE + LARGE,
            LIBOS_BASE,
            0xffff_8000_0000_0000,
            0,
            any,
        ]);
        let va = va.wrapping_add(rng.next(2 * 512) * PAGE);
        let gpa = rng.one_of(&[
            start,
            start,
            end - LARGE,
            start - LARGE,
            end,
            self.tables.0,
            0x1000,
            any,
        ]);
        let gpa = gpa.wrapping_add(rng.next(512) * rng.one_of(&[0, 0, PAGE]));
        let len = rng.one_of(&[
            PAGE,
            LARGE,
            LARGE,
            2 * LARGE,
            7 * PAGE,
            0,
            PAGE.wrapping_neg(),
            any,
        ]);
        let flags = PTE_P | PTE_U | PTE_W | rng.one_of(&[0, 0, 0, PTE_PS, PTE_D, 1 << 3, 1 << 52]);
        [
            va & !0xfff | rng.one_of(&[0, 0, 1, 2, 4, 5]),
            len,
            gpa,
            rng.one_of(&[flags, flags, 0]),
        ]
    }

    /// As the kernel's `with_tables`.
    fn with_tables<R>(
        &mut self,
        ram: &mut Ram,
        waits: bool,
        mut work: impl FnMut(&mut Ram, &mut Pool) -> Result<R, KcallError>,
    ) -> Result<R, KcallError> {
        match work(ram, &mut self.pool) {
            Err(KcallError::Tables) if self.pool.is_resting() => {
                if waits {
                    self.known.clear();
                }
                self.pool.settle(ram);
                work(ram, &mut self.pool)
            }
            result => result,
        }
    }
}

/// Whether the contexts stayed apart through `steps` calls.
fn stay_apart(seed: u64, steps: usize, waits: bool) -> bool {
    let mut rng = Rng(seed.wrapping_mul(0x51_7cc1) | 1);
    let mut ram = Ram(vec![0; 0x8_0000 / 8]);
    let mut contexts = [Context::new(0), Context::new(1)];
    for _ in 0..steps {
        let context = &mut contexts[rng.next(2) as usize];
        context.misuse(&mut ram, &mut rng, waits);
        context.learn(&ram);
        if !contexts.iter().all(|context| context.is_separate(&ram)) {
            return false;
        }
    }
    true
}

#[test]
fn whatever_two_libos_ask_for_they_stay_apart() {
    for seed in 1..600 {
        assert!(stay_apart(seed, 300, true), "seed {seed}");
    }
}

/// Where freed tables are used again at once, as one would first write it.
#[test]
fn the_same_calls_break_out_where_freed_tables_do_not_rest() {
    assert!((1..60).any(|seed| !stay_apart(seed, 300, false)));
}
