//! Pipes under threads.

use super::*;
use crate::user::Buf;
use std::sync::atomic::{AtomicU64, Ordering};

fn ends(flags: u32) -> (Arc<OpenFile>, Arc<OpenFile>) {
    let pipe = Pipe::new(false);
    let reader = OpenFile::new(pipe.reader(), flags, Vec::new());
    (reader, OpenFile::new(pipe.writer(), flags | 1, Vec::new()))
}

fn read(file: &OpenFile, len: usize) -> SysResult<Vec<u8>> {
    let mut out = vec![0; len];
    let n = file.file.read(file, &mut Buf::own_mut(&mut out))?;
    out.truncate(n);
    Ok(out)
}

fn write(file: &OpenFile, data: &[u8]) -> SysResult<usize> {
    file.file.write(file, &mut Buf::own(data))
}

#[test]
fn data_then_end_of_file_then_broken_pipe() {
    let (r, w) = ends(0);
    assert_eq!(write(&w, b"hello"), Ok(5));
    assert_eq!(r.file.poll(), ready::IN | ready::RDNORM);
    drop(w);
    assert_eq!(read(&r, 100), Ok(b"hello".to_vec()));
    assert_eq!(read(&r, 100), Ok(vec![]));
    assert_eq!(r.file.poll(), ready::HUP);
    let (r, w) = ends(0);
    drop(r);
    assert_eq!(write(&w, b"x"), Err(Errno::EPIPE));
    assert!(w.file.poll() & ready::ERR != 0);
}

#[test]
fn not_waiting_gives_eagain_and_small_writes_are_whole() {
    let (r, w) = ends(O_NONBLOCK);
    assert_eq!(read(&r, 1), Err(Errno::EAGAIN));
    assert_eq!(write(&w, &vec![1; 100_000]), Ok(65536));
    assert_eq!(write(&w, b"x"), Err(Errno::EAGAIN));
    assert_eq!(w.file.poll(), 0);
    assert_eq!(read(&r, 100).map(|d| d.len()), Ok(100));
    assert_eq!(write(&w, &[2; 101]), Err(Errno::EAGAIN));
    assert_eq!(write(&w, &[2; 100]), Ok(100));
    assert_eq!(write(&w, &[2; 5000]), Err(Errno::EAGAIN));
}

#[test]
fn capacity_can_be_changed() {
    let (r, w) = ends(O_NONBLOCK);
    assert_eq!(set_capacity_of(&*w.file, 5000), Ok(8192));
    assert_eq!(write(&w, &[0; 20_000]), Ok(8192));
    assert_eq!(set_capacity_of(&*w.file, 4096), Err(Errno::EBUSY));
    assert_eq!(set_capacity_of(&*r.file, 2 << 20), Err(Errno::EPERM));
    assert_eq!(set_capacity_of(&*r.file, 1 << 20), Ok(1 << 20));
    assert_eq!(write(&w, &vec![0; 2 << 20]), Ok((1 << 20) - 8192));
    assert_eq!(capacity_of(&*r.file), Ok(1 << 20));
    assert_eq!(r.file.fcntl(&r, 1032, 0), Ok(1 << 20));
}

#[test]
fn many_writers_and_readers_lose_and_tear_nothing() {
    let (r, w) = ends(0);
    let total = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (1..=4u8)
        .map(|tag| {
            let w = w.clone();
            std::thread::spawn(move || {
                for i in 0..500usize {
                    let record = vec![tag; 16 * (i % 200 + 1)];
                    assert_eq!(write(&w, &record), Ok(record.len()));
                }
            })
        })
        .collect();
    drop(w);
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (r, total) = (r.clone(), total.clone());
            std::thread::spawn(move || {
                loop {
                    let data = read(&r, 4096).expect("data or the end");
                    if data.is_empty() {
                        break;
                    }
                    total.fetch_add(data.len() as u64, Ordering::SeqCst);
                }
            })
        })
        .collect();
    writers
        .into_iter()
        .chain(readers)
        .for_each(|t| t.join().expect("no failure"));
    let each: u64 = (0..500u64).map(|i| 16 * (i % 200 + 1)).sum();
    assert_eq!(total.load(Ordering::SeqCst), 4 * each);
}

#[test]
fn large_blocking_writes_pass_through_whole() {
    let (r, w) = ends(0);
    let writer = std::thread::spawn(move || {
        let data: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        write(&w, &data)
    });
    let mut seen = 0usize;
    loop {
        let data = read(&r, 7777).expect("data or the end");
        if data.is_empty() {
            break;
        }
        assert!(
            data.iter()
                .enumerate()
                .all(|(i, &b)| b == ((seen + i) % 251) as u8)
        );
        seen += data.len();
    }
    assert_eq!((seen, writer.join().expect("writer")), (1_000_000, Ok(1_000_000)));
}

#[test]
fn a_fifo_waits_for_its_other_side() {
    let fifo = Pipe::new(false);
    assert_eq!(fifo.open(O_NONBLOCK | 1, None).err(), Some(Errno::ENXIO));
    let other = fifo.clone();
    let writer = std::thread::spawn(move || {
        let file = OpenFile::new(other.open(1, None).expect("opens"), 1, Vec::new());
        write(&file, b"through")
    });
    let reader = OpenFile::new(fifo.open(0, None).expect("opens"), 0, Vec::new());
    assert_eq!(read(&reader, 10), Ok(b"through".to_vec()));
    assert_eq!(writer.join().expect("writer"), Ok(7));
    assert_eq!(read(&reader, 10), Ok(vec![]));
    drop(reader);
    let quiet = fifo.open(O_NONBLOCK, None).expect("opens");
    assert_eq!(quiet.poll(), 0, "no hang-up before a writer came");
}

#[test]
fn a_signal_ends_the_wait() {
    let (r, _w) = ends(0);
    let reader = std::thread::spawn(move || {
        crate::sched::current().signal.store(true, Ordering::SeqCst);
        read(&r, 1)
    });
    assert_eq!(reader.join().expect("reader"), Err(Errno::ERESTARTSYS));
}
