#!/usr/bin/env bash
# RA-TLS: two processes whose certificates carry (simulated) evidence. The source is attestation/examples/ratls.rs.
source "$(dirname "$0")/lib.sh"

ratls=${RATLS:-$PWD/target/release/examples/ratls}

# talk NAME OPTIONS...: a server, and a client with these options.
talk() {
    local log=$here/$1.log server address status=0
    shift
    "$ratls" server 127.0.0.1:0 >"$log" 2>&1 &
    server=$!
    address=$(address "$log" "$server")
    show "$ratls" client "$address" "$@" || status=$?
    wait "$server" || status=1
    tail -n 1 "$log"
    return "$status"
}

talk good
echo
echo "# A client that measures something else is refused."
if talk other --measures "$(printf '22%.0s' $(seq 48))"; then exit 1; fi
