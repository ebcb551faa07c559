//! A protected volume beside the raw cipher and a plain file, in one run.
//!
//! `cargo bench -p cloak-volumes`, with a folder for files as argument (default: the system's temporary one).
//! Contenders take turns, so that a busy machine slows all alike; ratios are medians of the ratios of the turns. The
//! raw cipher is the library's AES-256-GCM over pages of 4096 bytes in place, with as much additional data.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use cloak_volumes::files::{FileStore, fresh, now};
use cloak_volumes::keys::{KeyRing, SessionId};
use cloak_volumes::{
    Ino, NewInode, NewVolume, NoAnchor, Options, Volume, VolumeId, VolumeKey, own_registers,
};

const SIZE: usize = 64 << 20;
const PIECE: usize = 64 << 10;
const PAGE: usize = 4096;
const TURNS: usize = 9;
/// Small, so that reading decrypts.
const CACHE: usize = 4 << 20;

fn options() -> Options {
    Options {
        cache_bytes: CACHE,
        clock: now,
        expected: None,
        anchor: Box::new(NoAnchor),
        fresh: fresh().expect("the system has random bytes"),
        wide: own_registers,
    }
}

struct Bench {
    volume: Volume<FileStore>,
    ino: Ino,
    plain: File,
    ring: KeyRing,
    sequence: u64,
    piece: Vec<u8>,
}

/// Bytes per second of doing something for all of the file.
fn rate(bytes: usize, f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    bytes as f64 / start.elapsed().as_secs_f64()
}

fn places(unit: usize, count: usize, random: bool) -> impl Iterator<Item = u64> {
    let mut state = 1_u64;
    (0..count).map(move |n| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let at = if random {
            (state >> 33) as usize % (SIZE / unit)
        } else {
            n
        };
        (at * unit) as u64
    })
}

impl Bench {
    fn cipher(&mut self, bytes: usize, sealing: bool) -> f64 {
        let session = SessionId::new(1, [1; 12]);
        let aad = [0; 64];
        let mut pages: Vec<Vec<u8>> = (0..1024).map(|_| vec![7; PAGE]).collect();
        let first = self.sequence;
        let tags: Vec<_> = (first..)
            .zip(&mut pages)
            .map(|(n, page)| {
                let plain = page.clone();
                self.ring
                    .with(|ciphers| ciphers.seal(&session, n, &aad, &plain, page))
            })
            .collect();
        self.sequence += 1024;
        let (mut spent, mut to) = (0.0, vec![0; PAGE]);
        for _ in 0..bytes / PAGE / 1024 {
            let start = Instant::now();
            for (i, page) in pages.iter().enumerate() {
                let to = &mut *to;
                self.ring.with(|ciphers| {
                    if sealing {
                        self.sequence += 1;
                        black_box(ciphers.seal(&session, self.sequence, &aad, page, to));
                    } else {
                        assert!(ciphers.open(&session, first + i as u64, &aad, page, to, &tags[i]));
                    }
                });
            }
            spent += start.elapsed().as_secs_f64();
        }
        (bytes / PAGE / 1024 * PAGE * 1024) as f64 / spent
    }

    fn volume(&mut self, unit: usize, bytes: usize, random: bool, writing: bool) -> f64 {
        let Self {
            volume, ino, piece, ..
        } = self;
        rate(bytes, || {
            for at in places(unit, bytes / unit, random) {
                if writing {
                    volume.write_at(*ino, at, &piece[..unit]).expect("there is room");
                } else {
                    volume
                        .read_at(*ino, at, &mut piece[..unit])
                        .expect("it was written");
                }
            }
            if writing {
                volume.sync_all().expect("the disk works");
            }
        })
    }

    fn plain(&mut self, unit: usize, bytes: usize, random: bool, writing: bool) -> f64 {
        let Self { plain, piece, .. } = self;
        rate(bytes, || {
            for at in places(unit, bytes / unit, random) {
                if writing {
                    plain.write_all_at(&piece[..unit], at).expect("there is room");
                } else {
                    plain
                        .read_exact_at(&mut piece[..unit], at)
                        .expect("it was written");
                }
            }
            if writing {
                plain.sync_data().expect("the disk works");
            }
        })
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let folder = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let folder = tempfile::tempdir_in(
        folder
            .as_deref()
            .map_or(std::env::temp_dir(), |f| Path::new(f).to_owned()),
    )
    .expect("the folder can be written");
    let store = FileStore::create(&folder.path().join("volume")).expect("it can be made");
    let new = NewVolume {
        limit: 1 << 32,
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
    let mut volume =
        Volume::create(store, VolumeKey::from_bytes(&[1; 32]), &new, options()).expect("it can be made");
    let file = NewInode {
        mode: 0o100_600,
        uid: 0,
        gid: 0,
        device: 0,
    };
    let ino = volume
        .create_file(volume.root(), b"file", &file)
        .expect("there is room");
    let mut bench = Bench {
        volume,
        ino,
        plain: File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(folder.path().join("plain"))
            .expect("it can be made"),
        ring: KeyRing::new(VolumeKey::from_bytes(&[2; 32]), VolumeId([1; 16]), own_registers),
        sequence: 0,
        piece: vec![0x5A; PIECE],
    };
    bench.volume(PIECE, SIZE, false, true);
    bench.plain(PIECE, SIZE, false, true);
    println!("| work | cipher | plain file | volume | of the cipher | of the slower |");
    println!("|---|---|---|---|---|---|");
    for (name, unit, bytes, random, writing) in [
        ("64 KiB, sequential read", PIECE, SIZE, false, false),
        (
            "64 KiB, sequential write, sync at the end",
            PIECE,
            SIZE,
            false,
            true,
        ),
        ("4 KiB, random read", PAGE, SIZE / 4, true, false),
        ("4 KiB, random write, sync at the end", PAGE, SIZE / 4, true, true),
    ] {
        let mut turns = vec![];
        for _ in 0..TURNS {
            let cipher = bench.cipher(bytes, writing);
            let plain = bench.plain(unit, bytes, random, writing);
            turns.push((cipher, plain, bench.volume(unit, bytes, random, writing)));
        }
        let of = |f: &dyn Fn(&(f64, f64, f64)) -> f64| median(turns.iter().map(f).collect());
        println!(
            "| {name} | {:.2} GB/s | {:.2} GB/s | {:.2} GB/s | {:.2} | {:.2} |",
            of(&|t| t.0) / 1e9,
            of(&|t| t.1) / 1e9,
            of(&|t| t.2) / 1e9,
            of(&|t| t.2 / t.0),
            of(&|t| t.2 / t.0.min(t.1)),
        );
    }
}
