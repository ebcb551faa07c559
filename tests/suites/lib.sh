# What the suites share; sourced by each tests/suites/*/suite.
#
# here      the suite's own folder
# scratch   a folder of the suite's own, gone at its end, that programs may write to
# cloaked   runs a program under Cloak, in the current folder; SUITE_RUN may hold more options of `cloak run`
# compare   runs a program both ways, each in a folder of its own that starts as a copy of $scratch/before, and compares
#           standard output, the exit code, and the files that it left
# tell      prints a verdict
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d "${TMPDIR:-/tmp}/cloak-suite-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/before"
readonly patience=${SUITE_TIMEOUT:-600}

cloaked() {
    # shellcheck disable=SC2086 # options, none of which has spaces
    timeout -s KILL "$patience" "$CLOAK_BIN" run ${SUITE_RUN:-} --cpus 2 --memory 2G --env "PATH=$PATH" --env "HOME=$scratch" --env LANG=C.UTF-8 \
        --volume "$scratch:$scratch" --workdir "$PWD" -- "$@"
}

natively() {
    timeout -s KILL "$patience" env -i "PATH=$PATH" "HOME=$scratch" LANG=C.UTF-8 "$@"
}

# tell NAME VERDICT [FILE that explains]
tell() {
    if [[ $2 == 0 ]]; then
        echo "ok $1"
    else
        echo "FAILED $1"
        [[ -z ${3:-} ]] || head -c 4000 "$3" | sed 's/^/    /'
    fi
}

skip() { echo "skipped $1: $2"; }

# compare NAME PROGRAM ARGUMENTS...
compare() {
    local name=$1 way verdict=0
    shift
    for way in natively cloaked; do
        rm -rf "$scratch/here"
        cp -a "$scratch/before" "$scratch/here"
        (cd "$scratch/here" && "$way" "$@" >"$scratch/$way.out" 2>"$scratch/$way.err" </dev/null; echo "exit code $?" >>"$scratch/$way.out")
        rm -rf "${scratch:?}/$way" && mv "$scratch/here" "$scratch/$way"
    done
    {
        diff "$scratch/natively.out" "$scratch/cloaked.out" || verdict=1
        # Compilers write no times into what they make here, so files must be alike too.
        diff -r "$scratch/natively" "$scratch/cloaked" || verdict=1
        tail -5 "$scratch/cloaked.err"
    } >"$scratch/why" 2>&1
    tell "$name" "$verdict" "$scratch/why"
}
