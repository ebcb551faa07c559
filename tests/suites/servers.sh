# Servers under Cloak: started, signalled and stopped; sourced, after lib.sh, by the suites that need them. `seconds` is
# how long the load lasts.
#
# as_user   runs a program cloaked, as the user that servers run as
# start     the same in the background, until its port answers; sets `server`
# signal    sends `server` a signal; stop: and waits for its end
# check     runs a function and tells its verdict
readonly patience_here=$((seconds + 900))
server=0

# The files belong to whom the servers run as.
user=$(id -un)
if ((EUID == 0)) && getent passwd postgres >/dev/null; then user=postgres; fi
chown "$user" "$scratch" "$scratch/before" && chmod 755 "$scratch"
cd "$scratch" || exit 1

# as_user PROGRAM...: cloaked, as that user
as_user() {
    exec timeout -s KILL "$patience_here" "$CLOAK_BIN" run --cpus 2 --memory 2G --user "$user" --clear-env \
        --env "PATH=$PATH" --env LANG=C.UTF-8 --volume "$scratch:$scratch" --workdir "$scratch" -- "$@"
}

free_port() {
    /usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# start PORT PROGRAM...: in the background, until the port answers
start() {
    local port=$1
    shift
    (as_user "$@") >>"$scratch/log" 2>&1 &
    server=$!
    for ((i = 0; i < 600; i++)); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return 0
        kill -0 "$server" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}

# signal NAME: to the launcher, which passes it on; it is the only child of `timeout`
signal() { kill -"$1" "$(cat "/proc/$server/task/$server/children")"; }

# stop NAME CODE: by a signal, and with this exit code
stop() {
    signal "$1"
    wait "$server"
    local code=$?
    ((code == $2)) || { echo "stopped by $1: exit code $code, expected $2"; return 1; }
}

# check NAME FUNCTION: its verdict, explained by what it and the server printed
check() {
    : >"$scratch/log"
    server=0
    "$2" >"$scratch/why" 2>&1
    local verdict=$?
    if ((verdict != 0)); then
        cat "$scratch/log" >>"$scratch/why"
        ((server == 0)) || { signal KILL; wait "$server"; } 2>/dev/null
    fi
    tell "$1" "$verdict" "$scratch/why"
}

# PostgreSQL's programs
pg_bin=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -1)
