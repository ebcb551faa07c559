# Tests of crates from crates.io, built on the host; sourced by the suites that run them.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root" || exit 1
readonly crates=$root/tests/.cache/compat
cargo build --quiet --release --locked --package cloak-tests --bin compat || exit 1
# One folder for all: they share dependencies. What is debugged here is not the crates.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$crates/target} CARGO_PROFILE_DEV_DEBUG=0

# test_binaries FOLDER ENDING ARGUMENTS FOR CARGO...: NAME=PATH of each, ENDING being added to the names
test_binaries() {
    local folder=$1 ending=$2
    shift 2
    (cd "$folder" && cargo test --no-run --quiet --message-format json "$@" 2>"$scratch/cargo") |
        jq -r --arg ending "$ending" 'select(.reason == "compiler-artifact" and .profile.test and .executable != null) |
            .target.name + $ending + "=" + .executable'
}

# rust_suite SUITE CRATE ENDING ARGUMENTS FOR CARGO...
rust_suite() {
    local suite=$1 folder=$crates/$2 binaries
    if [[ ! -d $folder ]]; then
        skip "$suite" "$2 is not in tests/.cache (scripts/install-test-packages --suites)"
        return
    fi
    mapfile -t binaries < <(test_binaries "$folder" "${@:3}")
    if ((${#binaries[@]} == 0)); then
        tell "$suite: $2 is built" 1 "$scratch/cargo"
        return
    fi
    # What there is to run, for the table.
    local records=target/test-suites/compat/$suite
    mkdir -p "$records" && touch "$records/all"
    printf '%s\n' "${binaries[@]%%=*}" | sort -u -o "$records/all" - "$records/all"
    target/release/compat libtest "$suite" "$folder" "${binaries[@]}"
}
