//! `cloak ps` and `cloak exec`: what can be asked of a running VM, and what can't.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cloak_tests::process::{Running, by_deaf_caller};
use cloak_tests::{Launcher, Outcome, Scratch, Status, needs};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

const PATIENCE: Duration = Duration::from_secs(120);

/// Control sockets of one test.
struct Place(Scratch);

impl Place {
    fn new() -> Self {
        Self(Scratch::new())
    }

    fn sockets(&self) -> PathBuf {
        self.0.join("sockets")
    }

    fn cloak(&self, arguments: &[&str]) -> Command {
        let Launcher::Cloak(cloak) = Launcher::under_test() else {
            panic!("the launcher under test is cloak");
        };
        let mut command = Command::new(cloak);
        let (verb, more) = arguments.split_at(1);
        command.args(verb);
        if let (&["run"], Some(platform)) = (verb, needs::other_platform()) {
            command.arg("--platform").arg(platform);
        }
        command
            .args(more)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("CLOAK_RUNTIME_DIR", self.sockets());
        command
    }

    /// A VM whose program is a shell script; it has to print `ready`.
    fn run(&self, options: &[&str], script: &str) -> Running {
        let mut command = self.cloak(&["run", "--memory", "512M", "--cpus", "1"]);
        command.args(options).args(["--", "/bin/sh", "-c", script]);
        self.ready(command)
    }

    fn ready(&self, command: Command) -> Running {
        let mut running = Running::start(command, Vec::new()).expect("cloak starts");
        assert!(
            running.prints("ready", PATIENCE),
            "{}",
            String::from_utf8_lossy(&running.stderr_so_far())
        );
        running
    }

    fn exec(&self, target: &str, input: &str, program: &[&str]) -> Outcome {
        let mut command = self.cloak(&["exec", target, "--"]);
        command.args(program);
        let started = Running::start(command, input.as_bytes().to_vec()).expect("cloak starts");
        started.finish(PATIENCE).unwrap_or_else(|error| panic!("{error}"))
    }

    fn shell(&self, target: &str, script: &str) -> Outcome {
        self.exec(target, "", &["/bin/sh", "-c", script])
    }

    fn ps(&self, options: &[&str]) -> String {
        let told = self.cloak(&["ps"]).args(options).output().expect("cloak starts");
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        String::from_utf8(told.stdout).expect("text")
    }
}

/// A program that is there until the test ends it.
const STAYS: &str = "echo of the first >/tmp/file; echo ready; while :; do sleep 1; done";

#[track_caller]
fn ended(outcome: &Outcome, code: i32, text: &str) {
    assert_eq!(
        (outcome.status.shell_code(), outcome.text().as_str()),
        (code, text),
        "{}",
        outcome.error_text()
    );
}

#[track_caller]
fn refused(outcome: &Outcome, code: i32, why: &str) {
    assert_eq!(outcome.status, Status::Exit(code), "{}", outcome.error_text());
    assert!(outcome.error_text().contains(why), "{}", outcome.error_text());
}

#[test]
fn a_further_program_has_the_callers_streams_and_the_contexts_world() {
    if !needs::kvm() {
        return;
    }
    let place = Place::new();
    let _vm = place.run(&["--name", "one", "--env", "OF=context"], STAYS);
    let outcome = place.exec(
        "one",
        "typed\n",
        &["/bin/sh", "-c", "cat; echo error >&2; exit 7"],
    );
    ended(&outcome, 7, "typed\n");
    assert_eq!(outcome.error_text(), "error\n");
    ended(
        &place.shell("one", "cat /tmp/file; echo of the second >/tmp/other"),
        0,
        "of the first\n",
    );
    ended(
        &place.exec("one", "", &["cat", "/tmp/other"]),
        0,
        "of the second\n",
    );
    ended(
        &place.shell("one", "echo $OF $(uname -n) $(pwd)"),
        0,
        &format!("context one {}\n", here()),
    );
    // Nobody's child in there, a session of its own; the program's processes are seen.
    ended(
        &place.shell(
            "one",
            "set -- $(cat /proc/$$/stat); test $4 = 0 && test $6 = $$ && test -d /proc/2 && echo so",
        ),
        0,
        "so\n",
    );
    assert_eq!(place.shell("one", "kill -TERM $$").status.shell_code(), 128 + 15);
    refused(&place.exec("one", "", &["/no-such-program"]), 127, "no such file");
    refused(&place.exec("one", "", &["no-such-program"]), 127, "no such file");
    refused(&place.exec("one", "", &["/tmp/file"]), 126, "permission denied");
    let mut command = place.cloak(&["exec", "--env", "OF=caller", "-w", "/usr", "one", "--"]);
    command.args(["/bin/sh", "-c", "echo $OF $(pwd)"]);
    let told = command.output().expect("cloak starts");
    assert_eq!(String::from_utf8_lossy(&told.stdout), "caller /usr\n");
}

