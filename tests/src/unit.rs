//! One unit of a suite that nobody here wrote (a module, a test binary, a file of tests), run natively and cloaked.

use crate::differences::Known;
use crate::launcher::Launcher;
use crate::results::{Comparison, Results, Runs};

/// More suspects than this are not tests that depend on timing, but something that fell over as a whole.
const SUSPECTS: usize = 30;
/// How often a difference has another chance.
const CHANCES: usize = 2;

/// What is run in one go.
pub trait Unit {
    /// What the identifiers of its tests begin with, and nobody else's.
    fn prefix(&self) -> String;

    /// Runs all of it one way; a test of `expected` that something kept from running gets a run of its own.
    fn run(&self, launcher: &Launcher, expected: &Results) -> Results;

    /// Runs some of its tests once more.
    fn again(&self, tests: &[String], launcher: &Launcher) -> Results;
}

/// Runs `unit` both ways. What differs and is not known runs again, both ways: some tests depend on timing, natively too.
pub fn run_both_ways(unit: &dyn Unit, launcher: &Launcher, known: &[Known]) -> Runs {
    let native = unit.run(&Launcher::Native, &Results::new());
    // What it tests is not on this machine; there is nothing to compare.
    if !native.values().any(|outcome| outcome == "ok") {
        return Runs {
            native,
            cloaked: Results::new(),
        };
    }
    let cloaked = unit.run(launcher, &native);
    let mut runs = Runs { native, cloaked };
    for _ in 0..CHANCES {
        if !another_chance(unit, launcher, known, &mut runs) {
            break;
        }
    }
    runs
}

/// Runs what differs and is not known again, both ways; false when there was nothing to run.
pub fn another_chance(unit: &dyn Unit, launcher: &Launcher, known: &[Known], runs: &mut Runs) -> bool {
    let comparison = Comparison::of(&unit.prefix(), runs, known);
    let suspects: Vec<String> = comparison.new.into_iter().map(|(test, _, _)| test).collect();
    if suspects.is_empty() || suspects.len() > SUSPECTS {
        return false;
    }
    runs.native.extend(unit.again(&suspects, &Launcher::Native));
    runs.cloaked.extend(unit.again(&suspects, launcher));
    true
}
