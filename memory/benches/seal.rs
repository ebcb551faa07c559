//! What sealing costs beside the library's cipher alone, and what the bookkeeping costs.
//!
//! `cargo bench -p cloak-memory`. Contenders take turns in the same run, so that a busy machine slows all alike;
//! the ratio that counts is the median of the ratios of the turns.

use std::hint::black_box;
use std::time::Instant;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use cloak_memory::page::ContextId;
use cloak_memory::{
    Access, Memory, PAGE_SIZE, Page, PageBytes, PageKeys, Plaintext, Run, Secret, Store, StoreError,
};
use std::io;
use std::sync::Mutex;

/// 16 MiB: more than the caches of one core hold, as guest memory is.
const PAGES: usize = 4096;
const TURNS: usize = 60;

/// Plaintext that is always there, and nothing to freeze.
struct Ram(Mutex<Vec<PageBytes>>);

impl Plaintext for Ram {
    fn freeze(&self, _: Run) -> io::Result<()> {
        Ok(())
    }
    fn thaw(&self, _: Run) -> io::Result<()> {
        Ok(())
    }
    fn read(&self, page: Page, out: &mut PageBytes) -> io::Result<()> {
        out.copy_from_slice(&self.0.lock().expect("no panic")[page.number() as usize]);
        Ok(())
    }
    fn install(&self, first: Page, bytes: &[PageBytes], _: Access) -> io::Result<()> {
        let first = first.number() as usize;
        self.0.lock().expect("no panic")[first..first + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn release(&self, _: Run) -> io::Result<()> {
        Ok(())
    }
}

/// The OS side in memory.
struct Held(Mutex<Vec<PageBytes>>);

impl Store for Held {
    fn put(&self, first: Page, ciphertext: &[PageBytes]) -> Result<(), StoreError> {
        let first = first.number() as usize;
        self.0.lock().expect("no panic")[first..first + ciphertext.len()].copy_from_slice(ciphertext);
        Ok(())
    }
    fn fetch(&self, first: Page, out: &mut [PageBytes]) -> Result<(), StoreError> {
        let first = first.number() as usize;
        out.copy_from_slice(&self.0.lock().expect("no panic")[first..first + out.len()]);
        Ok(())
    }
    fn forget(&self, _: Run) -> Result<(), StoreError> {
        Ok(())
    }
}

fn keys() -> PageKeys {
    PageKeys::derive(&Secret::new(&[1; 32]), ContextId(1), &[0; 32]).expect("keys")
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Nanoseconds for each page of one turn.
fn turn(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / PAGES as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Times of two contenders in turns: medians, and the median of their ratios.
fn compare(name: &str, mut raw: impl FnMut(), mut ours: impl FnMut()) {
    let times: Vec<(f64, f64)> = (0..TURNS).map(|_| (turn(&mut raw), turn(&mut ours))).collect();
    let (theirs, own): (Vec<f64>, Vec<f64>) = times.iter().copied().unzip();
    let ratio = median(times.iter().map(|(a, b)| a / b).collect());
    let (theirs, own) = (median(theirs), median(own));
    println!(
        "{name:44} {theirs:>7.0} ns {own:>7.0} ns {:>6.2} GB/s  ratio {ratio:.2}",
        PAGE_SIZE as f64 / own
    );
}

fn pages() -> Vec<Page> {
    (0..PAGES as u64).filter_map(Page::new).collect()
}

fn cipher() {
    println!("{:44} {:>10} {:>10}", "4 KiB pages, one core", "raw", "cloak");
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[1; 32]).expect("a key"));
    let ours = keys();
    let mut buffer = vec![[7u8; PAGE_SIZE]; PAGES];
    let mut other = buffer.clone();
    let mut counter = 0;
    let mut version = 0;
    let label = |page: usize, version: u64| cloak_memory::cipher::Label {
        context: ContextId(1),
        page: Page::new(page as u64).expect("small"),
        version: cloak_memory::Version::new(version).expect("small"),
    };
    compare(
        "seal in place, raw / with label and key choice",
        || {
            for page in &mut buffer {
                counter += 1;
                let _ = black_box(
                    key.seal_in_place_separate_tag(nonce(counter), Aad::empty(), page)
                        .expect("sealed"),
                );
            }
        },
        || {
            version += 1;
            for (number, page) in other.iter_mut().enumerate() {
                black_box(ours.seal(&label(number, version), page).expect("sealed"));
            }
        },
    );
    let tags: Vec<_> = (0u64..)
        .zip(&mut buffer)
        .map(|(n, p)| {
            let tag = key
                .seal_in_place_separate_tag(nonce(n), Aad::empty(), p)
                .expect("sealed");
            tag.as_ref().to_vec()
        })
        .collect();
    let own_tags: Vec<_> = other
        .iter_mut()
        .enumerate()
        .map(|(n, p)| ours.seal(&label(n, 1 << 33), p).expect("sealed"))
        .collect();
    let (mut out, mut own_out) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
    compare(
        "open, raw / with label and key choice",
        || {
            for ((n, page), tag) in (0u64..).zip(&buffer).zip(&tags) {
                key.open_separate_gather(nonce(n), Aad::empty(), page, tag, &mut out)
                    .expect("opened");
                black_box(&out);
            }
        },
        || {
            for ((n, page), tag) in other.iter().enumerate().zip(&own_tags) {
                ours.open(&label(n, 1 << 33), page, tag, &mut own_out)
                    .expect("opened");
                black_box(&own_out);
            }
        },
    );
}

/// The whole engine, with copies from and to both sides, states, tags and versions.
fn engine() {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[1; 32]).expect("a key"));
    let mut source = vec![[7u8; PAGE_SIZE]; PAGES];
    let mut counter = 0;
    let memory = Memory::new(
        keys(),
        PAGES as u64,
        Ram(Mutex::new(vec![[7; PAGE_SIZE]; PAGES])),
        Held(Mutex::new(vec![[0; PAGE_SIZE]; PAGES])),
    );
    let all = pages();
    memory.fill(&all).expect("filled");
    let mut seal = Vec::new();
    let mut open = Vec::new();
    for _ in 0..TURNS {
        let raw = turn(|| {
            for page in &mut source {
                counter += 1;
                let _ = black_box(
                    key.seal_in_place_separate_tag(nonce(counter), Aad::empty(), page)
                        .expect("sealed"),
                );
            }
        });
        all.iter().for_each(|&p| memory.written(p).expect("written"));
        let sealing = turn(|| memory.seal(&all).expect("sealed"));
        memory.drop_plaintext(&all).expect("dropped");
        let opening = turn(|| memory.bring_back(&all).expect("opened"));
        seal.push((raw, sealing));
        open.push((raw, opening));
    }
    for (name, times) in [
        ("engine: seal, both copies", seal),
        ("engine: bring back, both copies", open),
    ] {
        let ratio = median(times.iter().map(|(a, b)| a / b).collect());
        let own = median(times.iter().map(|t| t.1).collect());
        let raw = median(times.iter().map(|t| t.0).collect());
        println!(
            "{name:44} {raw:>7.0} ns {own:>7.0} ns {:>6.2} GB/s  ratio {ratio:.2}",
            PAGE_SIZE as f64 / own
        );
    }
}

fn bookkeeping() {
    let pages = 16u64 << 30 >> 12;
    let memory = Memory::new(
        keys(),
        pages,
        Ram(Mutex::new(Vec::new())),
        Held(Mutex::new(Vec::new())),
    );
    println!(
        "\nbookkeeping for 16 GiB, untouched           {:>9} bytes",
        memory.table().bytes()
    );
    for number in (0..pages).step_by(64) {
        drop(memory.table().lock(Page::new(number).expect("small")));
    }
    let bytes = memory.table().bytes();
    println!(
        "bookkeeping for 16 GiB, all in use          {bytes:>9} bytes = {:.3} % (to reach: 0.8)",
        bytes as f64 * 100.0 / (16u64 << 30) as f64
    );
    let times: Vec<f64> = (0..20)
        .map(|_| {
            let start = Instant::now();
            black_box(memory.mark().expect("marked"));
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    println!(
        "marking all pages of 16 GiB                 {:>9.2} ms (to reach: 50)",
        median(times)
    );
}

fn main() {
    cipher();
    engine();
    bookkeeping();
}
