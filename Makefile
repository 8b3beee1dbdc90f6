# 'make help' lists what can be made. Root is not needed, but for what is missing
# on the machine ('make deps'). Everything that is fetched or built for the tests
# is kept in .cache.

GO      := tests/go.sh
TAGS    := containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper nri_no_wasm
# 0.2.0-dev+HASH, from the file VERSION and git: docs/versioning.md.
VERSION := $(shell tests/version.sh)
LDFLAGS := -s -w -X main.version=$(VERSION)
BUILD   := CGO_ENABLED=0 $(GO) build $(if $(PIE),-buildmode=pie) -buildvcs=false -trimpath -tags "$(TAGS)" -ldflags "$(LDFLAGS)"
TEST    := CGO_ENABLED=0 $(GO) test -buildvcs=false -tags "$(TAGS)"
USER    := $(CURDIR)/tests/user.sh
ROOT    := $(filter 0,$(shell id -u))
SOURCES := $(shell find cmd pkg rootless storage netns configs -name '*.go' -o -name '*.toml' -o -name '*.json' 2>/dev/null) go.mod go.sum VERSION

# The command, the server that it starts in the node, the small program that
# keeps the node, without and with the uplink gvisor-tap-vsock, and the container monitor.
BINARIES := bin/subpod bin/subpod-server bin/subpod-node bin/subpod-node-gvisor bin/subpod-monitor

.DEFAULT_GOAL := build

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: deps
deps: ## Install what is missing on this machine (needs root or sudo for that)
	@tests/deps.sh

.PHONY: build
build: $(BINARIES) ## Build subpod, subpod-server, subpod-node, subpod-node-gvisor and subpod-monitor in bin

bin/%: $(SOURCES)
	$(BUILD) -o $@ ./cmd/$*

# The server with the race detector, beside the other programs as they are. The
# detector needs cgo.
RACE := bin/race/subpod bin/race/subpod-node bin/race/subpod-node-gvisor bin/race/subpod-monitor bin/race/subpod-server

bin/race/subpod-server: $(SOURCES)
	CGO_ENABLED=1 $(GO) build -race -buildvcs=false -trimpath -tags "$(TAGS)" -ldflags "-X main.version=$(VERSION)" -o $@ ./cmd/subpod-server

bin/race/%: bin/%
	@mkdir -p $(@D)
	cp $< $@

.PHONY: demo
demo: deps ## Run a pod from nothing, and clean up
	@$(MAKE) --no-print-directory build
	@tests/demo.sh

.PHONY: test
test: deps ## Install what is missing, build, and run everything
	@$(MAKE) --no-print-directory build lint
	@$(MAKE) --no-print-directory test-tools test-images
	@$(MAKE) --no-print-directory test-unit
	@$(MAKE) --no-print-directory test-cri
	@$(MAKE) --no-print-directory test-cli
	@$(MAKE) --no-print-directory test-attack
	@$(MAKE) --no-print-directory test-net-churn CHURN=100
	@$(MAKE) --no-print-directory test-critest
	@$(MAKE) --no-print-directory test-crash
	@$(MAKE) --no-print-directory race

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, deadcode, and govulncheck where its database is
	@unformatted=$$($(shell $(GO) env GOROOT)/bin/gofmt -l cmd pkg rootless storage netns configs tests 2>/dev/null); \
	if [ -n "$$unformatted" ]; then echo "gofmt: $$unformatted" >&2; exit 1; fi
	CGO_ENABLED=0 $(GO) vet -tags "$(TAGS)" ./...
	@$(MAKE) --no-print-directory staticcheck deadcode govulncheck

# The analyzers are pinned in tests/lint. staticcheck runs its default checks;
# .golangci.yml has the same, for editors. A finding is mended, or, with a reason, has
# a line "//lint:ignore".
COMMAS := $(shell echo $(TAGS) | tr ' ' ,)

.PHONY: staticcheck
staticcheck: .cache/bin/staticcheck ## staticcheck on all packages
	CGO_ENABLED=0 .cache/bin/staticcheck -tags "$(COMMAS)" ./...

.PHONY: deadcode
deadcode: .cache/bin/deadcode ## Functions that no program of ours can reach
	@found=$$(CGO_ENABLED=0 .cache/bin/deadcode -tags "$(COMMAS)" ./cmd/...) || exit; \
	if [ -n "$$found" ]; then echo "$$found" >&2; exit 1; fi

