//! Programs of several processes: purpose-made ones, shells, Python's process modules, builds, version control.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use cloak_tests::programs::{Linkage, built};
use cloak_tests::{Case, Launcher, Scratch, needs};
use rustix::fs::OFlags;

/// The program checks itself and must succeed; what it prints must be the same natively.
fn conforms(name: &str, linkages: &[Linkage]) {
    let scratch = Scratch::new();
    for linkage in linkages.iter().filter(|_| needs::kvm()) {
        let Some(program) = built(name, *linkage) else {
            needs::skip(&format!(
                "no compiler here builds {name} {linkage:?} (musl-tools)"
            ));
            continue;
        };
        Case::new(program)
            .volume(scratch.path())
            .arg(scratch.join("made"))
            .succeeds_as_native();
    }
}

#[test]
fn processes_begin_and_end() {
    conforms("processes", &[Linkage::Dynamic, Linkage::Static]);
}

#[test]
fn processes_have_memory_of_their_own() {
    conforms("process_memory", &[Linkage::Dynamic, Linkage::Static]);
}

#[test]
fn processes_know_how_much_of_them_is_in_memory() {
    conforms("resident_sizes", &[Linkage::Dynamic, Linkage::Static]);
}

#[test]
fn processes_run_other_programs() {
    conforms("process_exec", &[Linkage::Dynamic, Linkage::Static]);
}

#[test]
fn processes_share_system_v_segments() {
    conforms(
        "shared_segments",
        &[Linkage::Dynamic, Linkage::Static, Linkage::Musl],
    );
}

#[test]
fn processes_use_system_v_semaphores_and_queues() {
    conforms(
        "semaphores_queues",
        &[Linkage::Dynamic, Linkage::Static, Linkage::Musl],
    );
}

#[test]
fn what_other_suites_found_is_mended() {
    conforms("found_by_suites", &[Linkage::Dynamic, Linkage::Static]);
}

/// Memory of a thousand children comes back: the program compares free memory itself.
#[test]
fn a_thousand_forks_leak_nothing() {
    if !needs::kvm() {
        return;
    }
    let scratch = Scratch::new();
    let program = built("process_memory", Linkage::Dynamic).expect("gcc builds it");
    Case::new(program)
        .volume(scratch.path())
        .arg(scratch.join("made"))
        .arg("1000")
        .memory("256M")
        .succeeds_as_native();
}

/// The same where the kernel checks and carries out each change of page tables.
#[test]
fn processes_with_the_kernels_page_tables() {
    if !needs::plain() || !needs::kvm() {
        return;
    }
    let scratch = Scratch::new();
    for name in [
        "process_memory",
        "process_exec",
        "resident_sizes",
        "forgotten_pages",
    ] {
        let program = built(name, Linkage::Static).expect("gcc builds it");
        Case::new(program)
            .volume(scratch.path())
            .arg(scratch.join("made"))
            .arg("20")
            .option("--kernel-tables")
            .succeeds_as_native();
    }
}

/// Natively it would be all of the host's memory, so what the program says of itself counts.
#[test]
fn who_takes_all_memory_ends_nobody_else() {
    if !needs::kvm() {
        return;
    }
    let program = built("memory_is_full", Linkage::Static).expect("gcc builds it");
    for cpus in [1, 2] {
        let case = Case::new(program.clone()).cpus(cpus).memory("128M");
        let outcome = case.run(&Launcher::under_test());
        let (said, why) = (outcome.text(), outcome.error_text());
        assert!(said.ends_with("ok there is memory again\n"), "{said}{why}");
        assert!(!said.contains("FAILED"), "{said}{why}");
    }
}

