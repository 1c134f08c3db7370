# The entry to everything: `make demo` and `make test` need only Debian 12 and Rust (rustup).
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Weights, photographs and videos come from this folder if it exists, otherwise from their public sources.
FACEPIPE_MIRROR ?= $(shell test -d ../shared/mirror && cd ../shared/mirror && pwd)
ifneq ($(FACEPIPE_MIRROR),)
export FACEPIPE_MIRROR
else
unexport FACEPIPE_MIRROR
endif

TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
FACEPIPE := $(TARGET)/debug/facepipe
PLUGINS := $(CURDIR)/.runtime/gstreamer-1.0
CARGO_DENY := .runtime/tools/bin/cargo-deny
# Reports cargo's progress, also without a terminal.
CARGO := scripts/progress.py cargo cargo

# The demo's programs, compiled once and therefore not incrementally, without tests, benchmarks, their helpers and optional features.
# `make test` builds everything with all features; the demo uses that build if it exists. Figures:
# docs/decisions/0022-what-a-first-build-compiles.md.
DEMO_PARTS := -p facepipe-backend -p facepipe-cli -p gst-plugin-facepipe --no-default-features --lib --bins
ALL_PARTS := --workspace --lib --bins
BUILT_ALL := $(TARGET)/debug/.built-all

MAKE_PLUGIN_FOLDER = scripts/plugin-folder.sh "$(TARGET)/debug" "$(PLUGINS)"

.PHONY: docs help setup debian-packages test-packages bench-packages build models plugins demo test cross packages prove-packages release quick-lint lint images audit fmt bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: test-packages build models plugins ## packages, programs, models, plugin folder: quick when nothing is missing

debian-packages:
	@scripts/packages.sh build

# The packages for tests are installed before the build: some of them change the results of build scripts, so crates would be
# compiled again.
build: test-packages
	@$(CARGO) build $(ALL_PARTS) --tests --locked
	@touch "$(BUILT_ALL)"

# The script lists files that cannot be fetched and the parts that then cannot run; the rest works without them.
models: build
	@scripts/models.sh $(FACEPIPE)

plugins: build
	@$(MAKE_PLUGIN_FOLDER)

demo: ## the main job on real input; VIDEO=file, FACES=folder-per-person; KEEP=1 keeps its backend (PORT=n); REPORT=clear shows faces
	@echo "[1/4] Debian packages"
	@scripts/packages.sh
	@echo "[2/4] Programs and elements"
	@$(if $(wildcard $(BUILT_ALL)),$(CARGO) build $(ALL_PARTS),CARGO_INCREMENTAL=0 $(CARGO) build $(DEMO_PARTS)) --locked
	@echo "[3/4] Models, photographs, video"
	@scripts/models.sh $(FACEPIPE)
	@$(MAKE_PLUGIN_FOLDER)
	@echo "[4/4] The demo"
	@$(FACEPIPE) demo $(if $(VIDEO),--video "$(VIDEO)") $(if $(FACES),--faces "$(FACES)") \
		$(if $(filter-out 0 no,$(KEEP)),--keep) $(if $(PORT),--port "$(PORT)") \
		$(if $(REPORT),--thumbnails "$(REPORT)")

test-packages:
	@scripts/packages.sh test

test: test-packages quick-lint setup ## formatting, lints, licences, unit, parity, element and end-to-end tests
	@scripts/models.sh $(FACEPIPE) dlib-resnet
	@scripts/test.sh

docs: ## the guide, one searchable site that needs no network, into target/guide
	@scripts/packages.sh build
	@cargo build --workspace --lib --bins --locked
	@scripts/guide.sh "$(TARGET)/debug" "$(TARGET)/guide"

cross: debian-packages ## plugin and program for Jetson (arm64), into target/jetson/dist; runs them under qemu
	@scripts/cross.sh

packages: debian-packages ## the users' packages, for amd64 and arm64, into target/packages/dist; ARCH="amd64" for one of them
	@scripts/packages.sh packages
	@packaging/build.sh $(addprefix --arch ,$(ARCH))

prove-packages: ## installs, uses, upgrades and purges them in chroots of Debian 12 and 13, runs arm64 under qemu (root, minutes)
	@scripts/packages.sh packages
	@packaging/prove.sh $(PROVE)

release: debian-packages ## builds and tests the artefacts of a tag: make release TAG=v0.1.0
	@scripts/packages.sh packages
	@packaging/release.sh "$(TAG)"

quick-lint: test-packages
	@shellcheck --external-sources scripts/*.sh pipelines/*.sh pipelines/lib/*.sh packaging/*.sh
	@packaging/check.sh
	@cargo fmt --all --check
	@scripts/guide.py check
	@scripts/vocabulary.py
	@scripts/modules.py
	@scripts/security.py

# `make test` runs it in parallel with the tests.
lint: quick-lint $(CARGO_DENY)
	@cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	@$(CARGO_DENY) --log-level error check bans licenses sources
	@scripts/deploy-check.sh

$(CARGO_DENY): scripts/cargo-deny.sh
	@scripts/cargo-deny.sh

images: ## executes the Dockerfiles in chroots, without Docker (root, minutes); BUILT=folder takes existing programs
	@scripts/packages.sh images
	@deploy/docker/prove.sh backend $(if $(BUILT),--built "$(BUILT)")
	@deploy/docker/prove.sh edge $(if $(BUILT),--built "$(BUILT)")

audit: $(CARGO_DENY) ## known vulnerabilities of dependencies (downloads the advisory database)
	@$(CARGO_DENY) check advisories

fmt: ## formats the code
	@cargo fmt --all

bench-packages:
	@scripts/packages.sh bench

bench: bench-packages setup ## speed: parts (criterion), and comparison with the peers, into target/bench/report.json
	@cargo bench --locked -p facepipe-detector -p gst-plugin-facepipe -p facepipe-vision --bench detector --bench crop --bench networks
	@benches/compare/run.sh

clean: ## removes build output; keeps models and tools
	@cargo clean
