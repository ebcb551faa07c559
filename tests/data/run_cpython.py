"""Runs modules of CPython's own regression suite and prints one line a test: `RESULT<TAB>identifier<TAB>outcome`.

Usage: run_cpython.py RESULTS_FILE MODULE_OR_TEST...
The lines go to RESULTS_FILE, each flushed at once, so that what passed before a crash or a hang is known. `regrtest`
itself is not used: its banner and its bookkeeping start processes, and it hides the single tests.
"""
import doctest
import faulthandler
import importlib
import os
import sys
import tempfile
import traceback
import unittest

import test
from test import support

# Seconds; a test that waits for what never comes ends the process with a trace of all threads. Whoever runs this
# script then starts it again with the tests that are left.
PATIENCE = 900

MORE_TESTS = os.environ.get("CPYTHON_MORE_TESTS", "/nonexistent")

# Not run at all, natively neither: what they need is not Cloak's to give.
LEFT_OUT = (
    # Talks to the hypervisor over AF_VSOCK, and waits for ever where that does not answer.
    "test.test_socket.ThreadedVSOCKSocketStreamTest",
)


class Recorder(unittest.TextTestResult):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.outcomes = {}

    def note(self, test, outcome):
        # A failed subtest or a failed tear-down must not be covered by the test's own success.
        if self.outcomes.get(test.id(), "ok") == "ok":
            self.outcomes[test.id()] = outcome

    def startTest(self, test):
        super().startTest(test)
        write(test.id(), "started")
        faulthandler.dump_traceback_later(PATIENCE, exit=True)

    def stopTest(self, test):
        super().stopTest(test)
        write(test.id(), self.outcomes.get(test.id(), "ok"))

    def addSuccess(self, test):
        super().addSuccess(test)
        self.note(test, "ok")

    def addError(self, test, error):
        super().addError(test, error)
        self.whole_or_part(test, "error")

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.whole_or_part(test, "failed")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.whole_or_part(test, "skipped")

    def addExpectedFailure(self, test, error):
        super().addExpectedFailure(test, error)
        self.note(test, "expected-failure")

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.note(test, "unexpected-success")

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is not None:
            self.note(test, "failed")

    def whole_or_part(self, test, outcome):
        self.note(test, outcome)
        # setUpClass and setUpModule report under a name of their own and never start a test.
        if not isinstance(test, unittest.TestCase):
            write(test.id(), outcome)


results = open(sys.argv[1], "a", buffering=1)


def write(identifier, outcome):
    # Some identifiers carry an address or a line feed.
    results.write(f"RESULT\t{' '.join(identifier.split())}\t{outcome}\n")


def without(suite, is_left_out):
    """The same tree without some tests; the tree stays, since fixtures hang on it."""
    kept = []
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            kept.append(without(item, is_left_out))
        elif not is_left_out(item.id()):
            kept.append(item)
    return unittest.TestSuite(kept)


def without_left_out(suite):
    return without(suite, lambda identifier: identifier.startswith(LEFT_OUT))


def parts(name):
    """A package from elsewhere as its modules: its own loader looks only beside the packaged ones."""
    folder = os.path.join(MORE_TESTS, name)
    if not os.path.isdir(folder):
        return [f"test.{name}"]
    modules = sorted(file.removesuffix(".py") for file in os.listdir(folder) if file.startswith("test_"))
    return [f"test.{name}.{module}" for module in modules]


def load(names):
    """The tests of these names, and by module those that its `test_main` is to run: it prepares what they need.

    What skips itself as a whole when it is imported, or can't be imported, is told as such.
    """
    suite = unittest.TestSuite()
    prepared = {}
    for name in names:
        module = ".".join(name.split(".")[:2])
        try:
            if hasattr(importlib.import_module(module), "test_main"):
                prepared.setdefault(module, []).append(name)
            else:
                suite.addTest(unittest.defaultTestLoader.loadTestsFromName(name))
        except unittest.SkipTest:
            write(name, "skipped")
        except Exception:
            traceback.print_exc()
            write(name, "error")
    return suite, prepared


def run_prepared(module, names, runner):
    """Lets a module's own `test_main` run its tests, through `runner` and as far as they have these names."""

    def is_other(identifier):
        return module not in names and not identifier.startswith(tuple(names))

    support._run_suite = lambda suite: runner.run(without(without_left_out(suite), is_other))
    try:
        sys.modules[module].test_main()
    except unittest.SkipTest:
        write(module, "skipped")
    except Exception:
        traceback.print_exc()
        write(module, "error")


def run_doctest(module, verbosity=None, optionflags=0):
    """Stands for `support.run_doctest`, which tells of no single test."""
    support._run_suite(doctest.DocTestSuite(module, optionflags=optionflags))


def main():
    # As `regrtest` without -u: nothing that is large, slow by design, or on a network.
    support.use_resources = []
    support.verbose = 1
    support.run_doctest = run_doctest
    # Modules that Debian does not package beside the others.
    test.__path__.append(MORE_TESTS)
    faulthandler.enable()
    with tempfile.TemporaryDirectory(prefix="cpython-") as folder:
        os.chdir(folder)
        names = [part for name in sys.argv[2:] for part in parts(name.removeprefix("test."))]
        suite, prepared = load(names)
        runner = unittest.TextTestRunner(verbosity=2, resultclass=Recorder)
        runner.run(without_left_out(suite))
        for module, wanted in prepared.items():
            run_prepared(module, wanted, runner)
        os.chdir("/")
    write("the whole run", "finished")
    results.flush()
    # Threads that a test left behind must not hold the process.
    os._exit(0)


if __name__ == "__main__":
    main()