.PHONY: govulncheck
govulncheck: .cache/bin/govulncheck ## Known vulnerabilities, where the database can be had (GOVULNDB=file:///…)
	@TAGS="$(COMMAS)" tests/govulncheck.sh .cache/bin/govulncheck

.cache/bin/staticcheck .cache/bin/deadcode .cache/bin/govulncheck: tests/lint/go.mod tests/lint/go.sum
	@mkdir -p $(@D)
	cd tests/lint && CGO_ENABLED=0 ../go.sh build -trimpath -ldflags "-s -w" -o ../../$@ $$(../go.sh list tool | grep "/$(@F)$$")

# Packages below tests/ drive the built daemon, but for these.
ALL    = $(shell $(GO) list -tags "$(TAGS)" ./... | grep -v /tests/) ./tests/arch ./tests/leak ./tests/lists ./tests/node
DAEMON = $(shell $(GO) list -tags "$(TAGS)" ./tests/... | grep -vE '/tests/(arch|attack|leak|node|cli|play|critest|foreign|bench|crash|kubernetes|vm|vm/arm64)$$')

# Tests of these packages need namespaces, subordinate IDs or the programs that run
# containers. tests/arch looks that no other package does.
NAMESPACES := netns netns/auto netns/bridge netns/cni netns/egress netns/kubeproxy netns/named netns/tunnel pkg/oci pkg/ocispec pkg/stats pkg/subpath rootless storage tests/leak
UNIT = $(filter-out $(NAMESPACES:%=github.com/subpod/subpod/%) $(NAMESPACES:%=./%),$(ALL))
# One test of pkg/state needs them, and one of pkg/cgroup root, who delegates a cgroup.
NOT_UNIT := ^(TestAFullFileSystem|TestDelegatedTree)$$
# Root runs them as the test user.
UNIT_FLAGS = -buildvcs=false -tags "$(TAGS)" $(if $(ROOT),-exec $(USER)) -timeout 20m -skip '$(NOT_UNIT)'

.PHONY: unit
unit: ## Tests that run anywhere: no root, no daemon, no namespaces, no images
	@CGO_ENABLED=0 $(GO) test $(UNIT_FLAGS) $(UNIT)

# The tests of the packages run as an ordinary user, each in what it needs.
.PHONY: test-unit
test-unit: test-images ## The tests of all packages, and the project's rules
	$(TEST) -exec $(USER) -timeout 20m $(ALL)

# What the race detector sees of the daemon: concurrent clients, streams and events,
# kills and a restart with containers.
RACE_FIELDS := ^(TestHammer|TestStatsAndMetrics|TestEvents|TestExecCalls)$$
RACE_CRASH  := ^(TestReload|TestScale|TestKillAtRandom)$$

.PHONY: race
race: $(RACE) test-tools test-images ## unit, and a sample of the daemon's tests, with the race detector
	@CGO_ENABLED=1 $(GO) test -race $(UNIT_FLAGS) $(UNIT)
	SUBPOD_BIN=bin/race $(TEST) -count=1 -timeout 20m ./tests/fields -run '$(RACE_FIELDS)'
	SUBPOD_BIN=bin/race $(TEST) -count=1 -timeout 20m -short ./tests/crash -random 150 -run '$(RACE_CRASH)'

.PHONY: test-cri
test-cri: build test-tools test-images ## Walk the daemon through crictl, and look at every field of the CRI
	$(TEST) -count=1 -p 1 -timeout 20m $(DAEMON)

.PHONY: test-cli
test-cli: build test-images ## The command line, by scripts (tests/cli/testdata), and a sample of the manifests
	$(TEST) -count=1 -timeout 20m ./tests/cli
	$(TEST) -count=1 -timeout 20m -short ./tests/play

.PHONY: test-cli-flags
test-cli-flags: build test-images ## Leave out each flag of docs/cli.md in the scripts that use it: one has to fail (WITHOUT="^run --tmpfs")
	SUBPOD_CLI_WITHOUT="$(or $(WITHOUT),.)" $(TEST) -count=1 -timeout 120m -v -run TestWithout ./tests/cli

