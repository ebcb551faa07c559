#!/usr/bin/env bash
# The whole story on one platform: a guest is launched, proves what it is, gets a secret, opens a volume that only it can
# open, writes, stops, starts again and reads. And what goes wrong where something else runs.
#
#   examples/end-to-end.sh [sim-snp|sim-tdx|plain]      without an argument: all of them
#
# On hardware it is the same with `--platform snp`, and policies made without --simulated.
platforms=("$@")
self=$(readlink -f "$0")
source "$(dirname "$0")/lib.sh"

if ((${#platforms[@]} == 0)); then
    for platform in plain sim-snp sim-tdx; do
        echo "######## $platform"
        bash "$self" "$platform"
    done
    exit
fi
platform=${platforms[0]}

# What runs: a shell, which does what its caller's STEP names of four things. Nothing else is left to the caller.
# shellcheck disable=SC2016
program='set -e
case $STEP in
attest) cd /sys/kernel/config/tsm/report && mkdir r && printf "$NONCE" >r/inblob && cat r/outblob r/auxblob ;;
write) cat /run/secrets/password >/data/kept && echo "written" ;;
write-plain) echo "a secret of the program" >/data/kept && echo "written" ;;
read) cat /data/kept ;;
esac'
more=(--add /bin/mkdir --add /bin/cat --protected "$here/data.vol=/data")
open_steps='s/^\[program\]$/&\nuntrusted_environment = ["NONCE", "STEP"]/'

run() { # run MANIFEST STEP OPTIONS...
    local manifest=$1 step=$2
    shift 2
    show "$CLOAK" run --platform "$platform" --manifest "$manifest" --env "STEP=$step" --env "NONCE=${nonce-}" "$@"
}

if [[ $platform == plain ]]; then
    # Nothing is measured: the monitor is trusted, and keys follow from its user's file. So there is no evidence, and no secret.
    "$CLOAK" manifest init --name story "${more[@]}" /bin/sh -c "$program" | sed "$open_steps" >"$here/cloak.toml"
    show "$CLOAK" key new "$here/root.key"
    show "$CLOAK" volume create "$here/data.vol" --manifest "$here/cloak.toml" --root-key "$here/root.key" \
        --anchor "$here/data.anchor"
    keys=(--root-key "$here/root.key" --anchor "/data=$here/data.anchor")
    run "$here/cloak.toml" write-plain "${keys[@]}"
    cp "$here/data.vol" "$here/yesterday.vol"
    if grep -q "a secret of" "$here/data.vol"; then echo "the container shows it" >&2 && exit 1; fi
    [[ $(run "$here/cloak.toml" read "${keys[@]}") == "a secret of the program" ]]
    echo
    echo "# Another manifest has other keys:"
    sed 's/^name = "story"/name = "another"/' "$here/cloak.toml" >"$here/other.toml"
    refused 125 run "$here/other.toml" read "${keys[@]}"
    echo
    echo "# And yesterday's volume is noticed, as an anchor remembers today's:"
    run "$here/cloak.toml" write-plain "${keys[@]}"
    cp "$here/yesterday.vol" "$here/data.vol"
    refused 125 run "$here/cloak.toml" read "${keys[@]}"
    exit
fi

case $platform in
sim-snp) kind=snp root=$(sha256sum sim/keys/ark.der | cut -d ' ' -f 1) ;;
sim-tdx) kind=tdx root=$("$CLOAK" simulated-collateral --root-digest) ;;
*) echo "what is $platform?" >&2 && exit 2 ;;
esac
roots=(--simulated-root "$root")

echo "# A broker, on a machine that its owner trusts. It lets in what is simulated only because its policy says so:"
show "$CLOAK" kbs init --listen 127.0.0.1:0 "$here/kbs" >/dev/null
cat >"$here/kbs/policy.toml" <<POLICY
platforms = ["simulated-$kind"]
[snp]
maximum_vmpl = 1
POLICY
printf '[simulated]\nroot_digests = ["%s"]\n' "$root" >>"$here/kbs/policy.toml"
if [[ $kind == tdx ]]; then
    # What a broker for real machines has from Intel.
    "$CLOAK" simulated-collateral >"$here/kbs/collateral.json"
    sed -i 's/^collateral = .*/collateral = ["collateral.json"]/' "$here/kbs/kbs.toml"
