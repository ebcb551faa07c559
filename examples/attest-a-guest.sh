#!/usr/bin/env bash
# A guest on a simulated SNP machine proves what it is: manifest, predicted measurement, policy, a report over a nonce from
# inside, the verdict; and what refuses it. On hardware it will be `--platform snp`, with a real root in the policy.
source "$(dirname "$0")/lib.sh"

manifest=$here/cloak.toml
"$CLOAK" manifest init --name attest --add /bin/mkdir --add /bin/cat /bin/sh -c \
    'cd /sys/kernel/config/tsm/report && mkdir r && printf "$NONCE" >r/inblob && cat r/outblob r/auxblob' |
    sed 's/^\[program\]$/&\nuntrusted_environment = ["NONCE"]/' >"$manifest"
show "$CLOAK" manifest check "$manifest"

root=$(sha256sum sim/keys/ark.der | cut -d ' ' -f 1)
show "$CLOAK" policy init --for "$manifest" --platform snp --simulated --simulated-root "$root" >"$here/policy.toml"

# 64 printable characters: the manifest leaves NONCE to the caller.
nonce=$(od -An -N 32 -tx1 /dev/urandom | tr -d ' \n')
show "$CLOAK" run --platform sim-snp --manifest "$manifest" --env "NONCE=$nonce" >"$here/both"
head -c 1184 "$here/both" >"$here/report"
tail -c +1185 "$here/both" >"$here/aux"
bytes=$(printf %s "$nonce" | od -An -v -tx1 | tr -d ' \n')

echo
echo "# Policy, measurement, manifest, nonce and root fit:"
evidence=("$here/report" --cert-table "$here/aux" --simulated)
show "$CLOAK" verify "${evidence[@]}" --policy "$here/policy.toml" --nonce "$bytes" --manifest "$manifest" | tail -n 4

echo
echo "# The default policy accepts nothing simulated, and nobody takes it for real:"
refused 1 "$CLOAK" verify "${evidence[@]}" | tail -n 3
refused 1 "$CLOAK" verify "$here/report" --cert-table "$here/aux" | tail -n 3

echo
echo "# Another manifest starts as another guest, which the policy refuses:"
sed 's/^name = "attest"/name = "another"/' "$manifest" >"$here/other.toml"
"$CLOAK" run --platform sim-snp --manifest "$here/other.toml" --env "NONCE=$nonce" >"$here/both"
head -c 1184 "$here/both" >"$here/report"
refused 1 "$CLOAK" verify "${evidence[@]}" --policy "$here/policy.toml" --nonce "$bytes" | tail -n 3

echo
echo "# And a hypervisor that puts this manifest in the place of the one it launched the guest for starts nothing:"
refused 125 "$CLOAK" run --platform sim-snp --hostile other-host-data --manifest "$manifest" --env "NONCE=$nonce"
