//! Round trips through the ring, beside the same system calls made directly. Prints medians and 99th
//! percentiles: `cargo bench -p cloak-host --bench os_ring`.

// The guest in miniature is shared with the tests, which use all of it.
#[allow(dead_code)]
mod guest;

use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cloak_abi::hostop::{HostOp, ROOT_FD};
use guest::{Guest, Setup, Ticket};

const ROUNDS: usize = 50_000;

fn main() -> ExitCode {
    if let Some(code) = cloak_host::os::main_if_service() {
        return code;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("data");
    std::fs::write(&path, vec![1u8; 1 << 20]).expect("write");
    let file = std::fs::File::open(&path).expect("open");
    let mut guest = Guest::new(directory.path());
    let fd = guest.open(0, "data", libc::O_RDONLY, 0).ok();
    let dir = u64::from(ROOT_FD);
    let mut block = vec![0u8; 64 << 10];

    println!("{:<42} {:>10} {:>10}", "", "median", "p99");
    report("clock (overhead of measuring)", ROUNDS, || {});
    report("Nop", ROUNDS, || raw(&mut guest, HostOp::Nop, &[], b""));
    report("pread of 1 byte, direct", ROUNDS, || {
        file.read_at(&mut block[..1], 0).expect("read");
    });
    report("PRead of 1 byte", ROUNDS, || {
        raw(&mut guest, HostOp::PRead, &[fd, 1, 0], b"")
    });
    report("pread of 64 KiB, direct", ROUNDS / 4, || {
        file.read_at(&mut block, 0).expect("read");
    });
    report("PRead of 64 KiB", ROUNDS / 4, || {
        raw(&mut guest, HostOp::PRead, &[fd, 64 << 10, 0], b"")
    });
    report("open + close, direct", ROUNDS, || {
        drop(std::fs::File::open(&path).expect("open"))
    });
    report("Open + Close", ROUNDS, || {
        let ticket = guest.submit(HostOp::Open, &[dir, 0, 0, 4, 0], b"data");
        let fd = spin(&mut guest, ticket);
        raw(&mut guest, HostOp::Close, &[fd], b"");
    });
    report("Access", ROUNDS, || {
        raw(&mut guest, HostOp::Access, &[dir, 4, 0, 4, 0], b"data")
    });
    report("StatX", ROUNDS, || {
        raw(&mut guest, HostOp::StatX, &[dir, 0, 0x7ff, 4, 0], b"data")
    });
    report("StatX of one component", ROUNDS, || {
        raw(&mut guest, HostOp::StatX, &[dir, 0, 0x7ff, 4, 1], b"data")
    });
    throughput(&mut guest);
    report("Sync of a clean file (a worker)", 2000, || {
        raw(&mut guest, HostOp::Sync, &[fd, 0], b"")
    });
    asleep(&mut guest);
    start_up(directory.path());
    ExitCode::SUCCESS
}

/// Polls without ever yielding, as a vCPU does.
fn spin(guest: &mut Guest, ticket: Ticket) -> u64 {
    loop {
        if let Some(answer) = guest.answer(ticket) {
            while guest.completion(0).is_some() {}
            return answer.ok();
        }
        std::hint::spin_loop();
    }
}

fn raw(guest: &mut Guest, op: HostOp, args: &[u64], input: &[u8]) {
    let ticket = guest.submit(op, args, input);
    spin(guest, ticket);
}

fn print(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!("{name:<42} {:>10.2?} {:>10.2?}", at(0.5), at(0.99));
}

fn report(name: &str, rounds: usize, mut round: impl FnMut()) {
    (0..rounds / 10).for_each(|_| round());
    let times = (0..rounds).map(|_| {
        let start = Instant::now();
        round();
        start.elapsed()
    });
    print(name, times.collect());
}

/// Keeps 32 requests on their way.
fn throughput(guest: &mut Guest) {
    let start = Instant::now();
    let rounds = 200_000;
    let mut tickets = std::collections::VecDeque::new();
    for _ in 0..rounds {
        tickets.push_back(guest.submit(HostOp::Nop, &[], b""));
        if tickets.len() == 32
            && let Some(ticket) = tickets.pop_front()
        {
            spin(guest, ticket);
        }
    }
    for ticket in tickets {
        spin(guest, ticket);
    }
    println!(
        "{:<42} {:>10.2?}",
        "Nop, 32 on their way, each",
        start.elapsed() / rounds
    );
}

/// Each request comes after the service has gone to sleep.
fn asleep(guest: &mut Guest) {
    let times = (0..300).map(|_| {
        std::thread::sleep(Duration::from_millis(2));
        let start = Instant::now();
        raw(guest, HostOp::Nop, &[], b"");
        start.elapsed()
    });
    print("Nop to a service that sleeps", times.collect());
}

fn start_up(directory: &std::path::Path) {
    let mut spawned = Vec::new();
    let mut answered = Vec::new();
    for _ in 0..50 {
        let mounts = vec![(directory, cloak_host::os::Access::ReadWrite)];
        let start = Instant::now();
        let mut guest = Guest::with(Setup {
            vcpus: 2,
            mounts,
            ..Setup::new()
        });
        spawned.push(start.elapsed());
        guest.call(HostOp::Nop, &[], b"").ok();
        answered.push(start.elapsed());
    }
    print("start: until spawn returns", spawned);
    print("start: until the first answer", answered);
}
