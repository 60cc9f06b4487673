# SPDX-License-Identifier: GPL-2.0-or-later
# Everything runs in .venv, which is made when it is missing. `make help` tells the targets.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
COMPILED := build/compiled
MODULES := $(shell find src/vmaweld -name '*.py')

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

# A clone that was moved, or whose Python was upgraded, needs its .venv anew.
$(shell { [ "$$(cat $(READY) 2>/dev/null)" = "$(CURDIR)" ] && $(BIN)/python -c ''; } 2>/dev/null || rm -f $(READY))

.NOTPARALLEL:

.PHONY: help
help:  ## Tell the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: setup
setup: $(READY)  ## Make the virtual environment

$(READY): pyproject.toml setup.py
	@set -e; \
	for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
		$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
		python=; \
	done; \
	if [ -z "$$python" ]; then \
		echo "vmaweld needs Python 3.11 or later and found none: apt install python3 python3-venv (or make PYTHON=/path/to/python3)" >&2; \
		exit 1; \
	fi; \
	if ! $$python -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$$python cannot make virtual environments: apt install python3-venv" >&2; \
		exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$($$python --version) ..."; \
	[ -x $(BIN)/pip ] && $(BIN)/python -c '' 2>/dev/null || $$python -m venv --clear $(VENV); \
	$(BIN)/python -m pip install -q -e '.[test]'; \
	pwd > $@

.PHONY: study
study: $(READY)  ## Record examples/growing_buffers.py and say what merges
	@$(BIN)/vmaweld study --or-sample growing-buffers -- $(BIN)/python examples/growing_buffers.py

.PHONY: lint
lint: $(READY)  ## ruff, the arrows between the rooms, mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

.PHONY: test
test: lint test-compiled test-pure  ## All that CI checks: lint, the tests on the compiled build and on the pure one

.PHONY: test-pure
test-pure: $(READY)
	VMAWELD_EXPECT=pure $(BIN)/python -m pytest

.PHONY: test-compiled
test-compiled: $(COMPILED)/ready
	@if ls $(COMPILED)/vmaweld/model/merge.*.so >/dev/null 2>&1; then \
		set -x; VMAWELD_EXPECT=compiled PYTHONPATH="$(CURDIR)/$(COMPILED)" $(BIN)/python -m pytest; \
	else \
		echo "The compiled build is left out, there is no C compiler: apt install gcc libc6-dev python3-dev" >&2; \
		[ -z "$$CI" ]; \
	fi

.PHONY: compiled
compiled: $(COMPILED)/ready  ## Build the compiled modules into build/compiled

$(COMPILED)/ready: $(READY) $(MODULES)
	rm -rf $(COMPILED) build/temp
	$(BIN)/python setup.py -q build --build-lib $(COMPILED) --build-temp build/temp
	touch $@

.PHONY: bench
bench: $(COMPILED)/ready  ## The model against the running kernel and a compile, in under a minute
	$(BIN)/python benchmarks/model.py
	@echo
	$(BIN)/python benchmarks/recorded.py

.PHONY: bench-full
bench-full: $(COMPILED)/ready  ## All benchmarks: Chromium, growth, ten million events too (some minutes)
	$(BIN)/python benchmarks/model.py --rounds 15
	@echo
	$(BIN)/python benchmarks/recorded.py --full
	@echo
	$(BIN)/python benchmarks/growth.py
	@echo
	$(BIN)/python benchmarks/stream.py

.PHONY: bench-live
bench-live: $(READY)  ## Inspecting, welding and real programs on this machine (root)
	$(BIN)/python benchmarks/inspect_speed.py
	@echo
	$(BIN)/python -m benchmarks.weld
	@echo
	$(BIN)/python benchmarks/pauses.py
	@echo
	$(BIN)/python benchmarks/real_programs.py

.PHONY: plots
plots: $(COMPILED)/ready  ## Measure the growth and draw docs/growth-*.svg anew
	$(BIN)/python benchmarks/growth.py --plots docs

.PHONY: verify-long
verify-long: $(READY)  ## A million random events on the model and on the running kernel (root)
	$(BIN)/vmaweld verify --events 1000000

.PHONY: verify-guests
verify-guests: $(READY)  ## 50,000 random events each on other kernels in virtual machines
	for kernel in 5.10 6.1 6.12 6.16 6.17 7.2 7.3; do $(BIN)/vmaweld verify --guest $$kernel --events 50000 || exit; done

.PHONY: weld-guests
weld-guests: $(READY)  ## 1,000 random welds each on other kernels in virtual machines
	for kernel in 6.12 7.2; do \
		$(BIN)/python -m tests.weld_random --guest $$kernel --count 1000 --other 4 || exit; \
	done

.PHONY: weld-torture
weld-torture: $(READY)  ## An hour of welds in real programs that check their data, welders killed (root)
	$(BIN)/python -m tests.torture --minutes 60

.PHONY: fuzz
fuzz: $(READY)  ## A million inputs for every reader: traces, perf.data, strace's logs, scenarios (hours)
	$(BIN)/python -m pip install -q -e '.[fuzz]' || echo "atheris is not to be had: inputs at random instead" >&2
	for reader in scenario strace perf trace; do \
		$(BIN)/python -m tests.fuzz $$reader --inputs 1000000 --findings build/fuzz/$$reader || exit; \
	done

.PHONY: weld-races
weld-races: $(READY)  ## 1,000 times two welders on one process, and 1,000 times exec while a weld rests (root)
	$(BIN)/python -m tests.weld_races --count 1000

.PHONY: mutations
mutations: $(READY)  ## Negate each rule of the merge in turn: does a test notice?
	$(BIN)/python tests/mutations.py

.PHONY: samples
samples: $(READY)  ## Record the sample traces anew
	$(BIN)/python examples/record_samples.py

.PHONY: wheel
wheel: $(READY)  ## Build the wheel that users install, into dist/
	rm -rf build/lib* build/bdist*
	$(BIN)/python -m pip wheel -q --no-deps --wheel-dir dist .
	@ls -1t dist/*.whl | head -1

.PHONY: clean
clean:  ## Remove everything that the other targets have made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis .benchmarks src/*.egg-info
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
