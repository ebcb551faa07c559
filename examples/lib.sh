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

# The folder of a package that the build uses, which carries published evidence.
package() {
    cargo metadata --format-version 1 --locked --offline |
        python3 -c 'import json, os, sys; print(next(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == sys.argv[1]))' "$1"
}
