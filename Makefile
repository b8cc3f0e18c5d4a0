# handfast: `make demo` shows it at work, `make test` tries everything.

GO      ?= go
LISTEN  ?= 127.0.0.1:8080
WORKERS ?= 4
FUZZTIME ?= 30s
# What a run of the fuzzer may take beyond that: one that hangs is to fail.
FUZZLIMIT ?= 15m
# How long an input that is new is made smaller: by default a minute each, in which nothing else is tried.
FUZZMINIMIZE ?= 10x
# What make chaos does, and for how long; 0: a new seed.
SEED ?= 0
CHAOS ?= 30s
CELLS ?= 1000000
RUNS ?= 20
# Of how many packages tests run at a time, of ours and of the examples: they wait much of theirs.
PACKAGES ?= $(shell nproc)
EXAMPLES ?= $(shell expr \( $$(nproc) + 1 \) / 2)
# Where make install puts what it installs; a package's build adds DESTDIR.
PREFIX  ?= /usr/local
RESULTS ?= cmd/bench/results/README.md
# make check has vetted; nobody debugs these programs.
TESTFLAGS = -vet=off -ldflags=-w -shuffle=on -timeout 30m
TESTED_WITH = python3 node npm curl nginx haproxy apache2 gunicorn redis-server php javac chromium puma lighttpd caddy h2o varnishd sshd prosody mandoc rpm crun
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

.DEFAULT_GOAL := help
.PHONY: help build install dist demo check test test-raced test-examples flakes slices chaos faults soak vm bench microbench screenshots fuzz lint

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/handfast and the example worker bin/http
	$(GO) build -o bin/ ./cmd/handfast ./examples/http

install: ## handfast into PREFIX (/usr/local): bin, its manual pages, and what shells complete
	$(GO) build -o bin/ ./cmd/handfast
	install -D -m 755 bin/handfast $(DESTDIR)$(PREFIX)/bin/handfast
	bin/handfast man | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/man/man8/handfast.8
	bin/handfast man handfast.yaml | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/man/man5/handfast.yaml.5
	bin/handfast completion bash | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/bash-completion/completions/handfast
	bin/handfast completion zsh | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_handfast
	bin/handfast completion fish | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/handfast.fish

dist: ## what people install, into dist/: .tar.gz, .deb, .rpm and image for amd64 and arm64, checksums
	$(GO) -C cmd/dist run . -root $(CURDIR) -o $(CURDIR)/dist
	@ls dist

demo: build ## run the balancer with example workers on LISTEN (127.0.0.1:8080)
	@echo 'Try, in another terminal:'; \
	echo '  curl $(LISTEN)                          # whose slot are you in?'; \
	echo '  curl --interface 127.0.0.6 $(LISTEN)    # and another client?'; \
	echo "  kill -USR2 $$$$; curl $(LISTEN)         # reload: same slot, new worker"; \
	echo; \
	exec bin/handfast run --listen $(LISTEN) --workers $(WORKERS) -- bin/http

check: lint ## lint, and the tests that start neither handfast nor real servers: within a minute
	$(GO) test -vet=off -short ./...
	$(GO) test -vet=off -race -short ./master/balancer ./master/clientip ./master/reexec

test: ## the tests, those of our packages with the race detector (says what it skips for want of a program); make slices has the longer ones
	@PATH=$$PATH:/usr/sbin; for program in $(TESTED_WITH); do \
		command -v $$program >/dev/null || echo "make test: skips what needs $$program; apt-get install $$program" | sed 's/install node$$/install nodejs/; s/install varnishd$$/install varnish/'; \
	done
	@$(MAKE) --no-print-directory -j 2 test-raced test-examples

test-raced:
	GORACE=atexit_sleep_ms=0 env -u MAKEFLAGS $(GO) test -p $(PACKAGES) $(TESTFLAGS) -race $$($(GO) list ./... | grep -v -e /examples -e /cmd/bench)

test-examples: # only clients run in their processes; and what the race detector makes too long
	env -u MAKEFLAGS $(GO) test -p $(EXAMPLES) $(TESTFLAGS) $$($(GO) list ./examples/... | grep -v /cluster)
	$(GO) test $(TESTFLAGS) -run '^TestPlan' ./cmd/handfast # all of them: with the race detector they walk a part

flakes: ## make test RUNS (20) times, beside a busy loop on each core, until something fails
	@for core in $$(seq $$(nproc)); do (exec yes >/dev/null) & busy="$$busy $$!"; done; trap 'kill $$busy' EXIT; \
	for run in $$(seq $(RUNS)); do \
		echo "run $$run of $(RUNS)"; $(MAKE) --no-print-directory test || exit 1; \
	done

slices: ## a short slice of each trial that has a target of its own: the packages, the bench, all servers, the simulation, system calls that fail, several machines, chaos
	$(GO) -C cmd/dist test -timeout 10m ./...
	$(GO) test -vet=off -race -shuffle=on -timeout 30m ./cmd/bench
	HANDFAST_TEST_SERVERS=each $(GO) test -vet=off -run '^TestOthers$$' ./examples/servers
	HANDFAST_TEST_SEEDS=10000 $(GO) test -vet=off -run '^TestSimulation$$' ./master/simulation
	HANDFAST_TEST_CELLS=10 $(GO) test -vet=off -race -run '^TestNthCall$$' ./cmd/handfast
	HANDFAST_TEST_CLIENTS=36 $(GO) test -vet=off ./examples/cluster
	$(GO) run ./cmd/chaos -for 30s

