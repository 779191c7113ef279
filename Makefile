# vmkeep. "make demo" shows the main job, "make test" passes the tests; "make help" lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
BIN := $(CURDIR)/bin
PROGRAMS := $(filter-out cmd/internal,$(patsubst %/,%,$(dir $(wildcard cmd/*/main.go))))
FUZZTIME ?= 20s

# How the engine's suite runs beyond "go test", which runs it in process over nbdssl (plugin/engine/suite_test.go).
# They run side by side: most of their time is waiting.
ENGINE_WAYS ?= nbd hotadd vddk

# The race detector is kept out of how vSphere's XML is parsed and printed, which costs a third of what the tests with
# vSphere take, and out of deflate, which it makes tens of times as slow: the state of a parser or a compressor belongs to
# one goroutine, and tables of characters never change. The values that are read from XML or written as such stay watched:
# reflect reads and writes them, and -l keeps its functions from being inlined where the detector is not. What zlib is
# given or gives back stays watched as far as its checksum reads it; what zstd is, repo/restic shows to the detector. The
# arithmetic of TLS handshakes is on numbers of one goroutine.
RACE := -race '-gcflags=github.com/vmware/govmomi/vim25/xml=-race=false -l' \
  $(patsubst %,-gcflags=%=-race=false,unicode compress/flate github.com/klauspost/compress/... \
  $(addprefix crypto/internal/fips140/,edwards25519/... mlkem sha3))

# Programs are static. Only the race detector needs C.
export CGO_ENABLED := 0

# What the tests and benchmarks run or compare with, as Debian names it. This is the one list of it.
PACKAGES := gcc protobuf-compiler libprotobuf-dev python3-grpcio python3-protobuf \
  e2fsprogs xfsprogs btrfs-progs ntfs-3g dosfstools exfatprogs lvm2 genisoimage attr acl \
  libhivex-bin libwin-hivex-perl mtools xorriso gdisk thin-provisioning-tools util-linux mount \
  qemu-utils nbdkit libnbd-bin fuse3 openssh-server openssh-client openssh-sftp-server rclone

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build all programs into bin/, static
	@mkdir -p $(BIN)
	$(GO) build -o $(BIN)/ $(addprefix ./,$(PROGRAMS))

.PHONY: test
test: tools peers build ## run all tests with the race detector; architecture tests are never cached
	$(GO) test -count=1 ./cmd
	CGO_ENABLED=1 $(GO) test $(RACE) -timeout 45m ./...
	$(MAKE) --no-print-directory -j3 --output-sync=target $(addprefix engine-over-,$(ENGINE_WAYS))

engine-over-%:
	VMKEEP_ENGINE_SUITE=plugin/$* $(GO) test -timeout 45m ./plugin/engine

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@unformatted=$$(gofmt -l chunker cmd plugin repo vddk vsphere); if [ -n "$$unformatted" ]; then echo "not formatted (run gofmt -w): $$unformatted" >&2; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

.PHONY: cross
cross: ## build the host, the plugin and the check for Windows and macOS
	@mkdir -p $(BIN)/windows $(BIN)/darwin
	GOOS=windows $(GO) build -o $(BIN)/windows/ ./cmd/vmkeep ./cmd/vmkeep-plugin ./cmd/vmkeep-check
	GOOS=darwin GOARCH=arm64 $(GO) build -o $(BIN)/darwin/ ./cmd/vmkeep ./cmd/vmkeep-plugin ./cmd/vmkeep-check

.PHONY: demo
demo: demo-tools peers build ## back up, change, back up again and restore a machine of an embedded vSphere
	$(GO) run ./cmd/internal/demo -bin $(BIN)

.PHONY: bench
bench: peers build ## measure the main job beside the real restic: BENCH="-size 1024 -files 700" for a short look
	$(GO) run ./cmd/internal/bench -bin $(BIN) $(BENCH)

.PHONY: bench-parts
bench-parts: tools ## measure the parts: cutting, disks over NFC and over VMware's library, the repository
	$(GO) test -run '^$$' -bench . ./chunker ./vddk/nfc ./vddk/vixdisklib/... ./repo/...

.PHONY: soak
soak: demo-tools build ## back up and restore many changing machines under faults for long: SOAK="-rounds 50"
	$(GO) run ./cmd/internal/soak -plugin $(BIN)/vmkeep-plugin $(SOAK)
	VMKEEP_SOAK_CYCLES=3000 $(GO) test -count=1 -timeout 60m -v -run TestSoak ./vddk/nfc ./vddk/vixdisklib

.PHONY: faults
faults: build ## let every call to vSphere of every operation fail, in every way, instead of a sample
	VMKEEP_FAULTS=all $(GO) test -count=1 -v -timeout 6h -run 'TestEveryCall|TestInterruptedRollback|TestRollbackOfALargeDisk|TestKilledAt' ./plugin/engine ./vsphere

.PHONY: mutants
mutants: tools ## damage each guest file system, volume manager and partition table 10,000 times; demand errors within 256 MiB
	VMKEEP_MUTANTS=10000 $(GO) test -count=1 -v -timeout 3h -run TestDamage ./vddk/mount/...

.PHONY: fuzz
fuzz: ## run every fuzzer for FUZZTIME (20s)
	@grep -rn --include='*_test.go' -oE '^func Fuzz[A-Za-z0-9_]+' . | sed -E 's|^\./(.*)/[^/]+:[0-9]+:func (.*)|\1 \2|' | sort -u | while read -r dir name; do \
	  echo "== $$dir $$name"; $(GO) test "./$$dir" -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME); done

.PHONY: proto
proto: generators ## generate the Go code of the wire from plugin/proto, and record what was added to it
	PATH=$(BIN)/generators:$$PATH protoc -I plugin/proto --go_out=. --go_opt=module=github.com/vmkeep/vmkeep \
	  --go-grpc_out=. --go-grpc_opt=module=github.com/vmkeep/vmkeep plugin/proto/vmkeep/plugin/v1/*.proto
	VMKEEP_RECORD_WIRE=1 $(GO) test -count=1 -run TestTheWireOnlyGrows ./plugin

.PHONY: proto-check
proto-check: generators ## check that the committed code of the wire is what plugin/proto says
	@out=$$(mktemp -d); trap 'rm -rf "$$out"' EXIT; \
	PATH=$(BIN)/generators:$$PATH protoc -I plugin/proto --go_out=$$out --go_opt=module=github.com/vmkeep/vmkeep \
	  --go-grpc_out=$$out --go-grpc_opt=module=github.com/vmkeep/vmkeep plugin/proto/vmkeep/plugin/v1/*.proto; \
	diff -r -I '^// [-	]*protoc ' $$out/plugin/internal/pb plugin/internal/pb || { echo 'run "make proto" and commit the result' >&2; exit 1; }

.PHONY: generators
generators:
	@mkdir -p $(BIN)/generators
	@command -v protoc >/dev/null || { echo 'protoc is missing: apt-get install protobuf-compiler, or run "make tools" as root' >&2; exit 1; }
	@$(GO) build -o $(BIN)/generators/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc

.PHONY: peers
peers: $(BIN)/restic $(BIN)/rest-server $(BIN)/versitygw $(BIN)/govc ## build the programs of others that the tests run ours against
$(BIN)/restic: PEER := github.com/restic/restic/cmd/restic
$(BIN)/rest-server: PEER := github.com/restic/rest-server/cmd/rest-server
$(BIN)/versitygw: PEER := github.com/versity/versitygw/cmd/versitygw
$(BIN)/govc: PEER := github.com/vmware/govmomi/govc
$(BIN)/restic $(BIN)/rest-server $(BIN)/versitygw $(BIN)/govc: testdata/peers/go.mod
	@mkdir -p $(BIN)
	cd testdata/peers && $(GO) build -o $@ $(PEER)

.PHONY: tools
tools: ## install the Debian packages that tests need, when root; tell what is missing otherwise
	@missing=(); for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing+=($$p); done; \
	if [ $${#missing[@]} -eq 0 ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  export DEBIAN_FRONTEND=noninteractive; apt-get -q update; apt-get -q install -y --no-install-recommends "$${missing[@]}"; \
	else \
	  echo "missing packages: $${missing[*]}" >&2; \
	  echo "  -> sudo apt-get install $${missing[*]}   (or what your system calls them)" >&2; \
	  if [ "$${CI:-}" = true ]; then exit 1; fi; \
	  echo "  tests that need them are skipped; in CI they would fail" >&2; \
	fi

# The demonstration makes file systems without root; e2fsprogs is on almost every Linux, if not on everybody's PATH.
.PHONY: demo-tools
demo-tools:
	@PATH=$$PATH:/sbin:/usr/sbin; command -v mke2fs >/dev/null && command -v debugfs >/dev/null || $(MAKE) --no-print-directory tools PACKAGES=e2fsprogs; \
	command -v mke2fs >/dev/null && command -v debugfs >/dev/null || { echo 'the demonstration needs mke2fs and debugfs (e2fsprogs)' >&2; exit 1; }

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BIN)
	$(GO) clean -testcache
