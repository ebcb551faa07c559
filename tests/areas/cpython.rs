//! CPython's regression modules: every test that passes natively on this machine passes cloaked, or its difference is
//! listed with a reason in `tests/data/cpython-differences.toml`.

use cloak_tests::differences::known_differences;
use cloak_tests::results::Comparison;
use cloak_tests::unit::{Unit, run_both_ways};
use cloak_tests::{Launcher, cpython, needs};

fn module(name: &str) {
    if needs::cloaked_program("/usr/bin/python3").is_none() {
        return;
    }
    if !cpython::is_there(name) {
        return needs::skip(&format!(
            "CPython's {name} is not installed (scripts/install-test-packages)"
        ));
    }
    let known = known_differences("cpython");
    let unit = cpython::Module::new(name);
    let runs = run_both_ways(&unit, &Launcher::under_test(), &known);
    let comparison = Comparison::of(&unit.prefix(), &runs, &known);
    let report = comparison.report(name);
    println!("{report}");
    assert!(comparison.native_passed > 0, "no test passes natively: {report}");
    assert!(comparison.is_good(), "{report}");
}

macro_rules! modules {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            module(stringify!($name));
        })+
    };
}

modules! {
    test_json test_re test_struct test_zlib test_hashlib test_sqlite3 test_threading test_thread test_queue test_socket
    test_select test_selectors test_epoll test_mmap test_os test_posix test_io test_fileio test_time test_random
    test_asyncio
}