fn here() -> String {
    std::env::current_dir().expect("a folder").display().to_string()
}

#[test]
fn much_goes_through_in_both_directions() {
    if !needs::kvm() {
        return;
    }
    let place = Place::new();
    let _vm = place.run(&["--name", "much"], STAYS);
    let text: String = (0..100_000).map(|n| format!("line {n}\n")).collect();
    let outcome = place.exec("much", &text, &["cat"]);
    assert!(outcome.text() == text, "{} bytes came back", outcome.stdout.len());
}

#[test]
fn many_at_a_time_and_one_after_the_other_and_nothing_is_left() {
    if !needs::kvm() {
        return;
    }
    let place = Place::new();
    // Nothing here begins or ends by itself, so that one more counts.
    let _vm = place.run(&["--name", "many"], "echo ready; exec sleep 100000");
    let descriptors = || {
        place
            .shell(
                "many",
                "set -- /proc/2/fd/*; echo $#; set -- /proc/[0-9]*; echo $#",
            )
            .text()
    };
    let before = descriptors();
    for _ in 0..3 {
        thread::scope(|scope| {
            for number in 0..10 {
                let place = &place;
                scope.spawn(move || {
                    let script = format!("read x; echo $x {number}; exit {number}");
                    let outcome = place.exec("many", "got\n", &["/bin/sh", "-c", &script]);
                    ended(&outcome, number, &format!("got {number}\n"));
                });
            }
        });
    }
    // Who asked has heard of the end of a process before its last traces are gone.
    let deadline = Instant::now() + Duration::from_secs(30);
    while descriptors() != before && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(descriptors(), before);
}