fi
"$CLOAK" kbs serve --config "$here/kbs/kbs.toml" >"$here/serve.log" &
broker=$!
trap 'kill "$broker" 2>/dev/null; wait "$broker" 2>/dev/null; rm -rf "$here"' EXIT
address=$(address "$here/serve.log" "$broker")
export CLOAK_KBS_URL=https://127.0.0.1:${address##*:} CLOAK_KBS_CA=$here/kbs/tls.crt CLOAK_KBS_ADMIN_TOKEN=$here/kbs/admin.token

# On SNP the volume's key comes from the machine; TDX has none, so its root is released, too.
secrets=(--secret default/password/story=/run/secrets/password)
[[ $kind == tdx ]] && secrets+=(--released default/key/story)

echo
echo "# The manifest: what runs, the broker and its certificate, and what appears where."
"$CLOAK" manifest init --name story --broker "$CLOAK_KBS_URL" --broker-ca "$CLOAK_KBS_CA" "${secrets[@]}" "${more[@]}" \
    /bin/sh -c "$program" | sed "$open_steps" >"$here/cloak.toml"
show "$CLOAK" manifest check "$here/cloak.toml"

echo
echo "# From it and the shim, before anything runs: who may have the secret."
show "$CLOAK" policy init --for "$here/cloak.toml" --platform "$kind" --simulated "${roots[@]}" >"$here/policy.toml"
printf 'correct horse battery staple' >"$here/password"
show "$CLOAK" kbs put default/password/story --file "$here/password" --policy "$here/policy.toml"
head -c 32 /dev/urandom >"$here/key"
[[ $kind == tdx ]] && show "$CLOAK" kbs put default/key/story --file "$here/key" --policy "$here/policy.toml"

echo
echo "# It runs, and says what it is, over our nonce:"
: >"$here/data.vol"
nonce=$(od -An -N 32 -tx1 /dev/urandom | tr -d ' \n')
run "$here/cloak.toml" attest >"$here/both"
bytes=$(printf %s "$nonce" | od -An -v -tx1 | tr -d ' \n')
if [[ $kind == snp ]]; then
    head -c 1184 "$here/both" >"$here/evidence"
    tail -c +1185 "$here/both" >"$here/aux"
    evidence=("$here/evidence" --cert-table "$here/aux" --simulated --nonce "$bytes")
else
    evidence=("$here/both" --collateral "$here/kbs/collateral.json" --simulated --nonce "$bytes")
fi
show "$CLOAK" verify "${evidence[@]}" --policy "$here/policy.toml" --manifest "$here/cloak.toml" | tail -n 4
echo
echo "# The same is refused under the default policy, because it is simulated:"
refused 1 "$CLOAK" verify "${evidence[@]}" | tail -n 3

echo
echo "# It writes its secret into a volume that it made, and stops; it starts again, and reads it:"
run "$here/cloak.toml" write
if grep -q "correct horse" "$here/data.vol"; then echo "the container shows it" >&2 && exit 1; fi
[[ $(run "$here/cloak.toml" read) == "correct horse battery staple" ]]

echo
echo "# Another manifest gets no secret, and not the volume:"
sed 's/^name = "story"/name = "another"/' "$here/cloak.toml" >"$here/other.toml"
refused 125 run "$here/other.toml" read
sed "s|data.vol|fresh.vol|" "$here/other.toml" >"$here/fresh.toml"
: >"$here/fresh.vol"
refused 125 run "$here/fresh.toml" read

echo
echo "# Neither does whoever answers in the broker's place, without its key:"
kill "$broker" && wait "$broker" || true
"$CLOAK" kbs init --listen "127.0.0.1:${address##*:}" "$here/false" >/dev/null
"$CLOAK" kbs serve --config "$here/false/kbs.toml" >"$here/serve.log" 2>&1 &
broker=$!
address "$here/serve.log" "$broker" >/dev/null
refused 125 run "$here/cloak.toml" write
echo
echo "That was the whole story on $platform, which is simulated and protects nothing."