/// A FIFO of a shared volume joins the context's own processes inside; the host, which has the name, hears nothing.
#[test]
fn fifos_on_a_shared_volume_stay_inside() {
    if !needs::kvm() {
        return;
    }
    let talk = "rm -f fifo other; mkfifo fifo; cat fifo & echo between us >fifo; wait
        mv fifo other; cat other & echo renamed >other; wait
        (sleep 0.2; echo late >other) & read line <other; echo $line; wait
        ls; rm other; ls; echo the end";
    let scratch = Scratch::new();
    let case = |script: &str| {
        Case::new("/bin/sh")
            .args(["-c", script])
            .volume(scratch.path())
            .in_folder(scratch.path())
    };
    case(talk).succeeds_as_native();
    // Somebody on the host listens at the name that the guest made.
    let name = scratch.join("heard");
    let script = "mkfifo heard; echo made; sleep 1; cat heard & echo a secret >heard; wait";
    let mut running = case(script).start(&Launcher::under_test());
    assert!(running.prints("made", Duration::from_secs(60)));
    let mut options = File::options();
    let mut listener = options
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(&name)
        .expect("the FIFO is there");
    let outcome = running.finish(Duration::from_secs(60)).expect("it ends");
    assert_eq!(outcome.text(), "made\na secret\n");
    let mut heard = Vec::new();
    listener
        .read_to_end(&mut heard)
        .expect("a FIFO without writers is at its end");
    assert!(heard.is_empty(), "the host heard {heard:?}");
}

fn script(shell: &str, text: &str) {
    let Some(program) = needs::cloaked_program(shell) else {
        return;
    };
    let scratch = Scratch::new();
    let file = scratch.write("script", text);
    Case::new(program)
        .volume(scratch.path())
        .in_folder(scratch.path())
        .arg(file)
        .succeeds_as_native();
}

const PLAIN: &str = r#"
echo start; (exit 3); echo $?
echo a b c | tr ' ' '\n' | sort -r | while read x; do echo "<$x>"; done
cat <<END
here $((1 + 2)) $(echo sub)
END
sh -c 'kill -TERM $$'; echo $?
sh -c 'exit 7' & wait $!; echo $?
sleep 0.05 & sleep 0.01 & wait; echo waited
for i in 1 2 3; do /bin/echo $i; done > out; wc -l < out
trap 'echo trapped' EXIT
f() { echo in f; }; f | cat
seq 1 500 | xargs -n 50 echo | wc -l
yes | head -100 | wc -l
exec 3> three; echo three >&3; exec 3>&-; cat three
test -e /proc/$$/status && grep -c '^Pid:' /proc/self/status
umask 027; sh -c umask
cd /usr; sh -c pwd
"#;

#[test]
fn dash_runs_scripts() {
    script("dash", PLAIN);
}

#[test]
fn busybox_runs_scripts() {
    let Some(program) = needs::cloaked_program("busybox") else {
        return;
    };
    let scratch = Scratch::new();
    let file = scratch.write("script", PLAIN);
    Case::new(program)
        .volume(scratch.path())
        .in_folder(scratch.path())
        .arg("sh")
        .arg(file)
        .succeeds_as_native();
}

#[test]
fn bash_runs_scripts() {
    script("bash", PLAIN);
    script(
        "bash",
        r#"
set -e
trap 'echo trap exit' EXIT
trap 'echo got usr1' USR1
kill -USR1 $$
diff <(printf 'a\nb\n') <(printf 'a\nc\n') || echo differ
tee >(sort -r > sorted) < <(printf '1\n2\n') > /dev/null; sleep 0.3; cat sorted
sleep 0.3 & sleep 0.01 &
wait -n && echo one
wait; echo all
(exit 4) || echo "rc $?"
coproc C { while read l; do echo "co:$l"; done; }
echo hello >&${C[1]}; read -u ${C[0]} r; echo $r; eval "exec ${C[1]}>&-"; wait $C_PID || true
false | true; echo "${PIPESTATUS[@]}"
find /usr/share/perl -name '*.pm' | xargs grep -l strict | wc -l
set +e
bash -c 'exit 300'; echo $?
timeout 1 sleep 5; echo $?
(sleep 3 & echo $! > pid); kill $(cat pid) && echo killed
ulimit -n 64; bash -c 'ulimit -n'
"#,
    );
}

