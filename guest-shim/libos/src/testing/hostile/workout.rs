//! With an honest service everything works, exactly: before the lies, and after them.

use super::honest::{self, NAMES, SIZE, TARGET, VALUE};
use super::sealed;
use crate::errno::{Errno, SysResult};
use crate::fs::dirent;
use crate::fs::file::Stat;
use crate::fs::flags::{O_DIRECTORY, O_NONBLOCK, O_RDWR};
use crate::process::Process;
use crate::syscall::{Args, TABLE};

fn call(number: usize, args: &[u64]) -> SysResult {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    (TABLE[number].as_ref().expect("a call").handler)(&Args(all))
}

fn path(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(bytes.len() + 256, 0);
    bytes
}

fn open(text: &str, flags: u32) -> u64 {
    call(2, &[path(text).as_ptr() as u64, flags.into(), 0]).unwrap_or_else(|e| panic!("{text} opens: {e:?}"))
}

/// Does everything `rounds` times, on two threads at once.
pub fn honest(rounds: u64) {
    let threads = [0, 1].map(|n| {
        std::thread::spawn(move || {
            for round in 0..rounds {
                files(round + n);
                directories();
                sockets();
            }
            assert_eq!(Process::current().files.numbers(), [0; 0], "all closed");
        })
    });
    for thread in threads {
        thread.join().expect("its panic ends the process");
    }
}

fn files(round: u64) {
    let fd = open(
        if round.is_multiple_of(2) {
            "/g"
        } else {
            "/mnt/volume/h"
        },
        O_RDWR,
    );
    let offset = round * 37 % SIZE;
    let mut bytes = [0u8; 100];
    let expected = &honest::content()[offset as usize..(offset as usize + 100).min(SIZE as usize)];
    let got = call(17, &[fd, bytes.as_mut_ptr() as u64, 100, offset]);
    assert_eq!(got, Ok(expected.len() as u64));
    assert_eq!(
        &bytes[..expected.len()],
        expected,
        "the bytes of the file at {offset}"
    );
    assert_eq!(call(18, &[fd, bytes.as_ptr() as u64, 100, offset]), Ok(100));
    let mut stat = Stat::default();
    assert_eq!(call(5, &[fd, &raw mut stat as u64]), Ok(0));
    assert_eq!((stat.size as u64, stat.nlink), (SIZE, 1));
    assert_eq!(call(3, &[fd]), Ok(0));
    let fd = open("/sealed/link", 0);
    let offset = round * 40_009 % (sealed::LENGTH as u64 - 100);
    let got = call(17, &[fd, bytes.as_mut_ptr() as u64, 100, offset]);
    assert_eq!(got, Ok(100));
    assert_eq!(
        bytes,
        sealed::CONTENT[offset as usize..offset as usize + 100],
        "the bytes of the protected file at {offset}"
    );
    assert_eq!(call(3, &[fd]), Ok(0));
    let name = path("/dir/link");
    let got = call(89, &[name.as_ptr() as u64, bytes.as_mut_ptr() as u64, 100]);
    assert_eq!(got, Ok(TARGET.len() as u64));
    assert_eq!(&bytes[..TARGET.len()], TARGET);
    let attribute = path("user.a");
    let args = [
        name.as_ptr() as u64,
        attribute.as_ptr() as u64,
        bytes.as_mut_ptr() as u64,
        100,
    ];
    assert_eq!(call(191, &args), Ok(VALUE.len() as u64));
    assert_eq!(&bytes[..VALUE.len()], VALUE);
}

fn directories() {
    let fd = open("/dir", O_DIRECTORY);
    let mut bytes = [0u8; 200];
    let got = call(217, &[fd, bytes.as_mut_ptr() as u64, 200]).expect("lists") as usize;
    let mut rest = &bytes[..got];
    for name in NAMES {
        assert_eq!(dirent::take(&mut rest).expect("a record").name, name);
    }
    assert_eq!(rest, b"");
    assert_eq!(call(217, &[fd, bytes.as_mut_ptr() as u64, 200]), Ok(0));
    assert_eq!(call(3, &[fd]), Ok(0));
}

fn sockets() {
    let fd = call(41, &[2, 1 | u64::from(O_NONBLOCK), 0]).expect("a socket");
    let address = honest::address();
    assert_eq!(call(49, &[fd, address.as_ptr() as u64, 16]), Ok(0));
    assert_eq!(call(50, &[fd, 5]), Ok(0));
    let (mut from, mut len) = ([0u8; 16], 16u32);
    let other = call(43, &[fd, from.as_mut_ptr() as u64, &raw mut len as u64]).expect("a connection");
    assert_eq!((from, len), (address, 16));
    let mut bytes = [0u8; 64];
    let got = call(45, &[other, bytes.as_mut_ptr() as u64, 20, 0, 0, 0]);
    assert_eq!(got, Ok(20));
    assert_eq!(bytes[..20], honest::content()[..20]);
    assert_eq!(bytes[20..], [0; 44]);
    assert_eq!(call(44, &[other, bytes.as_ptr() as u64, 20, 0, 0, 0]), Ok(20));
    assert_eq!(call(3, &[other]), Ok(0));
    assert_eq!(call(3, &[fd]), Ok(0));
    assert_eq!(call(3, &[fd]), Err(Errno::EBADF));
}
