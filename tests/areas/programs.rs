//! The purpose-made programs of `tests/programs`, in each way of linking, native and cloaked alike.

use cloak_tests::programs::{Linkage, built};
use cloak_tests::{Case, Scratch, needs};

/// Where the programs may write, and the file or folder there that they are told to use.
struct Place {
    scratch: Scratch,
}

impl Place {
    fn new() -> Self {
        Place {
            scratch: Scratch::new(),
        }
    }

    fn case(&self, name: &str, linkage: Linkage) -> Option<Case> {
        let Some(program) = built(name, linkage) else {
            needs::skip(&format!(
                "no compiler here builds {name} {linkage:?} (musl-tools)"
            ));
            return None;
        };
        Some(
            Case::new(program)
                .volume(self.scratch.path())
                .arg(self.scratch.join("made")),
        )
    }
}

/// The program checks itself and must succeed; what it prints must be the same natively.
fn conforms(name: &str, linkages: &[Linkage]) {
    let place = Place::new();
    for linkage in linkages.iter().filter(|_| needs::kvm()) {
        if let Some(case) = place.case(name, *linkage) {
            case.succeeds_as_native();
        }
    }
}

macro_rules! conformance {
    ($($name:ident: $($linkage:ident)+;)+) => {
        $(#[test]
        fn $name() {
            conforms(stringify!($name), &[$(Linkage::$linkage),+]);
        })+
    };
}

conformance! {
    mmap_semantics: Dynamic Static Musl;
    segv_maps: Dynamic Static Musl;
    sparse_mmap: Dynamic Static;
    big_file: Dynamic Static;
    lengths: Dynamic Static;
    futex_ops: Dynamic Static;
    futex_crowds: Static;
    readiness: Dynamic Static Musl;
    timers_fd: Dynamic;
    timers_posix: Dynamic;
    signals: Dynamic Static Musl;
    vector_registers: Dynamic Static;
    syscall_sites: Dynamic Static Musl;
    sites_of_threads: Static;
    forks_while_patching: Dynamic Static;
    descriptors: Dynamic Static;
    name_ends: Dynamic;
    directories: Dynamic Static;
    sockets: Dynamic Static Musl;
    sockets1000: Dynamic Static;
    limits: Dynamic Static;
    machine: Dynamic Static Musl;
    mapped_files: Dynamic Static Musl;
    threads_life: Dynamic Static Musl;
    forgotten_pages: Dynamic Static Musl;
    threads64: Dynamic Static StaticPie Musl;
}

#[test]
fn lengths_of_files_on_an_exclusive_volume() {
    let scratch = Scratch::new();
    let Some(program) = built("lengths", Linkage::Dynamic).filter(|_| needs::kvm()) else {
        return;
    };
    let volume = format!("{0}:{0}:exclusive", scratch.path().display());
    let case = Case::new(program).arg(scratch.join("made"));
    case.option("--volume").option(&volume).succeeds_as_native();
}

/// The kernel's own way of editing page tables, which contexts that share a VM need.
#[test]
fn the_kernel_edits_page_tables_as_the_libos_does() {
    if !needs::plain() {
        return;
    }
    let place = Place::new();
    for name in ["mmap_semantics", "segv_maps", "sparse_mmap", "threads64"] {
        if !needs::kvm() {
            return;
        }
        let Some(case) = place.case(name, Linkage::Dynamic) else {
            continue;
        };
        case.option("--kernel-tables").succeeds_as_native();
    }
}

#[test]
fn hello_in_every_linkage() {
    let place = Place::new();
    for linkage in [
        Linkage::Dynamic,
        Linkage::Static,
        Linkage::StaticPie,
        Linkage::Musl,
    ] {
        if !needs::kvm() {
            return;
        }
        let Some(case) = place.case("hello", linkage) else {
            continue;
        };
        let case = case.env("CLOAK_TEST_GREETING", "good day, \"friend\" = ß");
        case.succeeds_as_native();
        for code in ["1", "42", "125", "126", "127", "255"] {
            let program = built("hello", linkage).expect("it was there a moment ago");
            let outcome = Case::new(program)
                .args([code, "", "two words", "ünïcode", "-x", "--"])
                .same_as_native();
            assert_eq!(
                outcome.status.shell_code().to_string(),
                code,
                "{}",
                outcome.text()
            );
        }
    }
}

#[test]
fn cxx_exceptions_threads_and_streams() {
    if !needs::kvm() {
        return;
    }
    for linkage in [Linkage::Dynamic, Linkage::Static] {
        let program = built("cxx", linkage).expect("g++ builds what gcc does");
        Case::new(program).stdin("one\ntwo\nthree\n").succeeds_as_native();
    }
}

#[test]
fn rust_tokio_echo() {
    if needs::kvm() {
        Case::new(env!("CARGO_BIN_EXE_tokio-echo")).succeeds_as_native();
    }
}

#[test]
fn without_patching_a_program_reads_its_own_code_as_it_was() {
    if !needs::kvm() {
        return;
    }
    let program = built("syscall_sites", Linkage::Static).expect("gcc builds static programs");
    Case::new(program)
        .arg("as-it-was")
        .option("--no-patch")
        .succeeds_as_native();
}

/// Most of the eight begin at the same time, which is tried again and again: each is started once.
#[test]
fn threads64_on_one_to_eight_processors() {
    if !needs::kvm() {
        return;
    }
    let program = built("threads64", Linkage::Static).expect("gcc builds static programs");
    for count in [1, 2, 4, 8, 8, 8, 8, 8, 8, 8, 8] {
        Case::new(&program).cpus(count).succeeds_as_native();
    }
}

#[test]
fn answers_come_while_every_processor_computes() {
    if !needs::kvm() {
        return;
    }
    let scratch = Scratch::new();
    let program = built("answers_while_computing", Linkage::Static).expect("gcc builds static programs");
    for count in [1, 2, 4] {
        Case::new(&program)
            .cpus(count)
            .volume(scratch.path())
            .arg(scratch.join("made"))
            .succeeds_as_native();
    }
}

#[test]
fn stack_overflow_ends_with_139() {
    if !needs::kvm() {
        return;
    }
    for linkage in [Linkage::Dynamic, Linkage::Static, Linkage::Musl] {
        let Some(program) = built("stack_overflow", linkage) else {
            continue;
        };
        for arguments in [vec![], vec!["in-a-thread"]] {
            let outcome = Case::new(&program).args(arguments).same_as_native();
            assert_eq!(outcome.status.shell_code(), 139);
            assert_eq!(outcome.text(), "going down\n");
        }
    }
}