#[test]
fn python_starts_processes() {
    let Some(program) = needs::cloaked_program("python3") else {
        return;
    };
    let text = r#"
import asyncio, multiprocessing, os, signal, subprocess, sys
from concurrent.futures import ProcessPoolExecutor

def square(x):
    return x * x

def add(value):
    for _ in range(100):
        with value.get_lock():
            value.value += 1

if __name__ == "__main__":
    print(subprocess.run(["echo", "hi"], capture_output=True, text=True))
    print(subprocess.check_output("ls /usr | sort | head -2; exit 0", shell=True))
    try:
        subprocess.run(["false"], check=True)
    except subprocess.CalledProcessError as e:
        print(e)
    try:
        subprocess.run(["/nonexistent"])
    except FileNotFoundError as e:
        print(e)
    cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    print(cat.communicate(b"x" * 300000)[0] == b"x" * 300000, cat.returncode)
    try:
        subprocess.run(["sleep", "5"], timeout=0.2)
    except subprocess.TimeoutExpired:
        print("timeout")
    slow = subprocess.Popen(["sleep", "9"])
    slow.send_signal(signal.SIGTERM)
    print(slow.wait())
    pid = os.fork()
    if pid == 0:
        os._exit(3)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    sys.stdout.flush()
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(3) as pool:
            print(method, pool.map(square, range(10)))
            sys.stdout.flush()
    value = multiprocessing.Value("i", 0)
    adders = [multiprocessing.Process(target=add, args=(value,)) for _ in range(4)]
    [p.start() for p in adders]
    [p.join() for p in adders]
    print(value.value)
    sys.stdout.flush()
    with ProcessPoolExecutor(2) as executor:
        print(sum(executor.map(square, range(100))))
    async def main():
        p = await asyncio.create_subprocess_exec("sh", "-c", "echo async; exit 5", stdout=-1)
        print((await p.communicate())[0], p.returncode)
    asyncio.run(main())
"#;
    let scratch = Scratch::new();
    let file = scratch.write("processes.py", text);
    Case::new(program)
        .volume(scratch.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(file)
        .succeeds_as_native();
}

#[test]
fn make_builds_a_c_project() {
    for tool in ["gcc", "make"] {
        if needs::cloaked_program(tool).is_none() {
            return;
        }
    }
    script(
        "bash",
        r#"
set -e
mkdir project; cd project
for i in 1 2 3 4; do echo "int f$i(int x) { return x * $i; }" > f$i.c; done
cat > main.c <<END
#include <stdio.h>
int f1(int), f2(int), f3(int), f4(int);
int main(void) { printf("%d\n", f1(1) + f2(2) + f3(3) + f4(4)); return 0; }
END
printf 'prog: main.o f1.o f2.o f3.o f4.o\n\t$(CC) -o $@ $^\ntest: prog\n\t./prog\n' > Makefile
make -j2 test | sort
cd ..; rm -r project
"#,
    );
}

#[test]
fn git_keeps_a_history() {
    if needs::cloaked_program("git").is_none() {
        return;
    }
    script(
        "bash",
        r#"
set -e
export HOME=$PWD GIT_CONFIG_NOSYSTEM=1
export GIT_AUTHOR_DATE=2020-01-01T00:00:00Z GIT_COMMITTER_DATE=2020-01-01T00:00:00Z
git init -q repo 2> /dev/null; cd repo
git config user.email a@example.org; git config user.name a
for i in 1 2 3; do echo "line $i" >> file; git add file; git commit -qm "change $i"; done
git log --format='%h %s'; git fsck 2> /dev/null
cd ..; git clone -q repo copy; git -C copy log --oneline | wc -l
git -C repo gc -q; git -C repo fsck 2> /dev/null; git -C repo status --short
rm -rf repo copy
"#,
    );
}
