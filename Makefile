# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# What a person runs. (The kernel's build system reads Kbuild instead.)
# All of it but `help` needs root, and runs in the toolbox: see scripts/toolbox.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
# The kernel that all is done for, by its release, instead of the toolbox's own.
KERNEL ?= $(TMEM_KERNEL)
TMEM_KERNEL := $(KERNEL)
export MAKECMDGOALS TMEM_DEBUG TMEM_KERNEL

repo := $(CURDIR)
run := scripts/in-toolbox
cargo := $(run) env CARGO_TARGET_DIR=$(repo)/build/cargo cargo

.PHONY: help
help: ## Show this text
	@echo 'Targets:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | \
		while IFS='	' read -r name text; do printf '  %-16s %s\n' "$$name" "$$text"; done

.PHONY: all
all: module daemon ## Build the kernel module and the daemon

.PHONY: toolbox
toolbox: ## Make the toolbox: kernel, QEMU and compilers in a root folder of their own
	@scripts/toolbox

.PHONY: kernel
kernel: toolbox ## Prepare the kernel tree that the module is built with
	@scripts/kernel-tree

.PHONY: vendor
vendor: toolbox
	@scripts/vendor

.PHONY: module
module: kernel vendor ## Build the kernel module: build/module/virtio_tmem.ko
	@scripts/module

.PHONY: module-install
module-install: module ## Install the module into the toolbox, where guests find it
	@scripts/module-install

.PHONY: daemon
daemon: toolbox ## Build the host daemon and tmemctl: build/cargo/release/
	@$(cargo) build --release --locked -p vhost-device-tmem

.PHONY: manuals
manuals: daemon ## Write man pages and completions: build/manuals/
	@$(run) scripts/manuals build/cargo/release/tmemctl build/manuals

.PHONY: docs
docs: ## Build the manuals as a website: build/docs/html/
	@scripts/toolbox --docs
	@$(run) scripts/docs build/docs

# The daemon, and what only tests need, in one go.
.PHONY: programs
programs: toolbox
	@$(cargo) build --release --locked --workspace

.PHONY: demo
demo: module-install programs ## Boot guests without and with tmem, and compare them
	@scripts/demo

.PHONY: unit-test
unit-test: toolbox ## Run the tests of the crates
	@scripts/test unit

.PHONY: unit-programs
unit-programs: toolbox
	@$(cargo) test --workspace --locked --no-run

.PHONY: qemu-test
qemu-test: module-install programs ## Run the tests that boot guests
	@scripts/test qemu

.PHONY: more-test
more-test: module-install programs ## Run the tests of guests that `make test` leaves out
	@scripts/test more

.PHONY: test
test: module-install programs ## Run all tests; the last line is their sum
	@scripts/test qemu unit

.PHONY: fuzz
fuzz: toolbox ## Try what a fuzzer makes up on the daemon, for FUZZ_SECONDS (120)
	@scripts/fuzz

.PHONY: deb
deb: toolbox ## Build Debian packages: build/deb/
	@scripts/toolbox --deb
	@scripts/deb

.PHONY: deb-test
deb-test: deb programs ## Install, boot, upgrade and purge them on a Debian machine
	@scripts/deb-image
	@scripts/test deb

# The kernel with its checks on, and all that is done with it.
debug := $(MAKE) TMEM_DEBUG=1

.PHONY: debug-kernel
debug-kernel: ## Build a kernel that looks for mistakes as it runs (half an hour or more)
	@$(debug) kernel

.PHONY: debug-module
debug-module: ## Build the kernel module for that kernel, and install it for guests
	@$(debug) module-install

.PHONY: debug-test
debug-test: ## Run the tests of guests under that kernel
	@$(debug) module-install programs
	@scripts/test debug

# What measurements need, apart from what tests do.
.PHONY: bench-tools
bench-tools: module-install programs
	@scripts/toolbox --bench

.PHONY: bench
bench: bench-tools ## Measure what pages cost, beside the alternatives (about an hour)
	@scripts/bench

.PHONY: bench-exits bench-insns bench-daemon bench-policy bench-sim bench-tiers bench-guest
bench-exits: bench-tools ## ... only exits a page, by real KVM in an emulated guest
bench-insns: bench-tools ## ... only guest instructions a page
bench-daemon: bench-tools ## ... only the daemon's throughput and latency
bench-policy: bench-tools ## ... only which pages go first from the window
bench-sim: bench-tools ## ... only how guests share memory, simulated
bench-tiers: bench-tools ## ... only windows that are too small, and cold pages
bench-guest: bench-tools ## ... only work in a guest that is short of memory
bench-exits bench-insns bench-daemon bench-policy bench-sim bench-tiers bench-guest:
	@scripts/bench $(@:bench-%=%)

.PHONY: lint
lint: kernel vendor ## Check formatting, lints and documentation; warnings are errors
	@scripts/lint

.PHONY: clean
clean: ## Remove what was built
	rm -rf build

.PHONY: distclean
distclean: clean ## Remove the toolbox and all that was downloaded, too
	@scripts/toolbox --remove
