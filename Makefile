# applevm. Two commands for a newcomer: make demo, make test. `make help` lists the rest.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The Go toolchain and caches that scripts/deps may have brought.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/applevm
export PATH := $(CACHE)/go/bin:$(PATH)

ARCH    := $(shell uname -m | sed -e s/x86_64/amd64/ -e s/aarch64/arm64/)
# Which kernel the guest image gets: auto (our own if `make kernel` built it), own, debian.
KERNEL  ?= auto
BENCH   ?= .
# On macOS the shim needs cgo for Virtualization.framework, and an entitlement.
ifeq ($(shell uname -s),Darwin)
CGO  := 1
# The agent, with libcontainer and libseccomp, is compiled on Linux.
GUEST = @[ -e build/guest/$(ARCH)/image.json ] || { echo "build/guest/$(ARCH) is missing: run make guest-all on Linux, and copy build/guest from there"; exit 1; }
SIGN := codesign --sign - --force --entitlements config/applevm.entitlements bin/containerd-shim-applevm-v1
else
CGO  := 0
GUEST = go run ./guest/image/mkimage -arch $(ARCH) -kernel $(KERNEL) -out build/guest/$(ARCH)
# What Linux alone has.
RUNC_SHIM   := github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
CNI_PLUGINS  = mkdir -p bin/cni && CGO_ENABLED=0 go build -C tools/cni -trimpath -ldflags '$(LDFLAGS)' -o $(CURDIR)/bin/cni/ tool
endif
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w
CONTAINERD_VERSION := 2.4.2
NERDCTL_VERSION    := 2.3.5

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile

# DEPS=true looks for nothing, where another tool has seen to it.
DEPS ?= scripts/deps base

.PHONY: deps
deps: ## install what the system must provide (Debian: apt, only what is missing; macOS: says what to brew)
	@$(DEPS)

.PHONY: demo
demo: build guest tools ## run containers in VMs of their own with unmodified ctr and nerdctl, and show it
	@go run ./e2e/demo

.PHONY: test
test: build guest tools ## run all tests: unit, machine conformance, end to end
	go test -race -timeout 60m ./...

.PHONY: test-short
test-short: build guest tools ## the same without the slow ones (arm64 guests)
	go test -race -short -timeout 20m ./...

# How long each soak test lasts, and which.
SOAK     ?= 10m
SOAK_RUN ?= .

.PHONY: soak
soak: build guest tools ## run the tests that take long and look for growth (SOAK=1h SOAK_RUN=Execs; docs/conformance.md)
	APPLEVM_SOAK=$(SOAK) go test -tags soak -timeout 0 -count=1 -v -run '^TestGrown$$|^TestSoak.*$(SOAK_RUN)' ./e2e

.PHONY: bench
bench: build guest tools bench-tools conformance-tools ## print measured numbers and write bench/out/results.json (BENCH=regexp runs a part)
	@go run ./bench -run '$(BENCH)'

.PHONY: build
build: deps ## build the shim and the snapshotter into bin/
	CGO_ENABLED=$(CGO) go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/containerd-shim-applevm-v1 ./cmd/applevm-snapshotter
	$(SIGN)

# Where to, and for packages what in front of it; PURGE=1 takes images and containers' disks away, too.
PREFIX  ?= /usr/local
DESTDIR ?=
PURGE   ?=

.PHONY: install
install: ## put all that was built into PREFIX, with services for launchd or systemd (sudo make install; DESTDIR for packages)
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' scripts/install install

.PHONY: uninstall
uninstall: ## take that away again, but for images and containers (PURGE=1: these, too)
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' PURGE='$(PURGE)' scripts/install uninstall

.PHONY: guest
guest: deps ## build the guest image of this machine's architecture into build/guest/
	$(GUEST)

.PHONY: guest-all
guest-all: deps ## build the guest images of amd64 and arm64
	for a in amd64 arm64; do go run ./guest/image/mkimage -arch $$a -kernel $(KERNEL) -out build/guest/$$a || exit 1; done

.PHONY: kernel
kernel: ## build our own guest kernels, amd64 and arm64 (about 40 CPU minutes, once; cached outside the checkout)
	@scripts/deps kernel
	for a in amd64 arm64; do go run ./guest/image/mkkernel -arch $$a || exit 1; done

