# `make run` and `make test` need nothing but python3 (3.11 or newer, with venv), make and git; they make .venv themselves.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# most tests wait for real processes: three share two cores well
TEST_PROCESSES ?= 3
SOAK_SEEDS ?= 5000
MINUTES ?= 30
SEED ?= $(shell date +%s)
ARGUMENTS ?=

.DEFAULT_GOAL := help
.PHONY: help docs install run test test-long dist dist-test check mutants soak lab machines machines-quick vms vms-random vms-watchdog bench bench-quick lock clean
.DELETE_ON_ERROR:

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## for developers: make .venv with everything in it, linters too; machines get the package of `make dist`
	@echo "Muster is in $(BIN): try $(BIN)/muster --help"

# Made again when what is locked changes, or when the interpreter that it was made with is gone.
ifneq ($(shell $(BIN)/python -c 'print("works")' 2>/dev/null),works)
.PHONY: $(INSTALLED)
endif
$(INSTALLED): requirements-dev.lock pyproject.toml
	@python=; for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "Muster needs Python 3.11 or newer, and there is none: install it (apt-get install python3 python3-venv), or name" >&2; \
	    echo "one: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if ! $$python -c 'import venv, ensurepip' 2>/dev/null; then \
	    version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	    echo "$$python has no venv: install it with  apt-get install python$$version-venv  and run make again" >&2; exit 1; \
	fi; \
	echo "installing into $(VENV) ..."; \
	rm -rf $(VENV) && $$python -m venv $(VENV)
	@$(BIN)/pip install --quiet --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.lock
	@$(BIN)/pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

run: $(INSTALLED) ## three nodes keep a service running through the loss of one
	@$(BIN)/muster demo $(ARGUMENTS)

test: check ## check, then every test; ARGUMENTS go to pytest
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal -m "not soak and not long" $(ARGUMENTS)

test-long: $(INSTALLED) ## what `.ci/run` runs beside it: the lab (root, nft), measurements, certificates' ends, mutants of simulator and searches, larger searches, more random faults
	MUSTER_FAULT_ROUNDS=100 MUSTER_GROUP_ROUNDS=20 MUSTER_SIM_SEEDS=200 $(BIN)/python -m pytest -n 2 \
	    -m "long or (not soak and random_faults)" $(ARGUMENTS)

dist: $(INSTALLED) ## for machines: source archive, wheel and Debian package, into build/dist
	@$(BIN)/python distribution $(ARGUMENTS)

dist-test: dist ## the Debian package in a clean Debian root without network or compiler, as root (mmdebstrap)
	@sh distribution/trial.sh build/dist/*.deb "$$($(BIN)/muster --version)"

check: $(INSTALLED) ## style, types and import contracts, in seconds
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check --quiet || { echo "layout: run $(BIN)/ruff format" >&2; exit 1; }
	@$(BIN)/mypy
	@report=$$($(BIN)/lint-imports --no-cache 2>&1) || { echo "$$report" >&2; exit 1; }; echo "import contracts hold"

mutants: $(INSTALLED) ## dangerous one-line changes, each against the tests beside it; prints how many are noticed
	@$(BIN)/python tests/mutate.py $(ARGUMENTS)

soak: $(INSTALLED) ## the long campaigns: simulator seeds, the exhaustive search, tests marked soak
	$(BIN)/muster sim --seeds $(SOAK_SEEDS) --from 1
	$(BIN)/muster sim --exhaustive --nodes 3
	MUSTER_RANDOM_EXAMPLES=1 $(BIN)/python -m pytest -m "not soak and not long" tests/rules tests/records $(ARGUMENTS)
	$(BIN)/python -m pytest -m soak $(ARGUMENTS)
	MUSTER_GROUP_ROUNDS=200 $(BIN)/python -m pytest -n 2 tests/clusters/test_group_faults.py $(ARGUMENTS)

lab: $(INSTALLED) ## real daemons in network namespaces under random faults, as root: make lab MINUTES=30 SEED=1
	$(BIN)/python lab random --minutes $(MINUTES) --seed $(SEED) $(ARGUMENTS)

machines: dist ## three Debian systems under systemd-nspawn that lose power, links and storage, as root: make machines MINUTES=20 SEED=1
	$(BIN)/python machines --minutes $(MINUTES) --seed $(SEED) $(ARGUMENTS)

machines-quick: $(INSTALLED) ## the same with one boot, one power cut and one storage stall, of the package that is there, for `.ci/run`
	$(BIN)/python machines --short --seed $(SEED) $(ARGUMENTS)

vms: dist ## three virtual machines with the package: a boot, a power cut, a stall; as root, with QEMU
	$(BIN)/python -m lab.vms $(ARGUMENTS) short

vms-watchdog: dist ## two virtual machines, an emulated watchdog behind each lease; its figures: make vms-watchdog ARGUMENTS="--profile short"
	$(BIN)/python -m lab.vms $(ARGUMENTS) watchdog

vms-random: dist ## a random campaign on virtual machines: make vms-random MINUTES=20 SEED=1
	$(BIN)/python -m lab.vms $(ARGUMENTS) random --minutes $(MINUTES) --seed $(SEED)

bench: $(INSTALLED) ## measure on real daemons, every figure at least five times; about an hour
	@mkdir -p build && $(BIN)/python bench --scale whole --json build/bench.json $(ARGUMENTS)

bench-quick: $(INSTALLED) ## the same with fewer runs, within five minutes
	@mkdir -p build && $(BIN)/python bench --scale quick --json build/bench-quick.json $(ARGUMENTS)

docs: $(INSTALLED) ## write docs/COMMANDS.md from the commands, docs/INDEX.md from what cites what, docs/DIAGRAMS.md from the tables
	@$(BIN)/muster man --output docs --markdown
	@$(BIN)/python tests/citations.py
	@$(BIN)/python tests/diagrams.py

lock: ## write the lock files anew from pyproject.toml, with the newest releases
	@test -x .venv-lock/bin/pip-compile || { python3 -m venv .venv-lock && .venv-lock/bin/pip install --quiet pip-tools; }
	CUSTOM_COMPILE_COMMAND="make lock" .venv-lock/bin/pip-compile --quiet --upgrade --generate-hashes --strip-extras \
	    --no-emit-index-url --no-emit-find-links --no-emit-options --output-file requirements.lock pyproject.toml
	CUSTOM_COMPILE_COMMAND="make lock" .venv-lock/bin/pip-compile --quiet --upgrade --generate-hashes --strip-extras \
	    --no-emit-index-url --no-emit-find-links --no-emit-options --extra dev --allow-unsafe \
	    --output-file requirements-dev.lock pyproject.toml

clean: ## remove what make made
	rm -rf $(VENV) .venv-lock .mypy_cache .ruff_cache .hypothesis build dist src/*.egg-info
	find src tests bench lab distribution -name __pycache__ -type d -prune -exec rm -rf {} +
