# What the examples share; sourced by each.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CLOAK=${CLOAK:-$PWD/target/release/cloak}
here=$(mktemp -d "${TMPDIR:-/tmp}/cloak-example-XXXXXX")
trap 'rm -rf "$here"' EXIT

# show COMMAND...: prints the command, then runs it.
show() {
    echo "\$ ${*/#$CLOAK/cloak}" >&2
    "$@"
}

# refused CODE COMMAND...: a command that has to end with this exit code.
refused() {
    local expected=$1 found=0
    shift
    show "$@" || found=$?
    ((found == expected)) || { echo "expected exit code $expected, found $found" >&2 && exit 1; }
}

# address LOG SERVER: what a server that writes into LOG says it listens on, once it does; fails if it ends before.
address() {
    local log=$1 server=$2
    until grep -q '^listening on ' "$log" 2>/dev/null; do
        kill -0 "$server" 2>/dev/null || { echo "the server ended: $(cat "$log")" >&2 && return 1; }
        sleep 0.1
    done
    sed -n 's/^listening on //p' "$log"
}

# The folder of a package that the build uses, which carries published evidence.
package() {
    cargo metadata --format-version 1 --locked --offline |
        python3 -c 'import json, os, sys; print(next(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == sys.argv[1]))' "$1"
}
