# `make` without a target lists the targets. The tests bring their own RabbitMQ and PostgreSQL (scripts/servers). To use
# yours, set TEST_AMQP_URL or TEST_DATABASE_URL.

# The test runner: nextest if it is installed, because it runs the binaries side by side and limits the time of each test.
ifneq ($(shell command -v cargo-nextest),)
  suite = cargo nextest run --locked
  soak_options = --profile soak
else
  suite = cargo test --locked --lib --bins --tests
endif

# What the benchmarks measure.
bench bench-scale bench-sync: export BENCH_BINARY = $(CURDIR)/target/dist/headcount

# The directory in which `make test-next` keeps its newer servers.
NEXT_ROOT ?= /var/tmp/headcount-next

.DEFAULT_GOAL := help
.PHONY: help build dist demo test test-next soak lint bench bench-scale bench-sync

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the release binary: target/release/headcount
	cargo build --release --locked

dist: ## Build what is shipped, smaller and slower to build: target/dist/headcount (ten minutes)
	cargo build --profile dist --locked

demo: ## Run everything in one process, with a stream of made-up webhooks
	cargo run --release --locked -- up --demo

# Compiles before the servers start, so that the servers have the machine to themselves.
test: ## Run the tests, with a private RabbitMQ and PostgreSQL (a few minutes)
	$(suite) --no-run
	scripts/servers run -- $(suite)

test-next: ## The same with RabbitMQ 4.3 and PostgreSQL 18, in a chroot of Debian's testing release (root only)
	scripts/servers next "$(NEXT_ROOT)"
	$(suite) --no-run
	SERVERS_ROOT="$(NEXT_ROOT)" scripts/servers run -- $(suite)

soak: ## Run the tests with many more rounds and cases (SOAK=1; an hour or so)
	$(suite) --no-run
	SOAK=1 scripts/servers run -- $(suite) $(soak_options)
	scripts/fuzz-api target/debug/headcount
	scripts/tokens-like-clerk target/debug/headcount

lint: ## Check format, lints and documentation; warnings are errors
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps

# What is shipped is measured. Compiles first, as above. Set BENCH_ROUNDS=5 for steadier medians.
bench: dist ## Measure against bare RabbitMQ and PostgreSQL, and write benches/RESULTS.md, APP.md and CONSOLE.md (an hour)
	cargo bench --locked --no-run
	scripts/servers run -- cargo bench --locked --bench yardsticks
	scripts/servers run -- cargo bench --locked --bench app
	scripts/servers run -- cargo bench --locked --bench console
	cargo bench --locked --bench fold --bench queue

# PostgreSQL gets the share of memory that a table of this size needs; the small case gets the same, to be comparable.
bench-scale: dist ## Measure with a million messages and five million users, and write benches/SCALE.md (20 GB of disk)
	cargo bench --locked --no-run --bench yardsticks
	BENCH_ONLY=scale POSTGRES_OPTIONS="-c shared_buffers=4GB -c max_wal_size=16GB" \
	  scripts/servers run -- cargo bench --locked --bench yardsticks

# Clerk is a stand-in. BENCH_USERS is the largest instance.
bench-sync: dist ## Measure headcount sync with a million users, and write benches/SYNC.md (half an hour)
	cargo bench --locked --no-run --bench sync
	POSTGRES_OPTIONS="-c shared_buffers=4GB -c max_wal_size=16GB" scripts/servers run -- cargo bench --locked --bench sync
