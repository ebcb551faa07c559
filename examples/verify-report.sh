#!/usr/bin/env bash
# Verify a report: a real one of a Milan machine, and a real TDX quote, which the packages that the build uses carry.
source "$(dirname "$0")/lib.sh"

data=$(package sev)/tests/certs_data
show "$CLOAK" verify "$data/report_milan.hex" --cert "$data/vcek_milan.der" --at 2024-01-01

echo
echo "# After its certificate has expired, the same report is refused, for that reason and no other."
refused 1 "$CLOAK" verify "$data/report_milan.hex" --cert "$data/vcek_milan.der" --at 2031-01-01 | tail -n 8

echo
echo "# A quote needs Intel's collateral beside it."
sample=$(package dcap-qvl)/sample
show "$CLOAK" verify "$sample/tdx_quote" --collateral "$sample/tdx_quote_collateral.json" --at 2025-06-20 | tail -n 8