#[test]
fn more_than_fit_are_told_so() {
    if !needs::kvm() {
        return;
    }
    let place = Place::new();
    let _vm = place.run(&["--name", "full"], STAYS);
    let mut running: Vec<Running> = (0..24)
        .map(|_| {
            let mut command = place.cloak(&["exec", "full", "--"]);
            command.args(["/bin/sh", "-c", "echo ready; sleep 1000"]);
            place.ready(command)
        })
        .collect();
    refused(
        &place.shell("full", "true"),
        125,
        "24 such programs run in the context already",
    );
    // A caller that goes away is a terminal that hangs up: its place becomes free.
    running.pop();
    let deadline = Instant::now() + PATIENCE;
    while place.shell("full", "true").status != Status::Exit(0) {
        assert!(Instant::now() < deadline, "no place became free");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn signals_to_the_caller_reach_the_program() {
    if !needs::kvm() {
        return;
    }
    let place = Place::new();
    let _vm = place.run(&["--name", "signals"], STAYS);
    let mut command = place.cloak(&["exec", "signals", "--"]);
    command.args([
        "/bin/sh",
        "-c",
        "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.1; done",
    ]);
    let running = place.ready(command);
    rustix::process::kill_process(running.pid(), rustix::process::Signal::TERM).expect("it runs");
    let outcome = running.finish(PATIENCE).expect("it ends");
    ended(&outcome, 9, "ready\ngot it\n");
}

/// As what starts it elsewhere would: `nohup`, the background of a script, a service manager.
#[test]
fn what_the_caller_ignores_and_blocks_the_further_program_does() {
    if !needs::kvm() || needs::host_program("perl").is_none() {
        return;
    }
    let place = Place::new();
    let _vm = place.run(&["--name", "deaf"], STAYS);
    let sets = |mut command: Command| {
        let output = command.output().expect("it can be started");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    };
    let program = ["/bin/grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"];
    let mut native = Command::new(program[0]);
    native.args(&program[1..]);
    let mut inside = place.cloak(&["exec", "deaf", "--"]);
    inside.args(program);
    let deaf = sets(by_deaf_caller(&native));
    assert_eq!(sets(by_deaf_caller(&inside)), deaf);
    let others = sets(native);
    assert_ne!(others, deaf);
    assert_eq!(sets(inside), others);
}

#[test]
fn when_the_vm_ends_so_does_the_further_program() {
    if !needs::kvm() {
        return;
    }
    let place = Place::new();
    let vm = place.run(
        &["--name", "short"],
        "echo ready; while [ ! -e /tmp/end ]; do sleep 0.05; done; exit 3",
    );
    let mut command = place.cloak(&["exec", "short", "--"]);
    command.args(["/bin/sh", "-c", "echo ready; : >/tmp/end; sleep 1000"]);
    let running = place.ready(command);
    refused(&running.finish(PATIENCE).expect("it ends"), 125, "has ended");
    assert_eq!(vm.finish(PATIENCE).expect("it ends").status, Status::Exit(3));
}

#[test]
fn running_ones_are_listed_and_what_ended_ones_left_is_swept() {
    if !needs::kvm() {
        return;
    }
    let place = Place::new();
    let vm = place.run(&["--name", "listed"], STAYS);
    let mode = fs::metadata(place.sockets()).expect("the folder").mode();
    assert_eq!(mode & 0o777, 0o700);
    let table = place.ps(&[]);
    let row = table
        .lines()
        .find(|line| line.starts_with("listed "))
        .expect("a row");
    for word in [
        vm.pid().as_raw_nonzero().to_string().as_str(),
        "512M",
        "running",
        "/bin/sh",
    ] {
        assert!(row.contains(word), "no {word} in {row}");
    }
    let json = place.ps(&["--json"]);
    for part in [
        "\"name\": \"listed\"",
        "\"memory\": 536870912",
        "\"ended\": false",
    ] {
        assert!(json.contains(part), "no {part} in {json}");
    }
    let again = place
        .cloak(&["run", "--name", "listed", "--", "/bin/true"])
        .output()
        .expect("cloak starts");
    assert_eq!(again.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&again.stderr).contains("a VM with the name listed is running"));
    drop(vm);
    assert!(
        place.sockets().join("listed.sock").exists(),
        "a killed VM leaves its socket"
    );
    refused(
        &place.exec("listed", "", &["true"]),
        125,
        "no VM with the name listed",
    );
    assert_eq!(place.ps(&[]).lines().count(), 1, "the head of the table");
    assert!(!place.sockets().join("listed.sock").exists() && !place.sockets().join("listed.token").exists());
    // A name is free again, swept or not.
    let _vm = place.run(&["--name", "listed"], STAYS);
    ended(&place.shell("listed", "echo there"), 0, "there\n");
    for bad in ["", "../x", "a/b", ".a"] {
        let told = place
            .cloak(&["run", "--name", bad, "--", "/bin/true"])
            .output()
            .expect("cloak starts");
        assert_eq!(told.status.code(), Some(125), "{bad}");
    }
}

#[test]
fn whoever_does_not_show_the_token_gets_nothing() {
    if !needs::kvm() {
        return;
    }
    let place = Place::new();
    let _vm = place.run(&["--name", "token"], STAYS);
    let file = place.sockets().join("token.token");
    let right = fs::read_to_string(&file).expect("the owner's");
    for wrong in ["", "00", &"0".repeat(64), &right[..63], &format!("{right}0")] {
        fs::write(&file, wrong).expect("the owner's");
        for program in [
            &["exec", "token", "--", "true"][..],
            &["inspect", "token"],
            &["ps"],
        ] {
            let told = place.cloak(program).output().expect("cloak starts");
            let errors = String::from_utf8_lossy(&told.stderr).into_owned();
            assert_eq!(told.status.code(), Some(125), "{program:?}: {errors}");
            assert!(errors.contains("the token of this VM was not shown"), "{errors}");
        }
    }
    fs::write(&file, right).expect("the owner's");
    ended(&place.shell("token", "echo shown"), 0, "shown\n");
}

/// What is inside, and with it the OS service, which opens files for it, finds neither its own VM's token nor others'.
#[test]
fn the_token_is_withheld_from_the_os_service() {
    if !needs::kvm() {
        return;
    }
    let place = Place::new();
    let sockets = place.sockets();
    let beside = place.0.write("beside", "readable");
    // The guest has its own /tmp: the host's is shared for this, to be read.
    let shared = format!("{0}:/host:ro", place.0.path().display());
    let told = place
        .cloak(&[
            "run",
            "--memory",
            "512M",
            "--name",
            "inside",
            "--volume",
            &shared,
            "--",
            "/bin/true",
        ])
        .output()
        .expect("cloak starts");
    assert_eq!(
        told.status.code(),
        Some(125),
        "a volume that has the folder in it"
    );
    assert!(
        String::from_utf8_lossy(&told.stderr).contains("is not for the OS side"),
        "{told:?}"
    );
    if !needs::root() {
        return;
    }
    // Below the host's root, which is always there.
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("sockets-{}", std::process::id()));
    let near = folder.with_extension("near");
    fs::write(&near, "readable").expect("room");
    let script = format!(
        "echo ready; cat {0}/inside.token; ls {0}; cat {1}; echo; :",
        folder.display(),
        near.display()
    );
    let mut command = place.cloak(&[
        "run", "--memory", "512M", "--name", "inside", "--", "/bin/sh", "-c",
    ]);
    command.arg(&script).env("CLOAK_RUNTIME_DIR", &folder);
    let outcome = place.ready(command).finish(PATIENCE).expect("it ends");
    let _ = (fs::remove_dir_all(&folder), fs::remove_file(&near));
    assert!(
        outcome.text().ends_with("readable\n"),
        "its neighbour can be read: {}",
        outcome.text()
    );
    assert!(
        outcome.error_text().contains("inside.token: Permission denied"),
        "{}",
        outcome.error_text()
    );
    let hex = |word: &str| word.len() == 64 && word.chars().all(|c| c.is_ascii_hexdigit());
    assert!(!outcome.text().split_whitespace().any(hex), "{}", outcome.text());
    drop((sockets, beside));
}