.PHONY: test-play
test-play: build test-images ## Run every manifest of tests/play, and look that nothing is left (PLAY="-run TestManifests/job -v")
	$(TEST) -count=1 -timeout 20m ./tests/play $(PLAY)

.PHONY: test-critest
test-critest: build test-tools test-images ## The Kubernetes project's CRI validation suite
	$(TEST) -count=1 -timeout 30m -v ./tests/critest

.PHONY: test-critest-all
test-critest-all: build test-tools test-images ## critest in the other combinations: native driver, runc
	$(TEST) -count=1 -timeout 30m -v ./tests/critest -driver native
	$(TEST) -count=1 -timeout 30m -v ./tests/critest -handler runc
	$(TEST) -count=1 -timeout 30m -v ./tests/critest -driver native -handler runc

.PHONY: test-foreign
test-foreign: build test-tools test-images .cache/bin/containerd-cri.test ## containerd's CRI integration tests (FOREIGN="-focus TestContainerEvents -v")
	$(TEST) -count=1 -timeout 30m ./tests/foreign $(FOREIGN)

# Large: a few minutes at first.
.cache/bin/containerd-cri.test: tests/foreign/suite/go.mod
	cd tests/foreign/suite && CGO_ENABLED=0 ../../go.sh test -c -vet=off -trimpath -ldflags "-s -w" -o ../../../$@ github.com/containerd/containerd/v2/integration

# Large: half an hour and more at first, for the parts of Kubernetes. The account has IDs
# for 32 pods with user namespaces.
.PHONY: test-kubernetes
test-kubernetes: build test-images ## A cluster by kubeadm in a node, as an ordinary user (KUBERNETES="-row ^volume")
	@tests/kubernetes/build.sh >/dev/null && tests/kubernetes/images.sh >/dev/null
	@tests/kubernetes/packages.sh --addons && tests/kubernetes/images.sh --addons >/dev/null
	SUBPOD_TEST_USER=subpod-kubernetes SUBPOD_TEST_IDS=2162688 \
		$(TEST) -count=1 -timeout 60m -v ./tests/kubernetes -programs $$(tests/kubernetes/build.sh --where) $(KUBERNETES)

# Of one node, without an upgrade.
.PHONY: test-kubernetes-short
test-kubernetes-short: KUBERNETES := -test.short -test.run '^TestCluster$$' $(KUBERNETES)
test-kubernetes-short: test-kubernetes ## test-kubernetes without the second node and the upgrade

# containerd is measured, too, where tests/bench/peers/build.sh can build it.
.PHONY: bench-kubernetes
bench-kubernetes: build test-images ## How long 30 pods take to run in a cluster, from creation on, beside containerd
	@tests/kubernetes/build.sh >/dev/null && tests/kubernetes/images.sh >/dev/null
	@tests/bench/peers/build.sh || echo "containerd is left out" >&2
	SUBPOD_TEST_USER=subpod-kubernetes SUBPOD_TEST_IDS=2162688 \
		$(TEST) -count=1 -timeout 30m -v ./tests/kubernetes -run '^TestPodStart$$' -programs $$(tests/kubernetes/build.sh --where) -pod-start 30

.PHONY: test-node-e2e
test-node-e2e: build test-images ## Kubernetes' own node e2e suite, as an ordinary user (NODE_E2E="-node-e2e conformance")
	@tests/kubernetes/build.sh --node-e2e >/dev/null && tests/kubernetes/packages.sh
	@tests/kubernetes/images.sh --node-e2e
	SUBPOD_TEST_USER=subpod-node-e2e SUBPOD_TEST_IDS=2162688 \
		$(TEST) -count=1 -timeout 120m -v ./tests/kubernetes -run '^TestNodeE2E$$' -programs $$(tests/kubernetes/build.sh --where) $(or $(NODE_E2E),-node-e2e all)

.PHONY: test-kubernetes-hosts
test-kubernetes-hosts: build test-images ## Three nodes on hosts of their own, which root makes (KUBERNETES="-row ^cross")
	@tests/kubernetes/build.sh >/dev/null && tests/kubernetes/images.sh >/dev/null
	@tests/kubernetes/packages.sh --addons && tests/kubernetes/images.sh --addons >/dev/null
	@CGO_ENABLED=0 $(GO) test -c -o .cache/kubernetes/hosts.test ./tests/kubernetes
	SUBPOD_TEST_IDS=2162688 tests/kubernetes/hosts.sh 3 .cache/kubernetes/hosts.test \
		-test.run '^TestHosts$$' -test.timeout 60m -test.v -programs $$(tests/kubernetes/build.sh --where) $(KUBERNETES)

