# All that a developer needs. `make demo` and `make test` work on a fresh Debian 12 or newer: they
# install what is missing first (scripts/setup), which takes a moment when nothing is.

.DEFAULT_GOAL := help
.SUFFIXES:
BIN := .venv/bin
# Virtual machines and network namespaces need root. A user's tree gets no files of root's.
ROOT := $(shell test "$$(id -u)" = 0 || echo sudo env PYTHONDONTWRITEBYTECODE=1)
PYTEST = $(BIN)/python -m pytest
ROOT_PYTEST = $(ROOT) $(PYTEST) -p no:cacheprovider

.PHONY: help setup setup-dev install demo test lint format unit model golden functional faults crashes ui postcopy checks drain versions bench bench-carriers docs \
	clean distclean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r t d; \
	do printf '  make %-12s %s\n' "$$t" "$$d"; done

setup: ## install what is missing: Debian packages by apt-get, Python packages into .venv
	@scripts/setup run

install: ## make this machine a Sterna host: /opt/sterna, /etc/sterna, systemd unit (root)
	$(ROOT) scripts/install

setup-dev:
	@scripts/setup dev

demo: setup ## two hosts on this machine, and a running VM that moves there and back
	$(ROOT) $(BIN)/sterna lab demo

test: setup-dev lint ## everything that must pass before a change goes in (minutes)
	$(ROOT_PYTEST) -m "not long" --durations=15 tests/unit tests/golden tests/ui tests/functional tests/faults

lint: setup-dev ## style, types and layers
	$(BIN)/ruff check --no-cache
	$(BIN)/ruff format --no-cache --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup-dev ## let ruff format the code and mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

unit: setup-dev ## tests that need no QEMU and no root (seconds)
	$(PYTEST) -m "not functional and not faults and not ui and not long" tests/unit tests/golden

model: setup-dev ## who owns a VM: every order of crashes and messages, within larger bounds (minutes)
	$(BIN)/python tests/model/explore.py

golden: setup-dev ## write the golden files anew; look at the difference before you commit it
	STERNA_GOLDEN=write $(PYTEST) -m "not functional" tests/golden
	git diff --stat -- tests/golden docs/openapi.json

functional: setup-dev ## real QEMU in the lab
	$(ROOT_PYTEST) -m "functional and not long" tests

faults: setup-dev ## the fault table: every phase of a move with every fault (CELL=memory/link-cut, JSON=FILE)
	$(ROOT) $(BIN)/python tests/faults/table.py $(if $(CELL),--cell '$(CELL)') $(if $(JSON),--json '$(JSON)')

crashes: setup-dev ## daemons that end at every line that matters
	$(ROOT_PYTEST) -m faults tests/faults

ui: setup-dev ## the command line on a real terminal
	$(ROOT_PYTEST) -m ui tests/ui

postcopy: setup-dev ## every fault in post-copy, a minute each
	$(ROOT_PYTEST) -m functional tests/functional/test_postcopy.py

streams: setup-dev ## migration streams of QEMU 7.2 and 10 through the codec (minutes; downloads QEMU 10)
	scripts/second-qemu .cache/second-qemu
	$(ROOT) env STERNA_SECOND_QEMU=$(CURDIR)/.cache/second-qemu $(PYTEST) -p no:cacheprovider \
		-m functional tests/functional/test_carrier_streams.py

drain: setup-dev ## a host with eight VMs is emptied to two others and filled again (a minute)
	$(ROOT_PYTEST) -m functional tests/functional/test_drain.py

checks: setup-dev ## every check, and moves that they forbid, tried all the same (10 minutes)
	$(ROOT_PYTEST) -m functional tests/functional/test_check*.py tests/functional/test_vtpm.py

versions: setup-dev ## moves between QEMU 7.2 and 10 (two minutes; downloads QEMU 10)
	$(ROOT_PYTEST) -m functional tests/functional/test_check_machine.py

fuzz: setup-dev ## search for input that the codec, or a message between hosts, does not survive (SECONDS=300 for each target)
	test -x .cache/fuzz/bin/python || python3 -m venv .cache/fuzz
	.cache/fuzz/bin/pip install -q "atheris>=3" numpy pydantic zstandard
	for target in stream block; do \
		PYTHONPATH=src .cache/fuzz/bin/python tests/fuzz/fuzz_codec.py $$target -max_len=20000 \
			-rss_limit_mb=2000 -max_total_time=$(or $(SECONDS),300) || exit 1; \
	done
	for target in ask answer; do \
		PYTHONPATH=src .cache/fuzz/bin/python tests/fuzz/fuzz_messages.py $$target \
			-rss_limit_mb=2000 -max_total_time=$(or $(SECONDS),300) || exit 1; \
	done

fuzz-api: setup-dev ## requests that nearly fit the API's description, on a real daemon (SECONDS=120, ROLE=admin)
	test -x .cache/fuzz-api/bin/schemathesis || python3 -m venv .cache/fuzz-api
	.cache/fuzz-api/bin/pip install -q schemathesis==4.32.5
	$(ROOT) $(BIN)/python tests/fuzz/fuzz_api.py .cache/fuzz-api/bin/schemathesis $(or $(ROLE),admin) \
		--phases coverage,fuzzing,stateful --max-time $(or $(SECONDS),120)

bench: setup-dev ## start of the command line; moves beside QEMU's own, virsh and qemu-img
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/requests.py --check
	$(BIN)/python bench/relay.py --large-gib 8
	$(ROOT) $(BIN)/python bench/check.py --check
	$(ROOT) $(BIN)/python bench/pause.py --check
	$(ROOT) $(BIN)/python bench/disks.py --check
	$(ROOT) $(BIN)/python bench/carriers.py --quick --check
	$(ROOT) $(BIN)/python bench/channels.py --check

bench-carriers: setup-dev ## all guests, links and carriers beside QEMU's own migrate and virsh (40 minutes)
	$(ROOT) $(BIN)/python bench/carriers.py --check

docs: ## the documentation, as HTML in docs/_build/html
	@scripts/setup docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

clean: ## remove what was built, but not .venv
	rm -rf build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf .venv
