//! A hostile OS service against threads of a program: DESIGN section 3, "results checked".
//!
//! The service ([`service`]) answers with wrong lengths, absurd numbers, descriptors in use or never given out,
//! earlier answers, answers out of order, late and not at all asked for, rewrites answers and buffers while the guest
//! reads them, and lies in queues and events. The program ([`program`]) meanwhile makes every system call that may
//! reach it ([`calls`]), and looks at each result and at the memory around it ([`arena`]).
//!
//! The libos has one ring in a process, and other tests use it, so each run is a process of its own: the test starts
//! its own executable again. The seed is printed; these variables set what is otherwise chosen:
//!
//! | variable | meaning |
//! |---|---|
//! | `CLOAK_HOSTILE_SEED` | seed; threads race, so a run is like another with its seed, not the same |
//! | `CLOAK_HOSTILE_ANSWERS` | answers to give, 1,000,000 by default |

mod arena;
mod calls;
mod dice;
mod honest;
mod program;
mod sealed;
mod service;
mod workout;

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cloak_abi::hostop::HostOp;
use cloak_abi::ring::SLOTS;
use cloak_volumes::verity::{BLOCK, Builder};

use super::weaken::{Protection, VARIABLE, without};
use crate::errno::Errno;
use crate::fs::flags::S_IFCHR;
use crate::fs::{
    FdTable, MountRecord, hostfd, init, locks, measured, mount, open, open_cache, protected, readiness,
    shared_pages,
};
use crate::process::Process;
use crate::sched::{Thread, current_arc};
use crate::{host, syscall};
use program::{Program, Progress};

/// Answers that one run of the test suite gives.
const ANSWERS: u64 = 1_000_000;
/// Answers within which a missing protection must show.
const ANSWERS_WEAKENED: u64 = 300_000;
/// Threads of the program.
const THREADS: u64 = 12;
/// Set in the process that runs the program and the service.
const INSIDE: &str = "CLOAK_HOSTILE_INSIDE";
const SEED: &str = "CLOAK_HOSTILE_SEED";
const COUNT: &str = "CLOAK_HOSTILE_ANSWERS";
/// How long a call may take before it counts as one that hangs. A loaded machine is slow, not dead.
const HANGS: Duration = Duration::from_secs(60);
/// As long may late answers take once the service is honest.
const SETTLES: Duration = Duration::from_secs(10);

#[test]
fn a_million_hostile_answers_leave_the_guest_whole() {
    if inside() {
        return run();
    }
    let output = again("a_million_hostile_answers_leave_the_guest_whole", None);
    let text = text_of(&output);
    print!("{text}");
    assert!(output.status.success(), "the guest did not stay whole: {text}");
    assert!(text.contains("the guest is whole"), "the run ended early: {text}");
}

/// Without it, the test above would show nothing: each protection that is taken away must make a run fail.
#[test]
fn without_any_one_protection_hostile_answers_show() {
    if inside() {
        return run();
    }
    for protection in Protection::ALL {
        let output = again(
            "without_any_one_protection_hostile_answers_show",
            Some(protection),
        );
        let text = text_of(&output);
        let mut signs = ["FOUND:", "memory allocation of"].iter();
        let line = signs.find_map(|sign| text.lines().find(|l| l.contains(sign)));
        assert!(
            !output.status.success() && line.is_some(),
            "nothing was noticed without {protection:?}: {text}"
        );
        println!("without {protection:?}: {}", line.unwrap_or_default());
    }
}

#[test]
fn every_system_call_and_operation_is_covered() {
    let made: BTreeSet<usize> = calls::CALLS.iter().map(|c| c.number).collect();
    for entry in syscall::TABLE.iter().flatten() {
        let omitted = calls::OMITTED.iter().any(|(name, _)| *name == entry.name)
            || entry.status == syscall::Status::Refused;
        assert!(
            made.contains(&entry.number) || omitted,
            "{} ({}) meets no hostile answers: add it to testing/hostile/calls.rs",
            entry.name,
            entry.number
        );
    }
    assert_eq!(made.len(), calls::CALLS.len(), "each call once");
}

fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs one test of this executable in a process of its own.
fn again(test: &str, without: Option<Protection>) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("this executable"));
    command
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .arg(format!("testing::hostile::{test}"))
        .env(INSIDE, "1");
    if let Some(protection) = without {
        command.env(VARIABLE, format!("{protection:?}"));
        command.env(COUNT, ANSWERS_WEAKENED.to_string());
    }
    command.output().expect("starts")
}