.PHONY: test-crash
test-crash: build test-tools test-images ## Crashes, pressure and time, a sample of each (CRASH="-run TestReload -v")
	$(TEST) -count=1 -timeout 25m -short ./tests/crash $(CRASH)

.PHONY: crash
crash: build test-tools test-images ## Every crash at every step, 500 more at random, pressure, scale (CRASH="-run …")
	$(TEST) -count=1 -timeout 120m -v ./tests/crash -skip '^TestSoak$$' $(CRASH)

.PHONY: test-attack
test-attack: build test-tools test-images ## Attacks on the daemon, those that take seconds (ATTACK="-run TestX -v")
	$(TEST) -count=1 -timeout 20m -short ./tests/attack $(ATTACK)

.PHONY: attack
attack: build test-tools test-images ## All attacks (ATTACK="-run TestX -v")
	$(TEST) -count=1 -timeout 60m -v ./tests/attack $(ATTACK)

.PHONY: attack-defences
attack-defences: build test-tools test-images ## See each attack succeed without its defence (OFF="pause-.*")
	$(TEST) -count=1 -timeout 180m -v ./tests/attack/defences -run '^TestSwitchedOff$$' -off '^($(or $(OFF),.*))$$'

.PHONY: test-pulls
test-pulls: ## Pull 200 MB through registries that break every connection, one and ten clients
	$(TEST) -exec $(USER) -count=1 -timeout 20m -v ./storage -run '^TestBrokenConnections$$' -whole

.PHONY: soak
soak: build test-tools test-images ## 5,000 pod cycles, 8 at a time, and what is left of them
	$(TEST) -count=1 -timeout 120m -v ./tests/crash -run '^TestSoak$$' $(CRASH)

.PHONY: test-vm
test-vm: ## In a virtual machine, where systemd delegates cgroups: limits, drivers, critest (VM="-run TestLimits -v")
	@tests/deps.sh vm >/dev/null
	@$(MAKE) --no-print-directory build test-tools test-images
	@tests/vm/image.sh
	@tests/vm/packages.sh
ifdef VM
	$(TEST) -count=1 -timeout 120m ./tests/vm $(VM)
else
	@$(MAKE) --no-print-directory -j 2 test-vm-critest test-vm-others
endif

# Two machines at a time: a test waits for one of its machine's processors mostly.
.PHONY: test-vm-critest test-vm-others
test-vm-critest test-vm-others:
	$(TEST) -count=1 -timeout 120m -v ./tests/vm $(if $(findstring critest,$@),-run,-skip) '^TestCritest$$'

# The machine's processor is emulated, too. The tests of pkg/ocispec run in it by themselves.
.PHONY: test-arm64
test-arm64: $(filter-out %-gvisor,$(BINARIES:bin/%=bin/arm64/%)) test-images ## The programs for arm64 in a virtual machine of that kind: run, pod, exec, logs, pull, seccomp
	@tests/deps.sh arm64 >/dev/null
	@tests/vm/image.sh arm64
	GOARCH=arm64 CGO_ENABLED=0 $(GO) test -c -buildvcs=false -tags "$(TAGS)" -o .cache/vm/arm64/ocispec.test ./pkg/ocispec
	GOARCH=arm64 CGO_ENABLED=0 $(GO) build -buildvcs=false -tags "$(TAGS)" -o .cache/vm/arm64/images ./tests/images
	$(TEST) -count=1 -timeout 60m -v ./tests/vm/arm64 $(VM)

# On this machine's kernel, with the newest programs. Its Debian has no runc.
.PHONY: test-hosts
test-hosts: build test-tools test-images ## On a Debian sid of its own, which root makes: crictl's walk, uplinks, critest
	@tests/hosts/sid.sh --versions
	@$(TEST) -c -o .cache/bin/hosts-cri.test ./tests/cri
	@$(TEST) -c -o .cache/bin/hosts-critest.test ./tests/critest
	tests/hosts/sid.sh cri .cache/bin/hosts-cri.test -test.timeout 20m -test.run '^(TestWalk|TestUplinks|TestSharedPID|TestEvents)$$' -test.skip '^TestWalk$$/^info$$'
	tests/hosts/sid.sh critest .cache/bin/hosts-critest.test -test.timeout 30m -test.run '^TestCritest$$'