#[test]
fn a_manifest_fixes_what_runs_unless_it_says_otherwise() {
    if !needs::kvm() {
        return;
    }
    let place = Place::new();
    let manifest = |more: &str| {
        let text = format!(
            "version = 1\nname = \"stated\"\n[program]\npath = \"/bin/sh\"\nargs = [\"-c\", \"echo ready; sleep 1000\"]\n\
             {more}\n[resources]\nmemory_mib = 512\n[[volume]]\nguest = \"/\"\nkind = \"shared\"\nsource = \"/\"\n\
             read_only = true\n"
        );
        place.0.write("cloak.toml", text)
    };
    for (more, allowed) in [("", false), ("exec = false", false), ("exec = true", true)] {
        let mut command = place.cloak(&["run", "--name", "stated", "--manifest"]);
        command.arg(manifest(more));
        let vm = place.ready(command);
        let outcome = place.shell("stated", "echo ran");
        let look = |find: &[&str]| {
            let told = place
                .cloak(&["inspect", "stated"])
                .args(find)
                .output()
                .expect("cloak starts");
            (
                told.status.code(),
                format!(
                    "{}{}",
                    String::from_utf8_lossy(&told.stdout),
                    String::from_utf8_lossy(&told.stderr)
                ),
            )
        };
        let (code, text) = look(&["--find", "sleep 1000"]);
        let (page_code, page) = look(&["--page", "0x1000000"]);
        if allowed {
            ended(&outcome, 0, "ran\n");
        } else {
            refused(&outcome, 125, "program.exec");
            assert_eq!(code, Some(125), "{text}");
            assert!(text.contains("program.exec"), "{text}");
        }
        if needs::other_platform().is_some() {
            // Whatever the manifest says.
            let looked = if allowed {
                (code, &text)
            } else {
                (page_code, &page)
            };
            assert_eq!((looked.0, page_code), (Some(125), Some(125)), "{text}{page}");
            for told in [looked.1, &page] {
                assert!(told.contains("not the monitor's to show"), "{told}");
            }
        } else {
            assert_eq!((page_code, allowed), (Some(0), code == Some(0)), "{page}{text}");
            assert_eq!(!allowed, page.contains("application view withheld"), "{page}");
        }
        drop(vm);
    }
}