chaos: ## handfast under real clients, disturbed for CHAOS (30s) as SEED says, and what clients saw is checked (VARIANTS: routes and links, such as kernel/any); ten minutes before a release
	$(GO) run ./cmd/chaos -seed $(SEED) -for $(CHAOS) $(VARIANTS)

soak: ## the trials with real processes, again and again (SOAK=20 times), a million injected connections, all servers in all ways, 100,000 requests through each pool, 136 reloads with 1,000 WebSockets, a million seeds of the simulation
	HANDFAST_SOAK_CONNECTIONS=$${HANDFAST_SOAK_CONNECTIONS:-1000000} $(GO) test -timeout 2h -v -run '^TestInjectSoak$$' ./cmd/handfast
	HANDFAST_TEST_SERVERS=all $(GO) test -timeout 2h -v ./examples/servers
	HANDFAST_TEST_CLIENTS=$${HANDFAST_TEST_CLIENTS:-200} HANDFAST_TEST_REQUESTS=$${HANDFAST_TEST_REQUESTS:-100000} $(GO) test -race -timeout 2h ./examples/...
	HANDFAST_TEST_REQUESTS=$${HANDFAST_TEST_REQUESTS:-100000} $(GO) test -timeout 2h -v -run '^TestHandBack$$' ./cmd/handfast
	HANDFAST_TEST_RELOADS=136 HANDFAST_TEST_SOCKETS=1000 HANDFAST_TEST_WITHIN=10m $(GO) test -timeout 2h -v -run '^TestManyReloads$$' ./cmd/handfast
	HANDFAST_TEST_SEEDS=$${HANDFAST_TEST_SEEDS:-1000000} $(GO) test -timeout 4h -v -run '^TestSimulation$$' ./master/simulation
	HANDFAST_TEST_SIGNALS=$${HANDFAST_TEST_SIGNALS:-2000} $(GO) test -timeout 2h -v -run '^TestSignalsOverExec$$' ./master/reexec
	HANDFAST_TEST_SERVERS=all HANDFAST_TEST_RELOADS=$${HANDFAST_TEST_RELOADS:-50} $(GO) test -race -shuffle=on -timeout 2h -count=$${SOAK:-20} ./cmd/handfast ./master/... ./worker/... ./fdpass

faults: ## each system call fails with each error in each situation (CELLS: so many of them, chosen by SEED): some hours
	HANDFAST_TEST_CELLS=$(CELLS) HANDFAST_TEST_SEED=$(SEED) $(GO) test -timeout 6h -v -run '^TestNthCall' ./cmd/handfast

vm: ## other kernels, arm64, and systemd, under QEMU (VM: which, such as bookworm/arm64 or bookworm/systemd); needs qemu-system-x86, qemu-system-arm, cpio, xz-utils, mmdebstrap
	$(GO) run ./cmd/vm $(VM)

bench: ## compare with SO_REUSEPORT, HAProxy, nginx and others, into RESULTS (BENCH: its flags)
	$(GO) run ./cmd/bench -o $(RESULTS) $(BENCH)

microbench: ## what each part of the straight line costs (MICROBENCH: flags of go test)
	$(GO) test -run '^$$' -bench . $(MICROBENCH) ./hash ./master/clientip ./master/balancer ./fdpass ./worker

screenshots: ## the pictures of the status page in OPERATING.md; needs chromium
	HANDFAST_TEST_UPDATE_SCREENSHOTS=1 $(GO) test -vet=off -count=1 -run '^TestScreenshots$$' ./cmd/handfast

fuzz: ## each parser for FUZZTIME (30s)
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n 1 dirname | sort -u | { \
		dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
		while read -r package; do \
			$(GO) test -c -fuzz . -o "$$dir/fuzz" "$$package" || exit 1; \
			for target in $$("$$dir/fuzz" -test.list '^Fuzz'); do \
				echo "$$package $$target"; \
				(cd "$$package" && timeout -k 10 $(FUZZLIMIT) "$$dir/fuzz" -test.run '^$$' -test.fuzz "^$$target$$" -test.fuzztime $(FUZZTIME) -test.fuzzminimizetime $(FUZZMINIMIZE) \
					-test.fuzzcachedir "$$($(GO) env GOCACHE)/fuzz/handfast/$$package") || exit 1; \
			done; \
		done; }

lint: ## formatting, vet, staticcheck, and a tidy go.mod; cmd/bench/tcpproxy and cmd/dist are modules of their own
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	$(GO) vet ./... ./cmd/handfast/testdata/worker
	$(GO) -C cmd/bench/tcpproxy vet ./...
	$(GO) -C cmd/dist vet ./...
	$(GO) run $(STATICCHECK) ./... ./cmd/handfast/testdata/worker
	$(GO) mod tidy -diff
	$(GO) -C cmd/bench/tcpproxy mod tidy -diff
	$(GO) -C cmd/dist mod tidy -diff
