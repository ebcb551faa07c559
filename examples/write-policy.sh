#!/usr/bin/env bash
# Write a policy: from an image and a manifest alone, before anything runs.
source "$(dirname "$0")/lib.sh"

head -c 8192 /dev/zero | tr '\0' '\220' >"$here/kernel.bin"
cat >"$here/image.toml" <<'IMAGE'
version = 1
name = "example"
release = "1.0"

[[region]]
gpa = 0x100000
kind = "normal"
file = "kernel.bin"

[[region]]
gpa = 0x200000
kind = "zero"
pages = 16

[snp.boot]
rip = 0x100000
IMAGE
cat >"$here/cloak.toml" <<'MANIFEST'
version = 1
name = "server"

[program]
path = "/usr/bin/server"
MANIFEST

show "$CLOAK" measure --platform snp --cpus 2 "$here/image.toml"
show "$CLOAK" measure --platform tdx "$here/image.toml"
show "$CLOAK" policy init --for "$here/cloak.toml" --image "$here/image.toml" --cpus 1,2 >"$here/policy.toml"

echo
echo "# What it pins; everything else in it is the strict default, written out."
grep -A 8 '^\[\[reference' "$here/policy.toml"
show "$CLOAK" policy check "$here/policy.toml" >/dev/null

echo
echo "# A report of another machine is refused: nothing that this policy names was measured."
data=$(package sev)/tests/certs_data
refused 1 "$CLOAK" verify "$data/report_milan.hex" --cert "$data/vcek_milan.der" --at 2024-01-01 \
    --policy "$here/policy.toml" | tail -n 6
