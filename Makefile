# The commands of this repository. CI runs `make test` and nothing else.
#
#   make program       cloak, for this machine
#   make build         the same, and as a static musl binary
#   make test          everything that must pass: build, lints, unit tests, integration tests, the stock-kernel lane
#   make lint          formatting, clippy and documentation, warnings being errors
#   make lane          the stock-kernel lane alone (tests/lane/run)
#   make bench         Cloak beside native and its peers; writes docs/benchmarks.md; then bench-attestation
#   make test-suites   the long suites under tests/suites
#   make soak          PostgreSQL and Redis under load for SOAK_SECONDS, half an hour by default
#   make compat        those of them that nobody here wrote, compared with native; writes docs/compat.md
#   make suite-broker  one of them: the key broker against its OpenAPI document and a guest in Python
#   make bench-attestation  verification and the key broker, beside their peers; writes docs/attestation-benchmarks.md
#   make bench-platforms  launch by phase, memory, evidence, paging and exits on each platform; writes docs/platform-benchmarks.md
#   make test-simulated  the areas that run programs, on both simulated machines (scripts/run-simulated)
#   make lane-private  private memory on a kernel with KVM_SW_PROTECTED_VM (tests/lane/private)
#   make examples      the examples under examples/, run
#   make fuzz          every fuzz target for FUZZ_SECONDS, ten minutes by default (`make test`: ten seconds)
#   make packages      what the tests need from Debian
CARGO ?= cargo
MUSL_TARGET := x86_64-unknown-linux-musl
FUZZ_SECONDS ?= 600

build: program
	$(CARGO) build --release --locked --package cloak --target $(MUSL_TARGET)

program:
	$(CARGO) build --release --locked --package cloak

test:
	scripts/run-tests

lint: fmt clippy docs

fmt:
	$(CARGO) fmt --all --check

# The fuzz targets are a workspace of their own: its lock file goes stale when a crate of this one gains a dependency.
# musl types some calls otherwise (`ioctl` is one), and only `make build` compiles for it.
clippy:
	$(CARGO) metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null
	$(CARGO) clippy --release --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy --release --package cloak --target $(MUSL_TARGET) --locked -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --workspace --no-deps --document-private-items --locked

unit:
	$(CARGO) test --release --workspace --exclude cloak-tests --locked --no-fail-fast

integration:
	scripts/run-integration

lane:
	tests/lane/run

test-simulated: program
	scripts/run-simulated

lane-private:
	tests/lane/private

bench:
	scripts/install-test-packages --bench
	$(CARGO) run --release --locked --package cloak-bench -- --write docs/benchmarks.md
	$(MAKE) bench-attestation bench-platforms

test-suites: build
	scripts/install-test-packages --suites
	$(CARGO) build --release --locked --package cloak-broker
	tests/suites/run; verdict=$$?; $(MAKE) compat-table && exit $$verdict

# Suites that nobody here wrote. Results are kept in target/test-suites/compat; a unit with results is not run again, so
# that a run that was stopped goes on where it was. COMPAT_AGAIN=differences runs what differed again, another value all.
compat: program
	scripts/install-test-packages --suites
	tests/suites/run nix mio tokio redis cpython; verdict=$$?; $(MAKE) compat-table && exit $$verdict

compat-table:
	$(CARGO) run --quiet --release --locked --package cloak-tests --bin compat -- table docs/compat.md

soak: build
	scripts/install-test-packages --suites
	SOAK_SECONDS=$${SOAK_SECONDS:-1800} tests/suites/run soak

# It runs nothing under Cloak, so it needs no launcher.
suite-broker:
	$(CARGO) build --release --locked --package cloak-broker
	CLOAK_BIN=$(CURDIR)/target/release/cloak-kbs tests/suites/run broker

bench-attestation:
	$(CARGO) run --release --locked --package cloak-bench --bin cloak-bench-attestation -- docs/attestation-benchmarks.md

bench-platforms: program
	$(CARGO) run --release --locked --package cloak-bench --bin cloak-bench-platforms -- docs/platform-benchmarks.md

examples: program
	$(CARGO) build --release --locked --package cloak-attestation --features ratls,sim --example ratls
	examples/run

fuzz:
	fuzz/run $(FUZZ_SECONDS)

packages:
	scripts/install-test-packages

.PHONY: program build test lint fmt clippy docs unit integration lane test-simulated lane-private bench test-suites compat compat-table soak suite-broker bench-attestation bench-platforms examples fuzz packages
