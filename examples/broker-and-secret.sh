#!/usr/bin/env bash
# Run the broker and fetch a secret. The guest here is plain software with a host key's word for it; in a guest on SNP or
# TDX leave the options of software evidence away, and the kernel is asked.
source "$(dirname "$0")/lib.sh"

show "$CLOAK" kbs init --listen 127.0.0.1:0 "$here/kbs"

# What runs, and the host that vouches for it.
measurement=$(printf 'the program' | sha384sum | cut -d ' ' -f 1)
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$here/host.key" 2>/dev/null
point=$(openssl pkey -in "$here/host.key" -pubout -outform DER | tail -c 65 | sha256sum | cut -d ' ' -f 1)
cat >"$here/kbs/policy.toml" <<POLICY
platforms = ["software"]
[software]
key_digests = ["$point"]
POLICY
cat "$here/kbs/policy.toml" - >"$here/secret.toml" <<POLICY
[[reference]]
name = "the program"
version = "1"
software_measurement = ["$measurement"]
POLICY

"$CLOAK" kbs serve --config "$here/kbs/kbs.toml" >"$here/serve.log" &
broker=$!
trap 'kill "$broker" 2>/dev/null; wait "$broker" 2>/dev/null; rm -rf "$here"' EXIT
address=$(address "$here/serve.log" "$broker")
export CLOAK_KBS_URL=https://localhost:${address##*:} CLOAK_KBS_CA=$here/kbs/tls.crt CLOAK_KBS_ADMIN_TOKEN=$here/kbs/admin.token

echo "correct horse battery staple" >"$here/passphrase"
show "$CLOAK" kbs put default/passphrase/1 --file "$here/passphrase" --policy "$here/secret.toml"
show "$CLOAK" kbs list
show "$CLOAK" kbs get default/passphrase/1 --software-key "$here/host.key" --measurement "$measurement" >"$here/got"
cmp "$here/passphrase" "$here/got"
cat "$here/got"

echo
echo "# Another program gets nothing, and is told why."
other=$(printf 'another program' | sha384sum | cut -d ' ' -f 1)
refused 1 "$CLOAK" kbs get default/passphrase/1 --software-key "$here/host.key" --measurement "$other" 2>&1

echo
echo "# Every decision is in the log."
show "$CLOAK" kbs audit 2>&1 | cut -c 1-160
