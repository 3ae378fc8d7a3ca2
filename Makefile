# Each target is complete on a fresh machine with rustup, a C compiler, Go, Node and Python: it installs what it can, into CACHE
# or by apt when root, and says what is missing otherwise.

CACHE := $(or $(PILLION_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pillion)
export PILLION_CACHE := $(CACHE)
# One target directory for every checkout: the engine takes minutes to build.
export CARGO_TARGET_DIR ?= $(CACHE)/target
# With a backtrace for each of the engine's errors a request costs a fifth more.
unexport RUST_BACKTRACE

SIDECARS := jwt-authz flags whoami

IMAGE ?= pillion.test/pillion:1
IMAGE_FILE ?= $(CACHE)/image.tar

.PHONY: help build catalog guests run cluster image image-test test soak lint doc bench bench-short deny

help:
	@echo "make run    serve the three sidecars of deploy/catalog"
	@echo "make cluster  a whole cluster on this machine, with Pillion and a sample app on it (root)"
	@echo "make image  the image that the chart installs, of static programs: IMAGE=$(IMAGE) into $(IMAGE_FILE)"
	@echo "make image-test  what the whole cluster's test says of that image (root)"
	@echo "make test   every test"
	@echo "make soak   what takes long: many deaths, upgrades, pods and pulls, with figures (20 minutes)"
	@echo "make lint   format and clippy"
	@echo "make doc    the API's documentation"
	@echo "make bench  the benches (bench-short: a quick look)"

build:
	tests/setup build
	cargo build --locked -p pillion-host -p pillion-keeper -p pillion-cni -p pillion-control

catalog:
	tests/setup build
	deploy/catalog/build

guests:
	tests/setup guests
	tests/guests/build

run: catalog
	cargo build --locked -p pillion-host
	@deploy/catalog/try
	@exec $(CARGO_TARGET_DIR)/debug/pillion run \
		-f $(SIDECARS:%=deploy/catalog/%/component.yaml) --sidecars "jwt-authz=8081, flags=8082, whoami=8083"

cluster: build catalog
	tests/setup test
	cargo run --locked -p pillion-tests --bin try-cluster

image:
	tests/setup image
	deploy/image $(IMAGE) $(IMAGE_FILE)

image-test: build guests
	$(MAKE) --no-print-directory image IMAGE=pillion.test/pillion:1
	tests/setup test
	PILLION_IMAGE=$(IMAGE_FILE) cargo test --locked -p pillion-tests --test e2e -- --nocapture

test: build catalog guests
	tests/setup test
	tests/all

# The whole of what `make test` has in short.
soak: build guests
	tests/setup test
	PILLION_SOAK=full cargo test --locked -p pillion-tests --test soak --test killed_pulls --test control_faults --test control_api_faults -- --nocapture --test-threads 1

lint:
	tests/setup build
	for manifest in Cargo.toml .ci/advisories/Cargo.toml deploy/catalog/Cargo.toml tests/guests/Cargo.toml; do \
		cargo fmt --all --check --manifest-path $$manifest || exit 1; done
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --manifest-path .ci/advisories/Cargo.toml --all-targets -- -D warnings
	cargo clippy --locked --manifest-path deploy/catalog/Cargo.toml --all-targets -- -D warnings
	cargo clippy --locked --manifest-path deploy/catalog/Cargo.toml --target wasm32-wasip2 -- -D warnings
	cargo clippy --locked --manifest-path tests/guests/Cargo.toml --target wasm32-wasip2 -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps -p pillion-protocol -p pillion-confine -p pillion-sockets -p pillion-keeper -p pillion-host -p pillion-control

# Licences, sources and duplicates of all dependencies; needs cargo-deny.
deny:
	cargo deny check bans licenses sources

bench: guests
	tests/setup bench
	cargo build --locked --release -p pillion-host -p pillion-keeper -p pillion-cni -p pillion-control -p pillion-benches
	$(CARGO_TARGET_DIR)/release/pillion-bench all

bench-short: guests
	tests/setup bench
	cargo build --locked --release -p pillion-host -p pillion-keeper -p pillion-cni -p pillion-control -p pillion-benches
	$(CARGO_TARGET_DIR)/release/pillion-bench all --short