fn text_of(output: &Output) -> String {
    format!(
        "{}{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        output.status
    )
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Ends this process at once: other threads may hold locks, and this one must not run its destructors.
fn found(what: &str) -> ! {
    println!("FOUND: {}", what.replace('\n', " "));
    // SAFETY: it only ends the process. `exit` would first run this thread's destructors, which make requests and, without
    // the thread-local state that they need, panic again: the process would be aborted, maybe with nothing said.
    unsafe { libc::_exit(101) }
}

struct Worker {
    thread: Arc<Thread>,
    progress: Arc<Progress>,
    handle: std::thread::JoinHandle<()>,
}

fn run() {
    std::panic::set_hook(Box::new(|panic| found(&panic.to_string())));
    let seed = number(SEED).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("after 1970").as_nanos() as u64 & 0xffff_ffff
    });
    let answers = number(COUNT).unwrap_or(ANSWERS);
    println!("hostile OS service: seed {seed} ({SEED}={seed} repeats it), {answers} answers");
    let begun = Instant::now();
    weaken_volumes();
    service::start(seed);
    boot();
    let held = hostfd::held();
    if let Some(what) = sealed::is_rolled_back() {
        found(what);
    }
    workout::honest(200);
    service::LIES.store(true, Ordering::SeqCst);
    let stop = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..THREADS)
        .map(|n| worker(seed ^ (n + 1) << 40, &stop))
        .collect();
    watch(&workers, answers);
    service::repent();
    stop.store(true, Ordering::SeqCst);
    finish(workers);
    // A border is wherever the service says, and stays one: an honest service that follows must not answer for it.
    mount::forget_borders();
    service::settle();
    check_numbers(answers);
    check_tables(&held);
    workout::honest(1000);
    check_tables(&held);
    println!(
        "{} answers, {} of them changed, {} system calls of all {} kinds in {:.1} s: the guest is whole",
        service::ANSWERS.load(Ordering::SeqCst),
        service::CHANGED.load(Ordering::SeqCst),
        host::REQUESTS.load(Ordering::SeqCst),
        calls::CALLS.len(),
        begun.elapsed().as_secs_f32()
    );
}

/// Takes away what is not the libos's own to take away.
fn weaken_volumes() {
    use cloak_volumes::weakened::{self, take_away};
    if without(Protection::Sealed) {
        take_away(weakened::Protection::Seal);
    }
    if without(Protection::Anchored) {
        take_away(weakened::Protection::Anchor);
    }
}

fn boot() {
    let mount = |index, flags, path: &[u8]| MountRecord {
        index,
        flags,
        path: path.to_vec(),
    };
    let records = [
        mount(0, 0, b"/"),
        mount(1, 0, b"/mnt/volume"),
        mount(2, cloak_abi::config::mount_flags::READ_ONLY, b"/ro"),
        mount(2, cloak_abi::config::mount_flags::MEASURED, b"/measured"),
    ];
    let mut digest = Builder::default();
    honest::content()
        .chunks(BLOCK)
        .for_each(|block| digest.block(block));
    let listed = measured::Listed {
        files: vec![(digest.finish().0, program::MEASURED.to_vec())],
        links: Vec::new(),
    };
    let mut volumes = measured::mounts(&records, &listed, &[]).expect("it can be measured");
    volumes.extend(sealed::mounts());
    let files = FdTable::new(16, 16);
    init(
        &records,
        volumes,
        Vec::new(),
        [S_IFCHR | 0o620; 3],
        1 << 24,
        &files,
    )
    .expect("a name space");
}

/// Starts a thread of the program.
fn worker(seed: u64, stop: &Arc<AtomicBool>) -> Worker {
    let progress = Arc::new(Progress::default());
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, theirs) = (stop.clone(), progress.clone());
    let handle = std::thread::spawn(move || {
        tell.send(current_arc()).expect("somebody listens");
        let files = Process::current().files.clone();
        let mut program = Program::new(seed, theirs);
        while !stop.load(Ordering::Relaxed) {
            if files.get(0).is_err() {
                let _ = files.replace(0, open::standard_stream(0, S_IFCHR | 0o620), false);
            }
            program.step();
            check_descriptors(&files);
        }
        for fd in files.numbers() {
            drop(files.remove(fd));
        }
    });
    Worker {
        thread: told.recv().expect("it starts"),
        progress,
        handle,
    }
}

