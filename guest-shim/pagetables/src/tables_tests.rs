//! The page-table editor against a model: a map from page to (frame, flags).

use std::collections::BTreeMap;

use cloak_abi::kcall::{PTE_NX, PTE_SHARED};
use cloak_abi::layout::LIBOS_BASE;

use super::*;
use crate::frames::tests::Ram;

const ROOT: u64 = 0x1000;
const POOL: (u64, u64) = (0x2000, 0x80_000);
const OWNED: (u64, u64) = (LARGE, 64 * LARGE);
const BASE: u64 = 0x7f00_0000_0000;

/// What the hardware would find: (frame, flags) of the page at `va`.
fn lookup(ram: &Ram, va: u64) -> Option<(u64, u64)> {
    lookup_from(ram, ROOT, va)
}

fn lookup_from(ram: &Ram, root: u64, va: u64) -> Option<(u64, u64)> {
    let mut table = root;
    for shift in [39, 30] {
        let value = ram.read(entry(table, va, shift));
        if value == 0 {
            return None;
        }
        table = value & PTE_ADDR;
    }
    let large = ram.read(entry(table, va, 21));
    let (value, offset) = if is_table(large) {
        (ram.read(entry(large & PTE_ADDR, va, 12)), 0)
    } else {
        (large & !PTE_PS, va & (LARGE - 1))
    };
    (value != 0).then_some(((value & PTE_ADDR) + offset, value & PTE_ALLOWED))
}

