# Needs Python 3.11 or newer with its venv module, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := containers/embedded/requirements.lock
READY := $(VENV)/.ready

.PHONY: help demo test test-upstream check setup lock benchmark clean

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort

demo: $(READY)  ## run the whole DAG at profile tiny here, and write the report
	@$(BIN)/moxin run --profile tiny
	@$(BIN)/moxin report --profile tiny
	@echo "watch it in the Prefect UI: $(BIN)/moxin status --password; stop the services: $(BIN)/moxin down"

test: $(READY)  ## run the tests
	$(BIN)/pytest

test-upstream: $(READY)  ## train with verl and AReaL themselves: two environments of gigabytes, some ten minutes each
	$(BIN)/pytest -m upstream

check: $(READY)  ## lint, types, layering, derived files
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/moxin check

setup: $(READY)  ## make the environment only

benchmark: $(READY)  ## measure the cost of orchestration on this machine
	$(BIN)/python -m benchmarks.orchestration

$(READY): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys, venv, ensurepip; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}: set PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked requirements into $(VENV) (about 3 minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(LOCK)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lock:  ## resolve requirements.in anew into the lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet -r containers/embedded/requirements.in
	(echo "# pip freeze of requirements.in on Python 3.11, Linux x86-64. torch has no local version: see README.md"; \
	  $(VENV)-lock/bin/python -m pip freeze --all | grep -v '^pip==' | sed 's/+cpu//') > $(LOCK)
	rm -rf $(VENV)-lock

clean:  ## stop the services, remove the environment and everything that was made
	@test ! -x $(BIN)/moxin || $(BIN)/moxin down
	rm -rf $(VENV) .moxin .env
