# Everything starts here: `make demo` and `make test` need nothing but Debian 12 and Rust (rustup).
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Weights, photographs and videos come from this folder where it exists, from their public sources otherwise.
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
# Says how far cargo is, also where there is no terminal.
CARGO := scripts/progress.py cargo cargo

# What the demo runs, compiled once and so not incrementally: no tests, no benches, no helpers of theirs, and no optional features. `make test` builds all of it with all
# features; once that is there, it serves the demo too. docs/decisions/0022-what-a-first-build-compiles.md has the figures.
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

# The packages that tests need come before the build: some change what build scripts find, and would have crates compiled again.
build: test-packages
	@$(CARGO) build $(ALL_PARTS) --tests --locked
	@touch "$(BUILT_ALL)"

# What cannot be fetched is named, and so is what then cannot run; the rest works without it.
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

docs: ## the guide, one site that can be searched and needs no network, into target/guide
	@scripts/packages.sh build
	@cargo build --workspace --lib --bins --locked
	@scripts/guide.sh "$(TARGET)/debug" "$(TARGET)/guide"

cross: debian-packages ## plugin and program for Jetson (arm64), into target/jetson/dist; looks under qemu whether they run
	@scripts/cross.sh

packages: debian-packages ## what users install, for amd64 and arm64, into target/packages/dist; ARCH="amd64" for one of them
	@scripts/packages.sh packages
	@packaging/build.sh $(addprefix --arch ,$(ARCH))

prove-packages: ## installs, uses, upgrades and purges them in chroots of Debian 12 and 13, runs arm64 under qemu (root, minutes)
	@scripts/packages.sh packages
	@packaging/prove.sh $(PROVE)

release: debian-packages ## from a tag to its artefacts, proved: make release TAG=v0.1.0
	@scripts/packages.sh packages
	@packaging/release.sh "$(TAG)"

quick-lint: test-packages
	@shellcheck --external-sources scripts/*.sh pipelines/*.sh pipelines/lib/*.sh packaging/*.sh
	@packaging/check.sh
	@cargo fmt --all --check
	@scripts/guide.py check

# `make test` has it beside the tests.
lint: quick-lint $(CARGO_DENY)
	@cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	@$(CARGO_DENY) --log-level error check bans licenses sources
	@scripts/deploy-check.sh

$(CARGO_DENY): scripts/cargo-deny.sh
	@scripts/cargo-deny.sh

images: ## the Dockerfiles carried out in chroots, without Docker (root, minutes); BUILT=folder takes programs as built
	@scripts/packages.sh images
	@deploy/docker/prove.sh backend $(if $(BUILT),--built "$(BUILT)")
	@deploy/docker/prove.sh edge $(if $(BUILT),--built "$(BUILT)")

audit: $(CARGO_DENY) ## known vulnerabilities of dependencies (downloads the advisory database)
	@$(CARGO_DENY) check advisories

fmt: ## formats the code
	@cargo fmt --all

bench-packages:
	@scripts/packages.sh bench

bench: bench-packages setup ## speed: parts (criterion), and side by side with the peers, into target/bench/report.json
	@cargo bench --locked -p facepipe-detector -p gst-plugin-facepipe -p facepipe-vision --bench detector --bench crop --bench networks
	@benches/compare/run.sh

clean: ## removes what was built; keeps models and tools
	@cargo clean