/// All of this area runs on them in `make test-simulated`; that it is there at all is seen without.
#[test]
fn simulated_machines_have_names_and_show_nothing() {
    if !needs::plain() || !needs::kvm() {
        return;
    }
    for platform in ["sim-snp", "sim-tdx"] {
        let place = Place::new();
        let _vm = place.run(&["--platform", platform, "--name", "measured"], STAYS);
        assert!(place.ps(&[]).contains("measured"), "{platform}");
        let outcome = place.exec("measured", "typed\n", &["/bin/sh", "-c", "cat; exit 7"]);
        ended(&outcome, 7, "typed\n");
        for place_in_it in [["--find", "of the first"], ["--page", "0x1000000"]] {
            let told = place
                .cloak(&["inspect", "measured"])
                .args(place_in_it)
                .output()
                .expect("cloak starts");
            let said = String::from_utf8_lossy(&told.stderr).into_owned();
            assert_eq!(
                (told.status.code(), &told.stdout[..]),
                (Some(125), &[][..]),
                "{said}"
            );
            assert!(said.contains("not the monitor's to show"), "{said}");
        }
    }
}

#[test]
fn contexts_of_a_pod_are_asked_one_by_one() {
    if !needs::plain() || !needs::kvm() {
        return;
    }
    let place = Place::new();
    let swap = place.0.join("swap");
    let pod = format!(
        "version = 1\nname = \"shop\"\n\
         [[context]]\nname = \"web\"\nmemory = \"256M\"\ncommand = [\"/bin/sh\", \"-c\", \"echo ready; sleep 1000\"]\n\
         [[context]]\nname = \"database\"\nmemory = \"256M\"\nresident = \"32M\"\nswap = \"{}\"\n\
         command = [\"/bin/sh\", \"-c\", \"echo mine >/tmp/own; sleep 1000\"]\n\
         [[context]]\nname = \"short\"\nmemory = \"256M\"\ncommand = [\"/bin/true\"]\n",
        swap.display()
    );
    let mut command = place.cloak(&["pod", "run"]);
    command.arg(place.0.write("pod.toml", pod));
    let _pod = place.ready(command);
    ended(
        &place.shell("shop/web", "uname -n; cat /tmp/own || echo not mine"),
        0,
        "web\nnot mine\n",
    );
    let own = place.shell(
        "shop/database",
        "uname -n; for i in 1 2 3 4 5; do cat /tmp/own && break; sleep 1; done",
    );
    ended(&own, 0, "database\nmine\n");
    refused(
        &place.shell("shop", "true"),
        125,
        "say which context: web, database, short",
    );
    refused(&place.shell("shop/none", "true"), 125, "there is no context none");
    let deadline = Instant::now() + PATIENCE;
    while !place
        .ps(&[])
        .lines()
        .any(|row| row.starts_with("shop/short") && row.contains("ended"))
    {
        assert!(Instant::now() < deadline, "{}", place.ps(&[]));
        thread::sleep(Duration::from_millis(50));
    }
    refused(&place.shell("shop/short", "true"), 125, "the context has ended");
    assert!(
        place
            .ps(&[])
            .lines()
            .any(|row| row.starts_with("shop/database") && row.contains("32M of 256M"))
    );
    assert!(fs::metadata(&swap).expect("the swap file").len() > 0);
}

