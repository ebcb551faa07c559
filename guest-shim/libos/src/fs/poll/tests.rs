//! Waiting for in-guest files.

use super::*;
use crate::fs::eventfd::EventFd;
use crate::user::Buf;
use std::time::Duration;

fn event(initial: u64) -> (Arc<OpenFile>, i32) {
    let open = OpenFile::new(Arc::new(EventFd::new(initial, false)), 2, Vec::new());
    let number = Process::current()
        .files
        .insert(open.clone(), false, 0)
        .expect("a free number");
    (open, number)
}

fn post(open: &OpenFile) {
    assert_eq!(open.file.write(open, &mut Buf::own(&1u64.to_ne_bytes())), Ok(8));
}

fn run(fds: &mut [PollFd], ms: i32) -> SysResult {
    poll(&Args([
        fds.as_mut_ptr() as u64,
        fds.len() as u64,
        ms as u32 as u64,
        0,
        0,
        0,
    ]))
}

#[test]
fn what_is_ready_is_found_and_bad_descriptors_are_named() {
    let (_a, a) = event(0);
    let (_b, b) = event(1);
    let ask = |fd| PollFd {
        fd,
        events: 5,
        revents: 99,
    };
    let mut fds = [ask(a), ask(b), ask(-1), ask(999)];
    assert_eq!(run(&mut fds, 1000), Ok(3));
    assert_eq!(fds.map(|f| f.revents), [4, 5, 0, NVAL as u16]);
}

#[test]
fn a_wait_ends_by_event_by_time_and_by_signal() {
    let (open, number) = event(0);
    let mut fds = [PollFd {
        fd: number,
        events: 1,
        revents: 0,
    }];
    let before = clock::monotonic();
    assert_eq!(run(&mut fds, 5), Ok(0));
    assert!(clock::monotonic() - before >= 5_000_000);
    let poster = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(5));
        post(&open);
    });
    assert_eq!(run(&mut fds, -1), Ok(1));
    poster.join().expect("poster");
    let mut none = [PollFd {
        fd: -5,
        events: 1,
        revents: 0,
    }];
    crate::sched::current().signal.store(true, Ordering::SeqCst);
    assert_eq!(run(&mut none, -1), Err(Errno::ERESTART_RESTARTBLOCK));
    assert_eq!(run(&mut fds, -1), Ok(1), "what is ready comes before the signal");
}

#[test]
fn select_fills_its_sets_and_counts_their_bits() {
    let (_a, a) = event(0);
    let (_b, b) = event(1);
    assert!(a < 64 && b < 64);
    let mut read = [1u64 << a | 1 << b; 16];
    let mut write = [1u64 << b; 16];
    read[1..].fill(0);
    write[1..].fill(0);
    let time = [1i64, 0];
    let args = Args([
        64,
        read.as_mut_ptr() as u64,
        write.as_mut_ptr() as u64,
        0,
        time.as_ptr() as u64,
        0,
    ]);
    assert_eq!(select::select(&args), Ok(2));
    assert_eq!((read[0], write[0]), (1 << b, 1 << b));
    let mut bad = [1u64 << 63];
    assert_eq!(
        select::select(&Args([64, bad.as_mut_ptr() as u64, 0, 0, 0, 0])),
        Err(Errno::EBADF)
    );
    let zero = [0i64; 2];
    assert_eq!(
        select::select(&Args([0, 0, 0, 0, zero.as_ptr() as u64, 0])),
        Ok(0)
    );
}
