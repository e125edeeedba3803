# Needs Python 3.11 to 3.13 with its venv module and a C compiler, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKS := $(wildcard containers/embedded/*.lock) containers/cuda.lock
READY := $(VENV)/.ready

# Many images set it, and then every process here compiles each module that it imports anew: seconds of each start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-fast test-faults test-upstream protocol check docs setup lock sbom audit licenses benchmark clean

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort

demo: $(READY)  ## run the whole DAG at profile tiny here, write the report, and release the family into .moxin/release
	@$(BIN)/moxin run --profile tiny
	@$(BIN)/moxin release --profile tiny
	@$(BIN)/moxin report --profile tiny
	@echo "watch it in the Prefect UI: $(BIN)/moxin status --password; stop the services: $(BIN)/moxin down"

# In the order of tests/conftest.py: by their number of tests the longest, which run the whole DAG, would come last, alone.
test: $(READY)  ## run all tests but upstream's, two files at a time
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 25 --durations-min 10

test-fast: $(READY)  ## run the unit and contract tests: no services, no training, no network
	$(BIN)/pytest -n 2 --dist loadfile --hypothesis-profile fast -m 'not upstream and not slow' tests/unit tests/contract

# TRIALS: of the campaign, of the protocol's model, and of each reader that is given damaged bytes; a tenth of them in containers and as
# Slurm's jobs, where there is an engine or a cluster. The campaign's first seed is SEED; each of its trials is a line of RESULTS, and one
# that ended well is not made again by the same code: it may be interrupted.
test-faults: export MOXIN_FAULT_TRIALS = $(or $(TRIALS),200)
test-faults: export MOXIN_FAULT_CONTAINERS = $(shell expr \( $(or $(TRIALS),200) + 9 \) / 10)
test-faults: export MOXIN_FAULT_ARRAYS = $(shell expr \( $(or $(TRIALS),200) + 9 \) / 10)
test-faults: export MOXIN_FAULT_SEED = $(or $(SEED),0)
test-faults: export MOXIN_FAULT_RESULTS = $(or $(RESULTS),.moxin/faults.jsonl)
test-faults: $(READY)  ## break things longer than `make test` does: TRIALS=200 of each, from SEED=0 on kind
	$(BIN)/pytest -s tests/fault/test_protocol.py tests/fault/test_damaged_bytes.py tests/fault/test_campaign.py \
		tests/launch/test_campaign_containers.py tests/launch/test_campaign_arrays.py

protocol:  ## look at every order of requests of publishing and collecting, with SPIN (Debian has it: spin, gcc)
	@d=$$(mktemp -d) && cd $$d && spin -a $(CURDIR)/tests/fault/protocol/publish.pml && gcc -O2 -DSAFETY -DCOLLAPSE -o pan pan.c \
		&& ./pan -m100000 | tee out | grep -E "errors|states, stored" && grep -q "errors: 0" out; r=$$?; rm -rf $$d; exit $$r

# open-instruct is on no package registry: without MOXIN_TEST_OPEN_INSTRUCT_SOURCE (a clone of it) its tests are skipped, and say how to get it
test-upstream: $(READY)  ## train with verl, AReaL and open-instruct themselves: three environments, some ten minutes each
	$(BIN)/pytest -m upstream

check: $(READY)  ## lint, types, layering, derived files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/moxin check

docs: $(READY)  ## build the documentation as a site: site/index.html, to be read without a server
	$(BIN)/mkdocs build --strict --quiet
	@echo site/index.html

setup: $(READY)  ## make the environment only

benchmark: $(READY)  ## measure the cost of orchestration on this machine
	$(BIN)/python -m benchmarks.orchestration

$(READY): $(LOCKS) containers/embedded/install.py pyproject.toml
	@$(PYTHON) -c 'import sys, venv, ensurepip; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: set PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python containers/embedded/install.py
	@touch $@

# Not $(READY): after a change of dependencies `setup` with the old locks ends in an error, until this has made new ones.
$(BIN)/uv:
	@$(MAKE) --no-print-directory setup || test -x $@

lock: $(BIN)/uv  ## make the locks anew from pyproject.toml; UPGRADE="name ..." or all takes newer versions
	$(BIN)/python containers/lock.py $(UPGRADE)

sbom: $(READY)  ## write a bill of materials (CycloneDX JSON) of every lock into sbom/; needs a package index
	$(BIN)/python -m containers.sbom sbom sbom

audit: $(READY)  ## look for known weaknesses of every locked package; says which database could not be reached
	$(BIN)/python -m containers.sbom audit

licenses: $(READY)  ## write docs/licenses.md anew from what is installed
	$(BIN)/python -m containers.sbom licenses

clean:  ## stop the services, remove the environment and everything that was made
	@test ! -x $(BIN)/moxin || $(BIN)/moxin down
	rm -rf $(VENV) .moxin .env