.PHONY: tools
tools: deps ## build the unmodified containerd, its clients, its runc shim and CNI plugins that demo and tests use, into bin/
	go build -C tools/containerd -trimpath -o $(CURDIR)/bin/ \
	  -ldflags '$(LDFLAGS) -X github.com/containerd/containerd/v2/version.Version=v$(CONTAINERD_VERSION)' \
	  github.com/containerd/containerd/v2/cmd/containerd github.com/containerd/containerd/v2/cmd/ctr $(RUNC_SHIM)
	CGO_ENABLED=0 go build -C tools/nerdctl -trimpath -o $(CURDIR)/bin/ \
	  -ldflags '$(LDFLAGS) -X github.com/containerd/nerdctl/v2/pkg/version.Version=v$(NERDCTL_VERSION)' \
	  github.com/containerd/nerdctl/v2/cmd/nerdctl
	$(CNI_PLUGINS)

# How long the stress lasts (0 leaves it out), and how the suite hands over root file systems.
CONFORMANCE_STRESS   ?= 10m
CONFORMANCE_PROFILES ?= images

.PHONY: conformance
conformance: build guest conformance-tools ## run containerd's conformance and stress suite for shims (CONFORMANCE_STRESS=30s; docs/conformance.md)
	@go run ./e2e/conformance -stress $(CONFORMANCE_STRESS) -profiles $(CONFORMANCE_PROFILES)

.PHONY: conformance-tools
conformance-tools: deps ## build that suite and the program that its containers run, into bin/
	CGO_ENABLED=0 go test -C tools/shimtest -c -trimpath -ldflags '$(LDFLAGS)' -o $(CURDIR)/bin/shimtest.test .
	CGO_ENABLED=0 GOOS=linux go build -C tools/shimtest -trimpath -ldflags '$(LDFLAGS)' -o $(CURDIR)/bin/ github.com/containerd/shimtest/cmd/testbin

.PHONY: bench-tools
bench-tools: deps ## build what only the bench compares with, into bin/
	CGO_ENABLED=0 go build -C tools/tar2ext4 -trimpath -ldflags '$(LDFLAGS)' -o $(CURDIR)/bin/ .

.PHONY: lint
lint: deps ## gofmt, go vet, golangci-lint, shellcheck
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "gofmt -w these files:"; echo "$$out"; exit 1; fi
	go vet ./...
	go build -C tools/lint -trimpath -o $(CURDIR)/bin/ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	bin/golangci-lint run ./...
	shellcheck scripts/* .ci/run config/macos/*.sh

# The agent alone needs cgo (libcontainer, libseccomp) and is built by mkimage for both.
.PHONY: cross
cross: deps ## build everything that has no cgo for linux/amd64, linux/arm64 and darwin/arm64
	@for t in linux/amd64 linux/arm64 darwin/arm64; do \
	  export CGO_ENABLED=0 GOOS=$${t%/*} GOARCH=$${t#*/}; echo "build for $$t"; \
	  go build $$(go list -f '{{if .GoFiles}}{{.ImportPath}}{{end}}' ./... | grep -v -e /cmd/applevm-agent -e /guest/agent) || exit 1; \
	done
	@echo "vet for darwin/arm64, tests too"; CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 go vet ./...

.PHONY: darwin-check
darwin-check: deps ## type-check everything for macOS, Virtualization.framework's driver included, on any host
	@go run ./internal/darwincheck

# Which tests of containers run on it: of all, root's leave themselves out.
VZSIM_E2E ?= .
# The go.mod of a build with the stand-in is made from ours, so that it cannot differ in anything else.
VZSIM := -modfile=build/vzsim.mod -tags vzsim

.PHONY: vz-sim
vz-sim: build guest tools conformance-tools ## run macOS's driver on a stand-in for its framework: machines, and containers by a shim with it
	cp go.mod build/vzsim.mod && cp go.sum build/vzsim.sum
	go mod edit -replace github.com/Code-Hex/vz/v3=$(CURDIR)/internal/vzsim build/vzsim.mod
	go vet $(VZSIM) ./vmm/vz ./shim/machine github.com/Code-Hex/vz/v3
	go test $(VZSIM) -count=1 ./vmm/vz
	mkdir -p build/vzsim && CGO_ENABLED=0 go build $(VZSIM) -trimpath -ldflags '$(LDFLAGS)' -o build/vzsim/ ./cmd/containerd-shim-applevm-v1
	APPLEVM_TEST_SHIM=$(CURDIR)/build/vzsim/containerd-shim-applevm-v1 APPLEVM_TEST_REPORT=$(CURDIR)/build/vzsim/report.txt \
	  go test -count=1 -timeout 40m -run '$(VZSIM_E2E)' ./e2e
	@cat build/vzsim/report.txt
	@go run ./e2e/conformance -stress 0 -profiles vz

.PHONY: generate
generate: ## regenerate the Go code of the .proto files
	@scripts/generate

.PHONY: clean
clean: ## remove what was built in this checkout (caches outside it stay)
	rm -rf bin build bench/out
