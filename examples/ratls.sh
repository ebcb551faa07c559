#!/usr/bin/env bash
# RA-TLS: two processes whose certificates carry (simulated) evidence. The source is attestation/examples/ratls.rs.
source "$(dirname "$0")/lib.sh"

ratls=${RATLS:-$PWD/target/release/examples/ratls}

# talk OPTIONS...: a server, and a client with these options.
talk() {
    "$ratls" server 127.0.0.1:0 >"$here/server.log" 2>&1 &
    local server=$! status=0
    until grep -q '^listening' "$here/server.log"; do sleep 0.1; done
    show "$ratls" client "$(sed -n 's/^listening on //p' "$here/server.log")" "$@" || status=$?
    wait "$server" || status=1
    tail -n 1 "$here/server.log"
    return "$status"
}

talk
echo
echo "# A client that measures something else is refused."
if talk --measures "$(printf '22%.0s' $(seq 48))"; then exit 1; fi