/// No two open files of the program are one file of the host.
fn check_descriptors(files: &FdTable) {
    let mut seen = std::collections::HashMap::new();
    for fd in files.numbers() {
        let Ok(open) = files.get(fd) else { continue };
        let Some(number) = open.file.host_fd().filter(|n| *n >= 3) else {
            continue;
        };
        let at = Arc::as_ptr(&open.file).cast::<u8>() as usize;
        if *seen.entry(number).or_insert(at) != at {
            found(&format!(
                "two files of the guest are the host's descriptor {number}"
            ));
        }
    }
}

/// Waits for the answers. A thread that stays in one call gets a signal: what it waits for may never come.
fn watch(workers: &[Worker], answers: u64) {
    let mut last: Vec<_> = workers.iter().map(|_| (0, Instant::now())).collect();
    while service::ANSWERS.load(Ordering::SeqCst) < answers {
        std::thread::sleep(Duration::from_millis(1));
        interrupt(workers, &mut last);
    }
}

fn interrupt(workers: &[Worker], last: &mut [(u64, Instant)]) {
    for (worker, (calls, since)) in workers.iter().zip(last) {
        let now = worker.progress.calls.load(Ordering::Relaxed);
        if now != *calls {
            (*calls, *since) = (now, Instant::now());
            continue;
        }
        worker.thread.signal.store(true, Ordering::SeqCst);
        worker.thread.unpark();
        if since.elapsed() > HANGS {
            let call = worker.progress.now.load(Ordering::Relaxed);
            found(&format!("system call {call} hangs"));
        }
    }
}

fn finish(workers: Vec<Worker>) {
    let mut last: Vec<_> = workers.iter().map(|_| (u64::MAX, Instant::now())).collect();
    while workers.iter().any(|w| !w.handle.is_finished()) {
        std::thread::sleep(Duration::from_millis(2));
        interrupt(&workers, &mut last);
    }
    for worker in workers {
        worker.handle.join().expect("its panic ends the process");
    }
    drop(std::mem::take(&mut *program::SHARED.lock().expect("no panic")));
    locks::process_ended(1);
}

/// Every operation was lied about, or is known never to be asked for.
fn check_numbers(answers: u64) {
    let given = service::ANSWERS.load(Ordering::SeqCst);
    assert!(given >= answers, "{given} answers instead of {answers}");
    assert!(
        service::CHANGED.load(Ordering::SeqCst) > given / 10,
        "too few lies"
    );
    for (op, name) in HostOp::ALL {
        let times = service::BY_OP[*op as usize].load(Ordering::SeqCst);
        let unasked = calls::UNASKED.iter().any(|(n, _)| n == name);
        assert_eq!(
            times == 0,
            unasked,
            "{name} was answered {times} times: see testing/hostile/calls.rs"
        );
    }
}

/// The slots that are free once all is answered: a close waits for nobody, and its answer may be a late one.
fn settled_slots() -> Vec<u8> {
    let begun = Instant::now();
    while host::free_slots().len() + protected::kept_slots() < SLOTS && begun.elapsed() < SETTLES {
        host::poll(0);
        std::thread::yield_now();
    }
    host::free_slots()
}

/// What the libos keeps about the host is as it was before the program ran.
fn check_tables(since_boot: &[u32]) {
    open_cache::clear();
    let free = settled_slots();
    let kept = protected::kept_slots();
    assert_eq!(
        free.iter().collect::<BTreeSet<_>>().len() + kept,
        SLOTS,
        "slots are lost: {free:?} are free, {kept} have what was read ahead"
    );
    assert!(free.len() + kept <= SLOTS, "slots are free twice: {free:?}");
    assert_eq!(
        host::waiting(),
        0,
        "threads are noted as waiting for an answer or a slot"
    );
    let held: BTreeSet<u64> = since_boot.iter().copied().map(u64::from).collect();
    let really: BTreeSet<u64> = hostfd::held().into_iter().map(u64::from).collect();
    assert_eq!(really, held, "descriptors that nobody has");
    assert_eq!(readiness::watched(), 0, "tokens of files that are closed");
    assert_eq!(shared_pages::live(), 0, "pages of files that are closed");
    assert_eq!(locks::kept(), 0, "locks of files that are closed");
    assert_eq!(Errno::check(-1), Err(Errno::EPERM));
}