/// A terminal with a cloak command on it.
struct Terminal {
    master: OwnedFd,
    child: std::process::Child,
    seen: String,
}

impl Terminal {
    fn start(mut command: Command, size: [u16; 2]) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&master)
            .and_then(|()| unlockpt(&master))
            .expect("a terminal");
        let path = ptsname(&master, Vec::new()).expect("its name");
        let slave = File::options()
            .read(true)
            .write(true)
            .open(path.to_str().expect("plain"))
            .expect("its slave");
        resize(&master, size);
        let copy = || Stdio::from(slave.try_clone().expect("a copy"));
        command.stdin(copy()).stdout(copy()).stderr(copy());
        let child = command.spawn().expect("cloak starts");
        Self {
            master,
            child,
            seen: String::new(),
        }
    }

    fn types(&self, text: &str) {
        rustix::io::write(&self.master, text.as_bytes()).expect("typed");
    }

    /// Waits until this is on the screen, after all that was waited for before.
    #[track_caller]
    fn shows(&mut self, text: &str) {
        let mut master = File::from(self.master.try_clone().expect("a copy"));
        let mut part = [0; 4096];
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            let patience = Timespec {
                tv_sec: PATIENCE.as_secs() as i64,
                tv_nsec: 0,
            };
            let ready = poll(&mut [PollFd::new(&master, PollFlags::IN)], Some(&patience));
            assert_eq!(ready, Ok(1), "no {text:?} in {:?}", self.seen);
            let len = master.read(&mut part).unwrap_or(0);
            assert!(len > 0, "no {text:?} in {:?}", self.seen);
            self.seen += &String::from_utf8_lossy(&part[..len]);
        }
    }
}

impl Drop for Terminal {
    /// Nothing that a test starts outlives it.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resize(terminal: &OwnedFd, [rows, columns]: [u16; 2]) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).expect("another size");
}

#[test]
fn a_terminal_becomes_one_inside_with_jobs_and_sizes() {
    if needs::cloaked_program("/bin/bash").is_none() {
        return;
    }
    let place = Place::new();
    let _vm = place.run(&["--name", "terminal"], STAYS);
    let mut command = place.cloak(&["exec", "terminal", "--", "/bin/bash", "--norc", "-i"]);
    command.env("TERM", "xterm");
    let mut terminal = Terminal::start(command, [30, 90]);
    // What is typed is echoed: the answers differ from the questions.
    terminal.types("PS1=; stty -echo; echo 'be''gin'\n");
    terminal.shows("begin");
    terminal.types("tty; stty size; echo $TERM\n");
    terminal.shows("/dev/pts/");
    terminal.shows("30 90");
    terminal.shows("xterm");
    terminal.types("sleep 1000; echo after $?\n");
    thread::sleep(Duration::from_millis(500));
    terminal.types("\x03");
    terminal.shows("\n");
    terminal.types("echo status $?\n");
    terminal.shows("status 130");
    terminal.types("sleep 1000 & jobs; kill %1; wait %1; echo job $?\n");
    terminal.shows("Running");
    terminal.shows("job 143");
    terminal.types("exit 5\n");
    assert_eq!(terminal.child.wait().expect("it ends").code(), Some(5));
    // Of another size a program learns that has the terminal.
    let script = "trap 'stty size; exit 6' WINCH; echo loop; while :; do sleep 0.1; done";
    let command = place.cloak(&["exec", "terminal", "--", "/bin/sh", "-c", script]);
    let mut terminal = Terminal::start(command, [30, 90]);
    terminal.shows("loop");
    resize(&terminal.master, [40, 100]);
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&terminal.child),
        rustix::process::Signal::WINCH,
    )
    .expect("it runs");
    terminal.shows("40 100");
    assert_eq!(terminal.child.wait().expect("it ends").code(), Some(6));
}