.PHONY: test-tools
test-tools: .cache/bin/crictl .cache/bin/critest .cache/bin/client.test ## Build crictl and critest, pinned in tests/tools, and tests/client

.cache/bin/crictl: tests/tools/go.mod
	cd tests/tools && CGO_ENABLED=0 ../go.sh build -trimpath -ldflags "-s -w" -o ../../$@ sigs.k8s.io/cri-tools/cmd/crictl

.cache/bin/critest: tests/tools/go.mod
	cd tests/tools && CGO_ENABLED=0 ../go.sh test -c -trimpath -ldflags "-s -w" -o ../../$@ sigs.k8s.io/cri-tools/cmd/critest

.cache/bin/client.test: tests/client/go.mod tests/client/client_test.go
	cd tests/client && CGO_ENABLED=0 ../go.sh test -c -trimpath -ldflags "-s -w" -o ../../$@ .

.PHONY: test-images
test-images: ## Build the images that the tests run, from Debian's packages
	@tests/images/fetch.sh
	@GO=$$($(GO) --which) CGO_ENABLED=0 $(GO) run ./tests/images fill

.PHONY: test-fresh
test-fresh: ## A new user's path, in a Debian with nothing on it (needs root; FRESH=--test: make test there)
	@tests/fresh.sh $(FRESH)

.PHONY: fuzz
fuzz: ## Fuzz what reads requests, images' names, logs and streams (FUZZTIME=10m in total)
	@GO=$(GO) TAGS="$(TAGS)" tests/fuzz.sh $(or $(FUZZTIME),10m)

.PHONY: bench
bench: build test-tools test-images ## Measure pods, one and many, and compare with bare crun (BENCH="-runs 100 -driver native")
	@$(TEST) -count=1 -timeout 20m ./tests/bench -v -run '^TestBench(Scale)?$$' $(BENCH)

.PHONY: bench-against
bench-against: build test-images ## Measure the programs of BASE=COMMIT and of this tree, in turns
	@TAGS="$(TAGS)" tests/bench/against.sh $(BASE) $(BENCH)

.PHONY: bench-peers
bench-peers: build test-tools test-images ## Measure subpod beside containerd and podman, in one run (WRITE=1: into docs; BENCH="-peer-scale 0")
	@tests/bench/peers/build.sh
	@TAGS="$(TAGS)" WRITE="$(WRITE)" tests/bench/peers/run.sh $(BENCH)

.PHONY: bench-cli
bench-cli: build test-images ## Measure "subpod run" beside bare crun, and podman where it is installed
	@$(TEST) -count=1 -timeout 20m ./tests/bench -v -run '^TestBenchCLI$$' $(BENCH)

.PHONY: bench-observing
bench-observing: build test-tools test-images ## Measure what metrics and statistics cost: two nodes in turns, 100 containers
	@$(TEST) -count=1 -timeout 20m ./tests/bench -v -run '^TestBenchObserving$$' $(BENCH)

.PHONY: bench-net
bench-net: build ## Measure the pod network, as ratios to the host's loopback
	@$(TEST) -count=1 -timeout 20m ./tests/bench -v -run '^TestBenchNet$$' $(BENCH)

CHURN := 1000
.PHONY: test-net-churn
test-net-churn: build ## Start and stop pods (CHURN=1000): nothing left, none slower
	@$(TEST) -count=1 -timeout 20m ./tests/bench -v -run '^TestNetChurn$$' -churn $(CHURN)

.PHONY: outdated
outdated: ## List what is behind its newest release, of all modules of the tree
	@tests/outdated.sh

.PHONY: changelog
changelog: ## Show what has changed since the last release (RELEASE=0.2.0: put it into CHANGELOG.md)
	@tests/changelog.sh $(if $(RELEASE),release $(RELEASE))

include tests/pack/pack.mk

.PHONY: clean
clean: ## Remove what was built, fetched and made for the tests
	rm -rf bin dist .cache
	tests/user.sh --remove