/// Small deterministic generator: the failing case is its seed.
struct Rng(u64);
impl Rng {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// What an address space maps: address to frame and flags.
type Model = BTreeMap<u64, (u64, u64)>;

/// One random operation with flags out of `flags`, carried out on the tables and on the model.
fn random_operation(editor: &mut Editor<'_, Ram>, model: &mut Model, rng: &mut Rng, flags: &[u64]) {
    let owned = Owned::new(OWNED, (0, 0));
    let kind = rng.next(3);
    let pages = if rng.next(3) == 0 {
        512 * (1 + rng.next(3))
    } else {
        1 + rng.next(700)
    };
    let unit = if rng.next(2) == 0 { LARGE } else { PAGE };
    let va = BASE + rng.next(4 * LARGE / unit) * unit;
    let gpa = LARGE + rng.next(8 * LARGE / unit) * unit;
    let flags = flags[rng.next(flags.len() as u64) as usize];
    let op = Op::check(va | kind, pages * PAGE, gpa, flags, &owned).expect("acceptable");
    editor.apply(&op).expect("enough tables");
    for i in 0..pages {
        let page = va + i * PAGE;
        match kind {
            0 => drop(model.insert(page, (gpa + i * PAGE, flags))),
            1 => drop(model.remove(&page)),
            _ => drop(model.get_mut(&page).map(|m| m.1 = flags)),
        }
    }
}

#[test]
fn random_operations_agree_with_the_model() {
    for seed in 1..40 {
        let mut rng = Rng(seed * 0x9e37_79b9);
        let mut ram = Ram(vec![0; 0x80_000 / 8]);
        let mut pool = Pool::new(POOL.0, POOL.1);
        let mut model = Model::new();
        for _ in 0..60 {
            let mut editor = Editor {
                root: ROOT,
                memory: &mut ram,
                pool: &mut pool,
            };
            let flags = [PTE_P | PTE_U | PTE_NX, PTE_P | PTE_U | PTE_W | PTE_D, PTE_NX];
            random_operation(&mut editor, &mut model, &mut rng, &flags);
        }
        for page in (BASE..BASE + 8 * LARGE).step_by(4096) {
            assert_eq!(
                lookup(&ram, page),
                model.get(&page).copied(),
                "seed {seed} page {page:#x}"
            );
        }
    }
}

#[test]
fn nothing_outside_the_program_or_the_context_is_accepted() {
    let owned = Owned::new(OWNED, (0, 0));
    let check = |va, len, gpa, flags| Op::check(va, len, gpa, flags, &owned);
    assert_eq!(check(LIBOS_BASE, PAGE, LARGE, PTE_P), Err(KcallError::Address));
    assert_eq!(
        check(0xffff_8000_0000_0000, PAGE, LARGE, PTE_P),
        Err(KcallError::Address)
    );
    assert_eq!(check(BASE, PAGE, 0, PTE_P), Err(KcallError::Frame));
    assert_eq!(check(BASE, 65 * LARGE, LARGE, PTE_P), Err(KcallError::Frame));
    assert_eq!(check(BASE, PAGE, LARGE, PTE_PS), Err(KcallError::Invalid));
    assert_eq!(check(BASE, PAGE, LARGE, 1 << 8), Err(KcallError::Invalid));
    assert_eq!(check(BASE, PAGE + 1, LARGE, PTE_P), Err(KcallError::Invalid));
    assert_eq!(check(BASE | 5, PAGE, LARGE, PTE_P), Err(KcallError::Invalid));
}

#[test]
fn tables_of_whole_ranges_return_to_the_pool() {
    let owned = Owned::new(OWNED, (0, 0));
    let mut ram = Ram(vec![0; 0x80_000 / 8]);
    // Room for the two upper levels and two tables only: a leak would end this loop.
    let mut pool = Pool::new(POOL.0, POOL.0 + 4 * PAGE);
    for _ in 0..50 {
        for op in [
            Op::check(BASE, PAGE, LARGE, PTE_P, &owned),
            Op::check(BASE, LARGE, LARGE, PTE_P, &owned),
            Op::check(BASE | 1, PAGE, 0, 0, &owned),
            Op::check(BASE | 1, LARGE, 0, 0, &owned),
        ] {
            let op = op.expect("acceptable");
            Editor {
                root: ROOT,
                memory: &mut ram,
                pool: &mut pool,
            }
            .apply(&op)
            .expect("enough tables");
            pool.settle(&mut ram);
        }
    }
}

/// Random mappings, copied, changed on both sides, compared with two models; then both copies end, and every
/// table frame must have come back.
#[test]
fn copies_agree_with_the_model_and_give_their_tables_back() {
    for seed in 1..20 {
        let mut rng = Rng(seed * 0x51_7cc1);
        let mut ram = Ram(vec![0; 0x80_000 / 8]);
        let libos = ROOT + 8 * LIBOS_SLOT as u64;
        ram.write(libos, 0x7f_f000 | TABLE);
        let mut pool = Pool::new(POOL.0, POOL.1);
        let mut models: Vec<(u64, Model)> = vec![(ROOT, Model::new())];
        for step in 0..60 {
            if step == 20 || step == 40 {
                let root = pool.take(&mut ram).expect("enough tables");
                let mut editor = Editor {
                    root,
                    memory: &mut ram,
                    pool: &mut pool,
                };
                editor.begin(ROOT);
                editor.copy(ROOT).expect("enough tables");
                for (_, flags) in models[0].1.values_mut() {
                    *flags = copied(*flags);
                }
                let copy = models[0].1.clone();
                models.push((root, copy));
            }
            let which = rng.next(models.len() as u64) as usize;
            let (root, model) = &mut models[which];
            let mut editor = Editor {
                root: *root,
                memory: &mut ram,
                pool: &mut pool,
            };
            let flags = [
                PTE_P | PTE_U | PTE_W | PTE_SHARED,
                PTE_P | PTE_U | PTE_W | PTE_D,
                PTE_NX,
            ];
            random_operation(&mut editor, model, &mut rng, &flags);
        }
        for (root, model) in &models {
            for page in (BASE..BASE + 8 * LARGE).step_by(4096) {
                assert_eq!(
                    lookup_from(&ram, *root, page),
                    model.get(&page).copied(),
                    "seed {seed} root {root:#x} page {page:#x}"
                );
            }
            assert_eq!(ram.read(root + 8 * LIBOS_SLOT as u64), 0x7f_f000 | TABLE);
        }
        for (root, _) in models {
            Editor {
                root,
                memory: &mut ram,
                pool: &mut pool,
            }
            .end();
        }
        // The first root was not the pool's; all others are back, each once.
        pool.settle(&mut ram);
        let mut free = std::collections::BTreeSet::new();
        while let Ok(frame) = pool.take(&mut ram) {
            assert!(free.insert(frame), "twice");
        }
        assert_eq!(free.len() as u64, (POOL.1 - POOL.0) / PAGE + 1, "seed {seed}");
    }
}

#[test]
fn a_copy_that_lacks_tables_can_be_removed() {
    let owned = Owned::new(OWNED, (0, 0));
    let mut ram = Ram(vec![0; 0x80_000 / 8]);
    // Two upper levels and three tables, a root and one upper level of the copy: then none is left.
    let mut pool = Pool::new(POOL.0, POOL.0 + 7 * PAGE);
    let mut editor = Editor {
        root: ROOT,
        memory: &mut ram,
        pool: &mut pool,
    };
    for i in 0..3 {
        let op = Op::check(BASE + i * LARGE, PAGE, LARGE, PTE_P | PTE_W, &owned).expect("acceptable");
        editor.apply(&op).expect("enough tables");
    }
    editor.root = editor.pool.take(editor.memory).expect("one is left");
    editor.begin(ROOT);
    assert_eq!(editor.copy(ROOT), Err(KcallError::Tables));
    editor.end();
    pool.settle(&mut ram);
    assert!(pool.take(&mut ram).is_ok() && pool.take(&mut ram).is_ok());
    assert_eq!(pool.take(&mut ram), Err(KcallError::Tables));
    assert!(lookup(&ram, BASE + 2 * LARGE).is_some());
}

/// What rests is too little for the copy, and is as little again each time that it has failed.
#[test]
fn a_copy_for_which_too_few_tables_rest_gets_more() {
    let owned = Owned::new(OWNED, (0, 0));
    let mut ram = Ram(vec![0; 0x80_000 / 8]);
    // Two upper levels and three tables; then one is left, and another rests.
    let mut pool = Pool::new(POOL.0, POOL.0 + 6 * PAGE);
    pool.give(&mut ram, POOL.0 + 10 * PAGE);
    let mut editor = Editor {
        root: ROOT,
        memory: &mut ram,
        pool: &mut pool,
    };
    for i in 0..3 {
        let op = Op::check(BASE + i * LARGE, PAGE, LARGE, PTE_P | PTE_W, &owned).expect("acceptable");
        editor.apply(&op).expect("enough tables");
    }
    let forgotten = std::cell::Cell::new(0);
    let mut fresh = (20..30).map(|i| (POOL.0 + 2 * i * PAGE, 2));
    let root = with_more(
        &mut editor,
        || forgotten.set(forgotten.get() + 1),
        || fresh.next().filter(|_| forgotten.get() < 10),
        |editor| {
            assert!(forgotten.get() < 10, "no end");
            editor.root = editor.pool.take(editor.memory)?;
            editor.begin(ROOT);
            editor.copy(ROOT).inspect_err(|_| editor.end())?;
            Ok(editor.root)
        },
    );
    let root = root.expect("enough in the end");
    for i in 0..3 {
        assert_eq!(
            lookup_from(&ram, root, BASE + i * LARGE),
            lookup(&ram, BASE + i * LARGE)
        );
    }
    // Six for the copy, of which two were there.
    assert_eq!(fresh.count(), 8);
    assert_eq!(pool.free(&ram), 0);
}

/// Random changes on both sides, and each time the second is made a copy of the first again: it maps what a fresh copy
/// would, with pages of its own where it was told so, and the tables that it does not need are given back.
#[test]
fn a_former_copy_becomes_a_copy_again() {
    for seed in 1..20 {
        let mut rng = Rng(seed * 0x2545_f491);
        let mut ram = Ram(vec![0; 0x80_000 / 8]);
        let mut pool = Pool::new(POOL.0, POOL.1);
        let root = pool.take(&mut ram).expect("enough tables");
        let (mut model, mut former) = (Model::new(), Model::new());
        for _ in 0..8 {
            for _ in 0..6 {
                for (root, model) in [(ROOT, &mut model), (root, &mut former)] {
                    let mut editor = Editor {
                        root,
                        memory: &mut ram,
                        pool: &mut pool,
                    };
                    let flags = [
                        PTE_P | PTE_U | PTE_W | PTE_SHARED,
                        PTE_P | PTE_U | PTE_W | PTE_D,
                        PTE_NX,
                    ];
                    random_operation(&mut editor, model, &mut rng, &flags);
                }
            }
            let is_small = |page: &u64| is_table(ram.read(directory_entry(&ram, *page)));
            let own: Vec<(u64, u64)> = model
                .keys()
                .filter(|page| **page / PAGE % 7 == seed % 7 && is_small(page))
                .map(|&page| (page, (5 * LARGE) | PTE_P | PTE_U | PTE_W))
                .collect();
            let is_own = |page: &u64| own.binary_search_by_key(page, |&(page, _)| page).is_ok();
            let loses = |(page, &(_, flags)): (&u64, &(u64, u64))| !is_own(page) && copied(flags) != flags;
            let wanted = model.iter().any(loses);
            let mirror = |ram: &mut Ram, pool: &mut Pool| {
                let mut reduced = false;
                let mut editor = Editor {
                    root,
                    memory: ram,
                    pool,
                };
                editor.mirror(ROOT, &own, &mut reduced).expect("enough tables");
                reduced
            };
            assert_eq!(mirror(&mut ram, &mut pool), wanted, "seed {seed}");
            let before = ram.0.clone();
            assert!(!mirror(&mut ram, &mut pool), "seed {seed}");
            assert!(ram.0 == before, "what is right is left alone");
            former = model.clone();
            for (page, (frame, flags)) in &mut former {
                if is_own(page) {
                    (*frame, *flags) = (5 * LARGE, PTE_P | PTE_U | PTE_W);
                } else {
                    *flags = copied(*flags);
                }
            }
            for (page, (_, flags)) in &mut model {
                if !is_own(page) {
                    *flags = copied(*flags);
                }
            }
            for (root, model) in [(ROOT, &model), (root, &former)] {
                for page in (BASE..BASE + 8 * LARGE).step_by(4096) {
                    let found = lookup_from(&ram, root, page);
                    assert_eq!(
                        found,
                        model.get(&page).copied(),
                        "seed {seed} root {root:#x} page {page:#x}"
                    );
                }
            }
            pool.settle(&mut ram);
        }
        for root in [ROOT, root] {
            Editor {
                root,
                memory: &mut ram,
                pool: &mut pool,
            }
            .end();
        }
        pool.settle(&mut ram);
        let all = std::iter::from_fn(|| pool.take(&mut ram).ok()).count() as u64;
        assert_eq!(all, (POOL.1 - POOL.0) / PAGE + 1, "seed {seed}");
    }
}

/// Where the directory entry of a mapped page is.
fn directory_entry(ram: &Ram, va: u64) -> u64 {
    let upper = ram.read(entry(ROOT, va, 39)) & PTE_ADDR;
    entry(ram.read(entry(upper, va, 30)) & PTE_ADDR, va, 21)
}
